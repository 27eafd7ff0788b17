//! Keeps the member as the assignment says.
//!
//! ```text
//!            Join, Bootstrap             answers, synced
//!   Stopped ─────────────────► Starting ────────────────► Synced ◄────► Unready
//!      ▲                          │                          │             │   no quorum, slow
//!      └──────────────────────────┴──────────────────────────┴─────────────┘
//!        Hold while starting       died, or hung and killed: starts again, to join
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kopek_core::assignment::{AssignedDatabase, AssignedMember, Start};
use kopek_core::observed::{MemberState, Position, SeenMember};
use kopek_core::{Bytes, PoolName, ServerId, SiteName};
use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::client::{Client, NodeId, Status};
use super::databases::{self, DatabaseError};
use super::home::{GRACE, Home, PACKAGE};
use super::position::{self, Found};
use super::{Lost, belonging, pulse, setup};
use crate::daemon::{Backoff, Daemon, Program, explained};

const NAME: &str = "mariadbd";
/// A start takes 0.2 s to 3 s; everybody waits for it.
const PROBE_STARTING: Duration = Duration::from_millis(50);
/// The others put a lost member out first, which takes some 10 ms, 0.3 s on a loaded machine. One that joined
/// meanwhile held them up for 1 s more.
const REJOIN_PAUSE: Duration = Duration::from_secs(1);
/// How a serving member is; that it died or hangs is known earlier, by its pidfd and by pulse.rs.
const PROBE: Duration = Duration::from_millis(500);
/// For people who look at the pool, and cheap even with tens of thousands of tables.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// A member that is being copied is not interrupted because its donor was silent for a moment.
const HOLD_PATIENCE: Duration = Duration::from_secs(3);
/// While it looks for its group, mariadbd heeds no signal for 30 s (`pc.wait_prim_timeout`), and after a total
/// power loss every member does. It has served nobody yet, so nothing is lost.
const GRACE_STARTING: Duration = Duration::from_secs(1);
/// A member whose state transfer failed closes its connection and stays up, for ever ("node restart required").
/// One that starts connects before it answers, so this leaves room only for slowness.
const UNCONNECTED_PATIENCE: Duration = Duration::from_secs(3);

/// What the agent was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing yet: go on as it is.
    Unknown,
    Nothing,
    Member(AssignedMember),
}

/// What the keeper has to say.
pub struct Voice {
    pub seen: watch::Sender<Option<SeenMember>>,
    /// The last one that ended without leaving its group.
    pub lost: watch::Sender<Option<Lost>>,
}

/// `look` asks for a probe at once.
pub async fn keep(home: Home, wanted: watch::Receiver<Wanted>, voice: Voice, look: Arc<Notify>) {
    let found = Daemon::adopt(&home.dirs, NAME);
    let running = found.map(|daemon| Running::new(daemon, Progress::Answered));
    let keeper = Keeper {
        pool: belonging::pool(&home),
        home,
        wanted,
        voice,
        look,
        running,
        found: None,
        is_unreadable: false,
        backoff: Backoff::default(),
        disk: DiskUse::default(),
    };
    keeper.run().await;
}

struct Keeper {
    home: Home,
    /// Whose member runs, or whose data are on disk.
    pool: PoolName,
    wanted: watch::Receiver<Wanted>,
    voice: Voice,
    look: Arc<Notify>,
    running: Option<Running>,
    /// The position on disk, while it does not run and once it was looked for.
    found: Option<Found>,
    /// It could not be read, which is said until it can: people have to see to it.
    is_unreadable: bool,
    backoff: Backoff,
    disk: DiskUse,
}

struct Running {
    daemon: Daemon,
    since: Instant,
    life: Life,
    /// Watches for a hang once it has answered; ends with this.
    pulse: JoinSet<String>,
}

/// What is known of mariadbd from its start to its end.
struct Life {
    progress: Progress,
    client: Option<Client>,
    node: Option<NodeId>,
    /// Of which membership `group` is.
    view: String,
    group: BTreeSet<ServerId>,
    /// It was in the group or tried to be, and will not find back by itself.
    is_put_out: bool,
    /// Its data are on disk, wherever they came from.
    is_saved: bool,
    /// Since when it answers without being connected to the group.
    unconnected: Option<Instant>,
    position: Option<Position>,
    /// Databases that are known to exist as assigned.
    done: BTreeMap<SiteName, AssignedDatabase>,
    /// Databases that could not be made, and why: told once.
    troubles: BTreeMap<SiteName, String>,
}

