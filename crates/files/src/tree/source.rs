//! What a person brings: a folder, or a .zip, .tar, .tar.gz or .tar.zst, told apart by its first bytes and
//! never by its name. Reads it into an inventory within a budget, then gives each content again for `pack`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kopek_core::Bytes;
use walkdir::WalkDir;

use super::budget::{Budget, Exceeded};
use super::fault::{Fault, Refusal};
use super::inventory::{Content, Inventory, Kind, Node, Where};
use super::path::TreePath;
use super::tarball::{self, TarError, TarReader};
use super::{PackOptions, Symlinks};

/// Why a source cannot be taken. Display is one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "{path} is neither a folder nor a .zip, .tar, .tar.gz or .tar.zst archive; bring it as one of these"
    )]
    Unknown { path: PathBuf },
    #[error("{path} is corrupt: {what}; fetch or pack it again")]
    Corrupt { path: PathBuf, what: String },
    #[error("{path}: {entry:?} {fault}")]
    Refused { path: PathBuf, entry: String, fault: Fault },
    #[error(
        "{path} holds more than {limit}, the most that there is room for; remove what the site does not need"
    )]
    TooLarge { path: PathBuf, limit: Bytes },
    #[error("{path} holds more than {} entries; remove what the site does not need", Budget::ENTRIES_MAX)]
    TooMany { path: PathBuf },
    #[error("{path} holds no files; name the folder or archive that holds the site")]
    Empty { path: PathBuf },
    #[error("cannot write to {folder} while reading {path}: {source}; set TMPDIR to a folder with more room")]
    Spool { path: PathBuf, folder: PathBuf, source: io::Error },
}

pub(crate) struct Source {
    pub inventory: Inventory,
    /// The single top-level folder that was taken away.
    pub stripped: Option<String>,
    reader: Reader,
}

enum Reader {
    Folder,
    Zip(Box<zip::ZipArchive<BufReader<File>>>),
    /// The uncompressed stream.
    Tar(File),
}

impl Source {
    pub fn open(from: &Path, options: &PackOptions) -> Result<Source, SourceError> {
        let explain = Explain { path: from, limit: options.limit };
        let mut budget = Budget::new(options.limit);
        let unreadable = |source| SourceError::Unreadable { path: from.to_owned(), source };
        let meta = from.metadata().map_err(unreadable)?;
        if !meta.is_dir() && !meta.is_file() {
            return Err(SourceError::Unknown { path: from.to_owned() });
        }
        let (mut inventory, reader) = if meta.is_dir() {
            (read_folder(from, options.symlinks, &mut budget, &explain)?, Reader::Folder)
        } else {
            let mut file = File::open(from).map_err(unreadable)?;
            match Format::of(&mut file).map_err(unreadable)? {
                Some(Format::Zip) => read_zip(file, &mut budget, &explain)?,
                Some(Format::Tar) => read_tar(file, &mut budget, &explain)?,
                Some(Format::TarGz) => {
                    let inner = flate2::read::MultiGzDecoder::new(BufReader::new(file));
                    read_compressed(inner, options, &mut budget, &explain)?
                }
                Some(Format::TarZst) => {
                    let inner = zstd::Decoder::new(file).map_err(|error| explain.tar(error.into()))?;
                    read_compressed(inner, options, &mut budget, &explain)?
                }
                None => return Err(SourceError::Unknown { path: from.to_owned() }),
            }
        };
        let stripped = match reader {
            Reader::Folder => None,
            Reader::Zip(_) | Reader::Tar(_) => inventory.strip_single_folder(),
        };
        inventory.close().map_err(|refusal| explain.tar(refusal.into()))?;
        if inventory.files() == 0 {
            return Err(SourceError::Empty { path: from.to_owned() });
        }
        Ok(Source { inventory, stripped, reader })
    }

    /// Opens one content for reading from its start.
    pub fn content(&mut self, index: usize) -> io::Result<Box<dyn Read + '_>> {
        let content = &self.inventory.contents[index];
        match (&content.at, &mut self.reader) {
            (Where::Path(path), _) => Ok(Box::new(File::open(path)?)),
            (Where::Zip(entry), Reader::Zip(archive)) => Ok(Box::new(archive.by_index(*entry)?)),
            (Where::Tar { offset, .. }, Reader::Tar(stream)) => {
                stream.seek(SeekFrom::Start(*offset))?;
                Ok(Box::new(stream.take(content.bytes)))
            }
            (Where::Zip(_) | Where::Tar { .. }, _) => {
                unreachable!("contents come from the reader beside them")
            }
        }
    }
}

/// Turns what went wrong inside a format into an error that names the source.
struct Explain<'a> {
    path: &'a Path,
    limit: Bytes,
}

