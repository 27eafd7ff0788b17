//! The instances of this server: what is known of each, and the work that brings it from one phase to the
//! next. Decides nothing: `core::converge` says what to do, this does it and tells what came of it.
//!
//! Slow steps (mounts, starting, stopping) run in tasks of their own and come back as `Happening`s, each with
//! the number of the attempt it belongs to, so that a late word about an earlier run changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kopek_core::assignment::AssignedInstance;
use kopek_core::config::{Dirs, ServerConfig};
use kopek_core::converge::{HostAction, Local};
use kopek_core::desired::Internet;
use kopek_core::observed::{Phase, SeenInstance};
use kopek_core::part::SqlListener;
use kopek_core::supervise::{has_lasted, restart_delay};
use kopek_core::{Bytes, Digest, InstanceId, Load, Moment, SiteName};
use kopek_instance::{Gauge, InstanceSpec, LoadAverage, Reading, Running};
use kopek_link::clock::now;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Apache and nginx listen there in every image.
const HTTP_PORT: u16 = 80;
/// From start to the first answer. Starting takes a tenth of a second; a machine that boots with a hundred
/// instances at once is slower.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// Damping of the load average. The kernel's shortest is 60 s; a visitor should not wait that long for a
/// second instance, and five seconds let every burst start one.
const LOAD_WINDOW: Duration = Duration::from_secs(15);
/// The private range of instances, the same on every server: they are reached only through its gate.
const RANGE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);
const RANGE_SIZE: u32 = 1 << 16;

/// What came of a step.
pub enum Happening {
    /// Its network is there: `sql` can listen in it.
    Connected,
    Started(Running),
    Serving,
    /// It did not start, or did not answer its probe.
    Failed(String),
    /// Its first process ended.
    Ended,
    /// What it had is removed after a failure.
    Cleared(String),
    /// Stopped or cleaned: nothing is left of it.
    Gone,
}

pub struct Word {
    id: InstanceId,
    attempt: u64,
    happening: Happening,
}

struct Known {
    phase: Phase,
    since: Moment,
    attempt: u64,
    /// In a row, for the delay.
    failures: u32,
    /// Altogether, to show.
    restarts: u32,
    spec: Option<InstanceSpec>,
    connected: bool,
    running: Option<Running>,
    meter: Option<Meter>,
}

struct Meter {
    gauge: Gauge,
    average: LoadAverage,
    load: Load,
    reading: Reading,
}

pub struct Instances {
    config: ServerConfig,
    launcher: PathBuf,
    known: BTreeMap<InstanceId, Known>,
    leftovers: BTreeSet<InstanceId>,
    attempts: u64,
    words: mpsc::Sender<Word>,
}

/// Words that wait for the agent's loop: several for each of a few hundred instances.
const WORDS_MAX: usize = 1_024;

impl Instances {
    /// Finds what runs already, after a restart of the agent.
    pub fn find(config: &ServerConfig, launcher: PathBuf) -> (Instances, mpsc::Receiver<Word>) {
        let (words, inbox) = mpsc::channel(WORDS_MAX);
        let mut instances = Instances {
            config: config.clone(),
            launcher,
            known: BTreeMap::new(),
            leftovers: BTreeSet::new(),
            attempts: 0,
            words,
        };
        for id in kopek_instance::leftovers(&instances.folder()) {
            let spec = InstanceSpec::read(&instances.dir(&id));
            match spec.and_then(|spec| Some((kopek_instance::adopt(&spec)?, spec))) {
                Some((running, spec)) => {
                    info!(instance = %id, pid = running.pid, "found running");
                    let attempt = instances.next_attempt();
                    instances.known.insert(id.clone(), Known::starting(attempt, 0, 0, Some(spec.clone())));
                    instances.heard(Word { id: id.clone(), attempt, happening: Happening::Connected });
                    let started = Happening::Started(running.clone());
                    instances.heard(Word { id: id.clone(), attempt, happening: started });
                    let speaker = instances.speaker(&id, attempt);
                    if has_served(&spec) {
                        // It stays routed: a probe that waits behind its visitors says nothing against it.
                        instances.heard(Word { id: id.clone(), attempt, happening: Happening::Serving });
                        tokio::spawn(watch_to_the_end(speaker, running));
                    } else {
                        tokio::spawn(prove_and_watch(speaker, spec, running));
                    }
                }
                None => drop(instances.leftovers.insert(id)),
            }
        }
        (instances, inbox)
    }

