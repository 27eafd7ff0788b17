//! Packs what a person brings into the canonical tree: a tar.zst with sorted entries, named by the BLAKE3
//! digest of its bytes. The same source gives the same bytes. Called by the command line and by `kopek
//! control` before a site is created or deployed; nothing is written to the cell before this has succeeded.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use kopek_core::{Bytes, Digest};

use super::inventory::{Kind, Node};
use super::path::TreePath;
use super::source::{Source, SourceError};
use super::{Owners, SITE_OWNER, Symlinks};

#[derive(Debug, Clone)]
pub struct PackOptions {
    pub owners: Owners,
    pub symlinks: Symlinks,
    /// More than this, unpacked, is refused.
    pub limit: Bytes,
    /// Folder for the temporary copy that compressed archives need.
    pub spool: PathBuf,
}

impl PackOptions {
    /// For a site's tree; the temporary copy goes to TMPDIR.
    pub fn site(symlinks: Symlinks, limit: Bytes) -> PackOptions {
        PackOptions { owners: Owners::Site, symlinks, limit, spool: std::env::temp_dir() }
    }
}

/// How far it is. Called for each chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: Bytes,
    pub total: Bytes,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub files: u64,
    /// Of the files, unpacked.
    pub bytes: Bytes,
    /// Of the packed tree.
    pub packed_bytes: Bytes,
    pub digest: Digest,
    /// The single top-level folder of the archive that was taken away, for example `wordpress`.
    pub stripped: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{path}: {entry:?} changed while it was read; try again when nothing writes there")]
    Changed { path: PathBuf, entry: String },
    #[error("cannot write the packed tree: {0}")]
    Write(io::Error),
}

/// Packs `from` into `out`. On an error what was written to `out` is worthless.
pub fn pack_source(
    from: &Path,
    out: &mut dyn Write,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    let mut source = Source::open(from, options)?;
    let nodes = std::mem::take(&mut source.inventory.nodes);
    let mut first_names: Vec<Option<&TreePath>> = vec![None; source.inventory.contents.len()];
    let mut files = 0;
    let mut total = 0;
    for (path, node) in &nodes {
        if let Kind::File(content) = node.kind {
            files += 1;
            if first_names[content].is_none() {
                first_names[content] = Some(path);
                total += source.inventory.contents[content].bytes;
            }
        }
    }

    let sink = HashingWriter { inner: out, hasher: blake3::Hasher::new(), written: 0 };
    let mut encoder = zstd::Encoder::new(sink, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(PackError::Write)?;
    let mut done = 0;
    for (path, node) in &nodes {
        let mut header = header_of(node, options.owners);
        match &node.kind {
            Kind::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                write_header(&mut encoder, &mut header, path, b"").map_err(PackError::Write)?;
            }
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                write_header(&mut encoder, &mut header, path, target).map_err(PackError::Write)?;
            }
            Kind::File(content) => match first_names[*content] {
                Some(first) if first != path => {
                    header.set_entry_type(tar::EntryType::Link);
                    write_header(&mut encoder, &mut header, path, first.bytes()).map_err(PackError::Write)?;
                }
                _ => {
                    let bytes = source.inventory.contents[*content].bytes;
                    header.set_size(bytes);
                    write_header(&mut encoder, &mut header, path, b"").map_err(PackError::Write)?;
                    let mut note = |chunk: u64| {
                        done += chunk;
                        progress(Progress { done: Bytes(done), total: Bytes(total) });
                    };
                    copy_content(&mut source, *content, bytes, &mut encoder, &mut note)
                        .map_err(|fault| fault.explain(from, path))?;
                }
            },
        }
    }
    // POSIX: two zero blocks end an archive.
    encoder.write_all(&[0; 1024]).map_err(PackError::Write)?;
    let sink = encoder.finish().map_err(PackError::Write)?;
    sink.inner.flush().map_err(PackError::Write)?;
    let digest = Digest::parse(sink.hasher.finalize().to_hex().as_str()).expect("BLAKE3 gives 64 hex digits");
    Ok(Packed {
        files,
        bytes: Bytes(total),
        packed_bytes: Bytes(sink.written),
        digest,
        stripped: source.stripped,
    })
}

fn header_of(node: &Node, owners: Owners) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let (uid, gid, mode) = match owners {
        Owners::Site => (SITE_OWNER.into(), SITE_OWNER.into(), node.mode & 0o777),
        Owners::Kept => (node.uid, node.gid, node.mode),
    };
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mode(mode);
    header.set_mtime(node.mtime);
    header.set_size(0);
    header
}

/// Writes names byte for byte; those that do not fit in the header as GNU tar does it.
fn write_header(
    out: &mut impl Write,
    header: &mut tar::Header,
    path: &TreePath,
    link: &[u8],
) -> io::Result<()> {
    // Sizes of `name` and `linkname` in the header (POSIX ustar).
    const FIELD: usize = 100;
    for (kind, name) in [(b'K', link), (b'L', path.bytes())] {
        if name.len() > FIELD {
            let mut long = tar::Header::new_gnu();
            long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
            long.set_entry_type(tar::EntryType::new(kind));
            long.set_size(name.len() as u64 + 1);
            long.set_mode(0);
            long.set_uid(0);
            long.set_gid(0);
            long.set_mtime(0);
            long.set_cksum();
            out.write_all(long.as_bytes())?;
            out.write_all(name)?;
            out.write_all(&[0; 512][..512 - name.len() % 512])?;
        }
    }
    let old = header.as_old_mut();
    for (field, name) in [(&mut old.name, path.bytes()), (&mut old.linkname, link)] {
        let fits = name.len().min(FIELD);
        field[..fits].copy_from_slice(&name[..fits]);
    }
    header.set_cksum();
    out.write_all(header.as_bytes())
}

enum CopyFault {
    Read(io::Error),
    Changed,
    Write(io::Error),
}

impl CopyFault {
    fn explain(self, from: &Path, path: &TreePath) -> PackError {
        let (from, entry) = (from.to_owned(), path.to_string());
        match self {
            CopyFault::Write(error) => PackError::Write(error),
            CopyFault::Changed if from.is_dir() => PackError::Changed { path: from, entry },
            CopyFault::Changed => {
                SourceError::Corrupt { path: from, what: format!("{entry:?} has another size than stated") }
                    .into()
            }
            CopyFault::Read(source) if from.is_dir() => {
                SourceError::Unreadable { path: from.join(path.as_path()), source }.into()
            }
            CopyFault::Read(error) => {
                SourceError::Corrupt { path: from, what: format!("{entry:?}: {error}") }.into()
            }
        }
    }
}

fn copy_content(
    source: &mut Source,
    index: usize,
    bytes: u64,
    out: &mut impl Write,
    note: &mut dyn FnMut(u64),
) -> Result<(), CopyFault> {
    let mut content = source.content(index).map_err(CopyFault::Read)?;
    let mut buffer = vec![0; 128 << 10];
    let mut left = bytes;
    loop {
        let got = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyFault::Read(error)),
        };
        left = left.checked_sub(got as u64).ok_or(CopyFault::Changed)?;
        out.write_all(&buffer[..got]).map_err(CopyFault::Write)?;
        note(got as u64);
    }
    if left > 0 {
        return Err(CopyFault::Changed);
    }
    let padding = (bytes.next_multiple_of(512) - bytes) as usize;
    out.write_all(&[0; 512][..padding]).map_err(CopyFault::Write)
}

struct HashingWriter<'a> {
    inner: &'a mut dyn Write,
    hasher: blake3::Hasher,
    written: u64,
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wrote = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..wrote]);
        self.written += wrote as u64;
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