impl Explain<'_> {
    fn tar(&self, error: TarError) -> SourceError {
        let path = self.path.to_owned();
        match error {
            TarError::Refused(Refusal { entry, fault }) => SourceError::Refused { path, entry, fault },
            TarError::Exceeded(Exceeded::Entries) => SourceError::TooMany { path },
            TarError::Exceeded(Exceeded::Bytes) => SourceError::TooLarge { path, limit: self.limit },
            TarError::Read(_) | TarError::Broken { .. } => self.corrupt(&error),
        }
    }

    fn corrupt(&self, what: &dyn std::fmt::Display) -> SourceError {
        SourceError::Corrupt { path: self.path.to_owned(), what: what.to_string().replace('\n', " ") }
    }

    fn refused(&self, entry: &[u8], fault: Fault) -> SourceError {
        self.tar(Refusal::new(entry, fault).into())
    }
}

enum Format {
    Zip,
    Tar,
    TarGz,
    TarZst,
}

impl Format {
    /// Magic bytes: PKWARE APPNOTE 4.3.7 and 4.3.16, RFC 1952, RFC 8878, POSIX ustar.
    fn of(file: &mut File) -> io::Result<Option<Format>> {
        let mut head = Vec::with_capacity(512);
        file.take(512).read_to_end(&mut head)?;
        file.rewind()?;
        Ok(match &head[..] {
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Format::Zip),
            [0x1f, 0x8b, ..] => Some(Format::TarGz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::TarZst),
            tar if tar.len() == 512 && tar[257..262] == *b"ustar" => Some(Format::Tar),
            _ => None,
        })
    }
}

fn read_folder(
    from: &Path,
    symlinks: Symlinks,
    budget: &mut Budget,
    explain: &Explain<'_>,
) -> Result<Inventory, SourceError> {
    let mut inventory = Inventory::default();
    let mut linked = BTreeMap::new();
    for entry in WalkDir::new(from).min_depth(1).follow_links(symlinks == Symlinks::Follow) {
        let entry = entry.map_err(|error| walk_error(error, from, explain))?;
        let raw =
            entry.path().strip_prefix(from).expect("a walk stays below its start").as_os_str().as_bytes();
        let path = TreePath::parse(raw).map_err(|fault| explain.refused(raw, fault))?;
        let meta = entry.metadata().map_err(|error| walk_error(error, from, explain))?;
        let unreadable = |source| SourceError::Unreadable { path: entry.path().to_owned(), source };
        let file_type = meta.file_type();
        let bytes = if file_type.is_file() { meta.len() } else { 0 };
        budget.entry(bytes).map_err(|exceeded| explain.tar(exceeded.into()))?;
        let kind = if file_type.is_dir() {
            Kind::Folder
        } else if file_type.is_symlink() {
            let target = std::fs::read_link(entry.path()).map_err(unreadable)?;
            Kind::Symlink(target.as_os_str().as_bytes().to_vec())
        } else if file_type.is_file() {
            let content = Content { bytes, at: Where::Path(entry.path().to_owned()) };
            Kind::File(if meta.nlink() > 1 {
                *linked.entry((meta.dev(), meta.ino())).or_insert_with(|| inventory.hold(content))
            } else {
                inventory.hold(content)
            })
        } else {
            return Err(explain.refused(raw, Fault::Special(special_word(file_type))));
        };
        let node = Node {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid().into(),
            gid: meta.gid().into(),
            mtime: u64::try_from(meta.mtime()).unwrap_or(0),
        };
        inventory.add(path, node).map_err(|refusal| explain.tar(refusal.into()))?;
    }
    Ok(inventory)
}

fn special_word(file_type: std::fs::FileType) -> &'static str {
    if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "device node"
    }
}

fn walk_error(error: walkdir::Error, from: &Path, explain: &Explain<'_>) -> SourceError {
    let path = error.path().unwrap_or(from).to_owned();
    let is_link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    if error.loop_ancestor().is_some() || is_link {
        let entry = path.strip_prefix(from).unwrap_or(&path);
        return explain.refused(entry.as_os_str().as_bytes(), Fault::Unfollowable);
    }
    let source = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
    SourceError::Unreadable { path, source }
}

fn read_tar(
    file: File,
    budget: &mut Budget,
    explain: &Explain<'_>,
) -> Result<(Inventory, Reader), SourceError> {
    let mut tar = TarReader::new(BufReader::new(&file));
    let inventory = tarball::read_inventory(&mut tar, budget).map_err(|error| explain.tar(error))?;
    drop(tar);
    Ok((inventory, Reader::Tar(file)))
}

