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
mod big_changes;
pub mod founding;
mod lines;
mod reconcile;
mod reports;
mod state;
mod store_move;
mod token;
mod view;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kopek_core::config::{CONTROL_PORT, Dirs, ServerConfig};
use kopek_link::authority::ca_fingerprint;
use kopek_link::clock::now;
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
use crate::lines::all_refuse;
use crate::reconcile::reconcile;
use crate::reports::{Refusal, Reports};
use crate::view::View;

/// Before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(300);
/// An active controller answers its port in well under this, or is deposed: its kernel does, however busy it is.
const ALIVE_LIMIT: Duration = Duration::from_millis(600);
/// A lost first packet of a connection is sent again after 1 s only, so a second connection is tried.
const SECOND_TRY: Duration = Duration::from_millis(250);

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
    // This server's agent asks the others.
    let agent = Arc::new(move || vec![address.ip()]);
    let store = FollowingStore::open(&dirs, &identity, &me, agent).await?;
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
    let known = Arc::new(std::sync::Mutex::new(None));
    loop {
        let is_alive = |leader| is_alive(leader, Arc::clone(&known));
        let campaign = election::campaign(store.clone(), &me, address, is_alive);
        match campaign.await {
            Ok(leadership) => {
                info!("this controller is active");
                let known = refusal(&known).take();
                lead(&dirs, &identity, &config, &store, leadership, known, &to_office).await;
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
    known: Option<Refusal>,
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
        reports: Arc::new(Reports::new(now(), known)),
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
            if let Err(error) = store_move::tidy_up(&active).await {
                warn!(%error, "what a move of the store has left is not tidied up");
            }
            to_office.send_replace(Some(Arc::clone(&active)));
        }
        std::future::pending::<()>().await
    };
    let work = async {
        loop {
            let Err(error) = reconcile(&active, &to_view).await;
            warn!(%error, "the store failed; reading everything again");
            // Whether an uncertain commit was done is read at once: a dead server may be waiting.
            if !matches!(error, StoreError::Uncertain { .. }) {
                sleep(RETRY).await;
            }
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

/// Whether a leader's controller still accepts connections. If its whole server refuses them, `known` tells
/// since when: the store may be without a leader too, and once it has one the server was dead for long enough.
async fn is_alive(leader: Leader, known: Arc<std::sync::Mutex<Option<Refusal>>>) -> bool {
    let connect = || tokio::net::TcpStream::connect(leader.address);
    let again = async {
        sleep(SECOND_TRY).await;
        connect().await
    };
    let either = async {
        tokio::select! {
            connected = connect() => connected,
            connected = again => connected,
        }
    };
    let connected = tokio::time::timeout(ALIVE_LIMIT, either).await;
    let is_alive = matches!(connected, Ok(Ok(_)));
    // A server that says nothing refuses nothing: there is no need to wait for each of its ports.
    let is_refusing = matches!(connected, Ok(Err(_))) && all_refuse(leader.address.ip()).await;
    let mut known = refusal(&known);
    if !is_refusing {
        *known = None;
    } else if known.as_ref().is_none_or(|known| known.server != leader.server) {
        *known = Some(Refusal { server: leader.server, since: now() });
    }
    is_alive
}

fn refusal(known: &std::sync::Mutex<Option<Refusal>>) -> std::sync::MutexGuard<'_, Option<Refusal>> {
    known.lock().expect("no code panics while it holds what is known")
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
