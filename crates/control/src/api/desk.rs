//! An active controller without servers, over a real embedded store: for the tests of the API.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kopek_core::config::Dirs;
use kopek_core::desired::{Cell, Server, Standing};
use kopek_core::{ServerId, keys};
use kopek_link::authority::{CellAuthority, Csr};
use kopek_link::clock::now;
use kopek_link::http::Api;
use kopek_link::identity::Identity;
use kopek_store::{Compare, Embedded, Location, Store};
use tokio::sync::{Mutex, watch};

use super::Acting;
use super::servers::StoredAuthority;
use crate::active::Active;
use crate::reconcile::reconcile;
use crate::reports::Reports;
use crate::state::put;
use crate::view::View;

pub struct Desk {
    pub active: Arc<Active>,
    _folder: tempfile::TempDir,
}

impl Desk {
    /// Of a cell with one server, s1, that never reported.
    pub async fn new() -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let me = ServerId::parse("s1").unwrap();
        let address = Ipv4Addr::LOCALHOST.into();
        let authority = CellAuthority::create("desk").unwrap();
        let csr = Csr::new().unwrap();
        let certificate = authority.issue_server(&csr.csr_pem, &me, &[address]).unwrap();
        let identity = Identity::from_pem(authority.ca_pem(), &certificate, &csr.key_pem).unwrap();
        let dirs = Dirs { state: folder.path().join("state"), ..Dirs::default() };
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&folder.path().join("store")).unwrap());
        let stored = StoredAuthority { certificate: authority.ca_pem().to_owned(), key: authority.key_pem() };
        let server = Server {
            name: me.clone(),
            address,
            rack: "rack1".to_owned(),
            slots: 1,
            standing: Standing::Up,
            joined: now(),
        };
        let ops = vec![
            put(keys::CELL.to_owned(), &Cell::default()),
            put(keys::AUTHORITY.to_owned(), &stored),
            put(keys::server(&me), &server),
        ];
        store.commit(vec![], ops).await.unwrap();
        let location = Location::Embedded { host: me.clone(), address: SocketAddr::new(address, 1) };
        let (to_view, view) = watch::channel(Arc::new(View::default()));
        let active = Arc::new(Active {
            me,
            dirs,
            identity: identity.clone(),
            store,
            // Nobody else stands for election.
            fence: Compare::Absent { key: "/leader".to_owned() },
            location: watch::channel(location).1,
            reports: Arc::new(Reports::new(now(), None)),
            api: Api::new(identity),
            view,
            editing: Mutex::new(()),
            events: Default::default(),
            turns: Default::default(),
        });
        let reconciling = active.clone();
        tokio::spawn(async move {
            let Err(error) = reconcile(&reconciling, &to_view).await;
            panic!("{error}");
        });
        assert!(active.wait_until(Duration::from_secs(10), |view| view.state.revision > 0).await);
        Desk { active, _folder: folder }
    }

    pub fn acting(&self) -> Acting {
        Acting(self.active.clone())
    }
}