    /// For `converge`.
    pub fn local(&self) -> BTreeMap<InstanceId, Local> {
        let known = self.known.iter().map(|(id, known)| (id.clone(), known.local()));
        known.chain(self.leftovers.iter().map(|id| (id.clone(), Local::Leftover))).collect()
    }

    pub fn seen(&self, in_flight: &BTreeMap<InstanceId, u32>) -> BTreeMap<InstanceId, SeenInstance> {
        let seen = self.known.iter().map(|(id, known)| {
            let meter = known.meter.as_ref();
            let seen = SeenInstance {
                phase: known.phase.clone(),
                number: known.number(),
                since: known.since,
                load: meter.map_or(Load(0), |meter| meter.load),
                memory: meter.map_or(Bytes(0), |meter| meter.reading.memory),
                tasks: meter.map_or(0, |meter| meter.reading.tasks),
                cpu_us: meter.map_or(0, |meter| meter.reading.cpu_us),
                in_flight: in_flight.get(id).copied().unwrap_or(0),
                restarts: known.restarts,
            };
            (id.clone(), seen)
        });
        seen.collect()
    }

    /// Where the gate reaches them.
    pub fn gates(&self) -> BTreeMap<InstanceId, SocketAddr> {
        let running = self.known.iter().filter(|(_, known)| known.running.is_some());
        running
            .filter_map(|(id, known)| {
                let address = known.spec.as_ref()?.address;
                Some((id.clone(), SocketAddr::new(IpAddr::V4(address), HTTP_PORT)))
            })
            .collect()
    }

    /// Images that some instance here has as its root.
    pub fn images(&self) -> BTreeSet<Digest> {
        let specs = self.known.values().filter_map(|known| known.spec.as_ref());
        // `Dirs::image_root` is images/DIGEST/root.
        let digest =
            |spec: &InstanceSpec| Digest::parse(spec.image_root.parent()?.file_name()?.to_str()?).ok();
        specs.filter_map(digest).collect()
    }

    /// Where `sql` listens for them.
    pub fn listeners(&self) -> BTreeMap<InstanceId, SqlListener> {
        let connected = self.known.iter().filter(|(_, known)| known.connected);
        connected
            .filter_map(|(id, known)| {
                let spec = known.spec.as_ref()?;
                let socket = spec.sql_socket_dir.join("mysqld.sock");
                Some((id.clone(), SqlListener { socket, netns: spec.netns.clone() }))
            })
            .collect()
    }

    /// What an `exec` runs in.
    pub fn running(&self, id: &InstanceId) -> Option<Running> {
        self.known.get(id)?.running.clone()
    }

    /// When the next back-off ends.
    pub fn next_start(&self) -> Option<Moment> {
        let ends = self.known.values().filter_map(|known| match known.phase {
            Phase::BackOff { until, .. } => Some(until),
            _ => None,
        });
        ends.min()
    }

    pub fn act(&mut self, action: HostAction) {
        match action {
            HostAction::Create { id, instance } => self.create(id, &instance),
            HostAction::Wait { id, what } => {
                let attempt = self.next_attempt();
                let known = self.known.entry(id).or_insert_with(|| Known::starting(attempt, 0, 0, None));
                known.enter(Phase::Waiting { what });
            }
            HostAction::Stop { id, grace_ms } => self.stop(&id, Duration::from_millis(grace_ms)),
            HostAction::Clean { id } => self.clean(id),
        }
    }

