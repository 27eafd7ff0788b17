//! `kopek agent`: root on one server, converging it on its assignment. The only process of a server that
//! reads the store; the others get their parts from it and go on without it.
//!
//! ```text
//!  store ─► feed ─┬─ assignment ─► converge ─► instances (containers)     ┐
//!                 │               ├─► member (mariadbd)                    ├─► report ─► active controller
//!                 │               └─► vips (keepalived)                    │
//!                 ├─ routes ─────────► parts ─► edge, files, sql ──────────┘
//!                 └─ store members ──► etcd
//!
//!  the pool's other members ◄── fellows: who died, who hangs, who is silent
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kopek_core::ServerId;
use kopek_core::assignment::{AssignedMember, AssignedVip, Assignment, Start};
use kopek_core::config::{AGENT_PORT, Dirs, ServerConfig};
use kopek_core::converge::{self, HostAction, converge};
use kopek_core::observed::{Health, MemberState, Report, SeenMember};
use kopek_core::part::{FilesReport, SqlReport};
use kopek_instance::network::NetworkError;
use kopek_link::clock::now;
use kopek_link::http::Api;
use kopek_link::identity::Identity;
use kopek_link::part::Parts;
use kopek_link::serve::{Clients, serve_https};
use kopek_store::{FollowingStore, Store, StoreError, election};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::api::{self, Desk};
use crate::feed::{self, Feed, Routes};
use crate::fellows::{self, Heard, Post};
use crate::instances::{Instances, Word};
use crate::mariadb::{self, Evicted, Member, MemberConfig};
use crate::store_host::{StoreHost, StoreHostError};
use crate::{edge_health, hand_out, machine, reporting, site_logs, store_member, vips};

/// Loads are averages over samples this far apart, as in the kernel's own habit of seconds.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// The store answers in milliseconds when it is there; without it the server goes on with what it knew.
const CONFIRMATION_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot listen on {address}: {source}; is another Kopek running on this server?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot serve {socket}: {source}")]
    Socket { socket: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot serve the cell's store from this server: {0}")]
    StoreHost(StoreHostError),
    #[error("cannot set up the firewall of this server's instances: {0}")]
    Firewall(NetworkError),
}

/// Runs for ever. `launcher` is our own binary.
pub async fn run(
    dirs: Dirs,
    config: ServerConfig,
    identity: Identity,
    launcher: PathBuf,
) -> Result<Infallible, AgentError> {
    let address = SocketAddr::new(config.address, AGENT_PORT);
    let listener =
        TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })?;
    machine::guard(&config, &[], &[]).map_err(AgentError::Firewall)?;
    let host = Arc::new(StoreHost::new(&dirs, &config, &identity));
    host.resume().await.map_err(AgentError::StoreHost)?;

    // The members of the store start from what is on disk, before the store can be asked.
    let (to_members, store_members) = watch::channel(feed::remembered_store_members(&parts_folder(&dirs)));
    let (to_cluster, store_cluster) = watch::channel(None);
    tokio::spawn(store_member::keep(dirs.clone(), config.name.clone(), store_members, to_cluster));

    let socket = dirs.agent_socket();
    let parts = Parts::serve(&dirs).await.map_err(|source| AgentError::Socket { socket, source })?;
    let folder = parts_folder(&dirs);
    let peers = Arc::new(move || feed::remembered_peers(&folder));
    let store: Arc<FollowingStore> = FollowingStore::open(&dirs, &identity, &config.name, peers).await?;
    let remembered_sites = feed::remembered_sites(&parts_folder(&dirs));
    let feed = feed::follow(store.clone(), &config.name, &parts_folder(&dirs), to_members);
    let member = Arc::new(Member::start(&dirs, MemberConfig::new(&config.name, config.address)));
    let edge = edge_health::watch_edge(dirs.edge_socket());
    let (to_vips, vips) = watch::channel(None);
    let held = vips::keep(config.clone(), vips, edge.clone());
    let (instances, words) = Instances::find(&config, launcher.clone());
    let instances = Arc::new(Mutex::new(instances));
    tokio::spawn(site_logs::keep(dirs.log.clone(), remembered_sites, feed.sites.clone()));
    let (to_report, report) = watch::channel(None);
    tokio::spawn(reporting::push(Api::new(identity.clone()), report, leader_address(store.clone())));
    let heard = Arc::new(Heard::default());
    let post = Post {
        me: config.name.clone(),
        api: Api::new(identity.clone()),
        member: member.clone(),
        heard: heard.clone(),
    };
    tokio::spawn(fellows::follow(post, feed.assignment.clone()));
    let desk = Desk {
        dirs,
        config: config.clone(),
        launcher,
        instances: instances.clone(),
        member: member.clone(),
        assignment: feed.assignment.clone(),
        heard,
        host,
        store_cluster,
        store_location: store.location(),
    };
    let (serving, router) = (identity.clone(), api::router(Arc::new(desk)));
    tokio::spawn(async move { serve_https(&serving, listener, Clients::Members, router).await });
    info!(server = %config.name, %address, "agent runs");
    let boot = machine::boot_id(&config.dirs);
    Agent {
        since: std::time::Instant::now(),
        config,
        boot,
        feed,
        parts,
        instances,
        member,
        edge,
        held,
        to_vips,
        to_report,
    }
    .work(words)
    .await
}

