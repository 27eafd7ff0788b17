//! What may still be read of a source. Counted while reading, so that a bomb ends early; never by what an archive
//! claims about itself alone. Spent by `source`, `tarball` and `apply`.

use kopek_core::Bytes;

pub(crate) struct Budget {
    bytes_left: u64,
    entries_left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    #[error("more than {} entries", Budget::ENTRIES_MAX)]
    Entries,
    #[error("more bytes than allowed")]
    Bytes,
}

impl Budget {
    pub const ENTRIES_MAX: u64 = 5_000_000;

    pub fn new(limit: Bytes) -> Budget {
        Budget { bytes_left: limit.0, entries_left: Self::ENTRIES_MAX }
    }

    pub fn entry(&mut self, bytes: u64) -> Result<(), Exceeded> {
        self.entries_left = self.entries_left.checked_sub(1).ok_or(Exceeded::Entries)?;
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(Exceeded::Bytes)?;
        Ok(())
    }
}
