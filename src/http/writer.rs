//! Bytes of a key: every field carries its length, every repetition its count, so that no two lists of fields
//! give the same bytes.

/// The longest key that is used. A request whose key would be longer passes by.
pub(crate) const MAX_KEY_BYTES: usize = 8 * 1024;

/// The key would exceed [`MAX_KEY_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyTooLong;

/// Where a key is written, field by field, up to [`MAX_KEY_BYTES`].
pub(crate) struct KeyWriter {
    bytes: [u8; MAX_KEY_BYTES],
    filled: usize,
}

impl KeyWriter {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; MAX_KEY_BYTES], filled: 0 }
    }

    /// What has been written.
    pub(crate) fn written(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Forgets what has been written.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Bytes whose length is the same in every key.
    pub(crate) fn fixed<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), KeyTooLong> {
        self.place(N)?.copy_from_slice(&bytes);
        Ok(())
    }

    /// Bytes of any length, behind that length.
    pub(crate) fn field(&mut self, bytes: &[u8]) -> Result<(), KeyTooLong> {
        let length = counted(bytes.len())?;
        let (before, place) = self.place(length.len() + bytes.len())?.split_at_mut(length.len());
        before.copy_from_slice(&length);
        place.copy_from_slice(bytes);
        Ok(())
    }

    /// A field that may be absent, which is not the same as empty.
    pub(crate) fn optional(&mut self, bytes: Option<&[u8]>) -> Result<(), KeyTooLong> {
        self.fixed([u8::from(bytes.is_some())])?;
        bytes.map_or(Ok(()), |bytes| self.field(bytes))
    }

    /// How many fields, or groups of fields, follow.
    pub(crate) fn count(&mut self, count: usize) -> Result<(), KeyTooLong> {
        self.fixed(counted(count)?)
    }

    /// The place of the next bytes.
    fn place(&mut self, length: usize) -> Result<&mut [u8], KeyTooLong> {
        let start = self.filled;
        let place = self.bytes[start..].get_mut(..length).ok_or(KeyTooLong)?;
        self.filled += length;
        Ok(place)
    }
}

/// Two bytes hold every length that fits a key, and each thing counted takes at least one byte.
fn counted(count: usize) -> Result<[u8; 2], KeyTooLong> {
    const { assert!(MAX_KEY_BYTES <= u16::MAX as usize) };
    u16::try_from(count).map(u16::to_be_bytes).map_err(|_| KeyTooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut KeyWriter) -> Result<(), KeyTooLong>) -> Vec<u8> {
        let mut key = KeyWriter::new();
        key.field(b"left over").unwrap();
        key.clear();
        write(&mut key).unwrap();
        key.written().to_vec()
    }

    #[test]
    fn where_a_field_ends_is_part_of_the_bytes() {
        let one = written(|w| w.field(b"ab").and_then(|()| w.field(b"c")));
        let two = written(|w| w.field(b"a").and_then(|()| w.field(b"bc")));
        assert_eq!(one, b"\0\x02ab\0\x01c");
        assert_ne!(one, two);
    }

    #[test]
    fn absent_is_not_empty() {
        assert_ne!(written(|w| w.optional(None)), written(|w| w.optional(Some(b""))));
        // Nor is the next field taken for it.
        assert_ne!(
            written(|w| w.optional(None).and_then(|()| w.field(b""))),
            written(|w| w.optional(Some(b"")))
        );
    }

    #[test]
    fn the_cap_is_exact() {
        let mut key = KeyWriter::new();
        assert_eq!(key.field(&vec![0; MAX_KEY_BYTES - 1]), Err(KeyTooLong));
        assert_eq!(key.field(&vec![0; MAX_KEY_BYTES - 2]), Ok(()));
        assert_eq!(key.written().len(), MAX_KEY_BYTES);
        assert_eq!(key.fixed([0]), Err(KeyTooLong));
        key.clear();
        assert_eq!(key.count(70_000), Err(KeyTooLong));
        assert_eq!(key.written(), b"");
    }
}
