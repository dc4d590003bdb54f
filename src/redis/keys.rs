//! Where things are in Redis.
//!
//! `<namespace>:1:<schema>:{<cache>/<key>}` and then `:v` for the value, `:c` for the control record, `:s:<token>` for
//! a value on its way. The part in braces decides the slot in a cluster, so all of one key are in one place, under
//! every schema.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::coordinate::Group;

/// Of this layout; another one would have another number.
const LAYOUT: u8 = 1;

/// A key of more bytes is named by its digest, and stands in full beside its value.
const LONGEST_KEY: usize = 128;

/// Part of the names of locks, and not of any cache: it is no legal name of one.
pub(super) const LOCKS: &str = "~lock";

/// Between a cache's name and that of a group of its keys. No name of a cache has it.
pub(super) const GROUP_SIGN: char = '#';

/// The cache that an epoch is of, and the group if it is not of all of the cache.
pub(super) fn epoch_of(name: &str) -> (&str, Option<Group>) {
    match name.split_once(GROUP_SIGN) {
        Some((cache, group)) => (cache, u32::from_str_radix(group, 16).ok().map(Group)),
        None => (name, None),
    }
}

/// The prefix of a key's names in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(String);

impl Place {
    pub(super) fn new(namespace: &str, schema: u32, cache: &str, key: &[u8]) -> Self {
        let mut place = format!("{namespace}:{LAYOUT}:{schema}:{{{cache}/");
        if is_digested(key) {
            place.push('d');
            for byte in Sha256::digest(key) {
                // Writing to a string does not fail.
                let _ = write!(place, "{byte:02x}");
            }
        } else {
            place.push('k');
            for &byte in key {
                if byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}' | b'%') {
                    place.push(char::from(byte));
                } else {
                    let _ = write!(place, "%{byte:02x}");
                }
            }
        }
        place.push('}');
        Self(place)
    }

    pub(super) fn value(&self) -> String {
        format!("{}:v", self.0)
    }

    pub(super) fn control(&self) -> String {
        format!("{}:c", self.0)
    }

    pub(super) fn staged(&self, token: u64) -> String {
        format!("{}:s:{token}", self.0)
    }
}

/// True if the key's name does not tell the key.
pub(super) fn is_digested(key: &[u8]) -> bool {
    key.len() > LONGEST_KEY
}

pub(super) fn channel(namespace: &str) -> String {
    format!("{namespace}:ev")
}

pub(super) fn epochs(namespace: &str) -> String {
    format!("{namespace}:{LAYOUT}:epochs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &[u8]) -> String {
        Place::new("shop", 3, "products", key).0
    }

    /// The part that decides the slot, as Redis Cluster's specification finds it: from the first `{` to the first `}`
    /// after it.
    fn slot_part(name: &str) -> &str {
        let start = name.find('{').unwrap() + 1;
        &name[start..start + name[start..].find('}').unwrap()]
    }

    #[test]
    fn no_key_leaves_its_place() {
        assert_eq!(place(b"42"), "shop:1:3:{products/k42}");
        assert_eq!(place(b"}x"), "shop:1:3:{products/k%7dx}");
        assert_eq!(place(b"{a}%"), "shop:1:3:{products/k%7ba%7d%25}");
        assert_eq!(place(b""), "shop:1:3:{products/k}");
        assert_eq!(place(&[0, 255, b' ']), "shop:1:3:{products/k%00%ff%20}");
        let long = vec![b'}'; 10_240];
        for key in [&b"}x"[..], b"{a}", b"", &[255], &long] {
            let place = Place::new("shop", 3, "products", key);
            let other = Place::new("shop", 4, "products", key);
            let slot = slot_part(&place.0).to_string();
            assert!(slot.len() > "products/".len());
            for name in [place.value(), place.control(), place.staged(7), other.value()] {
                assert_eq!(slot_part(&name), slot);
            }
        }
    }

    #[test]
    fn long_keys_have_short_names_of_their_own() {
        let edge = vec![b'a'; LONGEST_KEY];
        assert!(place(&edge).contains("/kaaa"));
        let (mut one, mut two) = (edge.clone(), edge);
        one.push(b'1');
        two.push(b'2');
        assert_ne!(place(&one), place(&two));
        assert_eq!(place(&one).len(), "shop:1:3:{products/d}".len() + 64);
    }
}
