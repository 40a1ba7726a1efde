//! Numbers in bytes, little-endian. Reading past the end gives `None`.

use xxhash_rust::xxh3;

/// The rest of some bytes that are being read.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub fn u128(&mut self) -> Option<u128> {
        self.bytes().map(u128::from_le_bytes)
    }

    /// All that is left, as 4-byte numbers; `None` if something would be left over.
    pub fn all_u32(self) -> Option<Vec<u32>> {
        let (chunks, rest) = self.0.as_chunks::<4>();
        rest.is_empty().then(|| chunks.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// All that is left, as 8-byte numbers; `None` if something would be left over.
    pub fn all_u64(self) -> Option<Vec<u64>> {
        let (chunks, rest) = self.0.as_chunks::<8>();
        rest.is_empty().then(|| chunks.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
    }
}

/// Of everything that is checked.
pub fn checksum(bytes: &[u8], seed: u64) -> u64 {
    xxh3::xxh3_64_with_seed(bytes, seed)
}