/// How far it has come in this life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Its socket is not there yet, or it still joins.
    Starting,
    /// It was ready once, or another agent started it: silence is no more a sign of starting.
    Answered,
}

impl Running {
    fn new(daemon: Daemon, progress: Progress) -> Running {
        let life = Life {
            progress,
            client: None,
            node: None,
            view: String::new(),
            group: BTreeSet::new(),
            is_put_out: false,
            is_saved: false,
            unconnected: None,
            position: None,
            done: BTreeMap::new(),
            troubles: BTreeMap::new(),
        };
        Running { daemon, since: Instant::now(), life, pulse: JoinSet::new() }
    }
}

/// What comes first of all that is waited for.
enum News {
    Died(String),
    Hung(String),
    Seen(MemberState, usize),
    /// Time to look again.
    Time,
    Wanted,
}

async fn hung(pulse: &mut JoinSet<String>) -> String {
    match pulse.join_next().await {
        Some(Ok(why)) => why,
        _ => std::future::pending().await,
    }
}

impl Keeper {
    /// Ends with the agent.
    async fn run(mut self) {
        loop {
            if self.wanted.has_changed().is_err() {
                return;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            match (&wanted, self.running.is_some()) {
                (Wanted::Nothing, true) => self.stop().await,
                (Wanted::Nothing | Wanted::Unknown, false) => {
                    self.voice.seen.send_replace(None);
                    self.wait_for_change().await;
                }
                (Wanted::Unknown, true) => self.watch(None).await,
                (Wanted::Member(member), true) if member.pool != self.pool => self.stop().await,
                (Wanted::Member(member), true) => {
                    self.heed_bootstrap_mark(member);
                    self.watch(Some(member)).await;
                }
                (Wanted::Member(member), false) => {
                    self.heed_bootstrap_mark(member);
                    if let Err(error) = self.begin(member).await {
                        self.retry_later(member, &explained(&error)).await;
                    }
                }
            }
        }
    }

    /// The member does not run.
    async fn begin(&mut self, member: &AssignedMember) -> Result<(), BeginError> {
        self.belong_to(&member.pool)?;
        if self.home.data().is_dir() && self.found.is_none() {
            if !self.is_unreadable {
                self.report(MemberState::Starting, 0);
            }
            // After a reboot the folder of sockets is gone, which reading the position needs too.
            setup::prepare(&self.home, &self.pool).await?;
            self.is_unreadable = true;
            self.found = Some(position::on_disk(&self.home).await?);
            self.is_unreadable = false;
        }
        if member.start == Start::Hold {
            self.report(MemberState::Stopped, 0);
            self.wait_for_change().await;
            return Ok(());
        }
        self.report(MemberState::Starting, 0);
        let first = !self.home.data().is_dir();
        setup::prepare(&self.home, &self.pool).await?;
        if first {
            info!("made the first data of this pool member");
            self.found = Some(position::on_disk(&self.home).await?);
        }
        if self.found.as_ref().is_some_and(|found| found.position == position::nothing()) {
            // It can only get everything from another one.
            position::mark_copy(&self.home).map_err(BeginError::Mark)?;
        }
        let group = if self.may_bootstrap(member) { Group::New } else { Group::Existing };
        if group == Group::New {
            position::allow_bootstrap(&self.home.data()).map_err(BeginError::Bootstrap)?;
        }
        let daemon = Daemon::start(&self.home.dirs, &self.program(member, group)?)?;
        info!(pid = daemon.pid(), ?group, "pool member starts");
        self.running = Some(Running::new(daemon, Progress::Starting));
        Ok(())
    }

    /// Data of another pool are set aside first.
    fn belong_to(&mut self, pool: &PoolName) -> Result<(), BeginError> {
        if *pool == self.pool {
            return Ok(());
        }
        if let Some(aside) = belonging::belong_to(&self.home, pool).map_err(BeginError::Belong)? {
            info!(from = %self.pool, to = %pool, aside = %aside.display(), "data of another pool are set aside");
        }
        (self.pool, self.found, self.is_unreadable) = (pool.clone(), None, false);
        Ok(())
    }

    fn program(&self, member: &AssignedMember, group: Group) -> Result<Program, BeginError> {
        let mut args = vec![self.home.defaults_argument().into()];
        args.push(format!("--wsrep-cluster-address={}", Home::group_url(member.group.values())).into());
        if let Some(Found { position, recovered: true }) = &self.found {
            args.push(format!("--wsrep-start-position={}:{}", position.group, position.seqno).into());
        }
        if group == Group::New {
            args.push("--wsrep-new-cluster".into());
        }
        Ok(Program {
            name: NAME,
            executable: "mariadbd",
            package: PACKAGE,
            args,
            // Scripts of state transfers put their copies there.
            environment: vec![("TMPDIR", self.home.temporary().into())],
            account: Some(Home::account()?),
        })
    }

    /// Probes, reports and makes databases until something else is to be done.
    async fn watch(&mut self, member: Option<&AssignedMember>) {
        let told = Instant::now();
        let mut news = News::Time;
        loop {
            let Some(running) = &mut self.running else {
                return;
            };
            let Running { daemon, life, pulse, .. } = running;
            news = match news {
                News::Died(how) => return self.died(&how).await,
                News::Hung(why) => return self.end_hung(&why).await,
                News::Wanted => {
                    self.wanted.mark_changed();
                    return;
                }
                // A death must not wait for an answer, nor for a database that is being made.
                News::Time => tokio::select! {
                    how = daemon.ended() => News::Died(how),
                    why = hung(pulse) => News::Hung(why),
                    (state, size) = life.ask(&self.home, member) => News::Seen(state, size),
                },
                News::Seen(state, size) => {
                    if life.progress == Progress::Answered && pulse.is_empty() {
                        let (pid, socket) = (daemon.pid(), self.home.socket());
                        pulse.spawn(async move { pulse::hung(pid, &socket).await });
                    }
                    let starting = life.progress == Progress::Starting;
                    let is_put_out = life.is_put_out;
                    if size > 1 && member.is_some_and(|member| member.start == Start::Bootstrap) {
                        self.spend_bootstrap();
                    }
                    self.report(state, size);
                    if is_put_out {
                        warn!("pool member is out of the group and will not find back: starts anew");
                        return self.stop().await;
                    }
                    let held = member.is_some_and(|member| member.start == Start::Hold);
                    if starting && held && told.elapsed() >= HOLD_PATIENCE {
                        return self.stop().await;
                    }
                    self.news(if starting { PROBE_STARTING } else { PROBE }).await
                }
            };
        }
    }

    async fn news(&mut self, pause: Duration) -> News {
        let Some(Running { daemon, pulse, .. }) = &mut self.running else {
            return News::Wanted;
        };
        tokio::select! {
            how = daemon.ended() => News::Died(how),
            why = hung(pulse) => News::Hung(why),
            _ = self.wanted.changed() => News::Wanted,
            () = self.look.notified() => News::Time,
            () = tokio::time::sleep(pause) => News::Time,
        }
    }

    /// Killed at once: when it thawed it would answer from a past that the others have left. What waits for
    /// the kernel (a dead disk) cannot be killed, but it is out of the group.
    async fn end_hung(&mut self, why: &str) {
        let Some(running) = &mut self.running else {
            return;
        };
        warn!(why, pid = running.daemon.pid(), "pool member hangs: killed");
        running.daemon.signal(Signal::KILL);
        self.report(MemberState::Unready { why: format!("it hangs: {why}") }, 0);
        self.mourn(why);
        if let Some(running) = &mut self.running {
            let how = running.daemon.ended().await;
            self.died(&how).await;
        }
    }

    /// The others need not find out by themselves that this one left the group without a word.
    fn mourn(&self, why: &str) {
        let node = self.running.as_ref().and_then(|running| running.life.node.clone());
        if let Some(node) = node {
            self.voice.lost.send_replace(Some(Lost { node, why: why.to_owned() }));
        }
    }

    async fn died(&mut self, how: &str) {
        self.mourn(how);
        let Some(running) = self.running.take() else {
            return;
        };
        self.found = None;
        self.report(MemberState::Starting, 0);
        let pause = self.backoff.after(running.since.elapsed()).max(REJOIN_PAUSE);
        warn!(how, ?pause, log = %crate::daemon::log_file(&self.home.dirs, NAME).display(), "pool member died");
        self.pause(pause).await;
    }

    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let grace = match running.life.progress {
                Progress::Starting => GRACE_STARTING,
                Progress::Answered => GRACE,
            };
            running.daemon.stop(grace).await;
        }
        self.found = None;
    }

    /// A member that cannot start says that it is stopped; the reason is for people.
    async fn retry_later(&mut self, member: &AssignedMember, why: &str) {
        let pause = self.backoff.after(Duration::ZERO);
        warn!(why, start = ?member.start, ?pause, "pool member cannot start");
        self.report(MemberState::Stopped, 0);
        self.pause(pause).await;
    }

    async fn pause(&mut self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => (),
            () = self.wait_for_change() => (),
        }
    }

    async fn wait_for_change(&mut self) {
        if self.wanted.changed().await.is_ok() {
            self.wanted.mark_changed();
        }
    }

    fn report(&mut self, state: MemberState, group_size: usize) {
        let (position, databases) = match &self.running {
            Some(Running { life, .. }) => (life.position.clone(), life.done.keys().cloned().collect()),
            None => {
                let found = self.found.as_ref().map(|found| found.position.clone());
                let absent = || (!self.home.data().is_dir()).then(position::nothing);
                (found.or_else(absent), Vec::new())
            }
        };
        let group = match (&self.running, &state) {
            (Some(running), MemberState::Synced) => running.life.group.clone(),
            _ => BTreeSet::new(),
        };
        let disk = self.disk.of(&self.home.data());
        let mut now = SeenMember {
            pool: self.pool.clone(),
            state,
            since: kopek_link::clock::now(),
            group_size,
            group,
            position,
            databases,
            disk,
        };
        self.voice.seen.send_if_modified(|seen| {
            if let Some(old) = seen.as_ref().filter(|old| old.state == now.state) {
                now.since = old.since;
            }
            let news = seen.as_ref().is_none_or(|old| {
                old.state != now.state
                    || old.pool != now.pool
                    || old.group_size != now.group_size
                    || old.group != now.group
                    || old.databases != now.databases
                    || (old.position != now.position && matches!(now.state, MemberState::Stopped))
            });
            *seen = Some(now);
            news
        });
    }

    fn may_bootstrap(&self, member: &AssignedMember) -> bool {
        may_bootstrap(&self.home, member)
    }

    /// A new order to bootstrap comes after one to do something else.
    fn heed_bootstrap_mark(&self, member: &AssignedMember) {
        if member.start != Start::Bootstrap {
            let _ = fs::remove_file(self.home.spent_bootstrap());
        }
    }

    fn spend_bootstrap(&self) {
        let mark = self.home.spent_bootstrap();
        if !mark.exists()
            && let Err(error) = fs::write(&mark, "")
        {
            warn!(mark = %mark.display(), %error, "cannot note that the group was started");
        }
    }
}

