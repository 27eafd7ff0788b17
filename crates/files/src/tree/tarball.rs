//! Reads tar streams (POSIX ustar and pax, GNU) one entry at a time with bounded memory. Written here and not
//! taken from the tar crate because that reads long names of any length into memory, which a hostile archive
//! can ask for. Called by `source`, `unpack` and `apply`.

use std::io::{self, Read};

use super::budget::{Budget, Exceeded};
use super::fault::{Fault, Refusal};
use super::inventory::{Content, Inventory, Kind, Node, Where};
use super::path::TreePath;

const BLOCK: usize = 512;
/// A name, a link target and a few pax records; 1 MiB is far more than any honest archive has.
const EXTENSION_MAX: u64 = 1 << 20;
/// GNU tar fills its last record with zeros, 10 KiB by default; more than this is something else.
const TRAILER_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("{what} at byte {at}")]
    Broken { at: u64, what: &'static str },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
}

#[derive(Debug)]
pub(crate) struct TarEntry {
    pub path: Vec<u8>,
    pub kind: TarKind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub bytes: u64,
    /// Where the content starts in the stream.
    pub offset: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TarKind {
    Folder,
    File,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Special(&'static str),
    Sparse,
}

/// Long names and pax records, which precede the header that they are about.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    sparse: bool,
}

/// `Read` gives the content of the entry that `next_entry` gave last.
pub(crate) struct TarReader<R> {
    inner: R,
    at: u64,
    content_left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> TarReader<R> {
        TarReader { inner, at: 0, content_left: 0, padding: 0 }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                self.drain()?;
                return Ok(None);
            };
            let at = self.at;
            let broken = |what| TarError::Broken { at, what };
            let size = match extensions.size {
                Some(size) => size,
                None => header.entry_size().map_err(|_| broken("a size that is no number"))?,
            };
            let kind = header.entry_type();
            if kind.is_gnu_longname() {
                extensions.path = Some(zero_ended(self.extension(size)?));
            } else if kind.is_gnu_longlink() {
                extensions.link = Some(zero_ended(self.extension(size)?));
            } else if kind.is_pax_local_extensions() {
                let records = self.extension(size)?;
                extensions.read_pax(&records).ok_or(broken("broken pax records"))?;
            } else if kind.is_pax_global_extensions() || kind.as_byte() == b'V' {
                // Comments of git archives, volume labels: nothing that a tree keeps.
                self.extension(size)?;
            } else {
                return self.entry(&header, extensions, size).map(Some);
            }
        }
    }

    fn entry(&mut self, header: &tar::Header, ext: Extensions, size: u64) -> Result<TarEntry, TarError> {
        let at = self.at;
        let broken = |what| TarError::Broken { at, what };
        let path = ext.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            || ext.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        let kind = header.entry_type();
        let kind = match kind.as_byte() {
            _ if ext.sparse || kind.is_gnu_sparse() => TarKind::Sparse,
            // Before POSIX a folder was a file whose name ends in a slash.
            b'5' => TarKind::Folder,
            b'0' | 0 if path.ends_with(b"/") => TarKind::Folder,
            b'0' | 0 | b'7' => TarKind::File,
            b'1' => TarKind::HardLink(link()),
            b'2' => TarKind::Symlink(link()),
            b'3' | b'4' => TarKind::Special("device node"),
            b'6' => TarKind::Special("FIFO"),
            _ => TarKind::Special("thing of an unknown kind"),
        };
        // Links carry a size in some archives but never content (pax, "ustar Interchange Format").
        let bytes =
            if matches!(kind, TarKind::File | TarKind::Special(_) | TarKind::Sparse) { size } else { 0 };
        let entry = TarEntry {
            kind,
            path,
            mode: header.mode().map_err(|_| broken("a mode that is no number"))? & 0o7777,
            uid: ext.uid.or(header.uid().ok()).ok_or(broken("an owner that is no number"))?,
            gid: ext.gid.or(header.gid().ok()).ok_or(broken("a group that is no number"))?,
            mtime: header.mtime().unwrap_or(0),
            bytes,
            offset: self.at,
        };
        self.expect_content(bytes)?;
        Ok(entry)
    }

    fn expect_content(&mut self, bytes: u64) -> Result<(), TarError> {
        // A size near 2^64 is no file; it would overflow the sum with its padding.
        if bytes > i64::MAX as u64 - self.at {
            return Err(TarError::Broken { at: self.at, what: "an impossible size" });
        }
        self.content_left = bytes;
        self.padding = bytes.next_multiple_of(BLOCK as u64) - bytes;
        Ok(())
    }

    /// `None` at the zero block that ends an archive.
    fn header(&mut self) -> Result<Option<tar::Header>, TarError> {
        let mut block = [0; BLOCK];
        let at = self.at;
        self.inner.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Broken { at, what: "it ends early" },
            _ => TarError::Read(error),
        })?;
        self.at += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        // POSIX ustar: the sum of all header bytes, those of the sum itself taken as spaces.
        let sum: u32 =
            block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 256;
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(Some(header)),
            _ => Err(TarError::Broken { at, what: "a header with a wrong checksum" }),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_MAX {
            return Err(TarError::Broken { at: self.at, what: "an impossibly long name" });
        }
        self.expect_content(size)?;
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.content_left + self.padding;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        self.at += skipped;
        (self.content_left, self.padding) = (0, 0);
        if skipped < rest {
            return Err(TarError::Broken { at: self.at, what: "it ends early" });
        }
        Ok(())
    }

    /// Reads on to the end, so that a decompressor checks its sum.
    fn drain(&mut self) -> Result<(), TarError> {
        let trailer = io::copy(&mut (&mut self.inner).take(TRAILER_MAX + 1), &mut io::sink())?;
        self.at += trailer;
        if trailer > TRAILER_MAX {
            return Err(TarError::Broken { at: self.at, what: "more than padding after its end" });
        }
        Ok(())
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
        let got = self.inner.read(&mut buffer[..wanted])?;
        if got == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early"));
        }
        self.content_left -= got as u64;
        self.at += got as u64;
        Ok(got)
    }
}

