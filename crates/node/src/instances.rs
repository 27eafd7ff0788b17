//! The instances of this server: what is known of each, and the work that brings it from one phase to the
//! next. Decides nothing: `core::converge` says what to do, this does it and tells what came of it.
//!
//! Slow steps run in tasks of their own (`start`, `end`) and come back as `Word`s.

mod end;
mod find;
mod known;
mod seen;
mod spec;
mod start;
mod word;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use kopek_core::assignment::AssignedInstance;
use kopek_core::config::ServerConfig;
use kopek_core::converge::HostAction;
use kopek_core::observed::Phase;
use kopek_core::supervise::{has_lasted, restart_delay};
use kopek_core::{InstanceId, Moment};
use kopek_link::clock::now;
use tokio::sync::mpsc;
use tracing::{info, warn};

use end::end;
use known::{Known, Meter};
use start::{bring_up, served_mark};
pub use word::Word;
use word::{Happening, Speaker};

pub struct Instances {
    config: ServerConfig,
    launcher: PathBuf,
    known: BTreeMap<InstanceId, Known>,
    leftovers: BTreeSet<InstanceId>,
    attempts: u64,
    words: mpsc::Sender<Word>,
}

impl Instances {
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
        let spec = self.spec(&id, instance);
        info!(instance = %id, site = %instance.site, attempt, "starting");
        self.known.insert(id.clone(), Known::starting(attempt, failures, restarts, Some(spec.clone())));
        tokio::spawn(bring_up(self.speaker(&id, attempt), spec, self.launcher.clone()));
    }

    fn stop(&mut self, id: &InstanceId, grace: Duration) {
        let dir = self.dir(id);
        let Some(known) = self.known.get_mut(id) else { return };
        info!(instance = %id, grace_ms = grace.as_millis() as u64, "stopping");
        // The gate and sql let go of it at once; it ends what it has in hand.
        known.enter(Phase::Stopping);
        known.connected = false;
        let (attempt, running) = (known.attempt, known.running.clone());
        // One that is being started ends when that is done: only then is it known what there is to end.
        if let Some(running) = running {
            end(self.speaker(id, attempt), Some(running), dir, grace, Happening::Gone);
        }
    }

    fn clean(&mut self, id: InstanceId) {
        self.leftovers.remove(&id);
        let attempt = self.next_attempt();
        let mut known = Known::starting(attempt, 0, 0, None);
        known.enter(Phase::Stopping);
        self.known.insert(id.clone(), known);
        end(self.speaker(&id, attempt), None, self.dir(&id), Duration::ZERO, Happening::Gone);
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
                Happening::Started(running) => {
                    known.running = Some(running.clone());
                    end(speaker, Some(running), dir, Duration::ZERO, Happening::Gone);
                }
                Happening::Failed(_) if known.running.is_none() => {
                    end(speaker, None, dir, Duration::ZERO, Happening::Gone);
                }
                // It is being ended already.
                Happening::Failed(_)
                | Happening::Connected
                | Happening::Serving
                | Happening::Ended
                | Happening::Cleared(_) => {}
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
        end(speaker, known.running.take(), dir, Duration::ZERO, Happening::Cleared(why));
    }

    /// Reads every gauge; once a second.
    pub fn measure(&mut self, at: Moment) {
        for (id, known) in &mut self.known {
            let Some(meter) = &mut known.meter else { continue };
            // Between its end and our word of it.
            if let Err(error) = meter.tick(at) {
                warn!(instance = %id, %error, "its load cannot be read");
            }
        }
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
}

#[cfg(test)]
mod tests {
    use kopek_core::config::Dirs;
    use kopek_core::converge::Local;
    use kopek_core::desired::{Internet, Limits};
    use kopek_core::placement::Stage;
    use kopek_core::{Bytes, Digest, MilliCores, ServerId, SiteName};

    use super::*;

    /// Nothing starts here: there is a file where the folder for sockets should be.
    fn config(folder: &std::path::Path) -> ServerConfig {
        let run = folder.join("run");
        std::fs::write(&run, "").unwrap();
        ServerConfig {
            name: ServerId::parse("s1").unwrap(),
            address: "127.0.0.1".parse().unwrap(),
            interface: "lo".to_owned(),
            rack: "rack".to_owned(),
            slots: None,
            http_port: 80,
            cgroup: "/kopek-absent".into(),
            dirs: Dirs { etc: folder.into(), state: folder.into(), run, log: folder.into() },
        }
    }

