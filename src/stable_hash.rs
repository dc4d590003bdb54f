//! A hash that is the same in every process and every build, which `std`'s hashers do not promise.

/// FNV-1a, 64 bits. For what nobody gains by making two inputs of one hash.
pub(crate) struct Fnv1a(pub(crate) u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The hash of `bytes`, folded: its low bits depend on all of it, for sorting into a few groups.
pub(crate) fn folded(bytes: &[u8]) -> u64 {
    let mut hash = Fnv1a::default();
    hash.write(bytes);
    hash.0 ^ (hash.0 >> 32)
}
