//! Serves an HTTPS/1.1 API to members of the cell. The application finds who calls as the request extension
//! `Option<Peer>` and from where as the extension `SocketAddr`; what each may do is the application's to
//! decide. Called by control and by the agent.
//!
//! Strangers never keep members out: whoever has shown no certificate (yet) is in a small room of its own,
//! where the oldest has to go when it is full.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::identity::{Identity, peer_of};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Each of a hundred servers keeps a few connections, people a handful; one costs about 40 KB.
const CONNECTIONS_MAX: usize = 1_024;
/// A member's handshake takes milliseconds, also when a hundred servers come back at once; one server joins at
/// a time.
const STRANGERS_MAX: usize = 256;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// For a request's head, and so for a kept-alive connection's next request.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// Accepting fails when descriptors run out; trying again at once would only burn the processor.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Which clients may talk to the application at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// With a certificate of the cell.
    Members,
    /// Also without any: a joining server has none yet.
    Anyone,
}

/// Serves until it is dropped, which cuts every connection.
pub async fn serve_https<S, B>(identity: &Identity, listener: TcpListener, clients: Clients, application: S)
where
    S: tower_service::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let acceptor = match clients {
        Clients::Members => identity.acceptor(),
        Clients::Anyone => identity.open_acceptor(),
    };
    let house = House { members: Arc::new(Semaphore::new(CONNECTIONS_MAX)), strangers: Arc::default() };
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (acceptor, application, place) = (acceptor.clone(), application.clone(), house.clone());
                let connection = async move {
                    if let Err(error) = serve_one(stream, from, &acceptor, application, &place).await {
                        debug!(%from, error, "an API connection broke");
                    }
                    place.leave_strangers();
                };
                house.let_in(|| connections.spawn(connection));
            }
            Err(error) => {
                warn!(%error, "cannot accept an API connection");
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Where connections are while they last.
#[derive(Clone)]
struct House {
    members: Arc<Semaphore>,
    /// The oldest first.
    strangers: Arc<Mutex<VecDeque<AbortHandle>>>,
}

impl House {
    /// As a stranger. The oldest one is cut if there are too many.
    fn let_in(&self, spawn: impl FnOnce() -> AbortHandle) {
        let oldest = {
            // Held meanwhile: the new one may be over before it is listed.
            let mut strangers = self.strangers();
            strangers.push_back(spawn());
            if strangers.len() > STRANGERS_MAX { strangers.pop_front() } else { None }
        };
        if let Some(oldest) = oldest {
            debug!("too many connections without a certificate: the oldest is cut");
            oldest.abort();
        }
    }

    /// Waits as a stranger for a member's place.
    async fn become_member(&self) -> OwnedSemaphorePermit {
        let place = self.members.clone().acquire_owned().await.expect("the semaphore is never closed");
        self.leave_strangers();
        place
    }

    fn leave_strangers(&self) {
        let own: Id = tokio::task::id();
        self.strangers().retain(|stranger| stranger.id() != own);
    }

    fn strangers(&self) -> MutexGuard<'_, VecDeque<AbortHandle>> {
        self.strangers.lock().expect("no code panics while it holds the strangers")
    }
}

async fn serve_one<S, B>(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: &TlsAcceptor,
    application: S,
    house: &House,
) -> Result<(), BoxError>
where
    S: tower_service::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let peer = peer_of(stream.get_ref().1);
    let _place = match peer {
        Some(_) => Some(house.become_member().await),
        None => None,
    };
    let application = TowerToHyperService::new(application);
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(from);
        application.call(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}
