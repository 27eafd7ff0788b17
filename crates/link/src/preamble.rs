//! The first line on the gate's and the relay's ports and on the gate's Unix socket: what the caller wants,
//! and the answer. One JSON line each way, then raw bytes; nothing is read past the newline.

use kopek_core::{Digest, InstanceId, SiteName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A site name and an instance id have 32 characters, a digest 64; the rest is room for a refusal's reason.
pub const LINE_MAX: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "want", rename_all = "kebab-case")]
pub enum Preamble {
    /// Bytes to and from an instance.
    Gate { instance: InstanceId },
    /// A packed tree (tar.zst).
    Tree { digest: Digest },
    /// A connection to the site's writer; stale epochs are refused.
    Sql { site: SiteName, epoch: u64 },
    /// The site has another writer: no connection of this epoch or an earlier one may go on. Opened once they
    /// have all ended.
    SqlClose { site: SiteName, epoch: u64 },
    /// The site asks for the pool's turn at a big table. Opened at once; one byte comes with the turn, and two bytes
    /// that the caller sends end it: the member's error code, 0 for none. The connection's end ends it too.
    SqlTurn { site: SiteName, table: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Welcome {
    /// Raw bytes follow; `bytes` of them, if the number is known.
    Open {
        bytes: Option<u64>,
    },
    Refused {
        why: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    #[error("the connection broke in the first line")]
    Broken(#[from] std::io::Error),
    #[error("the first line is longer than {LINE_MAX} bytes")]
    TooLong,
    #[error("the first line is not understood")]
    Unknown(#[from] serde_json::Error),
}

pub async fn send_preamble<S: AsyncWrite + Unpin>(
    stream: &mut S,
    want: &Preamble,
) -> Result<(), PreambleError> {
    send_line(stream, want).await
}

pub async fn read_preamble<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Preamble, PreambleError> {
    read_line(stream).await
}

pub async fn send_welcome<S: AsyncWrite + Unpin>(
    stream: &mut S,
    welcome: &Welcome,
) -> Result<(), PreambleError> {
    match welcome {
        Welcome::Refused { why } => {
            // A control character becomes six bytes of JSON: 160 always fit into the line.
            let why = why.chars().take(160).collect();
            send_line(stream, &Welcome::Refused { why }).await
        }
        Welcome::Open { .. } => send_line(stream, welcome).await,
    }
}

pub async fn read_welcome<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Welcome, PreambleError> {
    read_line(stream).await
}

async fn send_line<S: AsyncWrite + Unpin>(
    stream: &mut S,
    line: &impl Serialize,
) -> Result<(), PreambleError> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

/// Byte by byte: what follows the newline belongs to whoever gets the stream next.
async fn read_line<S: AsyncRead + Unpin, T: DeserializeOwned>(stream: &mut S) -> Result<T, PreambleError> {
    let mut line = Vec::with_capacity(128);
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(serde_json::from_slice(&line)?),
            _ if line.len() == LINE_MAX => return Err(PreambleError::TooLong),
            byte => line.push(byte),
        }
    }
}
