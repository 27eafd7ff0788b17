//! The way to this server's instances: edges here come over a Unix socket, those of other servers over mutual
//! TLS; each names an instance in the first line and then speaks with it. The same port hands packed trees to
//! other servers. Nobody but servers of the cell gets past the first line.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::config::Dirs;
use kopek_core::part::FilesPart;
use kopek_core::{Digest, InstanceId};
use kopek_link::{Identity, Peer, Preamble, PreambleError, Welcome, peer_of, read_preamble, send_welcome};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::flight::Flights;
use crate::relay::relay;

/// Warm connections of all edges to all instances here; each takes two descriptors.
const CONNECTIONS_MAX: usize = 8_192;
/// Trees sent at once: more only share the same network.
const TREES_MAX: usize = 16;
/// Handshake and first line, also from a server under load.
const OPENING_LIMIT: Duration = Duration::from_secs(5);
/// On the same machine; an instance that does not accept within this is not well.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Connections to an instance that left the part: requests that take longer are cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// A server that takes nothing of a tree for so long is dead or cut off.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// After a failed accept, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    part: watch::Receiver<Option<FilesPart>>,
    flights: Arc<Flights>,
    dirs: Dirs,
    connections: Arc<Semaphore>,
    trees: Semaphore,
}

#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error("the handshake failed: {0}")]
    Handshake(io::Error),
    #[error("only servers of the cell may come here")]
    Stranger,
    #[error("it did not say what it wants within {} s", OPENING_LIMIT.as_secs())]
    Silent,
    #[error(transparent)]
    Preamble(#[from] PreambleError),
    #[error("it took nothing for {} s", STALL_LIMIT.as_secs())]
    Stalled,
    #[error("{0}")]
    Broken(#[from] io::Error),
}

/// Only root, as which the edge runs too, may come in.
pub(crate) fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Gate {
    pub fn new(part: watch::Receiver<Option<FilesPart>>, flights: Arc<Flights>, dirs: Dirs) -> Gate {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Gate(Arc::new(Inner { part, flights, dirs, connections, trees: Semaphore::new(TREES_MAX) }))
    }

    /// For the edge of this server. Runs for ever.
    pub async fn serve_socket(self, listener: UnixListener) {
        loop {
            let slot = self.slot().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let gate = self.clone();
                    tokio::spawn(async move {
                        let _slot = slot;
                        note_end("the edge here", gate.serve(stream).await);
                    });
                }
                Err(error) => pause_accepting(&error).await,
            }
        }
    }

    /// For other servers. Runs for ever.
    pub async fn serve_port(self, listener: TcpListener, identity: Identity) {
        loop {
            let slot = self.slot().await;
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (gate, identity) = (self.clone(), identity.clone());
                    tokio::spawn(async move {
                        let _slot = slot;
                        note_end(&from.to_string(), gate.serve_server(stream, &identity).await);
                    });
                }
                Err(error) => pause_accepting(&error).await,
            }
        }
    }

    async fn slot(&self) -> OwnedSemaphorePermit {
        self.0.connections.clone().acquire_owned().await.expect("never closed")
    }

    async fn serve_server(&self, stream: TcpStream, identity: &Identity) -> Result<(), GateError> {
        stream.set_nodelay(true)?;
        let handshake = timeout(OPENING_LIMIT, identity.acceptor().accept(stream)).await;
        let stream = handshake.map_err(|_| GateError::Silent)?.map_err(GateError::Handshake)?;
        match peer_of(stream.get_ref().1) {
            Some(Peer::Server(_)) => self.serve(stream).await,
            Some(Peer::Admin(_)) | None => Err(GateError::Stranger),
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) -> Result<(), GateError> {
        let preamble = timeout(OPENING_LIMIT, read_preamble(&mut stream)).await;
        match preamble.map_err(|_| GateError::Silent)?? {
            Preamble::Gate { instance } => self.serve_instance(stream, &instance).await,
            Preamble::Tree { digest } => self.serve_tree(stream, &digest).await,
            Preamble::Sql { site, .. } | Preamble::SqlClose { site, .. } | Preamble::SqlTurn { site, .. } => {
                refuse(stream, format!("this is the gate; the database of {site} is behind the sql relay"))
                    .await
            }
        }
    }

    async fn serve_instance<S>(&self, mut stream: S, instance: &InstanceId) -> Result<(), GateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(address) = self.address(instance) else {
            return refuse(stream, format!("{instance} does not run here")).await;
        };
        let connected = match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return refuse(stream, format!("{instance} does not answer: {error}")).await,
            Err(_) => {
                let why = format!("{instance} did not answer within {} ms", CONNECT_LIMIT.as_millis());
                return refuse(stream, why).await;
            }
        };
        connected.set_nodelay(true)?;
        send_welcome(&mut stream, &Welcome::Open { bytes: None }).await?;
        let flight = self.0.flights.board(instance);
        tokio::select! {
            ended = relay(stream, connected, &flight) => Ok(ended?),
            () = self.departed(instance, address) => {
                tracing::warn!(%instance, "cut a connection to an instance that left");
                Ok(())
            }
        }
    }

    fn address(&self, instance: &InstanceId) -> Option<SocketAddr> {
        self.0.part.borrow().as_ref()?.gates.get(instance).copied()
    }

    /// Returns when the instance has been gone from the part for the time that its last requests get.
    async fn departed(&self, instance: &InstanceId, address: SocketAddr) {
        let mut part = self.0.part.clone();
        let is_here = |part: &Option<FilesPart>| {
            part.as_ref().is_some_and(|part| part.gates.get(instance) == Some(&address))
        };
        loop {
            if part.wait_for(|part| !is_here(part)).await.is_err() {
                return std::future::pending().await;
            }
            if timeout(DRAIN_LIMIT, part.wait_for(is_here)).await.is_err() {
                return;
            }
        }
    }

    /// Hands out a packed tree if it is here and complete.
    async fn serve_tree<S>(&self, mut stream: S, digest: &Digest) -> Result<(), GateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Ok(_slot) = self.0.trees.try_acquire() else {
            return refuse(stream, format!("{TREES_MAX} trees are on their way already")).await;
        };
        let mut file = match tokio::fs::File::open(self.0.dirs.packed_tree(digest)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return refuse(stream, "it is not here".to_owned()).await;
            }
            Err(error) => return refuse(stream, format!("it cannot be read: {error}")).await,
        };
        send_welcome(&mut stream, &Welcome::Open { bytes: Some(file.metadata().await?.len()) }).await?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let got = file.read(&mut buffer).await?;
            if got == 0 {
                return Ok(timeout(STALL_LIMIT, stream.shutdown())
                    .await
                    .map_err(|_| GateError::Stalled)??);
            }
            let sent = timeout(STALL_LIMIT, stream.write_all(&buffer[..got])).await;
            sent.map_err(|_| GateError::Stalled)??;
        }
    }
}

