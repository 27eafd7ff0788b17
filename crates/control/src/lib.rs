//! `kopek control`: the API, and while this one is active the loop that observes, plans and dispatches. Runs
//! on up to three servers; the store elects the active one.
//!
//! ```text
//!  agents ──reports──► reports ─┐
//!  lines ──"refused"──►         ├─► reconcile: plan → placements → assignments, routes ──► store
//!  store ──watch─────► state  ──┘        │ view
//!  people ──API──────► api ◄─────────────┘      api ──sites, servers, tokens──► store
//! ```

mod active;
mod api;
pub mod founding;
mod lines;
mod reconcile;
mod reports;
mod state;
mod store_move;
mod token;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kopek_core::config::{CONTROL_PORT, Dirs, ServerConfig};
use kopek_link::authority::ca_fingerprint;
use kopek_link::discovery;
use kopek_link::http::Api;
use kopek_link::identity::Identity;
use kopek_link::serve::{Clients, serve_https};
use kopek_store::election::{self, Leader, Leadership};
use kopek_store::{FollowingStore, StoreError};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::active::Active;
use crate::api::Office;
use crate::reconcile::{View, reconcile};
use crate::reports::Reports;

/// Before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(300);
/// An active controller answers its port in well under this, or is deposed.
const ALIVE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot listen on {address}: {source}; is another Kopek running on this server?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs for ever.
pub async fn run(dirs: Dirs, config: ServerConfig, identity: Identity) -> Result<Infallible, ControlError> {
    let me = config.name.clone();
    let address = SocketAddr::new(config.address, CONTROL_PORT);
    let listener =
        TcpListener::bind(address).await.map_err(|source| ControlError::Listen { address, source })?;
    let store = FollowingStore::open(&dirs, &identity, &me).await?;
    let (to_office, active) = watch::channel(None);
    let leader = leader_address(&store).await;
    let router = api::router(Arc::new(Office { active, leader }));
    let serving = identity.clone();
    tokio::spawn(async move { serve_https(&serving, listener, Clients::Anyone, router).await });
    if let Some(fingerprint) = ca_fingerprint(identity.ca_pem()) {
        tokio::spawn(async move {
            if let Err(error) = discovery::answer(fingerprint, address, address.ip()).await {
                warn!(%error, "servers that look for the cell will not find it here");
            }
        });
    }
    loop {
        let campaign = election::campaign(store.clone(), &me, address, is_alive);
        match campaign.await {
            Ok(leadership) => {
                info!("this controller is active");
                lead(&dirs, &identity, &config, &store, leadership, &to_office).await;
                to_office.send_replace(None);
                warn!("this controller is on standby");
            }
            Err(error) => {
                warn!(%error, "cannot campaign");
                sleep(RETRY).await;
            }
        }
    }
}

/// Works as the active controller until leadership is lost.
async fn lead(
    dirs: &Dirs,
    identity: &Identity,
    config: &ServerConfig,
    store: &Arc<FollowingStore>,
    leadership: Leadership,
    to_office: &watch::Sender<Option<Arc<Active>>>,
) {
    let (to_view, view) = watch::channel(Arc::new(View::default()));
    let active = Arc::new(Active {
        me: config.name.clone(),
        dirs: dirs.clone(),
        identity: identity.clone(),
        store: store.clone(),
        fence: leadership.fence(),
        location: store.location(),
        reports: Arc::new(Reports::new(active::now())),
        api: Api::new(identity.clone()),
        view,
        editing: Mutex::new(()),
        events: AtomicU64::new(0),
        turns: Default::default(),
    });
    // The API answers from the view: there must be one first.
    let open_office = async {
        let mut view = active.view.clone();
        if view.changed().await.is_ok() {
            to_office.send_replace(Some(Arc::clone(&active)));
        }
        std::future::pending::<()>().await
    };
    let work = async {
        loop {
            let Err(error) = reconcile(&active, &to_view).await;
            warn!(%error, "the store failed; reading everything again");
            sleep(RETRY).await;
        }
    };
    let sweep = async { match api::site_removal::sweep(&active).await {} };
    tokio::select! {
        () = sweep => {}
        () = leadership.lost() => {}
        () = work => {}
        () = open_office => {}
    }
}

/// Whether a leader's controller still accepts connections.
async fn is_alive(leader: Leader) -> bool {
    let connect = tokio::net::TcpStream::connect(leader.address);
    matches!(tokio::time::timeout(ALIVE_LIMIT, connect).await, Ok(Ok(_)))
}

async fn leader_address(store: &Arc<FollowingStore>) -> watch::Receiver<Option<SocketAddr>> {
    let mut leader = election::leader(store.clone());
    let (to, address) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let current = leader.borrow_and_update().as_ref().map(|leader| leader.address);
            to.send_replace(current);
            if leader.changed().await.is_err() {
                return;
            }
        }
    });
    address
}