/// An order to bootstrap holds until the group has a second member. After that the others may go on without
/// this one, and a second group would split the pool.
fn may_bootstrap(home: &Home, member: &AssignedMember) -> bool {
    member.start == Start::Bootstrap && !home.spent_bootstrap().exists()
}

/// What the data take on the disk. Counted beside everything else, for a pool of thousands of sites has as many
/// files and more.
#[derive(Default)]
struct DiskUse {
    counted: Option<Instant>,
    bytes: Arc<AtomicU64>,
}

impl DiskUse {
    fn of(&mut self, data: &Path) -> Bytes {
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            self.counted = Some(Instant::now());
            let (bytes, data) = (Arc::clone(&self.bytes), data.to_owned());
            tokio::task::spawn_blocking(move || bytes.store(bytes_in(&data), Ordering::Relaxed));
        }
        Bytes(self.bytes.load(Ordering::Relaxed))
    }
}

/// Databases are folders of the data folder; none has folders of its own.
fn bytes_in(data: &Path) -> u64 {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    // Blocks, for InnoDB's files have holes.
    let size = |meta: fs::Metadata| meta.blocks() * 512;
    let of = |entry: &fs::DirEntry| entry.metadata().map_or(0, size);
    entries(data)
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => entries(&entry.path()).map(|file| of(&file)).sum(),
            _ => of(&entry),
        })
        .sum()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    New,
    Existing,
}

