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

pub fn watch_edge(socket: PathBuf) -> watch::Receiver<Health> {
    let (to, health) = watch::channel(Health::Ill);
    tokio::spawn(async move {
        while !to.is_closed() {
            let now = match timeout(LIMIT, ask(&socket)).await {
                Ok(Ok(())) => Health::Well,
                _ => Health::Ill,
            };
            to.send_if_modified(|health| std::mem::replace(health, now) != now);
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