async fn refuse<S: AsyncWrite + Unpin>(mut stream: S, why: String) -> Result<(), GateError> {
    send_welcome(&mut stream, &Welcome::Refused { why }).await?;
    Ok(stream.shutdown().await?)
}

async fn pause_accepting(error: &io::Error) {
    tracing::warn!(%error, "the gate cannot take a connection");
    sleep(ACCEPT_PAUSE).await;
}

/// Broken connections are the edges' and visitors' daily way to end.
fn note_end(from: &str, ended: Result<(), GateError>) {
    match ended {
        Ok(()) => {}
        Err(error @ (GateError::Handshake(_) | GateError::Stranger)) => {
            tracing::warn!(from, %error, "refused at the gate");
        }
        Err(error) => tracing::debug!(from, %error, "a connection through the gate broke"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kopek_core::ServerId;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_left_has_departed_after_its_drain_time_unless_it_comes_back() {
        let instance = InstanceId::parse("blog.1").unwrap();
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let with = FilesPart {
            server: ServerId::parse("s1").unwrap(),
            confirmed: None,
            images: Vec::new(),
            volumes: BTreeMap::new(),
            peers: BTreeMap::new(),
            gates: BTreeMap::from([(instance.clone(), address)]),
        };
        let without = FilesPart { gates: BTreeMap::new(), ..with.clone() };
        let (parts, part) = watch::channel(Some(with.clone()));
        let gate = Gate::new(part, Arc::default(), Dirs::default());
        let start = Instant::now();
        let changes = async {
            sleep(DRAIN_LIMIT * 2).await;
            parts.send_replace(Some(without.clone()));
            sleep(DRAIN_LIMIT / 2).await;
            parts.send_replace(Some(with.clone()));
            sleep(DRAIN_LIMIT * 2).await;
            parts.send_replace(Some(without));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = gate.departed(&instance, address) => {}
            () = changes => {}
        }
        assert_eq!(start.elapsed().as_secs(), (DRAIN_LIMIT * 11 / 2).as_secs());
    }
}