    fn instance() -> AssignedInstance {
        AssignedInstance {
            site: SiteName::parse("shop").unwrap(),
            number: 7,
            image: Digest::parse(&"a".repeat(64)).unwrap(),
            limits: Limits {
                cpu: MilliCores(1_000),
                memory: Bytes::mib(64),
                tasks: 10,
                internet: Internet::Closed,
            },
            stage: Stage::Run,
        }
    }

    async fn next(words: &mut mpsc::Receiver<Word>) -> Word {
        tokio::time::timeout(Duration::from_secs(10), words.recv()).await.expect("a word in time").unwrap()
    }

    #[tokio::test]
    async fn one_that_is_stopped_while_it_starts_is_gone_only_when_its_start_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (mut instances, mut words) = Instances::find(&config(folder.path()), "/bin/false".into());
        let id = InstanceId::parse("shop.1").unwrap();
        instances.act(HostAction::Create { id: id.clone(), instance: instance() });
        instances.act(HostAction::Stop { id, grace_ms: 0 });
        let mut has_ended = false;
        while !instances.known.is_empty() {
            let word = next(&mut words).await;
            has_ended |= matches!(word.happening, Happening::Failed(_));
            instances.heard(word);
        }
        assert!(has_ended, "what it started after that would run for ever");
    }

    #[tokio::test]
    async fn after_a_restart_what_runs_is_adopted_and_everything_else_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let (before, _) = Instances::find(&config, "/bin/false".into());
        let mut process =
            tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let pid = process.id().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started_at: u64 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        let [served, unproved, replaced, bare] =
            ["shop.1", "shop.2", "shop.3", "shop.4"].map(|id| InstanceId::parse(id).unwrap());
        // The pid of the third one is another process's by now.
        for (id, started_at) in [(&served, started_at), (&unproved, started_at), (&replaced, started_at - 1)]
        {
            let mut spec = before.spec(id, &instance());
            // Nothing answers there, whatever network this machine is in.
            spec.address = std::net::Ipv4Addr::new(127, 201, 0, 2);
            let running = serde_json::json!({
                "id": id, "dir": spec.dir, "pid": pid, "started_at": started_at, "stop_signal": 15,
            });
            std::fs::create_dir_all(&spec.dir).unwrap();
            std::fs::write(spec.dir.join("spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
            std::fs::write(spec.dir.join("running.json"), running.to_string()).unwrap();
        }
        std::fs::write(served_mark(&before.spec(&served, &instance())), "").unwrap();
        std::fs::create_dir(before.dir(&bare)).unwrap();

        let (instances, mut words) = Instances::find(&config, "/bin/false".into());
        let known = |phase| Local::Known { phase, number: Some(7) };
        let expected = [
            (served.clone(), known(Phase::Serving)),
            (unproved.clone(), known(Phase::Starting)),
            (replaced, Local::Leftover),
            (bare, Local::Leftover),
        ];
        assert_eq!(instances.local(), expected.into());
        let reached: Vec<InstanceId> = instances.listeners().into_keys().collect();
        assert_eq!(reached, [served.clone(), unproved.clone()], "by sql");
        assert_eq!(instances.gates().into_keys().collect::<Vec<_>>(), reached);

        process.kill().await.unwrap();
        let mut heard = BTreeMap::new();
        while heard.len() < 2 {
            let word = next(&mut words).await;
            heard.insert(word.id, matches!(word.happening, Happening::Ended));
        }
        assert_eq!(heard, [(served, true), (unproved, false)].into(), "both are watched");
    }

    #[tokio::test]
    async fn one_that_does_not_start_is_tried_again_at_once_and_then_later_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (mut instances, mut words) = Instances::find(&config(folder.path()), "/bin/false".into());
        let id = InstanceId::parse("shop.1").unwrap();
        let mut delays = Vec::new();
        for _ in 0..3 {
            instances.act(HostAction::Create { id: id.clone(), instance: instance() });
            while instances.next_start().is_none_or(|start| start == Moment(u64::MAX)) {
                let word = next(&mut words).await;
                instances.heard(word);
            }
            let known = &instances.known[&id];
            delays.push(instances.next_start().unwrap().millis_since(known.since) / 100);
        }
        assert_eq!(delays, [0, 1, 2]);
        let seen = instances.seen(&BTreeMap::new());
        assert_eq!((seen[&id].number, seen[&id].restarts), (Some(7), 3));
    }
}
