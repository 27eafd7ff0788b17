//! Serves a store by socket and TLS. Called by the agent of the server that holds the embedded store.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::config::Dirs;
use kopek_link::{Identity, Peer, peer_of};
use tokio::io::BufStream;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::protocol::{ALIVE_EVERY, Answer, Request, Stream, receive, send};
use super::store_socket;
use crate::store::{Store, StoreError};

/// A handful per process of a cell of some dozen servers.
const CONNECTIONS_MAX: usize = 1_024;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);
/// A client that does not take its answer for so long is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Serves as long as it is held.
pub struct Serving {
    listeners: [AbortHandle; 2],
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.listeners.iter().for_each(AbortHandle::abort);
    }
}

/// Listens on the server's own socket (for root) and on `address` (for servers of the cell).
pub async fn serve(
    store: Arc<dyn Store>,
    identity: &Identity,
    address: SocketAddr,
    dirs: &Dirs,
) -> std::io::Result<Serving> {
    let socket = store_socket(dirs);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let local = UnixListener::bind(&socket)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    let remote = TcpListener::bind(address).await?;
    let acceptor = identity.acceptor();
    let local = tokio::spawn(serve_local(store.clone(), local)).abort_handle();
    let remote = tokio::spawn(serve_remote(store, acceptor, remote)).abort_handle();
    Ok(Serving { listeners: [local, remote] })
}

async fn serve_local(store: Arc<dyn Store>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let store = store.clone();
        connections.spawn(async move {
            answer_all(store, stream).await;
            drop(place);
        });
    }
}

async fn serve_remote(store: Arc<dyn Store>, acceptor: TlsAcceptor, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (store, acceptor) = (store.clone(), acceptor.clone());
        connections.spawn(async move {
            match admit(acceptor, tcp).await {
                Ok(stream) => answer_all(store, stream).await,
                Err(why) => debug!(%from, why, "refused at the store's port"),
            }
            drop(place);
        });
    }
}

/// Too many open files, mostly: without a pause this would spin.
async fn pause_after(error: &std::io::Error) {
    warn!(%error, "cannot accept a connection to the store");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Only servers: the store holds the cell's CA key.
async fn admit(acceptor: TlsAcceptor, tcp: TcpStream) -> Result<impl Stream + 'static, String> {
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    let handshake = timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp)).await;
    let stream = handshake.map_err(|_| "no handshake")?.map_err(|error| error.to_string())?;
    match peer_of(stream.get_ref().1) {
        Some(Peer::Server(_)) => Ok(stream),
        Some(Peer::Admin(name)) => Err(format!("admin {name} is not a server of the cell")),
        None => Err("no certificate of the cell".to_owned()),
    }
}

async fn answer_all(store: Arc<dyn Store>, stream: impl Stream) {
    let mut stream = BufStream::new(stream);
    loop {
        let request = match receive(&mut stream).await {
            Ok(Some(Request::Watch { prefix, from })) => {
                return stream_changes(store, &prefix, from, &mut stream).await;
            }
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => return debug!(%error, "unreadable request to the store"),
        };
        let reply = answer(store.as_ref(), request).await.unwrap_or_else(Answer::Failed);
        if !matches!(timeout(WRITE_LIMIT, send(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn answer(store: &dyn Store, request: Request) -> Result<Answer, StoreError> {
    Ok(match request {
        Request::Range { prefix } => Answer::Range(store.range(&prefix).await?),
        Request::Get { key } => Answer::Entry(store.get(&key).await?),
        Request::Commit { compares, ops } => Answer::Commit(store.commit(compares, ops).await?),
        Request::Grant { ttl_ms } => Answer::Lease(store.grant(Duration::from_millis(ttl_ms)).await?),
        Request::KeepAlive { lease } => store.keep_alive(lease).await.map(|()| Answer::Done)?,
        Request::Revoke { lease } => store.revoke(lease).await.map(|()| Answer::Done)?,
        Request::Watch { .. } => {
            return Err(StoreError::Refused { why: "a watch takes a connection of its own".to_owned() });
        }
    })
}

async fn stream_changes(store: Arc<dyn Store>, prefix: &str, from: u64, stream: &mut impl Stream) {
    let mut watch = match store.watch(prefix, from).await {
        Ok(watch) => watch,
        Err(error) => {
            // The client opens it again, whether it has read this or not.
            let _ = timeout(WRITE_LIMIT, send(stream, &Answer::Failed(error))).await;
            return;
        }
    };
    loop {
        let line = match timeout(ALIVE_EVERY, watch.next()).await {
            Ok(Ok(changes)) => Answer::Changes(changes),
            Ok(Err(_)) => Answer::Compacted,
            Err(_) => Answer::Alive,
        };
        let sent = timeout(WRITE_LIMIT, send(stream, &line)).await;
        if !matches!(sent, Ok(Ok(()))) || matches!(line, Answer::Compacted) {
            return;
        }
    }
}