fn parts_folder(dirs: &Dirs) -> PathBuf {
    dirs.state.join("parts")
}

struct Agent {
    since: std::time::Instant,
    config: ServerConfig,
    boot: String,
    feed: Feed,
    parts: Parts,
    instances: Arc<Mutex<Instances>>,
    member: Arc<Member>,
    edge: watch::Receiver<Option<Health>>,
    held: watch::Receiver<Vec<IpAddr>>,
    /// Nothing before the first assignment that counts: what keepalived announces then stays.
    to_vips: watch::Sender<Option<Vec<AssignedVip>>>,
    to_report: watch::Sender<Option<Report>>,
}

impl Agent {
    async fn work(mut self, mut words: mpsc::Receiver<Word>) -> Result<Infallible, AgentError> {
        let mut files = self.parts.files_report();
        let mut sql = self.parts.sql_report();
        let mut seen_member = self.member.seen();
        let mut measure = tokio::time::interval(MEASURE_EVERY);
        let mut dead = BTreeSet::new();
        loop {
            self.evict_newly_dead(&mut dead);
            let (files_report, sql_report) =
                (files.borrow_and_update().clone(), sql.borrow_and_update().clone());
            self.settle(&files_report, sql_report, seen_member.borrow_and_update().clone());
            let next_start = self.instances().next_start();
            tokio::select! {
                Ok(()) = self.feed.assignment.changed() => {}
                Ok(()) = self.feed.confirmed.changed() => {}
                Ok(()) = self.feed.routes.changed() => {}
                Ok(()) = files.changed() => {}
                Ok(()) = sql.changed() => {}
                Ok(()) = seen_member.changed() => {}
                Ok(()) = self.edge.changed() => {}
                Ok(()) = self.held.changed() => {}
                Some(word) = words.recv() => self.instances().heard(word),
                () = until(next_start) => {}
                _ = measure.tick() => self.instances().measure(now()),
            }
        }
    }

    /// The controller knows that a server is dead well before the group's own time limit: out with its
    /// member, so that the others go on.
    fn evict_newly_dead(&self, known: &mut BTreeSet<ServerId>) {
        let assignment = self.feed.assignment.borrow();
        // Only by the store's own word: on disk a server may be dead that has long returned.
        let fresh = assignment.as_ref().filter(|assignment| self.is_confirmed(assignment));
        let dead = fresh.map(dead_members).unwrap_or_default();
        for server in dead.difference(known) {
            let (member, server) = (Arc::clone(&self.member), server.clone());
            tokio::spawn(async move {
                match member.evict(&server, None).await {
                    Ok(Evicted::Now) => info!(%server, "evicted from the pool's group: the server is dead"),
                    Ok(Evicted::NotThere) => {}
                    Err(error) => warn!(%server, %error, "not evicted from the pool's group"),
                }
            });
        }
        *known = dead;
    }

    /// Does what follows from all that is known now, hands out the parts, and reports.
    fn settle(&self, files: &FilesReport, sql: SqlReport, member: Option<SeenMember>) {
        let assignment = self.feed.assignment.borrow().clone();
        let routes: Option<Routes> = self.feed.routes.borrow().clone();
        let mut instances = self.instances();
        // After a boot the store's word is awaited for a moment: what is on disk may be elsewhere by now.
        let is_late = self.since.elapsed() > CONFIRMATION_LIMIT;
        let sure = assignment.as_ref().filter(|assignment| is_late || self.is_confirmed(assignment));
        if let Some(assignment) = &assignment {
            let running = converge::Running {
                instances: instances.local(),
                images: files.images.iter().cloned().collect(),
                volumes: files.volumes.iter().map(|(site, seen)| (site.clone(), seen.volume())).collect(),
            };
            for action in converge(assignment, &running, now()) {
                if sure.is_some() || !matches!(action, HostAction::Create { .. }) {
                    instances.act(action);
                }
            }
        }
        let me = &self.config.name;
        let assigned = assignment.as_ref();
        // Without a word from the store, not even an old one, what the others know is better than nothing.
        if let Some(assignment) = assigned {
            self.member.apply(member_orders(assignment, *self.feed.confirmed.borrow()));
        }
        if let Some(routes) = &routes {
            self.parts.publish(hand_out::edge_part(me, routes));
        }
        let confirmed = *self.feed.confirmed.borrow();
        let gates = instances.gates();
        self.parts.publish(hand_out::files_part(me, assigned, confirmed, instances.images(), gates));
        let synced = member.as_ref().filter(|member| member.state == MemberState::Synced);
        let address = synced.map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, mariadb::CLIENT_PORT)));
        if let Some(routes) = &routes {
            self.parts.publish(hand_out::sql_part(me, assigned, routes, instances.listeners(), address));
        }
        self.to_vips.send_if_modified(|vips| {
            let next = sure.map(|assignment| assignment.vips.clone());
            let changed = next.is_some() && *vips != next;
            if changed {
                *vips = next;
            }
            changed
        });
        let report = self.report(assigned, &instances, files, sql, member);
        self.to_report.send_if_modified(|last| {
            let changed = last.as_ref() != Some(&report);
            *last = Some(report);
            changed
        });
    }

    /// Whether the store itself has said this to the agent that runs now.
    fn is_confirmed(&self, assignment: &Assignment) -> bool {
        *self.feed.confirmed.borrow() == Some(assignment.generation)
    }

    fn report(
        &self,
        assignment: Option<&Assignment>,
        instances: &Instances,
        files: &FilesReport,
        sql: SqlReport,
        member: Option<SeenMember>,
    ) -> Report {
        let vips: BTreeSet<IpAddr> = self.held.borrow().iter().copied().collect();
        Report {
            server: self.config.name.clone(),
            boot: self.boot.clone(),
            generation: assignment.map_or(0, |assignment| assignment.generation),
            instances: instances.seen(&files.in_flight),
            images: files.images.clone(),
            volumes: files.volumes.clone(),
            member,
            edge: self.edge.borrow().unwrap_or(Health::Ill),
            vips: vips.into_iter().collect(),
            disk_free: machine::disk_free(&self.config.dirs.state),
            memory_free: machine::memory_free(),
            big_changes: sql.big_changes,
        }
    }

    fn instances(&self) -> std::sync::MutexGuard<'_, Instances> {
        self.instances.lock().expect("no code panics while it holds the instances")
    }
}

