//! Where a site's files come from: a folder or an archive, packed to one tree. Called by `site create` and
//! `site deploy`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kopek_core::Bytes;
use kopek_files::{PackOptions, Packed, Symlinks, pack_source};

use super::output::bytes_bar;

#[derive(Args)]
pub struct SourceArgs {
    /// A folder, or a .zip, .tar, .tar.gz or .tar.zst archive
    #[arg(long, value_name = "DIR|ARCHIVE")]
    from: PathBuf,
    /// Take what symbolic links in the folder point to
    #[arg(long)]
    follow_links: bool,
}

impl SourceArgs {
    /// As it is sent to the cell.
    pub fn pack(&self) -> Result<PackedFile> {
        let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        let free =
            rustix::fs::statvfs(file.path()).map(|stat| stat.f_bavail * stat.f_frsize).unwrap_or(u64::MAX);
        let symlinks = if self.follow_links { Symlinks::Follow } else { Symlinks::Within };
        let options = PackOptions::site(symlinks, Bytes(free));
        let bar = bytes_bar(0, "packing");
        let packed = pack_source(&self.from, file.as_file_mut(), &options, &mut |progress| {
            bar.set_length(progress.total.0);
            bar.set_position(progress.done.0);
        });
        bar.finish_and_clear();
        Ok(PackedFile { tree: packed?, file })
    }
}

/// A packed tree in a temporary file.
pub struct PackedFile {
    pub file: tempfile::NamedTempFile,
    pub tree: Packed,
}

impl PackedFile {
    pub fn size(&self) -> Result<Bytes> {
        Ok(Bytes(self.file.as_file().metadata()?.len()))
    }
}
