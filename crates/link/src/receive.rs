//! Takes a streamed body into a file as long as the disk has room. What does not become whole leaves nothing.
//! Called by control for trees and by the agent for SQL dumps.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use kopek_core::Bytes as Amount;
use nix::sys::statvfs::statvfs;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// Never filled: the cell's store, the databases and the logs lie on the same disk and must go on.
pub const RESERVE: Amount = Amount::mib(64);
/// A sender that is refused reads the answer only when it can go on sending for a moment.
const DISCARD_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("it broke off: {0}")]
    BrokeOff(String),
    #[error(
        "{wanted} more are to come and the disk has {free} free, {RESERVE} of them kept; free some there"
    )]
    NoRoom { wanted: Amount, free: Amount },
    #[error("it cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// A whole file. Removed when this ends, unless it was renamed.
#[derive(Debug)]
pub struct Received {
    path: PathBuf,
    pub bytes: u64,
}

impl Received {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // Absent after the rename, or if it could not be made.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `seen` gets every piece, in order.
pub async fn receive<B>(mut body: B, path: PathBuf, seen: impl FnMut(&[u8])) -> Result<Received, ReceiveError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let outcome = write_all(&mut body, path, seen).await;
    if matches!(outcome, Err(ReceiveError::NoRoom { .. } | ReceiveError::Write(_))) {
        tokio::spawn(timeout(DISCARD_LIMIT, async move { while let Some(Ok(_)) = body.frame().await {} }));
    }
    outcome
}

async fn write_all<B>(
    body: &mut B,
    path: PathBuf,
    mut seen: impl FnMut(&[u8]),
) -> Result<Received, ReceiveError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    // From here on whatever happens removes it.
    let mut received = Received { path, bytes: 0 };
    let mut file = tokio::fs::File::create(&received.path).await?;
    require_room(&received.path, body.size_hint().lower())?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ReceiveError::BrokeOff(error.to_string()))?;
        let Ok(piece) = frame.into_data() else { continue };
        // Again, because others write too, and not every sender says how much will come.
        require_room(&received.path, piece.len() as u64 + body.size_hint().lower())?;
        seen(&piece);
        file.write_all(&piece).await?;
        received.bytes += piece.len() as u64;
    }
    file.sync_all().await?;
    Ok(received)
}

fn require_room(file: &Path, wanted: u64) -> Result<(), ReceiveError> {
    let disk = statvfs(file).map_err(io::Error::from)?;
    let free = disk.blocks_available() * disk.fragment_size();
    if free < wanted.saturating_add(RESERVE.0) {
        return Err(ReceiveError::NoRoom { wanted: Amount(wanted), free: Amount(free) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::{Frame, SizeHint};
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    const PIECE: usize = 256 << 10;

    /// So many pieces, then its end or an error.
    struct Sent {
        pieces: u32,
        ends: Result<(), &'static str>,
        declared: u64,
    }

    impl Body for Sent {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            if self.pieces == 0 {
                return Poll::Ready(self.ends.err().map(Err));
            }
            self.pieces -= 1;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![7; PIECE])))))
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::new();
            hint.set_lower(self.declared);
            hint
        }
    }

    fn sent(pieces: u32) -> Sent {
        Sent { pieces, ends: Ok(()), declared: 0 }
    }

    async fn refused(folder: &Path, body: Sent) -> (ReceiveError, u64) {
        let mut taken = 0;
        let outcome = receive(body, folder.join("it"), |piece| taken += piece.len() as u64).await;
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "a part of it is left");
        (outcome.unwrap_err(), taken)
    }

    #[tokio::test]
    async fn a_whole_body_is_there_until_nobody_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let received = receive(sent(3), folder.path().join("it"), |_| {}).await.unwrap();
        assert_eq!(std::fs::metadata(received.path()).unwrap().len(), received.bytes);
        assert_eq!(received.bytes, 3 * PIECE as u64);
        drop(received);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (error, _) = refused(folder.path(), Sent { ends: Err("the sender died"), ..sent(3) }).await;
        assert!(error.to_string().contains("the sender died"), "{error}");
    }

    #[tokio::test]
    async fn what_the_disk_has_no_room_for_is_refused_at_once_or_where_the_room_ends() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        let size = format!("size={}", RESERVE.0 + (2 << 20));
        mount(Some("kopek-test"), place, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        let (declared, at_once) = refused(place, Sent { declared: 4 << 20, ..sent(16) }).await;
        let (_, on_the_way) = refused(place, sent(16)).await;
        umount2(place, MntFlags::MNT_DETACH).unwrap();
        let told = declared.to_string();
        assert!(told.contains("4.0 MiB more") && told.contains("66.0 MiB free"), "{told}");
        assert_eq!(at_once, 0);
        // A piece or two may be on their way to the disk.
        assert!((1 << 20..3 << 20).contains(&on_the_way), "{on_the_way}");
    }
}