/// An order to start a group is followed only when it is fresh, that is of the generation which the store has
/// confirmed: a second group would part the data.
fn member_orders(assignment: &Assignment, confirmed: Option<u64>) -> Option<AssignedMember> {
    let mut member = assignment.member.clone()?;
    if member.start == Start::Bootstrap && confirmed != Some(assignment.generation) {
        member.start = Start::Hold;
    }
    Some(member)
}

/// Pool members whose server the controller has given up: they are in the group but nobody's peer.
fn dead_members(assignment: &Assignment) -> BTreeSet<ServerId> {
    let group = assignment.member.iter().flat_map(|member| member.group.keys());
    group
        .filter(|server| **server != assignment.server && !assignment.peers.contains_key(*server))
        .cloned()
        .collect()
}

/// Sleeps until a moment of the wall clock; for ever without one.
async fn until(moment: Option<kopek_core::Moment>) {
    match moment.map(|moment| moment.millis_since(now())) {
        // The clock is read again when it is over, so a far-away moment need not be exact.
        Some(millis) => tokio::time::sleep(Duration::from_millis(millis.min(60_000))).await,
        None => std::future::pending().await,
    }
}

fn leader_address(store: Arc<dyn Store>) -> watch::Receiver<Option<SocketAddr>> {
    let mut leader = election::leader(store);
    let (to, address) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            to.send_replace(leader.borrow_and_update().as_ref().map(|leader| leader.address));
            if leader.changed().await.is_err() {
                return;
            }
        }
    });
    address
}

#[cfg(test)]
mod tests {
    use kopek_core::PoolName;

    use super::*;

    #[test]
    fn members_on_servers_that_are_nobodys_peers_are_dead_but_not_ones_own() {
        let [s1, s2, s3] = ["s1", "s2", "s3"].map(|name| ServerId::parse(name).unwrap());
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let group = [&s1, &s2, &s3].map(|server| (server.clone(), address)).into();
        let member = AssignedMember {
            pool: PoolName::first(),
            group,
            start: Start::Join,
            databases: Default::default(),
        };
        let mut assignment = Assignment {
            member: Some(member),
            peers: [(s2, SocketAddr::new(address, AGENT_PORT))].into(),
            ..feed::nothing_for(&s1)
        };
        assert_eq!(dead_members(&assignment), BTreeSet::from([s3]));
        assignment.member = None;
        assert!(dead_members(&assignment).is_empty());
    }

    #[test]
    fn an_order_to_start_a_group_waits_for_the_stores_word_and_one_to_join_does_not() {
        let ordered = |start, confirmed| {
            let member = AssignedMember {
                pool: PoolName::first(),
                group: Default::default(),
                start,
                databases: Default::default(),
            };
            let nothing = feed::nothing_for(&ServerId::parse("s1").unwrap());
            let assignment = Assignment { generation: 7, member: Some(member), ..nothing };
            member_orders(&assignment, confirmed).unwrap().start
        };
        assert_eq!(ordered(Start::Bootstrap, Some(7)), Start::Bootstrap);
        assert_eq!(ordered(Start::Bootstrap, Some(6)), Start::Hold);
        assert_eq!(ordered(Start::Bootstrap, None), Start::Hold);
        assert_eq!(ordered(Start::Join, None), Start::Join);
    }
}
