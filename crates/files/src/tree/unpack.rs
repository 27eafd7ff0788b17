//! Unpacks a packed tree into a new folder, beside its final place, and renames it there when it is whole and
//! on disk: a path that exists is complete. Called by `pour` for images and by `apply` for new volumes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kopek_core::Digest;
use rustix::io::Errno;

use super::Owners;
use super::beneath::Beneath;
use super::fault::{Fault, Refusal};
use super::packed::PackedReader;
use super::path::TreePath;
use super::place::{Attributes, put_file, put_folder, put_symlink};
use super::tarball::{TarEntry, TarError, TarKind};

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("no space left on the disk that holds {path}; free some, then it goes on by itself")]
    DiskFull { path: PathBuf },
    #[error("{packed} is corrupt: {what}")]
    Corrupt { packed: PathBuf, what: String },
    #[error("{packed}: {entry:?} {fault}")]
    Refused { packed: PathBuf, entry: String, fault: Fault },
    #[error("cannot unpack {packed} to {path}: {source}")]
    Io { packed: PathBuf, path: PathBuf, source: io::Error },
}

/// Says which tree and which place an error is about.
pub(crate) struct Explain<'a> {
    pub packed: &'a Path,
    pub path: &'a Path,
}

impl Explain<'_> {
    pub fn io(&self, source: io::Error) -> UnpackError {
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => UnpackError::DiskFull { path: self.path.to_owned() },
            _ => UnpackError::Io { packed: self.packed.to_owned(), path: self.path.to_owned(), source },
        }
    }

    pub fn tar(&self, error: TarError) -> UnpackError {
        match error {
            TarError::Refused(Refusal { entry, fault }) => {
                UnpackError::Refused { packed: self.packed.to_owned(), entry, fault }
            }
            error => self.corrupt(&error.to_string()),
        }
    }

    pub fn corrupt(&self, what: &str) -> UnpackError {
        UnpackError::Corrupt { packed: self.packed.to_owned(), what: what.to_owned() }
    }
}

/// Unpacks an image to `root` (Dirs::image_root), numeric owners kept. Needs root. Device nodes, FIFOs and
/// sockets are left out: instances get a /dev of their own. Does nothing if `root` is there.
pub fn unpack_image(packed: &Path, digest: &Digest, root: &Path) -> Result<(), UnpackError> {
    if root.exists() {
        return Ok(());
    }
    let folder = root.parent().expect("an image root lies in the image's folder");
    unpack_whole(packed, digest, &folder.join("incoming"), root, Owners::Kept)
}

/// Unpacks to `incoming`, then renames that to `root`. On an error `incoming` is gone.
pub(crate) fn unpack_whole(
    packed: &Path,
    digest: &Digest,
    incoming: &Path,
    root: &Path,
    owners: Owners,
) -> Result<(), UnpackError> {
    let explain = Explain { packed, path: root };
    let incoming = Incoming::make(incoming).map_err(|error| explain.io(error))?;
    unpack_into(packed, digest, &incoming.path, owners, &explain)?;
    // A power cut after the rename must not find empty files.
    sync_file_system(&incoming.path).map_err(|error| explain.io(error))?;
    fs::rename(&incoming.path, root).map_err(|error| explain.io(error))?;
    let folder = root.parent().expect("a tree lies in a folder");
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| explain.io(error))
}

/// A folder for what is not whole yet; gone when dropped, and renamed away when it is whole.
pub(crate) struct Incoming {
    pub path: PathBuf,
}

impl Incoming {
    /// Makes it empty: what an interrupted attempt left is removed.
    pub fn make(path: &Path) -> io::Result<Incoming> {
        remove_folder(path)?;
        fs::create_dir_all(path)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(Incoming { path: path.to_owned() })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished tree could not be removed");
        }
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(path)?)?)
}

fn unpack_into(
    packed: &Path,
    digest: &Digest,
    root: &Path,
    owners: Owners,
    explain: &Explain<'_>,
) -> Result<(), UnpackError> {
    let top = Beneath::open(root).map_err(|error| explain.io(error))?;
    let mut reader = PackedReader::open(packed).map_err(|error| explain.io(error))?;
    // Folders get their mode and time when they are filled.
    let mut folders = vec![(TreePath::default(), Attributes { uid: 0, gid: 0, mode: 0o755, mtime: 0 })];
    if owners == Owners::Site {
        folders[0].1 = Attributes::site(0o755, 0);
    }
    while let Some(entry) = reader.tar.next_entry().map_err(|error| explain.tar(error))? {
        let path = TreePath::parse(&entry.path)
            .map_err(|fault| explain.tar(Refusal::new(&entry.path, fault).into()))?;
        let attributes = Attributes::of(&entry, owners).map_err(|error| explain.io(error))?;
        match entry.kind {
            TarKind::Folder if path.is_top() => folders[0].1 = attributes,
            TarKind::Folder => folders.push((path.clone(), attributes)),
            _ => {}
        }
        if !path.is_top() {
            put_entry(&top, &path, &entry, &attributes, &mut reader)
                .map_err(|error| explain_entry(explain, &path, error))?;
        }
    }
    for (path, attributes) in folders.iter().rev() {
        top.folder_to_change(path)
            .and_then(|folder| attributes.dress(&folder))
            .map_err(|error| explain.io(error))?;
    }
    match reader.is(digest).map_err(|error| explain.io(error))? {
        true => Ok(()),
        false => Err(explain.corrupt("it is not what its digest names")),
    }
}

/// Errors without a number come from the reader: the packed tree is broken.
fn explain_entry(explain: &Explain<'_>, path: &TreePath, error: io::Error) -> UnpackError {
    match error.raw_os_error() {
        Some(_) => explain.io(error),
        None => explain.corrupt(&format!("\"{path}\": {error}")),
    }
}

fn put_entry(
    top: &Beneath,
    path: &TreePath,
    entry: &TarEntry,
    attributes: &Attributes,
    reader: &mut PackedReader,
) -> io::Result<()> {
    let folder = match top.folder(&path.parent()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            imply_folders(top, &path.parent())?;
            top.folder(&path.parent())?
        }
        other => other?,
    };
    // A later entry replaces an earlier one, as tar does it; folders stay.
    if entry.kind != TarKind::Folder {
        top.remove(path)?;
    }
    match &entry.kind {
        TarKind::Folder => put_folder(&folder, path.name()),
        TarKind::File => put_file(&folder, path.name(), &mut reader.tar, attributes),
        TarKind::Symlink(target) => put_symlink(&folder, path.name(), target, attributes),
        TarKind::HardLink(target) => {
            let target = TreePath::parse(target).map_err(io::Error::other)?;
            let from = top.folder(&target.parent())?;
            let flags = rustix::fs::AtFlags::empty();
            Ok(rustix::fs::linkat(&from, target.name(), &folder, path.name(), flags)?)
        }
        TarKind::Special(_) => Ok(()),
        TarKind::Sparse => Err(io::Error::other("a sparse file of GNU tar")),
    }
}

fn imply_folders(top: &Beneath, path: &TreePath) -> io::Result<()> {
    let names: Vec<&[u8]> = path.names().collect();
    for depth in 1..=names.len() {
        let path = TreePath::join(&names[..depth]);
        put_folder(&top.folder(&path.parent())?, path.name())?;
        let implied = Attributes { uid: 0, gid: 0, mode: 0o755, mtime: 0 };
        implied.dress(&top.folder_to_change(&path)?)?;
    }
    Ok(())
}
