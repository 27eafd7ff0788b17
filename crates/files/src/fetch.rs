//! Brings a packed tree to `trees/` from any server that has it. Promise: a file under its final name was
//! whole and had its digest when it came. Called by `pour`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kopek_core::{Digest, ServerId};
use kopek_link::{DialError, Identity, Preamble, dial_stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Dial, handshake and answer within the cell, with both ends busy.
const OPEN_LIMIT: Duration = Duration::from_secs(3);
/// A peer that sends nothing for so long is left for the next one.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// Temporary files in `trees/` start with this.
pub(crate) const UNFINISHED: &str = ".fetch-";

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no other server is known to fetch it from; upload it again")]
    NoPeers,
    #[error("no server has it: {}", .0.join("; "))]
    Nowhere(Vec<String>),
    #[error("cannot keep it in {folder}: {source}; free some space, then it goes on by itself")]
    Disk { folder: PathBuf, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the transfer broke: {0}")]
    Broken(io::Error),
    #[error("nothing came for {} s", STALL_LIMIT.as_secs())]
    Stalled,
    #[error("it sent something else")]
    Corrupt,
    #[error(transparent)]
    Disk(io::Error),
}

/// Fetches to `packed` from the first peer that sends the right bytes.
pub(crate) async fn fetch(
    identity: &Identity,
    peers: &[(ServerId, SocketAddr)],
    digest: &Digest,
    packed: &Path,
) -> Result<(), FetchError> {
    let mut failures = Vec::new();
    for (server, address) in peers {
        match fetch_from(identity, *address, digest, packed).await {
            Ok(bytes) => {
                tracing::info!(tree = %digest, from = %server, bytes, "fetched a tree");
                return Ok(());
            }
            Err(PeerError::Disk(source)) => {
                let folder = packed.parent().unwrap_or(packed).to_owned();
                return Err(FetchError::Disk { folder, source });
            }
            Err(error) => failures.push(format!("{server}: {error}")),
        }
    }
    if failures.is_empty() { Err(FetchError::NoPeers) } else { Err(FetchError::Nowhere(failures)) }
}

async fn fetch_from(
    identity: &Identity,
    address: SocketAddr,
    digest: &Digest,
    packed: &Path,
) -> Result<u64, PeerError> {
    let preamble = Preamble::Tree { digest: digest.clone() };
    let mut stream = dial_stream(identity, address, &preamble, OPEN_LIMIT).await?;
    let folder = packed.parent().expect("a packed tree lies in a folder");
    // Removed when dropped, unless it got its final name.
    let unfinished =
        tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).map_err(PeerError::Disk)?;
    let mut file = tokio::fs::File::from_std(unfinished.reopen().map_err(PeerError::Disk)?);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let got = timeout(STALL_LIMIT, stream.read(&mut buffer)).await.map_err(|_| PeerError::Stalled)?;
        let got = got.map_err(PeerError::Broken)?;
        if got == 0 {
            break;
        }
        hasher.update(&buffer[..got]);
        file.write_all(&buffer[..got]).await.map_err(PeerError::Disk)?;
        bytes += got as u64;
    }
    if hasher.finalize().to_hex().as_str() != digest.as_str() {
        return Err(PeerError::Corrupt);
    }
    file.flush().await.map_err(PeerError::Disk)?;
    file.sync_all().await.map_err(PeerError::Disk)?;
    unfinished.persist(packed).map_err(|error| PeerError::Disk(error.error))?;
    Ok(bytes)
}
