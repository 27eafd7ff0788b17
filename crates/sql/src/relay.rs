//! The end of other servers' connections: mutual TLS on the relay's port, one preamble, then bytes to this
//! server's member. Called by `run`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::{ServerId, SiteName};
use kopek_link::{Peer, Preamble, Welcome, peer_of, read_preamble, send_welcome};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use crate::backend::Ways;
use crate::member::{Joined, join, serves};
use crate::place::{Place, Places};

/// Three servers at their own limit of a site.
const EACH_SITE_MAX: usize = 3 * crate::session::EACH_SITE_MAX;
/// All sites together; one costs about 100 KB with its TLS buffers and mariadbd's thread more than that.
const CONNECTIONS_MAX: usize = 4_096;
/// TLS and the first line; both take milliseconds.
const PREAMBLE_LIMIT: Duration = Duration::from_secs(5);
/// Twice what a session lets its transaction end in.
const LEAVE_LIMIT: Duration = Duration::from_millis(100);
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Largest part of a TLS record; more would only wait.
const BUFFER: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("no TLS with a certificate of the cell")]
    Tls(#[source] io::Error),
    #[error("did not say what it wants within {} s", PREAMBLE_LIMIT.as_secs())]
    Silent,
    #[error(transparent)]
    Preamble(#[from] kopek_link::PreambleError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("the connection broke")]
    Broken(#[source] io::Error),
}

/// For ever.
pub(crate) async fn serve_peers(ways: Ways, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let relay = Relay { acceptor: ways.identity.acceptor(), ways, places: Places::new(EACH_SITE_MAX) };
    let mut connections = JoinSet::new();
    loop {
        let held = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                let relay = relay.clone();
                connections.spawn(async move {
                    if let Err(error) = relay.serve(stream).await {
                        debug!(%from, %error, "a relayed connection ended");
                    }
                    drop(held);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a relayed connection");
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

#[derive(Clone)]
struct Relay {
    acceptor: TlsAcceptor,
    ways: Ways,
    places: Places,
}

impl Relay {
    async fn serve(&self, stream: TcpStream) -> Result<(), RelayError> {
        notice_dead_peers(&stream).map_err(RelayError::Broken)?;
        let (mut stream, caller, want) =
            timeout(PREAMBLE_LIMIT, self.hear(stream)).await.map_err(|_| RelayError::Silent)??;
        let refusal = match (caller, want) {
            (Some(Peer::Server(server)), Preamble::Sql { site, epoch }) => {
                match self.open(&site, epoch).await {
                    Ok((member, place)) => {
                        send_welcome(&mut stream, &Welcome::Open { bytes: None }).await?;
                        self.relay(stream, member, &server, &site, epoch).await?;
                        drop(place);
                        return Ok(());
                    }
                    Err(why) => why,
                }
            }
            (Some(Peer::Server(server)), Preamble::SqlClose { site, epoch }) => {
                self.ways.fences.close(&site, epoch).await;
                info!(%site, epoch, %server, "closed: the site has another writer");
                send_welcome(&mut stream, &Welcome::Open { bytes: None }).await?;
                return Ok(());
            }
            (Some(Peer::Server(_)), Preamble::SqlTurn { site, table }) => {
                send_welcome(&mut stream, &Welcome::Open { bytes: None }).await?;
                return self.ways.turns.serve(site, table, &mut stream).await.map_err(RelayError::Broken);
            }
            (Some(Peer::Server(_)), _) => "this port relays database connections only".to_owned(),
            (_, _) => "only servers of the cell may relay".to_owned(),
        };
        send_welcome(&mut stream, &Welcome::Refused { why: refusal.clone() }).await?;
        stream.shutdown().await.map_err(RelayError::Broken)?;
        Err(RelayError::Refused(refusal))
    }

    async fn hear(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Peer>, Preamble), RelayError> {
        let mut stream = self.acceptor.accept(stream).await.map_err(RelayError::Tls)?;
        let caller = peer_of(stream.get_ref().1);
        let want = read_preamble(&mut stream).await?;
        Ok((stream, caller, want))
    }

    /// A connection to the member, or why not.
    async fn open(&self, site: &SiteName, epoch: u64) -> Result<(Joined, Place), String> {
        let place = self.places.take(site).ok_or_else(|| format!("too many connections of site {site}"))?;
        let joined = join(&self.ways, site, epoch).await?;
        Ok((joined, place))
    }

    /// Until either side ends or the member is no longer the site's writer. The other side has the same news
    /// and leaves by itself when it is between two transactions, so it gets a moment for that.
    async fn relay(
        &self,
        mut stream: TlsStream<TcpStream>,
        joined: Joined,
        from: &ServerId,
        site: &SiteName,
        epoch: u64,
    ) -> Result<(), RelayError> {
        let Joined { stream: mut member, entered } = joined;
        let mut part = self.ways.part.clone();
        let relieved = async {
            tokio::select! {
                _ = part.wait_for(|part| !part.as_ref().is_some_and(|part| serves(part, site, epoch))) => (),
                () = entered.closed() => (),
            }
            sleep(LEAVE_LIMIT).await;
        };
        tokio::select! {
            ended = copy_bidirectional_with_sizes(&mut stream, &mut member, BUFFER, BUFFER) => {
                ended.map(|_| ()).map_err(RelayError::Broken)
            }
            () = relieved => {
                info!(%site, epoch, %from, "connection cut: this server is not the site's writer any more");
                Ok(())
            }
        }
    }
}

/// A server that lost its power closes nothing, and its connections would hold their locks: after about 10 s
/// without a sign of life they are cut.
pub(crate) fn notice_dead_peers(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &4)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &2)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    // For data that is under way, to which keep-alive does not apply; in milliseconds.
    setsockopt(stream, sockopt::TcpUserTimeout, &10_000)?;
    Ok(())
}
