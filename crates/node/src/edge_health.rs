//! Whether this server's edge answers, asked over its own socket. keepalived gives up the VIPs of a server
//! whose edge does not.

use std::path::PathBuf;
use std::time::Duration;

use kopek_core::observed::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// A dead edge is noticed by the socket that refuses, within one look.
const EVERY: Duration = Duration::from_millis(100);
/// A loaded edge answers in milliseconds; one that hangs must not keep its address for long.
const LIMIT: Duration = Duration::from_secs(1);

/// One look can miss while an edge is being replaced; an address should not move for that.
const MISSES: u32 = 2;

/// Nothing before the first answer, or the first second without one.
pub fn watch_edge(socket: PathBuf) -> watch::Receiver<Option<Health>> {
    let (to, health) = watch::channel(None);
    tokio::spawn(async move {
        let mut misses = 0;
        while !to.is_closed() {
            let now = match timeout(LIMIT, ask(&socket)).await {
                Ok(Ok(())) => Health::Well,
                _ => Health::Ill,
            };
            misses = if now == Health::Ill { misses + 1 } else { 0 };
            if misses == 0 || misses >= MISSES {
                to.send_if_modified(|health| health.replace(now) != Some(now));
            }
            sleep(EVERY).await;
        }
    });
    health
}

/// The edge says `ok` when all its workers serve.
async fn ask(socket: &PathBuf) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"health\n").await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    if answer == *b"ok" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}
