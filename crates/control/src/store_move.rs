//! `kopek store migrate`: from the embedded store to etcd on three servers and back. The members are named
//! in the store, their agents start them; when they answer, everything is copied and the old store points to
//! the new one. Every agent and controller follows that pointer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use kopek_core::config::{AGENT_PORT, STORE_PORT};
use kopek_core::desired::{Desired, Server, StoreMembers};
use kopek_core::keys;
use kopek_store::{Commit, Compare, Location, Op, Store, StoreError, migrate};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::active::Active;
use crate::state::put;

/// Three members: the smallest number that survives the loss of one.
const MEMBERS: usize = 3;
/// For the members to be started by their agents and to elect a leader.
const START_LIMIT: Duration = Duration::from_secs(40);
/// An agent answers from memory.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Whoever works with the old store meets its pointer at the next step.
const FOLLOW_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

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
    #[error("another controller is active now; repeat the command")]
    Deposed,
    #[error("the agent of {host} cannot open a store: {why}")]
    Agent { host: kopek_core::ServerId, why: String },
}

pub async fn to_etcd(active: &Active) -> Result<(), MoveError> {
    let from = active.location.borrow().clone();
    if matches!(from, Location::Etcd { .. }) {
        return Err(MoveError::AlreadyThere("etcd"));
    }
    let members = chosen_members(&active.view().state.desired)?;
    let put = put(keys::STORE_MEMBERS.to_owned(), &members);
    if active.commit(vec![], vec![put]).await? == Commit::Conflict {
        return Err(MoveError::Deposed);
    }
    let moved = to_members(active, &from, &members).await;
    if moved.is_err()
        && let Err(error) = tidy_up(active).await
    {
        warn!(%error, "etcd runs on for nothing; the next controller that becomes active stops it");
    }
    moved
}

/// Always a new cluster: what an earlier one left on the servers is deleted, not filled again.
fn chosen_members(desired: &Desired) -> Result<StoreMembers, MoveError> {
    let mut servers: Vec<&Server> = desired.servers.values().filter(|server| server.is_up()).collect();
    if servers.len() < MEMBERS {
        return Err(MoveError::TooFewServers(servers.len()));
    }
    servers.sort_by_key(|server| (server.joined, server.name.clone()));
    Ok(StoreMembers {
        cluster: format!("{:016x}", rand::random::<u64>()),
        members: servers[..MEMBERS].iter().map(|server| (server.name.clone(), server.address)).collect(),
    })
}

async fn to_members(active: &Active, from: &Location, members: &StoreMembers) -> Result<(), MoveError> {
    members_run(active, members).await?;
    let to = Location::Etcd { endpoints: members.endpoints() };
    let target = answering(active, &to).await?;
    let source = answering(active, from).await?;
    // Another controller may have become active and named others: their agents would stop these.
    let still = is_stored(members);
    migrate(source.as_ref(), target.as_ref(), &to, &[still]).await?;
    followed(active, &to).await;
    Ok(())
}

pub async fn to_embedded(active: &Active) -> Result<(), MoveError> {
    let from = active.location.borrow().clone();
    let view = active.view();
    if matches!(from, Location::Embedded { .. }) {
        if view.state.store_members == StoreMembers::default() {
            return Err(MoveError::AlreadyThere("the embedded store"));
        }
        return Ok(tidy_up(active).await?);
    }
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
    // The members stop when the next active controller, which has followed, tidies up.
    migrate(source.as_ref(), target.as_ref(), &to, &[]).await?;
    followed(active, &to).await;
    Ok(())
}

/// Until this controller has followed: the next command would be decided on where the state was before. It is
/// moved, also when this takes longer.
async fn followed(active: &Active, to: &Location) {
    let mut location = active.location.clone();
    let follows = location.wait_for(|location| location == to);
    let _ = tokio::time::timeout(FOLLOW_LIMIT, follows).await;
}

/// Has etcd stopped when the state lies in the embedded store: it was moved away from etcd, or a move to it
/// has failed. Called by each controller that becomes active: a move begins a new term, so that every move and
/// every mover's death is followed by this.
pub async fn tidy_up(active: &Active) -> Result<(), StoreError> {
    let is_embedded = matches!(*active.location.borrow(), Location::Embedded { .. });
    let members = active.view().state.store_members.clone();
    if is_embedded && members != StoreMembers::default() {
        let delete = Op::Delete { key: keys::STORE_MEMBERS.to_owned() };
        // A conflict: somebody else decides now.
        active.commit(vec![is_stored(&members)], vec![delete]).await?;
        info!(cluster = members.cluster, "the cell's state is not in etcd: its members stop");
    }
    Ok(())
}

/// The condition that exactly these are to run the store.
fn is_stored(members: &StoreMembers) -> Compare {
    let value = serde_json::to_vec(members).expect("documents have only text keys");
    Compare::ValueIs { key: keys::STORE_MEMBERS.to_owned(), value }
}

/// Waits until each agent runs its member of this cluster. An earlier cluster's at the same address would
/// answer too, and take the cell's state with it when it is stopped.
async fn members_run(active: &Active, members: &StoreMembers) -> Result<(), MoveError> {
    let deadline = Instant::now() + START_LIMIT;
    for (host, address) in &members.members {
        let agent = SocketAddr::new(*address, AGENT_PORT);
        loop {
            let asked = active.api.call(Method::GET, agent, "/store/cluster", None::<&()>, ASK_LIMIT).await;
            let why = match asked {
                Ok(Some(cluster)) if members.cluster == cluster => break,
                Ok::<Option<String>, _>(_) => "its member of etcd does not start, see its log".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(MoveError::Agent { host: host.clone(), why });
            }
            sleep(PAUSE).await;
        }
    }
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
        sleep(PAUSE).await;
    }
}

/// Where the embedded store of this server lies.
pub fn embedded_file(dirs: &kopek_core::config::Dirs) -> PathBuf {
    dirs.state.join("store.redb")
}
