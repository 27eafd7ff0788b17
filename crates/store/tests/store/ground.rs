//! Where the conformance suite runs: each way to hold a store, connected through a relay where there is a
//! connection, and beside it an undisturbed handle on the same state.

use std::net::SocketAddr;
use std::sync::Arc;

use kopek_store::embedded::HistoryLimits;
use kopek_store::served::{Serving, serve, store_socket};
use kopek_store::{Embedded, EtcdStore, Op, ServedStore, Store};

use crate::cell::{Cell, Server, free_address};
use crate::etcd::Cluster;
use crate::relay::Relay;

/// Small, so that a test outlives it.
const HISTORY: HistoryLimits = HistoryLimits { revisions: 1_000, bytes: 4 << 20 };

pub struct Ground {
    /// The one under test.
    pub store: Arc<dyn Store>,
    /// The same state, without the relays.
    pub beside: Arc<dyn Store>,
    relays: Vec<Relay>,
    cluster: Option<Cluster>,
    _held: (Vec<Server>, Option<Serving>),
}

impl Ground {
    pub async fn embedded() -> Ground {
        let server = Cell::new().server("s1");
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open_with(&server.dirs.state.join("store.redb"), HISTORY).unwrap());
        let beside = store.clone();
        Ground { store, beside, relays: Vec::new(), cluster: None, _held: (vec![server], None) }
    }

    pub async fn served_by_socket() -> Ground {
        let (beside, host, serving, _) = Ground::serving(&Cell::new()).await;
        let store = Arc::new(ServedStore::by_socket(store_socket(&host.dirs)));
        Ground { store, beside, relays: Vec::new(), cluster: None, _held: (vec![host], Some(serving)) }
    }

    pub async fn served_by_tls() -> Ground {
        let cell = Cell::new();
        let (beside, host, serving, address) = Ground::serving(&cell).await;
        let relay = Relay::to(address).await;
        let other = cell.server("s2");
        let store = Arc::new(ServedStore::by_tls(relay.address, other.identity.clone()));
        let held = (vec![host, other], Some(serving));
        Ground { store, beside, relays: vec![relay], cluster: None, _held: held }
    }

    async fn serving(cell: &Cell) -> (Arc<dyn Store>, Server, Serving, SocketAddr) {
        let host = cell.server("s1");
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open_with(&host.dirs.state.join("store.redb"), HISTORY).unwrap());
        let address = free_address();
        let serving = serve(store.clone(), &host.identity, address, &host.dirs).await.unwrap();
        (store, host, serving, address)
    }

    pub async fn etcd() -> Ground {
        let cell = Cell::new();
        let cluster = Cluster::start(&cell).await;
        let mut relays = Vec::new();
        for address in cluster.addresses() {
            relays.push(Relay::to(address).await);
        }
        let endpoints: Vec<String> =
            relays.iter().map(|relay| format!("https://{}", relay.address)).collect();
        let server = cell.server("s1");
        let store = Arc::new(EtcdStore::new(&endpoints, &server.pems()).await.unwrap());
        let beside = cluster.store(0).await;
        Ground { store, beside, relays, cluster: Some(cluster), _held: (vec![server], None) }
    }

    pub fn cut(&self) {
        self.relays.iter().for_each(Relay::cut);
    }

    pub fn close(&self) {
        self.relays.iter().for_each(Relay::close);
    }

    pub fn reopen(&self) {
        self.relays.iter().for_each(Relay::reopen);
    }

    pub fn hold_answers(&self) {
        self.relays.iter().for_each(Relay::hold_answers);
    }

    /// Makes the store forget what has happened until now.
    pub async fn compact(&self) {
        match &self.cluster {
            Some(cluster) => cluster.compact(self.beside.range("/none").await.unwrap().revision).await,
            None => {
                for n in 0..=HISTORY.revisions / 500 {
                    // By size: each of these fills a third of the history.
                    for part in 0..2 {
                        let value = vec![n as u8; 1_000_000];
                        let put = Op::Put { key: format!("/filler/{part}"), value, lease: None };
                        self.beside.commit(vec![], vec![put]).await.unwrap();
                    }
                }
            }
        }
    }
}
