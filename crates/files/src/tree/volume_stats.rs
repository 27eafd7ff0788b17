//! How many files a volume holds, and their bytes. For reports: what appears or goes during the walk may or
//! may not be counted.

use std::path::Path;

use kopek_core::Bytes;
use walkdir::WalkDir;

/// Counts regular files below `dir`, following nothing. An absent folder holds nothing.
pub fn volume_stats(dir: &Path) -> (u64, Bytes) {
    let metas = WalkDir::new(dir).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    let (files, bytes) = metas
        .filter(|meta| meta.is_file())
        .fold((0, 0), |(files, bytes), meta| (files + 1, bytes + meta.len()));
    (files, Bytes(bytes))
}
