//! What an instance finds as its MySQL, at `localhost` (the socket) and at 127.0.0.1:3306.
//!
//! ```text
//!  instance ── listen ── session ──┬── backend ── member of this server
//!                                  └── backend ── TLS ── relay ── member of the writer's server
//! ```
//!
//! Promises: a statement only ever reaches the member that is the site's writer by the latest part, under the
//! site's own loopback address. When the writer changes, sessions go on at the new one: what is known not to
//! have been committed is done again, and what is not known is asked. Nothing of one client's session is seen
//! by another. Everything goes on by the last part while the agent is gone.

pub mod alone;
mod answer;
mod backend;
mod barrier;
mod budget;
mod caps;
mod carry;
mod compress;
mod digests;
mod effect;
mod fence;
mod forbidden;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod inbox;
mod lease;
mod listen;
mod login;
mod manners;
mod member;
mod meter;
mod metrics;
mod netns;
mod opening;
mod packet;
mod place;
mod relay;
mod session;
mod slow;
mod status;
mod threads;
mod token;
mod transaction;
mod turn;
mod warm;
mod wire;
mod worker;
mod writer;

use std::net::SocketAddr;
use std::path::PathBuf;

use kopek_core::config::{Dirs, SQL_PORT, ServerConfig};
use kopek_core::part::SqlPart;
use kopek_link::{Identity, IdentityError, follow};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::backend::Ways;
use crate::fence::Fences;
use crate::lease::Lease;
use crate::member::Reach;
use crate::status::Status;
use crate::threads::Threads;
use crate::turn::Turns;

/// What the agent said last; nothing before it said anything.
type Following = watch::Receiver<Option<SqlPart>>;

#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot listen on {address} for other servers: {source}; is another `kopek sql` running?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot make the socket {path}")]
    Status { path: PathBuf, source: std::io::Error },
    #[error("cannot start a thread of sql")]
    Thread(#[source] std::io::Error),
}

/// The process `kopek sql`: a worker thread per core for the instances, and the caller's own runtime for other
/// servers. Ends only when it cannot begin; the workers end when it is dropped.
pub async fn run(dirs: Dirs, config: ServerConfig) -> Result<(), SqlError> {
    let identity = Identity::load(&dirs.etc)?;
    let address = SocketAddr::new(config.address, SQL_PORT);
    let peers = TcpListener::bind(address).await.map_err(|source| SqlError::Listen { address, source })?;
    let following = follow::<SqlPart>(&dirs);
    let tls = identity.open_acceptor();
    let (part, fences) = (following.part.clone(), Fences::default());
    let (threads, turns) = (Threads::default(), Turns::default());
    tokio::spawn(turn::tell(turns.clone(), following.report));
    let ways =
        Ways { identity, part, fences, lease: Lease::default(), reach: Reach::Cell, tls, threads, turns };
    let path = dirs.sql_socket();
    let asked = status::bind(&path).map_err(|source| SqlError::Status { path, source })?;
    let workers = worker::start(&ways, &config.name).map_err(SqlError::Thread)?;
    let status = Status { server: config.name, workers: workers.questions.clone() };
    tokio::select! {
        () = relay::serve_peers(ways, peers) => {}
        () = status::serve(asked, status) => unreachable!("the status socket is served for ever"),
    }
    Ok(())
}
