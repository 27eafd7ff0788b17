//! An instance's file systems, put together in the launcher's own mount namespace, which the container
//! inherits: the server's namespace never sees them, and they go with the container's last process.
//!
//! ```text
//! DIR/root            overlay: DIR/upper (thrown away at the end) on the image, ids shifted
//!   /var/www/html     the volume, ids shifted: written as the site's own 33, stored as plain 33
//!   /run, /tmp        tmpfs
//!   /run/mysqld       where `kopek sql` listens
//! ```
//! Shifting is the kernel's: an idmapped mount (mount_setattr(2); ext4, xfs and btrfs), on which an overlay
//! may stand since Linux 5.19. Debian 12 has 6.1. An older kernel is refused with an error that says so; it
//! would need a shifted copy of the image for every site.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::InstanceSpec;

/// Of /tmp.
const TMP_MAX: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("cannot {what}: {source}")]
    Step { what: String, source: io::Error },
    #[error(
        "cannot shift the ids of {path}: {source}; it needs Linux 5.19 or newer and a file system that can be idmapped (ext4, xfs, btrfs)"
    )]
    NoShift { path: PathBuf, source: io::Error },
}

fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> MountError {
    let what = what.into();
    |source| MountError::Step { what, source: source.into() }
}

/// Makes the whole tree and gives back its root. The calling process must have one thread; afterwards it is
/// in a mount namespace of its own.
pub(crate) fn build_root(spec: &InstanceSpec, ids: &IdShift) -> Result<PathBuf, MountError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(step("make the mounts private"))?;

    let lower = folder(spec, "lower", 0)?;
    let upper = folder(spec, "upper", spec.first_id())?;
    let work = folder(spec, "work", spec.first_id())?;
    let root = folder(spec, "root", 0)?;
    ids.bind(&spec.image_root, &lower)?;
    // `volatile`: nothing of the upper layer is kept, so nothing of it needs to reach the disk.
    let options = format!(
        "volatile,lowerdir={},upperdir={},workdir={}",
        escaped(&lower),
        escaped(&upper),
        escaped(&work)
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("overlay"), &root, Some("overlay"), flags, Some(options.as_str()))
        .map_err(step(format!("mount the overlay on {}", root.display())))?;

    write_names(spec, &root)?;
    ids.bind(&spec.volume, &root.join("var/www/html"))?;
    // Uploads of 64 MiB and the working files of PHP fit in; all of it counts as the instance's memory, so a full
    // /tmp must leave some for the processes: they would be killed where a write should fail.
    let size = TMP_MAX.min(spec.limits.memory.0 / 2);
    temporary(spec, &root.join("tmp"), &format!("mode=1777,size={size}"))?;
    temporary(spec, &root.join("run"), "mode=755,size=16m")?;
    let mysqld = root.join("run/mysqld");
    std::fs::create_dir(&mysqld).map_err(step("make /run/mysqld"))?;
    mount(Some(&spec.sql_socket_dir), &mysqld, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(step(format!("mount {}", spec.sql_socket_dir.display())))?;
    let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
    mount(None::<&str>, &mysqld, None::<&str>, flags, None::<&str>)
        .map_err(step("make /run/mysqld read-only"))?;
    Ok(root)
}

fn folder(spec: &InstanceSpec, name: &str, owner: u32) -> Result<PathBuf, MountError> {
    let path = spec.dir.join(name);
    let make = || -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o755).create(&path)?;
        chown(&path, Some(owner), Some(owner))
    };
    make().map_err(step(format!("make {}", path.display())))?;
    Ok(path)
}

/// A colon separates lower layers and a comma options.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn temporary(spec: &InstanceSpec, path: &Path, options: &str) -> Result<(), MountError> {
    let options = format!("{options},uid={0},gid={0}", spec.first_id());
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))
        .map_err(step(format!("mount a tmpfs on {}", path.display())))
}

