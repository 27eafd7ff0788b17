//! `kopek store migrate`: from the embedded store to etcd on three servers and back. The members are named
//! in the store, their agents start them; when they answer, everything is copied and the old store points to
//! the new one. Every agent and controller follows that pointer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use kopek_core::config::{AGENT_PORT, STORE_PORT};
use kopek_core::desired::{Server, StoreMembers};
use kopek_core::keys;
use kopek_store::{Location, Op, Store, StoreError, migrate};
use tokio::time::{Instant, sleep};

use crate::active::Active;
use crate::state::put;

/// Three members: the smallest number that survives the loss of one.
const MEMBERS: usize = 3;
/// For the members to be started by their agents and to elect a leader.
const START_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("the cell's state is in {0} already")]
    AlreadyThere(&'static str),
    #[error(
        "etcd needs {MEMBERS} servers that are up, the cell has {0}; join more with `kopek server token`"
    )]
    TooFewServers(usize),
    #[error("the new store did not answer within {} s: {source}; nothing was moved, see etcd.log on the servers", START_LIMIT.as_secs())]
    NoAnswer { source: StoreError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Migrate(#[from] kopek_store::MigrateError),
    #[error("the agent of {host} cannot open a store: {why}")]
    Agent { host: kopek_core::ServerId, why: String },
}

pub async fn to_etcd(active: &Active) -> Result<(), MoveError> {
    let from = active.location.borrow().clone();
    if matches!(from, Location::Etcd { .. }) {
        return Err(MoveError::AlreadyThere("etcd"));
    }
    let view = active.view();
    let mut servers: Vec<&Server> =
        view.state.desired.servers.values().filter(|server| server.is_up()).collect();
    if servers.len() < MEMBERS {
        return Err(MoveError::TooFewServers(servers.len()));
    }
    servers.sort_by_key(|server| (server.joined, server.name.clone()));
    let members = StoreMembers {
        members: servers[..MEMBERS].iter().map(|server| (server.name.clone(), server.address)).collect(),
    };
    active.commit(vec![], vec![put(keys::STORE_MEMBERS.to_owned(), &members)]).await?;
    let to = Location::Etcd { endpoints: members.endpoints() };
    let target = answering(active, &to).await?;
    let source = answering(active, &from).await?;
    migrate(source.as_ref(), target.as_ref(), &to).await?;
    Ok(())
}

pub async fn to_embedded(active: &Active) -> Result<(), MoveError> {
    let from = active.location.borrow().clone();
    if matches!(from, Location::Embedded { .. }) {
        return Err(MoveError::AlreadyThere("the embedded store"));
    }
    let view = active.view();
    let Some(me) = view.state.desired.servers.get(&active.me) else {
        return Err(MoveError::TooFewServers(0));
    };
    let agent = SocketAddr::new(me.address, AGENT_PORT);
    let _: () = active
        .api
        .call(Method::POST, agent, "/store/open", None::<&()>, START_LIMIT)
        .await
        .map_err(|source| MoveError::Agent { host: active.me.clone(), why: source.to_string() })?;
    let to = Location::Embedded { host: active.me.clone(), address: SocketAddr::new(me.address, STORE_PORT) };
    let target = answering(active, &to).await?;
    let source = answering(active, &from).await?;
    migrate(source.as_ref(), target.as_ref(), &to).await?;
    // Only those who have followed the move see this, and stop their members.
    target.commit(vec![], vec![Op::Delete { key: keys::STORE_MEMBERS.to_owned() }]).await?;
    Ok(())
}

/// Opens the store at `location`, as soon as it answers.
async fn answering(active: &Active, location: &Location) -> Result<std::sync::Arc<dyn Store>, MoveError> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let error = match kopek_store::open(location, &active.identity, &active.me, &active.dirs).await {
            Ok(store) => match store.get(keys::CELL).await {
                Ok(_) => return Ok(store),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(MoveError::NoAnswer { source: error });
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Where the embedded store of this server lies.
pub fn embedded_file(dirs: &kopek_core::config::Dirs) -> PathBuf {
    dirs.state.join("store.redb")
}
