//! Reads a packed tree and knows at its end whether it was the one that its digest names.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use kopek_core::Digest;

use super::tarball::TarReader;

type Decoded = zstd::Decoder<'static, BufReader<HashingReader>>;

/// The tar inside, to be read with `tar`, then judged with `is`.
pub(crate) struct PackedReader {
    pub tar: TarReader<BufReader<Decoded>>,
}

impl PackedReader {
    pub fn open(packed: &Path) -> io::Result<PackedReader> {
        let hashing = HashingReader { inner: File::open(packed)?, hasher: blake3::Hasher::new() };
        let decoded = zstd::Decoder::with_buffer(BufReader::with_capacity(128 << 10, hashing))?;
        Ok(PackedReader { tar: TarReader::new(BufReader::with_capacity(128 << 10, decoded)) })
    }

    /// Reads what is left and tells whether all that was read is the tree of this digest.
    pub fn is(self, digest: &Digest) -> io::Result<bool> {
        let mut rest = self.tar.into_inner().into_inner().finish();
        io::copy(&mut rest, &mut io::sink())?;
        Ok(rest.into_inner().hasher.finalize().to_hex().as_str() == digest.as_str())
    }
}

/// Whether the file is the tree of this digest, without unpacking it.
pub(crate) fn is_whole(packed: &Path, digest: &Digest) -> io::Result<bool> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(packed)?)?;
    Ok(hasher.finalize().to_hex().as_str() == digest.as_str())
}

pub(crate) struct HashingReader {
    inner: File,
    hasher: blake3::Hasher,
}

impl Read for HashingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        Ok(got)
    }
}