/// Sorted entries need random access, so a compressed archive is laid out in an unnamed temporary file.
fn read_compressed(
    inner: impl Read,
    options: &PackOptions,
    budget: &mut Budget,
    explain: &Explain<'_>,
) -> Result<(Inventory, Reader), SourceError> {
    let spool_error =
        |source| SourceError::Spool { path: explain.path.to_owned(), folder: options.spool.clone(), source };
    let spool = tempfile::tempfile_in(&options.spool).map_err(spool_error)?;
    let mut tee = Tee { inner, spool, failed: None };
    let mut tar = TarReader::new(BufReader::with_capacity(256 << 10, &mut tee));
    let result = tarball::read_inventory(&mut tar, budget);
    drop(tar);
    match (result, tee.failed) {
        (Ok(inventory), _) => Ok((inventory, Reader::Tar(tee.spool))),
        (Err(_), Some(failed)) => Err(spool_error(failed)),
        (Err(error), None) => Err(explain.tar(error)),
    }
}

/// Writes all that is read to the spool.
struct Tee<R> {
    inner: R,
    spool: File,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        if let Err(error) = self.spool.write_all(&buffer[..got]) {
            self.failed = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        Ok(got)
    }
}

fn read_zip(
    file: File,
    budget: &mut Budget,
    explain: &Explain<'_>,
) -> Result<(Inventory, Reader), SourceError> {
    let mut archive =
        Box::new(zip::ZipArchive::new(BufReader::new(file)).map_err(|error| explain.corrupt(&error))?);
    let mut inventory = Inventory::default();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| explain.corrupt(&error))?;
        budget.entry(entry.size()).map_err(|exceeded| explain.tar(exceeded.into()))?;
        let raw = entry.name().as_bytes().to_vec();
        let path = TreePath::parse(&raw).map_err(|fault| explain.refused(&raw, fault))?;
        if entry.encrypted() {
            return Err(explain.refused(&raw, Fault::Encrypted));
        }
        let (bytes, mtime) = (entry.size(), zip_mtime(entry.last_modified()));
        let mode = entry.unix_mode().unwrap_or(0);
        let is_folder = entry.is_dir();
        drop(entry);
        let kind = match mode & libc_type::MASK {
            _ if is_folder => Kind::Folder,
            libc_type::LINK => Kind::Symlink(zip_link(&mut archive, index, explain)?),
            libc_type::FOLDER => Kind::Folder,
            0 | libc_type::FILE => Kind::File(inventory.hold(Content { bytes, at: Where::Zip(index) })),
            libc_type::FIFO => return Err(explain.refused(&raw, Fault::Special("FIFO"))),
            libc_type::SOCKET => return Err(explain.refused(&raw, Fault::Special("socket"))),
            _ => return Err(explain.refused(&raw, Fault::Special("device node"))),
        };
        // Archives made on other systems carry no permissions.
        let mode = match (mode & 0o7777, &kind) {
            (0, Kind::Folder) => 0o755,
            (0, _) => 0o644,
            (mode, _) => mode,
        };
        inventory
            .add(path, Node { kind, mode, uid: 0, gid: 0, mtime })
            .map_err(|refusal| explain.tar(refusal.into()))?;
    }
    Ok((inventory, Reader::Zip(archive)))
}

/// File types in the upper half of a zip entry's external attributes, as in inode(7).
mod libc_type {
    pub const MASK: u32 = 0o170_000;
    pub const FIFO: u32 = 0o010_000;
    pub const FOLDER: u32 = 0o040_000;
    pub const FILE: u32 = 0o100_000;
    pub const LINK: u32 = 0o120_000;
    pub const SOCKET: u32 = 0o140_000;
}

fn zip_link(
    archive: &mut zip::ZipArchive<BufReader<File>>,
    index: usize,
    explain: &Explain<'_>,
) -> Result<Vec<u8>, SourceError> {
    // PATH_MAX: a longer target is none.
    const TARGET_MAX: u64 = 4095;
    let entry = archive.by_index(index).map_err(|error| explain.corrupt(&error))?;
    let mut target = Vec::new();
    entry.take(TARGET_MAX + 1).read_to_end(&mut target).map_err(|error| explain.corrupt(&error))?;
    if target.len() as u64 > TARGET_MAX || target.contains(&0) {
        return Err(explain.corrupt(&"a symbolic link whose target is no path"));
    }
    Ok(target)
}

/// Zip has local time of an unknown place; read as UTC it is the same everywhere.
fn zip_mtime(moment: Option<zip::DateTime>) -> u64 {
    let seconds = moment.and_then(|m| {
        let [month, day, hour, minute, second] =
            [m.month(), m.day(), m.hour(), m.minute(), m.second()].map(|part| part as i8);
        let civil = jiff::civil::DateTime::new(m.year() as i16, month, day, hour, minute, second, 0).ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
    });
    seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0)
}
