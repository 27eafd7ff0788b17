//! The lines between `client` and `server`.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::store::{Change, Commit, Compare, Entry, LeaseId, Op, Range, Revision, StoreError};

/// A watch without changes says this often that it lives.
pub const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// The longest line: a range over everything in a large cell.
pub const LINE_MAX: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    Range { prefix: String },
    Get { key: String },
    Commit { compares: Vec<Compare>, ops: Vec<Op> },
    Watch { prefix: String, from: Revision },
    Grant { ttl_ms: u64 },
    KeepAlive { lease: LeaseId },
    Revoke { lease: LeaseId },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Range(Range),
    Entry(Option<Entry>),
    Commit(Commit),
    Lease(LeaseId),
    Done,
    Failed(StoreError),
    /// On a watch.
    Changes(Vec<Change>),
    Alive,
    Compacted,
}

/// Any connection: a Unix socket or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub async fn send<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}

/// The next message; nothing when the other side has closed.
pub async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(Error::new(ErrorKind::UnexpectedEof, "a line was cut off"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
