//! Works below one folder and never leaves it, whatever symbolic links lie or appear there: every folder is
//! reached by openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, every change names one component in
//! it. A tenant who swaps folders for links while we work gains nothing. Called by `place`, `unpack`, `apply`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::path::TreePath;

pub(crate) struct Beneath {
    top: OwnedFd,
}

impl Beneath {
    /// `top` itself must be out of the tenant's reach.
    pub fn open(top: &Path) -> io::Result<Beneath> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Beneath { top: fs::open(top, flags, Mode::empty())? })
    }

    /// A folder to name things in.
    pub fn folder(&self, path: &TreePath) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// A folder whose mode, owner and time can be changed.
    pub fn folder_to_change(&self, path: &TreePath) -> io::Result<File> {
        Ok(self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?.into())
    }

    /// A regular file for reading, without waiting on a FIFO or touching a device; `None` if there is no such.
    pub fn file(&self, path: &TreePath) -> io::Result<Option<File>> {
        if self.kind(path)? != Some(FileType::RegularFile) {
            return Ok(None);
        }
        let file: File = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => file.into(),
            Err(error) if is_no_way(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // It may have been swapped since.
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// What lies there; `None` if nothing does or if the way there is no way of folders.
    pub fn kind(&self, path: &TreePath) -> io::Result<Option<FileType>> {
        Ok(self.stat(path)?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
    }

    pub fn stat(&self, path: &TreePath) -> io::Result<Option<Stat>> {
        let folder = match self.folder(&path.parent()) {
            Ok(folder) => folder,
            Err(error) if is_no_way(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        match fs::statat(&folder, path.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn read_link(&self, path: &TreePath) -> io::Result<Vec<u8>> {
        let folder = self.folder(&path.parent())?;
        Ok(fs::readlinkat(&folder, path.name(), Vec::new())?.into_bytes())
    }

    /// Removes a file or link; `true` if it was there.
    pub fn remove(&self, path: &TreePath) -> io::Result<bool> {
        self.remove_with(path, AtFlags::empty())
    }

    /// Removes a folder if it is empty; `true` if it did.
    pub fn remove_empty_folder(&self, path: &TreePath) -> io::Result<bool> {
        self.remove_with(path, AtFlags::REMOVEDIR)
    }

    fn remove_with(&self, path: &TreePath, flags: AtFlags) -> io::Result<bool> {
        use rustix::io::Errno;
        let folder = match self.folder(&path.parent()) {
            Ok(folder) => folder,
            Err(error) if is_no_way(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        match fs::unlinkat(&folder, path.name(), flags) {
            Ok(()) => Ok(true),
            // Gone, or by now something else, which is the site's own.
            Err(Errno::NOENT | Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn open_at(&self, path: &TreePath, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let raw = if path.is_top() { Path::new(".") } else { path.as_path() };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match fs::openat2(&self.top, raw, flags, Mode::empty(), resolve) {
                // openat2(2): a rename elsewhere may have raced; nothing is wrong.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// The folder is missing, or a file or a symbolic link lies in its place.
fn is_no_way(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}
