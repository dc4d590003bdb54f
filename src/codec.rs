//! How a value becomes bytes that other instances can read.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Turns values into bytes for a tier that instances share, and back.
///
/// Bytes that come back are untrusted input: whatever [`decode`](Self::decode) refuses is a miss, never an error
/// of the caller. To panic is to refuse.
///
/// ```
/// use stampede_guard::{Codec, CodecError};
///
/// struct Utf8;
///
/// impl Codec<String> for Utf8 {
///     fn id(&self) -> u8 {
///         200
///     }
///
///     fn encode(&self, value: &String, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         out.extend_from_slice(value.as_bytes());
///         Ok(())
///     }
///
///     fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
///         std::str::from_utf8(bytes).map(str::to_string).map_err(CodecError::new)
///     }
/// }
/// # let mut out = Vec::new();
/// # Utf8.encode(&"a".into(), &mut out).unwrap();
/// # assert_eq!(Utf8.decode(&out).unwrap(), "a");
/// ```
pub trait Codec<V>: Send + Sync + 'static {
    /// The format's number, kept with each value: bytes of another format are a miss. 0 to 127 are this crate's.
    fn id(&self) -> u8;

    /// Appends `value`'s bytes to `out`.
    ///
    /// # Errors
    ///
    /// If the value has no form in this format. It is then not shared.
    fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// The value that [`encode`](Self::encode) made `bytes` of. Must not allocate more than in proportion to them.
    ///
    /// # Errors
    ///
    /// If `bytes` are no such value.
    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError>;
}

/// A value that has no form in a format, or bytes that are no value.
#[derive(Debug, thiserror::Error)]
#[error("the value could not be converted for the shared tier")]
pub struct CodecError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl CodecError {
    /// Wraps what the format's own library says.
    pub fn new(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(why.into())
    }
}

/// The default [`Codec`]: [postcard](https://docs.rs/postcard), for whatever serde can read and write.
///
/// Its wire format is specified and has been stable since postcard 1.0; integers take as few bytes as they need and
/// names of fields take none. So a field that is added, dropped or moved is another format: change
/// [`schema`](crate::StampedeCacheBuilder::schema) with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostcardCodec;

impl<V: Serialize + DeserializeOwned> Codec<V> for PostcardCodec {
    fn id(&self) -> u8 {
        1
    }

    fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        // `to_extend` hands the vector back; on an error the little it had is lost with it.
        *out = postcard::to_extend(value, std::mem::take(out)).map_err(CodecError::new)?;
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError> {
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(CodecError::new("bytes are left over")),
            Err(error) => Err(CodecError::new(error)),
        }
    }
}

impl<V: 'static> fmt::Debug for dyn Codec<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").field("id", &self.id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Wide = (u64, Option<String>, Vec<Vec<u8>>);

    fn coded(value: &Wide) -> Vec<u8> {
        let mut out = vec![9];
        PostcardCodec.encode(value, &mut out).unwrap();
        assert_eq!(out[0], 9, "what was there stays");
        out.split_off(1)
    }

    #[test]
    fn a_value_comes_back_as_it_was_and_a_damaged_one_does_not_come_back() {
        let value: Wide = (1 << 40, Some("é".into()), vec![vec![1, 2], vec![]]);
        let bytes = coded(&value);
        assert_eq!(Codec::<Wide>::decode(&PostcardCodec, &bytes).unwrap(), value);
        for end in 0..bytes.len() {
            let cut: Result<Wide, _> = PostcardCodec.decode(&bytes[..end]);
            assert!(cut.is_err(), "{end}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Codec::<Wide>::decode(&PostcardCodec, &longer).is_err());
    }

    #[test]
    fn a_length_that_is_a_lie_allocates_nothing_like_it() {
        // A list of 2^62 bytes, says its first number.
        let lie = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f];
        assert!(Codec::<Vec<u8>>::decode(&PostcardCodec, &lie).is_err());
        assert!(Codec::<Vec<u64>>::decode(&PostcardCodec, &lie).is_err());
    }
}