    fn create(&mut self, id: InstanceId, instance: &AssignedInstance) {
        let attempt = self.next_attempt();
        let before = self.known.get(&id);
        let (failures, restarts) = before.map_or((0, 0), |known| (known.failures, known.restarts));
        let address = self.free_address();
        let spec = self.spec(&id, instance, address);
        info!(instance = %id, site = %instance.site, attempt, "starting");
        self.known.insert(id.clone(), Known::starting(attempt, failures, restarts, Some(spec.clone())));
        tokio::spawn(bring_up(self.speaker(&id, attempt), spec, self.launcher.clone()));
    }

    fn stop(&mut self, id: &InstanceId, grace: Duration) {
        let speaker = self.speaker_of(id);
        let (Some(known), Some(speaker)) = (self.known.get_mut(id), speaker) else { return };
        known.enter(Phase::Stopping);
        let (running, dir) =
            (known.running.take(), self.config.dirs.state.join("instances").join(id.as_str()));
        // The gate and sql let go of it at once; it ends what it has in hand.
        known.connected = false;
        info!(instance = %id, grace_ms = grace.as_millis() as u64, "stopping");
        tokio::task::spawn_blocking(move || {
            if let Some(running) = running
                && let Err(error) = kopek_instance::stop(&running, grace)
            {
                warn!(instance = %speaker.id, %error, "did not stop in order");
            }
            clear(&speaker.id, dir);
            speaker.say(Happening::Gone);
        });
    }

    fn clean(&mut self, id: InstanceId) {
        self.leftovers.remove(&id);
        let attempt = self.next_attempt();
        let mut known = Known::starting(attempt, 0, 0, None);
        known.enter(Phase::Stopping);
        self.known.insert(id.clone(), known);
        let (speaker, dir) = (self.speaker(&id, attempt), self.dir(&id));
        tokio::task::spawn_blocking(move || {
            clear(&speaker.id, dir);
            speaker.say(Happening::Gone);
        });
    }

    /// Takes in what came of a step.
    pub fn heard(&mut self, word: Word) {
        let Word { id, attempt, happening } = word;
        let dir = self.dir(&id);
        let speaker = self.speaker(&id, attempt);
        let Some(known) = self.known.get_mut(&id).filter(|known| known.attempt == attempt) else { return };
        if known.phase == Phase::Stopping {
            match happening {
                Happening::Gone => {
                    info!(instance = %id, "gone");
                    self.known.remove(&id);
                }
                // Told to stop while it was being started: this ends it.
                Happening::Started(running) => end(speaker, Some(running), dir, Duration::ZERO),
                Happening::Failed(_) => end(speaker, None, dir, Duration::ZERO),
                Happening::Connected | Happening::Serving | Happening::Ended | Happening::Cleared(_) => {}
            }
            return;
        }
        match happening {
            Happening::Connected => known.connected = true,
            Happening::Started(running) => {
                known.meter = Meter::open(known.spec.as_ref());
                known.running = Some(running);
            }
            Happening::Serving => {
                info!(instance = %id, "serving");
                if let Some(spec) = &known.spec
                    && let Err(error) = std::fs::write(served_mark(spec), b"")
                {
                    warn!(instance = %id, %error, "it will be probed again when the agent restarts");
                }
                known.enter(Phase::Serving);
            }
            Happening::Ended => self.fail(id, speaker, dir, "its first process ended".to_owned()),
            Happening::Failed(why) => self.fail(id, speaker, dir, why),
            Happening::Cleared(why) => {
                let delay = restart_delay(known.failures);
                known.failures += 1;
                known.restarts += 1;
                known.enter(Phase::BackOff { until: now().plus_millis(delay), why });
            }
            Happening::Gone => unreachable!("only an instance that stops goes"),
        }
    }

