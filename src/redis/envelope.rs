//! A value as it lies in Redis: 40 bytes that say what it is, then itself.
//!
//! | bytes | what, numbers big-endian |
//! |---|---|
//! | 0 | 0xc5 |
//! | 1 | format of the envelope: 1 |
//! | 2 | flags: 1 compressed, 2 with its key, 4 in groups |
//! | 3 | codec |
//! | 4..8 | schema |
//! | 8..16 | token |
//! | 16..20 | ms it is fresh |
//! | 20..24 | ms it lives |
//! | 24..28 | ms its load took |
//! | 28..32 | bytes that follow the header |
//! | 32..36 | ms it may be served while a load replaces it, after its freshness |
//! | 36..40 | ms it may be served if a load fails, after its freshness |
//!
//! With its key: the key's length in 4 bytes and the key come first. In groups: how many, in 2 bytes, and 4 bytes for
//! each. Compressed: the length of the rest in 4 bytes, and the rest as an LZ4 block. The scripts read the first 32 bytes.
//! A negative result is a value like any other, with a life of its own.
//! It holds durations and no instants: a value's age is what it lives less what Redis
//! says is left. Whatever is read is untrusted: it is checked before anything is allocated for it.

use std::time::Duration;

use super::keys::is_digested;
use crate::coordinate::{Group, Publication};

pub(super) const HEADER: usize = 40;
const MAGIC: u8 = 0xc5;
const FORMAT: u8 = 1;
const COMPRESSED: u8 = 1;
const WITH_KEY: u8 = 2;
const IN_GROUPS: u8 = 4;
/// What is in more groups is not shared.
const MOST_GROUPS: usize = 4_096;

/// Bounds on what is written and read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// What may follow the header, the key aside.
    pub(super) bytes: usize,
    /// What is longer is compressed.
    pub(super) compress_over: Option<usize>,
}

impl Bounds {
    /// The bytes to ask for, so that an oversized value is seen as such.
    pub(super) fn to_read(self, key: &[u8]) -> usize {
        HEADER + self.bytes + key.len() + 4 * MOST_GROUPS + 11
    }
}

/// What an envelope held.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) payload: Vec<u8>,
    pub(super) codec: u8,
    pub(super) token: u64,
    pub(super) cost: Duration,
    pub(super) lives: Duration,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) groups: Vec<Group>,
}

/// What was read is not what was written under this key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// 49 days at most.
pub(super) fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// `None` if it is too large.
pub(super) fn seal(
    key: &[u8],
    schema: u32,
    token: u64,
    what: &Publication,
    bounds: Bounds,
) -> Option<Vec<u8>> {
    let mut flags = 0;
    let mut sealed = vec![0; HEADER];
    if is_digested(key) {
        flags |= WITH_KEY;
        sealed.extend_from_slice(&u32::try_from(key.len()).ok()?.to_be_bytes());
        sealed.extend_from_slice(key);
    }
    if !what.groups.is_empty() {
        if what.groups.len() > MOST_GROUPS {
            return None;
        }
        flags |= IN_GROUPS;
        sealed.extend_from_slice(&u16::try_from(what.groups.len()).ok()?.to_be_bytes());
        what.groups.iter().for_each(|group| sealed.extend_from_slice(&group.0.to_be_bytes()));
    }
    let before = sealed.len();
    if bounds.compress_over.is_some_and(|limit| what.payload.len() > limit) {
        let squeezed = lz4_flex::block::compress(&what.payload);
        if squeezed.len() + 4 < what.payload.len() {
            flags |= COMPRESSED;
            sealed.extend_from_slice(&u32::try_from(what.payload.len()).ok()?.to_be_bytes());
            sealed.extend_from_slice(&squeezed);
        }
    }
    if flags & COMPRESSED == 0 {
        sealed.extend_from_slice(&what.payload);
    }
    if sealed.len() - before > bounds.bytes {
        return None;
    }
    let length = u32::try_from(sealed.len() - HEADER).ok()?;
    sealed[..4].copy_from_slice(&[MAGIC, FORMAT, flags, what.codec]);
    sealed[4..8].copy_from_slice(&schema.to_be_bytes());
    sealed[8..16].copy_from_slice(&token.to_be_bytes());
    sealed[16..20].copy_from_slice(&millis(what.fresh).to_be_bytes());
    sealed[20..24].copy_from_slice(&millis(what.lives()).to_be_bytes());
    sealed[24..28].copy_from_slice(&millis(what.cost).to_be_bytes());
    sealed[28..32].copy_from_slice(&length.to_be_bytes());
    sealed[32..36].copy_from_slice(&millis(what.stale_while_revalidate).to_be_bytes());
    sealed[36..40].copy_from_slice(&millis(what.stale_if_error).to_be_bytes());
    Some(sealed)
}

