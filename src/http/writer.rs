//! Bytes of a key: every field carries its length, every repetition its count, so that no two lists of fields
//! give the same bytes.

/// The longest key that is used. A request whose key would be longer passes by.
pub(crate) const MAX_KEY_BYTES: usize = 8 * 1024;

/// The key would exceed [`MAX_KEY_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyTooLong;

/// Appends fields to a buffer, up to [`MAX_KEY_BYTES`].
pub(crate) struct KeyWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> KeyWriter<'a> {
    /// A writer at the start of `out`, whose former content is dropped and whose capacity is kept.
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        out.clear();
        Self { out }
    }

    /// Bytes whose length is the same in every key.
    pub(crate) fn fixed<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), KeyTooLong> {
        self.append(&bytes)
    }

    /// Bytes of any length, behind that length.
    pub(crate) fn field(&mut self, bytes: &[u8]) -> Result<(), KeyTooLong> {
        let length = counted(bytes.len())?;
        if length.len() + bytes.len() > MAX_KEY_BYTES - self.out.len() {
            return Err(KeyTooLong);
        }
        self.out.extend_from_slice(&length);
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// A field that may be absent, which is not the same as empty.
    pub(crate) fn optional(&mut self, bytes: Option<&[u8]>) -> Result<(), KeyTooLong> {
        self.fixed([u8::from(bytes.is_some())])?;
        bytes.map_or(Ok(()), |bytes| self.field(bytes))
    }

    /// How many fields, or groups of fields, follow.
    pub(crate) fn count(&mut self, count: usize) -> Result<(), KeyTooLong> {
        self.append(&counted(count)?)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), KeyTooLong> {
        if bytes.len() > MAX_KEY_BYTES - self.out.len() {
            return Err(KeyTooLong);
        }
        self.out.extend_from_slice(bytes);
        Ok(())
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

    fn written(write: impl FnOnce(&mut KeyWriter<'_>) -> Result<(), KeyTooLong>) -> Vec<u8> {
        let mut out = b"left over".to_vec();
        write(&mut KeyWriter::new(&mut out)).unwrap();
        out
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
        let mut out = Vec::new();
        assert_eq!(KeyWriter::new(&mut out).field(&vec![0; MAX_KEY_BYTES - 2]), Ok(()));
        assert_eq!(out.len(), MAX_KEY_BYTES);
        assert_eq!(KeyWriter::new(&mut out).field(&vec![0; MAX_KEY_BYTES - 1]), Err(KeyTooLong));
        assert_eq!(KeyWriter::new(&mut out).count(70_000), Err(KeyTooLong));
    }
}