/// Who the instance is and whom it asks for names.
fn write_names(spec: &InstanceSpec, root: &Path) -> Result<(), MountError> {
    let name = &spec.hostname;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n", spec.address);
    let resolvers = spec.resolvers.iter().map(|address| format!("nameserver {address}\n")).collect();
    for (file, text) in [("hostname", format!("{name}\n")), ("hosts", hosts), ("resolv.conf", resolvers)] {
        let path = root.join("etc").join(file);
        let write = || -> io::Result<()> {
            std::fs::write(&path, text)?;
            chown(&path, Some(spec.first_id()), Some(spec.first_id()))
        };
        write().map_err(step(format!("write the instance's /etc/{file}")))?;
    }
    Ok(())
}

/// A user namespace in which id 0 is the site's first id: it says how mounts are shifted, and the container
/// lives in it.
pub(crate) struct IdShift {
    namespace: File,
    path: PathBuf,
    keeper: i32,
}

impl IdShift {
    /// Forks: the calling process must have one thread.
    pub(crate) fn new(spec: &InstanceSpec) -> Result<IdShift, MountError> {
        let (mut made, tell) = io::pipe().map_err(step("make a pipe"))?;
        // SAFETY: this process has one thread, and the child only makes system calls before it waits to be
        // killed.
        let keeper = unsafe { libc::fork() };
        if keeper == 0 {
            keep_namespace(&tell);
        }
        drop(tell);
        let path = PathBuf::from(format!("/proc/{keeper}/ns/user"));
        let map = format!("0 {} {}\n", spec.first_id(), spec.ids());
        let mut prepare = || -> io::Result<File> {
            if keeper < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut byte = [0];
            io::Read::read_exact(&mut made, &mut byte)?;
            std::fs::write(format!("/proc/{keeper}/uid_map"), &map)?;
            std::fs::write(format!("/proc/{keeper}/gid_map"), &map)?;
            File::open(&path)
        };
        let namespace = prepare().map_err(step("make a user namespace"))?;
        Ok(IdShift { namespace, path, keeper })
    }

    /// Valid until this value goes.
    pub(crate) fn namespace(&self) -> &Path {
        &self.path
    }

    /// `mount --bind` with ids shifted, without set-user-id programs and devices.
    fn bind(&self, from: &Path, to: &Path) -> Result<(), MountError> {
        let no_shift = |source| MountError::NoShift { path: from.to_owned(), source };
        let source = c_path(from);
        let flags = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as libc::c_uint;
        // SAFETY: `source` is a C string that lives through the call; the result is a new descriptor or -1.
        let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) };
        if tree < 0 {
            return Err(step(format!("open {}", from.display()))(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just returned to us and nobody else knows it.
        let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
            attr_clr: 0,
            propagation: 0,
            userns_fd: self.namespace.as_raw_fd() as u64,
        };
        // SAFETY: both paths are C strings and `attributes` is a mount_attr of the size given.
        let set = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if set < 0 {
            return Err(no_shift(io::Error::last_os_error()));
        }
        let target = c_path(to);
        // SAFETY: both paths are C strings that live through the call.
        let moved = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if moved < 0 {
            return Err(step(format!("mount {}", from.display()))(io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// The child of `IdShift::new`: stays in the namespace until it is killed, which also happens when the
/// launcher dies.
fn keep_namespace(tell: &impl AsRawFd) -> ! {
    // SAFETY: only system calls with plain arguments and one byte of static memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::unshare(libc::CLONE_NEWUSER) == 0 {
            libc::write(tell.as_raw_fd(), c"+".as_ptr().cast(), 1);
            loop {
                libc::pause();
            }
        }
        libc::_exit(1)
    }
}

impl Drop for IdShift {
    fn drop(&mut self) {
        // SAFETY: the keeper is our own child and not yet waited for, so its id is still its own.
        unsafe {
            libc::kill(self.keeper, libc::SIGKILL);
            libc::waitpid(self.keeper, std::ptr::null_mut(), 0);
        }
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes())
        .expect("a path from a JSON document of ids and folders has no NUL")
}