fn number(bytes: &[u8]) -> Result<u32, Malformed> {
    Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?))
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Malformed> {
    bytes.split_at_checked(at).ok_or(Malformed)
}

pub(super) fn open(key: &[u8], schema: u32, sealed: &[u8], bounds: Bounds) -> Result<Opened, Malformed> {
    let (header, mut rest) = split(sealed, HEADER)?;
    let [MAGIC, FORMAT, flags, codec] = header[..4] else { return Err(Malformed) };
    if flags & !(COMPRESSED | WITH_KEY | IN_GROUPS) != 0
        || number(&header[4..8])? != schema
        || number(&header[28..32])? as usize != rest.len()
        || (flags & WITH_KEY != 0) != is_digested(key)
    {
        return Err(Malformed);
    }
    let token = u64::from_be_bytes(header[8..16].try_into().map_err(|_| Malformed)?);
    if flags & WITH_KEY != 0 {
        let (length, after) = split(rest, 4)?;
        let (found, after) = split(after, number(length)? as usize)?;
        if found != key {
            return Err(Malformed);
        }
        rest = after;
    }
    let mut groups = Vec::new();
    if flags & IN_GROUPS != 0 {
        let (count, after) = split(rest, 2)?;
        let count = usize::from(u16::from_be_bytes(count.try_into().map_err(|_| Malformed)?));
        let (found, after) = split(after, 4 * count)?;
        if count > MOST_GROUPS {
            return Err(Malformed);
        }
        groups = found.chunks_exact(4).map(|group| number(group).map(Group)).collect::<Result<_, _>>()?;
        rest = after;
    }
    if rest.len() > bounds.bytes {
        return Err(Malformed);
    }
    let payload = if flags & COMPRESSED == 0 {
        rest.to_vec()
    } else {
        let (length, squeezed) = split(rest, 4)?;
        let length = number(length)? as usize;
        // LZ4 does not get below one byte for 255.
        if length > squeezed.len().saturating_mul(255) {
            return Err(Malformed);
        }
        let mut payload = vec![0; length];
        match lz4_flex::block::decompress_into(squeezed, &mut payload) {
            Ok(written) if written == length => payload,
            _ => return Err(Malformed),
        }
    };
    let span = |at: usize| number(&header[at..at + 4]).map(|ms| Duration::from_millis(u64::from(ms)));
    Ok(Opened {
        payload,
        codec,
        token,
        cost: span(24)?,
        lives: span(20)?,
        stale_while_revalidate: span(32)?,
        stale_if_error: span(36)?,
        groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1_000, compress_over: Some(100) };

    fn publication(payload: &[u8]) -> Publication {
        Publication {
            payload: payload.to_vec(),
            codec: 7,
            fresh: Duration::from_secs(1),
            stale_while_revalidate: Duration::from_millis(500),
            stale_if_error: Duration::from_secs(2),
            cost: Duration::from_millis(20),
            groups: vec![Group(7), Group(u32::MAX)],
        }
    }

    /// A payload that does not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_was_sealed_is_what_is_opened() {
        let long_key = vec![b'k'; 500];
        for key in [&b"k"[..], b"", &long_key] {
            for payload in [vec![], vec![1, 2, 3], vec![5; 900], noise(900)] {
                let sealed = seal(key, 9, 77, &publication(&payload), BOUNDS).unwrap();
                assert!(sealed.len() <= BOUNDS.to_read(key));
                assert_eq!(sealed.len() < 500 + key.len(), payload.len() < 10 || payload[0] == 5);
                let opened = open(key, 9, &sealed, BOUNDS).unwrap();
                let expected = Opened {
                    payload,
                    codec: 7,
                    token: 77,
                    cost: Duration::from_millis(20),
                    lives: Duration::from_secs(3),
                    stale_while_revalidate: Duration::from_millis(500),
                    stale_if_error: Duration::from_secs(2),
                    groups: vec![Group(7), Group(u32::MAX)],
                };
                assert_eq!(opened, expected);
            }
        }
    }

    #[test]
    fn a_value_over_the_limit_is_not_sealed() {
        assert!(seal(b"k", 0, 1, &publication(&noise(1_000)), BOUNDS).is_some());
        assert!(seal(b"k", 0, 1, &publication(&noise(1_001)), BOUNDS).is_none());
    }

    #[test]
    fn what_is_damaged_or_foreign_is_refused() {
        let long_key = vec![b'k'; 500];
        let other_key = vec![b'l'; 500];
        for payload in [vec![1, 2, 3], vec![5; 900]] {
            for key in [&b"k"[..], &long_key] {
                let sealed = seal(key, 9, 77, &publication(&payload), BOUNDS).unwrap();
                for end in 0..sealed.len() {
                    assert_eq!(open(key, 9, &sealed[..end], BOUNDS), Err(Malformed), "{end}");
                }
                let mut longer = sealed.clone();
                longer.push(0);
                assert_eq!(open(key, 9, &longer, BOUNDS), Err(Malformed));
                assert_eq!(open(key, 8, &sealed, BOUNDS), Err(Malformed), "another schema");
                let tight = Bounds { bytes: 2, ..BOUNDS };
                assert_eq!(open(key, 9, &sealed, tight), Err(Malformed), "over the limit");
                // Whatever byte is wrong, it does not panic. One of the first three is seen, but for the bits that say
                // that the rest is compressed or begins with groups, which are the codec's to see.
                for at in 0..sealed.len() {
                    for bit in 0..8 {
                        let mut damaged = sealed.clone();
                        damaged[at] ^= 1 << bit;
                        let opened = open(key, 9, &damaged, BOUNDS);
                        let is_left = at >= 3 || (at == 2 && matches!(bit, 0 | 2));
                        assert!(is_left || opened.is_err(), "{at} {bit}");
                    }
                }
            }
        }
        let sealed = seal(&long_key, 9, 77, &publication(b"x"), BOUNDS).unwrap();
        assert_eq!(open(&other_key, 9, &sealed, BOUNDS), Err(Malformed), "another key of the same digest");
    }

    #[test]
    fn a_length_that_is_a_lie_allocates_nothing_like_it() {
        let alone = Publication { groups: Vec::new(), ..publication(&[5; 900]) };
        let mut sealed = seal(b"k", 0, 1, &alone, BOUNDS).unwrap();
        sealed[HEADER..HEADER + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(open(b"k", 0, &sealed, BOUNDS), Err(Malformed));
        let mut sealed = seal(b"k", 0, 1, &publication(b"x"), BOUNDS).unwrap();
        sealed[HEADER..HEADER + 2].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(open(b"k", 0, &sealed, BOUNDS), Err(Malformed));
        let crowd = Publication { groups: vec![Group(0); MOST_GROUPS + 1], ..publication(b"x") };
        assert_eq!(seal(b"k", 0, 1, &crowd, BOUNDS), None);
    }

    /// The layout that every version must be able to read.
    #[test]
    fn the_first_format_stays_as_it_is() {
        let sealed = seal(b"k", 0x0102_0304, 0x0506, &publication(b"pay"), BOUNDS).unwrap();
        let expected = b"\xc5\x01\x04\x07\x01\x02\x03\x04\0\0\0\0\0\0\x05\x06\
            \0\0\x03\xe8\0\0\x0b\xb8\0\0\0\x14\0\0\0\x0d\0\0\x01\xf4\0\0\x07\xd0\
            \0\x02\0\0\0\x07\xff\xff\xff\xffpay";
        assert_eq!(sealed, expected);
    }
}