#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    #[error(transparent)]
    Position(#[from] position::PositionError),
    #[error(transparent)]
    Daemon(#[from] crate::daemon::DaemonError),
    #[error("cannot mark the data as the pool's newest")]
    Bootstrap(#[source] std::io::Error),
    #[error("cannot set aside the data of another pool")]
    Belong(#[source] std::io::Error),
    #[error("cannot note that the data are being copied")]
    Mark(#[source] std::io::Error),
}

impl Life {
    /// How the member is, and the size of its group.
    async fn ask(&mut self, home: &Home, member: Option<&AssignedMember>) -> (MemberState, usize) {
        if !self.is_saved
            && position::is_being_copied(&home.data())
            && let Err(error) = position::mark_copy(home)
        {
            warn!(%error, "cannot note that the data are being copied");
        }
        match self.status(&home.socket()).await {
            // It serves nobody before a power cut could no longer take what it was given.
            Ok(status) if status.accepts_writes() && !self.save(home).await => {
                (MemberState::Starting, status.group_size)
            }
            Ok(status) if status.accepts_writes() => {
                self.progress = Progress::Answered;
                if let Some(member) = member {
                    self.make_databases(member).await;
                }
                (MemberState::Synced, status.group_size)
            }
            Ok(status) if self.progress == Progress::Starting && status.primary => {
                (MemberState::Starting, status.group_size)
            }
            Ok(status) => {
                let why = match status.primary {
                    true => format!("it is {}", status.state),
                    false => "it has no quorum".to_owned(),
                };
                if !status.primary && member.is_some_and(|member| may_bootstrap(home, member)) {
                    self.become_group().await;
                }
                (MemberState::Unready { why }, status.group_size)
            }
            Err(_) if self.progress == Progress::Starting => (MemberState::Starting, 0),
            Err(why) => (MemberState::Unready { why }, 0),
        }
    }

    /// Whether its data are on disk. Once in its life: from then on InnoDB sees to that itself.
    async fn save(&mut self, home: &Home) -> bool {
        if self.is_saved || !home.copy_mark().exists() {
            self.is_saved = true;
            return true;
        }
        let at = home.clone();
        // On a thread of its own: writing out gigabytes takes the disk's time.
        match tokio::task::spawn_blocking(move || position::save_copy(&at)).await {
            Ok(Ok(())) => {
                info!("the copy of the pool's data is on disk");
                self.is_saved = true;
            }
            Ok(Err(error)) => warn!(%error, "cannot put the member's data on disk"),
            Err(error) => warn!(%error, "cannot put the member's data on disk"),
        }
        self.is_saved
    }

    async fn status(&mut self, socket: &Path) -> Result<Status, String> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(socket).await.map_err(|error| explained(&error))?,
        };
        let status = client.status().await.map_err(|error| explained(&error))?;
        self.node.clone_from(&status.node);
        if status.accepts_writes() && self.view != status.view {
            let group = client.group().await.map_err(|error| explained(&error))?;
            (self.group, self.view) = (group.into_keys().collect(), status.view.clone());
        }
        self.client = Some(client);
        self.unconnected = (!status.connected).then(|| self.unconnected.unwrap_or_else(Instant::now));
        let patience = match self.progress {
            Progress::Starting => UNCONNECTED_PATIENCE,
            Progress::Answered => Duration::ZERO,
        };
        self.is_put_out = self.unconnected.is_some_and(|since| since.elapsed() >= patience);
        self.position = status.position.clone();
        Ok(status)
    }

    /// Makes those that are not known to be there, one after the other; a failed one is tried again.
    async fn make_databases(&mut self, member: &AssignedMember) {
        self.done.retain(|site, _| member.databases.contains_key(site));
        self.troubles.retain(|site, _| member.databases.contains_key(site));
        for (site, database) in &member.databases {
            if self.done.get(site) == Some(database) {
                continue;
            }
            let Some(client) = &mut self.client else {
                return;
            };
            match databases::ensure(client, database).await {
                Ok(()) => {
                    info!(%site, database = database.database.name, "database is there");
                    self.troubles.remove(site);
                    self.done.insert(site.clone(), database.clone());
                }
                Err(error) => {
                    let why = explained(&error);
                    self.done.remove(site);
                    if matches!(&error, DatabaseError::Client(error) if error.spoils_connection()) {
                        self.client = None;
                    }
                    if self.troubles.insert(site.clone(), why.clone()).as_ref() != Some(&why) {
                        warn!(%site, why, "cannot make the site's database; will try again");
                    }
                }
            }
        }
    }

    async fn become_group(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        match client.bootstrap_component().await {
            Ok(()) => info!("the members that are left become the group, as ordered"),
            Err(error) => warn!(why = explained(&error), "cannot become the group"),
        }
    }
}