    fn fail(&mut self, id: InstanceId, speaker: Speaker, dir: PathBuf, why: String) {
        warn!(instance = %id, why, "failed");
        let Some(known) = self.known.get_mut(&id) else { return };
        if known.phase == Phase::Serving && has_lasted(now().millis_since(known.since)) {
            known.failures = 0;
        }
        known.connected = false;
        known.meter = None;
        // Not routed from now on; the delay starts when what it left is removed.
        known.enter(Phase::BackOff { until: Moment(u64::MAX), why: why.clone() });
        let running = known.running.take();
        tokio::task::spawn_blocking(move || {
            if let Some(running) = running {
                let _ = kopek_instance::stop(&running, Duration::ZERO);
            }
            clear(&speaker.id, dir);
            speaker.say(Happening::Cleared(why));
        });
    }

    /// Reads every gauge; once a second.
    pub fn measure(&mut self, at: Moment) {
        for (id, known) in &mut self.known {
            let Some(meter) = &mut known.meter else { continue };
            match meter.gauge.read() {
                Ok(reading) => {
                    meter.load = meter.average.tick(at, reading.running);
                    meter.reading = reading;
                }
                // Between its end and our word of it.
                Err(error) => warn!(instance = %id, %error, "its load cannot be read"),
            }
        }
    }

    fn spec(&self, id: &InstanceId, instance: &AssignedInstance, address: Ipv4Addr) -> InstanceSpec {
        let Dirs { run, log, .. } = &self.config.dirs;
        let site: &SiteName = &instance.site;
        InstanceSpec {
            id: id.clone(),
            number: instance.number,
            image_root: self.config.dirs.image_root(&instance.image),
            volume: self.config.dirs.volume_tree(site),
            sql_socket_dir: run.join("sql").join(id.as_str()),
            dir: self.dir(id),
            netns: run.join("netns").join(id.as_str()),
            log: log.join("instances").join(format!("{site}.log")),
            limits: instance.limits,
            cgroup: self.config.cgroup.join(id.as_str()),
            address,
            resolvers: match instance.limits.internet {
                Internet::Reachable => crate::resolvers::of_this_server(),
                Internet::Closed => Vec::new(),
            },
            hostname: site.to_string(),
        }
    }

    fn free_address(&self) -> Ipv4Addr {
        let taken: BTreeSet<Ipv4Addr> =
            self.known.values().filter_map(|known| Some(known.spec.as_ref()?.address)).collect();
        (2..RANGE_SIZE - 1)
            .map(|n| Ipv4Addr::from(u32::from(RANGE) + n))
            .find(|address| !taken.contains(address))
            .expect("a server has far fewer than 65,000 instances")
    }

    fn folder(&self) -> PathBuf {
        self.config.dirs.state.join("instances")
    }

    fn dir(&self, id: &InstanceId) -> PathBuf {
        self.folder().join(id.as_str())
    }

    fn next_attempt(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }

    fn speaker(&self, id: &InstanceId, attempt: u64) -> Speaker {
        Speaker { id: id.clone(), attempt, words: self.words.clone() }
    }

    fn speaker_of(&self, id: &InstanceId) -> Option<Speaker> {
        Some(self.speaker(id, self.known.get(id)?.attempt))
    }
}

impl Known {
    fn starting(attempt: u64, failures: u32, restarts: u32, spec: Option<InstanceSpec>) -> Known {
        Known {
            phase: Phase::Starting,
            since: now(),
            attempt,
            failures,
            restarts,
            spec,
            connected: false,
            running: None,
            meter: None,
        }
    }

    fn local(&self) -> Local {
        Local::Known { phase: self.phase.clone(), number: self.number() }
    }

    /// Its site's.
    fn number(&self) -> Option<u32> {
        self.spec.as_ref().map(|spec| spec.number)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = now();
    }
}