impl Extensions {
    /// `None` if a record is broken.
    fn read_pax(&mut self, records: &[u8]) -> Option<()> {
        let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse().ok();
        for record in tar::PaxExtensions::new(records) {
            let record = record.ok()?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => self.size = Some(number(record.value_bytes())?),
                b"uid" => self.uid = Some(number(record.value_bytes())?),
                b"gid" => self.gid = Some(number(record.value_bytes())?),
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Some(())
    }
}

fn zero_ended(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Reads a whole stream into an inventory. Each content is hashed on the way.
pub(crate) fn read_inventory<R: Read>(
    tar: &mut TarReader<R>,
    budget: &mut Budget,
) -> Result<Inventory, TarError> {
    let mut inventory = Inventory::default();
    while let Some(entry) = tar.next_entry()? {
        budget.entry(entry.bytes + BLOCK as u64)?;
        let path = TreePath::parse(&entry.path).map_err(|fault| Refusal::new(&entry.path, fault))?;
        let kind = match entry.kind {
            TarKind::Folder => Kind::Folder,
            TarKind::Symlink(target) => Kind::Symlink(target),
            TarKind::HardLink(target) => Kind::File(inventory.linked(&path, &target)?),
            TarKind::File => {
                let mut hasher = blake3::Hasher::new();
                io::copy(tar, &mut hasher)?;
                let at = Where::Tar { offset: entry.offset, hash: hasher.finalize() };
                Kind::File(inventory.hold(Content { bytes: entry.bytes, at }))
            }
            TarKind::Special(what) => return Err(Refusal::new(&entry.path, Fault::Special(what)).into()),
            TarKind::Sparse => return Err(Refusal::new(&entry.path, Fault::Sparse).into()),
        };
        let node = Node { kind, mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        inventory.add(path, node)?;
    }
    Ok(inventory)
}
