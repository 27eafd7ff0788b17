//! The embedded store, on the one server that hosts it: the agent opens the file and serves it to its own
//! controller and to the agents of other servers.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use kopek_core::config::{Dirs, STORE_PORT, ServerConfig};
use kopek_link::identity::Identity;
use kopek_store::location::location_file;
use kopek_store::served::{Serving, serve};
use kopek_store::{Embedded, Location, StoreError};
use tokio::sync::Mutex;
use tracing::warn;

#[derive(Debug, thiserror::Error)]
pub enum StoreHostError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot close {path} to others: {source}")]
    Private { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

pub struct StoreHost {
    dirs: Dirs,
    config: ServerConfig,
    identity: Identity,
    serving: Mutex<Option<Serving>>,
}

impl StoreHost {
    pub fn new(dirs: &Dirs, config: &ServerConfig, identity: &Identity) -> StoreHost {
        StoreHost {
            dirs: dirs.clone(),
            config: config.clone(),
            identity: identity.clone(),
            serving: Mutex::new(None),
        }
    }

    /// Serves it again if it was here before the agent ended: also when the cell's state has moved on, since
    /// others may still have to learn that from it.
    pub async fn resume(&self) -> Result<(), StoreHostError> {
        let location = Location::read(&location_file(&self.dirs.etc))?;
        let here = matches!(location, Location::Embedded { host, .. } if host == self.config.name);
        if here {
            return self.open().await;
        }
        if self.file().exists()
            && let Err(error) = self.open().await
        {
            warn!(%error, "the store that was here before cannot tell where the cell's state went");
        }
        Ok(())
    }

    /// Opens it, new or as it was, and serves it. Done once; repeating it changes nothing.
    pub async fn open(&self) -> Result<(), StoreHostError> {
        let mut serving = self.serving.lock().await;
        if serving.is_none() {
            let store = Embedded::open(&self.file())?;
            // It holds the CA's key.
            std::fs::set_permissions(self.file(), std::fs::Permissions::from_mode(0o600))
                .map_err(|source| StoreHostError::Private { path: self.file(), source })?;
            let address = SocketAddr::new(self.config.address, STORE_PORT);
            let serves = serve(Arc::new(store), &self.identity, address, &self.dirs).await;
            *serving = Some(serves.map_err(|source| StoreHostError::Listen { address, source })?);
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.dirs.state.join("store.redb")
    }
}
