//! Sockets that must be made with a thread's state changed: inside an instance's network namespace, or with
//! no umask. Each is made by a thread of its own that ends at once, so no other thread ever sees that state.
//! Called by `listen`.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use tokio::sync::oneshot;

const MYSQL_PORT: u16 = 3306;

/// Device and number: two files with the same are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode(u64, u64);

impl Inode {
    fn of(metadata: &fs::Metadata) -> Inode {
        Inode(metadata.dev(), metadata.ino())
    }
}

/// Of what the path leads to: for a namespace's file the namespace.
pub(crate) fn inode_of(path: &Path) -> io::Result<Inode> {
    fs::metadata(path).map(|metadata| Inode::of(&metadata))
}

/// Of the path itself: an instance may have put a link there.
pub(crate) fn inode_of_socket(path: &Path) -> io::Result<Inode> {
    fs::symlink_metadata(path).map(|metadata| Inode::of(&metadata))
}

/// 127.0.0.1:3306 in the namespace at `path`. Listening keeps the namespace alive, so its number cannot come
/// back for another one meanwhile.
pub(crate) async fn bind_mysql_port(path: PathBuf) -> io::Result<(Inode, TcpListener)> {
    in_own_thread(move || {
        let namespace = File::open(path)?;
        let inode = Inode::of(&namespace.metadata()?);
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, MYSQL_PORT))?;
        listener.set_nonblocking(true)?;
        Ok((inode, listener))
    })
    .await
}

/// A socket at `path` that everybody may use, in the place of what an earlier process left there. It appears
/// complete: made under another name with mode 0666 from the start. (A chmod afterwards could be led
/// elsewhere by an instance that sees this folder.)
pub(crate) async fn bind_socket(path: PathBuf) -> io::Result<(Inode, UnixListener)> {
    in_own_thread(move || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::symlink_metadata(&path) {
            Ok(old) if !old.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is something that is no socket",
                ));
            }
            _ => {}
        }
        let unfinished = path.with_extension("new");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The umask belongs to the process unless the thread takes its own copy.
        unshare(CloneFlags::CLONE_FS)?;
        umask(Mode::from_bits_truncate(0o111));
        let listener = UnixListener::bind(&unfinished)?;
        listener.set_nonblocking(true)?;
        let inode = inode_of_socket(&unfinished)?;
        fs::rename(&unfinished, &path)?;
        Ok((inode, listener))
    })
    .await
}

async fn in_own_thread<T: Send + 'static>(
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (give, given) = oneshot::channel();
    std::thread::Builder::new().name("bind".to_owned()).spawn(move || {
        // Nobody waits for it any more only when the process ends.
        let _ = give.send(make());
    })?;
    given.await.unwrap_or_else(|_| Err(io::Error::other("the thread that binds panicked")))
}
