//! Puts single files, links and folders in place with owner, mode and time. The folder is given as a
//! descriptor and the name is one component, so nothing is followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use super::tarball::TarEntry;
use super::{Owners, SITE_OWNER};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// Seconds since 1970. The same on every holder, so that ETag and Last-Modified are too.
    pub mtime: u64,
}

impl Attributes {
    pub fn of(entry: &TarEntry, owners: Owners) -> io::Result<Attributes> {
        let number = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner beyond 32 bits"));
        Ok(match owners {
            Owners::Site => Attributes::site(entry.mode, entry.mtime),
            Owners::Kept => Attributes {
                uid: number(entry.uid)?,
                gid: number(entry.gid)?,
                mode: entry.mode,
                mtime: entry.mtime,
            },
        })
    }

    pub fn site(mode: u32, mtime: u64) -> Attributes {
        Attributes { uid: SITE_OWNER, gid: SITE_OWNER, mode: mode & 0o777, mtime }
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: i64::try_from(self.mtime).unwrap_or(i64::MAX), tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }

    /// Owner before mode: a change of owner clears set-user-id bits (chown(2)).
    pub fn dress(&self, file: &File) -> io::Result<()> {
        fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fs::fchmod(file, Mode::from_raw_mode(self.mode))?;
        Ok(fs::futimens(file, &self.times())?)
    }
}

/// Makes a file; one that is there is an error.
pub(crate) fn put_file(
    folder: &OwnedFd,
    name: &OsStr,
    content: &mut impl Read,
    attributes: &Attributes,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into();
    io::copy(content, &mut file)?;
    attributes.dress(&file)
}

/// Makes a symbolic link; one that is there is an error.
pub(crate) fn put_symlink(
    folder: &OwnedFd,
    name: &OsStr,
    target: &[u8],
    attributes: &Attributes,
) -> io::Result<()> {
    fs::symlinkat(target, folder, name)?;
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(fs::utimensat(folder, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes a folder that only root enters until `Attributes::dress`; one that is there is fine.
pub(crate) fn put_folder(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match fs::mkdirat(folder, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