impl Meter {
    fn open(spec: Option<&InstanceSpec>) -> Option<Meter> {
        let gauge = Gauge::open(&spec?.cgroup)
            .inspect_err(|error| warn!(%error, "an instance's load cannot be measured"))
            .ok()?;
        let reading = gauge.read().ok()?;
        Some(Meter { gauge, average: LoadAverage::new(LOAD_WINDOW), load: Load(0), reading })
    }
}

/// Speaks for one attempt of one instance.
#[derive(Clone)]
struct Speaker {
    id: InstanceId,
    attempt: u64,
    words: mpsc::Sender<Word>,
}

impl Speaker {
    async fn tell(&self, happening: Happening) {
        // Fails only when the agent ends.
        let _ = self.words.send(self.word(happening)).await;
    }

    fn say(&self, happening: Happening) {
        let _ = self.words.blocking_send(self.word(happening));
    }

    fn word(&self, happening: Happening) -> Word {
        Word { id: self.id.clone(), attempt: self.attempt, happening }
    }
}

/// Network, container, probe; then waits for its end.
async fn bring_up(speaker: Speaker, spec: InstanceSpec, launcher: PathBuf) {
    let connecting = spec.clone();
    let connected = blocking(move || {
        std::fs::create_dir_all(&connecting.sql_socket_dir).map_err(|error| error.to_string())?;
        if let Some(folder) = connecting.log.parent() {
            std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        }
        kopek_instance::connect(&connecting).map_err(|error| error.to_string())
    });
    if let Err(why) = connected.await {
        return speaker.tell(Happening::Failed(why)).await;
    }
    speaker.tell(Happening::Connected).await;
    let starting = spec.clone();
    let started =
        blocking(move || kopek_instance::start(&starting, &launcher).map_err(|error| error.to_string()));
    match started.await {
        Err(why) => speaker.tell(Happening::Failed(why)).await,
        Ok(running) => {
            speaker.tell(Happening::Started(running.clone())).await;
            prove_and_watch(speaker, spec, running).await;
        }
    }
}

async fn prove_and_watch(speaker: Speaker, spec: InstanceSpec, running: Running) {
    let address = SocketAddr::new(IpAddr::V4(spec.address), HTTP_PORT);
    tokio::select! {
        probed = kopek_instance::probe(address, PROBE_LIMIT) => {
            if let Err(error) = probed {
                return speaker.tell(Happening::Failed(error.to_string())).await;
            }
        }
        _ = kopek_instance::watch(&running) => {
            let why = format!("it ended before it answered; see {}", spec.log.display());
            return speaker.tell(Happening::Failed(why)).await;
        }
    }
    speaker.tell(Happening::Serving).await;
    watch_to_the_end(speaker, running).await;
}

async fn watch_to_the_end(speaker: Speaker, running: Running) {
    if let Err(error) = kopek_instance::watch(&running).await {
        warn!(instance = %speaker.id, %error, "cannot be watched; taken for ended");
    }
    speaker.tell(Happening::Ended).await;
}

/// In the instance's folder once it has answered its probe.
fn served_mark(spec: &InstanceSpec) -> PathBuf {
    spec.dir.join("served")
}

fn has_served(spec: &InstanceSpec) -> bool {
    served_mark(spec).exists()
}

/// Ends and removes all that is there of an instance, and says so.
fn end(speaker: Speaker, running: Option<Running>, dir: PathBuf, grace: Duration) {
    tokio::task::spawn_blocking(move || {
        if let Some(running) = running
            && let Err(error) = kopek_instance::stop(&running, grace)
        {
            warn!(instance = %speaker.id, %error, "did not stop in order");
        }
        clear(&speaker.id, dir);
        speaker.say(Happening::Gone);
    });
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

fn clear(id: &InstanceId, dir: PathBuf) {
    if let Err(error) = kopek_instance::clean(&dir) {
        warn!(instance = %id, %error, "something is left of it; tried again at the next start");
    }
}
