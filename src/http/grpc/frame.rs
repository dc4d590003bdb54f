//! Length-prefixed messages: a byte that says whether the message is compressed, four that say how long it is, and the
//! message.

/// The bytes before each message.
pub(crate) const PREFIX: usize = 5;

/// Where a stream of bytes stands that ought to be one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Its end is yet to come.
    Partial,
    /// It is whole. Any byte more is another.
    Whole,
    /// It is too long, is followed by more, or is no message.
    Other,
}

/// Follows a stream of bytes as it comes, in pieces of any size. Keeps none of them.
#[derive(Debug)]
pub(crate) struct OneMessage {
    prefix: [u8; PREFIX],
    seen: u64,
    cap: u64,
}

impl OneMessage {
    /// One message of at most `cap` bytes, its prefix included.
    pub(crate) fn within(cap: u64) -> Self {
        Self { prefix: [0; PREFIX], seen: 0, cap }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Stand {
        let missing = PREFIX.saturating_sub(usize::try_from(self.seen).unwrap_or(PREFIX));
        let start = PREFIX - missing;
        let taken = missing.min(piece.len());
        self.prefix[start..start + taken].copy_from_slice(&piece[..taken]);
        self.seen = self.seen.saturating_add(piece.len() as u64);
        self.stand()
    }

    pub(crate) fn stand(&self) -> Stand {
        let [compressed, length @ ..] = self.prefix;
        let whole = PREFIX as u64 + u64::from(u32::from_be_bytes(length));
        match self.seen {
            0 => Stand::Partial,
            _ if compressed > 1 || self.seen > self.cap => Stand::Other,
            seen if seen < PREFIX as u64 => Stand::Partial,
            _ if whole > self.cap => Stand::Other,
            seen if seen < whole => Stand::Partial,
            seen if seen == whole => Stand::Whole,
            _ => Stand::Other,
        }
    }
}

/// Whether these pieces are one message and nothing else.
pub(crate) fn is_one_message<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut message = OneMessage::within(u64::MAX);
    for piece in pieces {
        message.push(piece);
    }
    message.stand() == Stand::Whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the pieces come to, by their bytes put together.
    fn expected(bytes: &[u8], cap: usize) -> Stand {
        let Some(compressed) = bytes.first() else { return Stand::Partial };
        if *compressed > 1 || bytes.len() > cap {
            return Stand::Other;
        }
        let Some((prefix, message)) = bytes.split_at_checked(PREFIX) else { return Stand::Partial };
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
        if PREFIX + length > cap {
            return Stand::Other;
        }
        match message.len().cmp(&length) {
            std::cmp::Ordering::Less => Stand::Partial,
            std::cmp::Ordering::Equal => Stand::Whole,
            std::cmp::Ordering::Greater => Stand::Other,
        }
    }

    fn message_like() -> impl Strategy<Value = Vec<u8>> {
        (0..3_u8, 0..20_u32, proptest::collection::vec(any::<u8>(), 0..24)).prop_map(
            |(compressed, length, message)| [&[compressed][..], &length.to_be_bytes(), &message].concat(),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_come_to_what_their_bytes_are(
            bytes in prop_oneof![message_like(), proptest::collection::vec(any::<u8>(), 0..40)],
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..4),
            cap in 0..32_usize,
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut message = OneMessage::within(cap as u64);
            for cut in cuts.windows(2) {
                let stand = message.push(&bytes[cut[0]..cut[1]]);
                prop_assert_eq!(stand, expected(&bytes[..cut[1]], cap));
            }
        }
    }

    #[test]
    fn one_message_is_whole_at_its_last_byte() {
        let bytes = [0, 0, 0, 0, 2, 8, 9];
        assert!(is_one_message([&bytes[..]]));
        assert!(is_one_message([&bytes[..3], &[], &bytes[3..]]));
        assert!(is_one_message([&[1, 0, 0, 0, 0][..]]));
        assert!(!is_one_message([&bytes[..6]]));
        assert!(!is_one_message([&bytes[..], &[0]]));
        assert!(!is_one_message([&[2, 0, 0, 0, 0][..]]));
        assert!(!is_one_message([]));
    }

    #[test]
    fn the_cap_counts_the_prefix_and_is_exact() {
        let bytes = [0, 0, 0, 0, 2, 8, 9];
        assert_eq!(OneMessage::within(7).push(&bytes), Stand::Whole);
        assert_eq!(OneMessage::within(6).push(&bytes[..5]), Stand::Other);
    }
}
