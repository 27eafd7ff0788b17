//! Serves an HTTPS/1.1 API to members of the cell. The application finds who calls as the request extension
//! `Option<Peer>` and from where as the extension `SocketAddr`; what each may do is the application's to
//! decide. Called by control and by the agent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::identity::{Identity, peer_of};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Each of a hundred servers keeps a few connections, people a handful; one costs about 40 KB.
const CONNECTIONS_MAX: usize = 1_024;
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
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                let (acceptor, application) = (acceptor.clone(), application.clone());
                connections.spawn(async move {
                    if let Err(error) = serve_one(stream, from, &acceptor, application).await {
                        debug!(%from, error, "an API connection broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept an API connection");
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_one<S, B>(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: &TlsAcceptor,
    application: S,
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
