//! One database behind our sessions, without a cell: for the differential tests and the benchmark. Clients of
//! the socket reach the database by its socket, those of the port by its port, so that accounts and lists of
//! connections look as they do without us.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::desired::Database;
use kopek_core::part::{RoutedWriter, SqlPart, SqlSite};
use kopek_core::{PoolName, ServerId, SiteName};
use kopek_link::Identity;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::backend::{Backend, Ways};
use crate::fence::Fences;
use crate::lease::Lease;
use crate::listen::{Listener, accept};
pub use crate::manners::{Deadlocks, Manners, Texts};
pub use crate::member::Endpoint;
use crate::member::Reach;
use crate::session::{Bounds, Sites, first_shape};
use crate::threads::Threads;
use crate::token::Slots;
pub use crate::token::Tokens;
use crate::turn::Turns;
use crate::warm::part_with;
use crate::writer::{account_of, writer_of};

/// Not for binary logs, and the number is the one that all doors have.
const TOKEN_TABLE: [&str; 3] = [
    "SET sql_log_bin=0",
    "CREATE DATABASE IF NOT EXISTS kopek",
    "CREATE TABLE IF NOT EXISTS kopek.site_1 \
     (slot BIGINT UNSIGNED NOT NULL PRIMARY KEY, token BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB",
];
/// While a database starts.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// What listens where, in front of what.
pub struct Alone {
    pub identity: Identity,
    pub tls: Option<TlsAcceptor>,
    /// The account whose logins are answered here.
    pub account: Database,
    pub manners: Manners,
    /// Pairs of where to listen and which database stands behind it.
    pub doors: Vec<(Endpoint, Endpoint)>,
}

/// Serves on this thread until the process ends; calls `ready` once it listens.
pub fn serve(alone: Alone, ready: impl FnOnce()) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let Alone { identity, tls, account, manners, doors } = alone;
        let site =
            |number: usize| SiteName::parse(&format!("door{number}")).expect("a name of letters and digits");
        let server = ServerId::parse("alone").expect("a name of letters");
        let endpoints: BTreeMap<SiteName, Endpoint> =
            doors.iter().enumerate().map(|(number, (_, member))| (site(number), member.clone())).collect();
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let writer = RoutedWriter { server: server.clone(), relay: nowhere, epoch: 1, former: None };
        let sites = endpoints.keys().map(|site| {
            let (writer, database) = (Some(writer.clone()), Some(account.clone()));
            let (limits, pool) = (Default::default(), PoolName::first());
            (site.clone(), SqlSite { number: 1, writer, database, limits, pool })
        });
        let part = SqlPart {
            server: server.clone(),
            sites: sites.collect(),
            listeners: BTreeMap::new(),
            member: None,
            writes_for: BTreeMap::new(),
        };
        let (_part, part) = watch::channel(Some(part));
        let tls = tls.unwrap_or_else(|| identity.open_acceptor());
        let reach = Reach::Alone(Arc::new(endpoints));
        let ways = Ways {
            identity,
            part,
            fences: Fences::default(),
            lease: Lease::default(),
            reach,
            tls,
            threads: Threads::default(),
            turns: Turns::default(),
        };
        let slots = Slots::new(server, 0);
        if manners.tokens == Tokens::Kept {
            for site in sites_of(&ways) {
                spawn_local(make_token_table(ways.clone(), site));
            }
        }
        let sites = Sites::new(ways, slots, Bounds::default(), manners);
        spawn_local(sites.warm.clone().sweep());
        for (number, (door, _)) in doors.into_iter().enumerate() {
            let listener = match door {
                Endpoint::Port(address) => Listener::Tcp(TcpListener::bind(address).await?),
                Endpoint::Socket(path) => Listener::Unix(open_to_all(path)?),
            };
            spawn_local(accept(listener, site(number), Rc::clone(&sites)));
        }
        ready();
        std::future::pending().await
    })
}

fn sites_of(ways: &Ways) -> Vec<SiteName> {
    ways.part.borrow().iter().flat_map(|part| part.sites.keys().cloned()).collect()
}

/// Makes the table that an agent would have made, as soon as the database answers. Until then writes go unmarked.
async fn make_token_table(ways: Ways, site: SiteName) {
    let writer = writer_of(&ways.part.borrow(), &site).cloned();
    let account = account_of(&ways.part.borrow(), &site).cloned();
    let Some((writer, account)) = writer.zip(account) else { return };
    let shape = first_shape();
    loop {
        if let Ok(mut backend) = Backend::open(&ways, &site, &writer, &account, &shape).await {
            for statement in TOKEN_TABLE {
                if let Ok(Some(code)) = backend.query(statement).await.map(|said| said.error) {
                    warn!(%site, code, "the table of tokens could not be made");
                }
            }
            return part_with(backend);
        }
        sleep(TRY_AGAIN_AFTER).await;
    }
}

fn open_to_all(path: PathBuf) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o777))?;
    Ok(listener)
}
