//! What an instance finds as its MySQL, at `localhost` (the socket) and at 127.0.0.1:3306: bytes to and from
//! the site's writer, wherever that is.
//!
//! ```text
//!  instance ── listen ── session ──┬── member of this server
//!                                  └── TLS ── relay ── member of the writer's server
//! ```
//!
//! Promises: a connection only ever reaches the member that is the site's writer by the latest part, under the
//! site's own loopback address; it is cut at once when the writer changes; one that arrives meanwhile waits.
//! Everything goes on by the last part while the agent is gone.

mod listen;
mod member;
mod netns;
mod packet;
mod place;
mod relay;
mod session;

use std::net::SocketAddr;

use kopek_core::config::{Dirs, SQL_PORT, ServerConfig};
use kopek_core::part::SqlPart;
use kopek_link::{Identity, IdentityError, follow};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What the agent said last; nothing before it said anything.
type Following = watch::Receiver<Option<SqlPart>>;

#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot listen on {address} for other servers: {source}; is another `kopek sql` running?")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// The process `kopek sql`. Ends only when it cannot begin.
pub async fn run(dirs: Dirs, config: ServerConfig) -> Result<(), SqlError> {
    let identity = Identity::load(&dirs.etc)?;
    let address = SocketAddr::new(config.address, SQL_PORT);
    let peers = TcpListener::bind(address).await.map_err(|source| SqlError::Listen { address, source })?;
    let following = follow::<SqlPart>(&dirs);
    tokio::join!(
        listen::keep_listeners(identity.clone(), following.part.clone()),
        relay::serve_peers(identity, peers, following.part.clone()),
    );
    Ok(())
}
