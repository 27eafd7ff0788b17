//! Keeps a virtual server's services running, as systemd does on a real one, and reaps every orphan. Only the
//! main process of a service is stopped with it: what it started for the long run (MariaDB, instances) stays,
//! as with systemd's `KillMode=process`. Never gives up on an enabled service.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use super::BootSpec;
use super::control::{self, Answer, Order, ServiceOrder};
use super::world::SERVER_DIR;
use crate::wait::until;
use crate::{LOG_DIR, STATE_DIR, Service};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);
/// A service that ran this long is well again: its next death is restarted after the first delay.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(10);
/// At a start, a longer log is set aside as NAME.log.1.
const LOG_MAX: u64 = 64 << 20;

/// ```text
///            start              death               delay over
///  Off ────────────────▶ Up ───────────▶ Waiting ───────────────▶ Up
///   ▲                     │ stop, restart   │ stop
///   │   death             ▼                 ▼
///   └──────────────── Stopping ──▶ Up      Off
///                        (KILL after the grace; Up if it was a restart)
/// ```
enum Phase {
    Off,
    Up { pid: Pid, since: Instant },
    Waiting { until: Instant },
    Stopping { pid: Pid, kill_at: Instant, then: Then },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Off,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServicePhase {
    Off,
    Up,
    /// It died, or could not be started; tried again soon.
    Waiting,
    Stopping,
}

/// A service as `Rack::services` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    pub phase: ServicePhase,
    /// In the server's own pid namespace.
    pub pid: Option<i32>,
    /// Deaths since the server booted.
    pub deaths: u32,
}

struct Supervised {
    service: Service,
    phase: Phase,
    delay: Duration,
    deaths: u32,
}

/// Runs until SIGTERM, then stops the services in their order, ends what is left, writes the disk back, and
/// returns.
pub(super) fn run(spec: BootSpec) -> Result<(), String> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    mask.thread_block().map_err(|e| format!("cannot block signals: {e}"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&mask, flags).map_err(|e| format!("cannot wait for signals: {e}"))?;
    let listener = control::listen().map_err(|e| format!("cannot listen for orders: {e}"))?;

    let mut supervisor = Supervisor::new(spec);
    supervisor.start_enabled();
    println!("ready");
    leave_the_starter().map_err(|e| format!("cannot open init.log: {e}"))?;
    while !asked_to_end(&signals) {
        supervisor.reap();
        supervisor.tick(Instant::now());
        if wait(&signals, &listener, supervisor.next_wake()) {
            // A client that goes away mid-word is its own business.
            let _ = control::serve(&listener, |order| supervisor.obey(order));
        }
    }
    supervisor.shut_down();
    Ok(())
}

/// Whoever waited for `ready` reads the end of file; from here on, init's words go to its log.
fn leave_the_starter() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = open_log("init")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}

fn asked_to_end(signals: &SignalFd) -> bool {
    let mut asked = false;
    while let Ok(Some(signal)) = signals.read_signal() {
        asked |= signal.ssi_signo == Signal::SIGTERM as u32;
    }
    asked
}

/// Sleeps until a signal, a client or `wake`; whether a client is there.
fn wait(signals: &SignalFd, listener: &UnixListener, wake: Option<Instant>) -> bool {
    let left = wake.map(|at| at.saturating_duration_since(Instant::now()));
    let timeout =
        left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
    let mut sources = [
        PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
    ];
    rustix::event::poll(&mut sources, timeout.as_ref()).is_ok()
        && sources[1].revents().contains(PollFlags::IN)
}

struct Supervisor {
    env: BTreeMap<String, String>,
    services: Vec<Supervised>,
}

impl Supervisor {
    fn new(spec: BootSpec) -> Supervisor {
        let off = |service| Supervised { service, phase: Phase::Off, delay: FIRST_DELAY, deaths: 0 };
        Supervisor { env: spec.env, services: spec.services.into_iter().map(off).collect() }
    }

    fn start_enabled(&mut self) {
        let enabled = read_enabled();
        for supervised in self.services.iter_mut().filter(|s| enabled.contains(&s.service.name)) {
            supervised.start(&self.env);
        }
    }

    /// Collects every dead child: services, and orphans that came to us as PID 1.
    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal.to_string()),
                Err(Errno::EINTR) => continue,
                _ => return,
            };
            if let Some(supervised) = self.services.iter_mut().find(|s| s.main_pid() == Some(pid)) {
                supervised.died(&how, &self.env);
            }
        }
    }

    /// Does what has come due.
    fn tick(&mut self, now: Instant) {
        for supervised in &mut self.services {
            match supervised.phase {
                Phase::Waiting { until } if now >= until => supervised.start(&self.env),
                Phase::Stopping { pid, kill_at, then } if now >= kill_at => {
                    let _ = kill(pid, Signal::SIGKILL);
                    supervised.phase = Phase::Stopping { pid, kill_at: now + GRACE, then };
                }
                _ => {}
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let due = |supervised: &Supervised| match supervised.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Off | Phase::Up { .. } => None,
        };
        self.services.iter().filter_map(due).min()
    }

    fn obey(&mut self, order: Order) -> Answer {
        let Order::Service { service, order } = order else {
            return self.list();
        };
        let Some(supervised) = self.services.iter_mut().find(|s| s.service.name == service) else {
            return Answer::NoSuchService;
        };
        match order {
            ServiceOrder::Start => supervised.start(&self.env),
            ServiceOrder::Stop => supervised.stop(Then::Off),
            ServiceOrder::Restart => supervised.restart(&self.env),
        }
        let enabled =
            self.services.iter().filter(|s| s.is_wanted()).map(|s| s.service.name.clone()).collect();
        match write_enabled(enabled) {
            Ok(()) => self.list(),
            Err(e) => Answer::Failed { why: format!("cannot note which services are enabled: {e}") },
        }
    }

    fn list(&self) -> Answer {
        Answer::Services { services: self.services.iter().map(Supervised::status).collect() }
    }

    fn shut_down(&mut self) {
        for index in 0..self.services.len() {
            self.services[index].stop(Then::Off);
            until(GRACE + GRACE, || {
                self.reap();
                self.tick(Instant::now());
                matches!(self.services[index].phase, Phase::Off)
            });
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // To everyone else in our pid namespace (kill(2), pid -1).
            let _ = kill(Pid::from_raw(-1), signal);
            until(GRACE, || matches!(reap_all(), Err(Errno::ECHILD)));
        }
        nix::unistd::sync();
    }
}

/// Everyone in the namespace becomes our child in the end; ECHILD says that none is left.
fn reap_all() -> Result<(), Errno> {
    while waitpid(None, Some(WaitPidFlag::WNOHANG))? != WaitStatus::StillAlive {}
    Ok(())
}

impl Supervised {
    fn main_pid(&self) -> Option<Pid> {
        match self.phase {
            Phase::Up { pid, .. } | Phase::Stopping { pid, .. } => Some(pid),
            Phase::Off | Phase::Waiting { .. } => None,
        }
    }

    /// Whether it shall run, now and after the next boot.
    fn is_wanted(&self) -> bool {
        !matches!(self.phase, Phase::Off | Phase::Stopping { then: Then::Off, .. })
    }

    fn start(&mut self, env: &BTreeMap<String, String>) {
        match self.phase {
            Phase::Up { .. } => {}
            Phase::Stopping { pid, kill_at, .. } => {
                self.phase = Phase::Stopping { pid, kill_at, then: Then::Up };
            }
            Phase::Off | Phase::Waiting { .. } => match spawn(&self.service, env) {
                Ok(pid) => self.phase = Phase::Up { pid, since: Instant::now() },
                Err(e) => {
                    eprintln!("{}: cannot start: {e}", self.service.name);
                    self.wait_a_little();
                }
            },
        }
    }

    fn stop(&mut self, then: Then) {
        match self.phase {
            Phase::Up { pid, .. } => {
                let _ = kill(pid, Signal::SIGTERM);
                self.phase = Phase::Stopping { pid, kill_at: Instant::now() + GRACE, then };
            }
            Phase::Stopping { pid, kill_at, .. } => self.phase = Phase::Stopping { pid, kill_at, then },
            Phase::Off | Phase::Waiting { .. } => self.phase = Phase::Off,
        }
    }

    fn restart(&mut self, env: &BTreeMap<String, String>) {
        self.delay = FIRST_DELAY;
        self.stop(Then::Up);
        if matches!(self.phase, Phase::Off) {
            self.start(env);
        }
    }

    fn died(&mut self, how: &str, env: &BTreeMap<String, String>) {
        eprintln!("{}: ended with {how}", self.service.name);
        match self.phase {
            Phase::Stopping { then, .. } => {
                self.phase = Phase::Off;
                if then == Then::Up {
                    self.start(env);
                }
            }
            Phase::Up { since, .. } => {
                self.deaths += 1;
                if since.elapsed() >= WELL_AFTER {
                    self.delay = FIRST_DELAY;
                }
                self.wait_a_little();
            }
            Phase::Off | Phase::Waiting { .. } => {}
        }
    }

    fn wait_a_little(&mut self) {
        self.phase = Phase::Waiting { until: Instant::now() + self.delay };
        self.delay = (self.delay * 2).min(LAST_DELAY);
    }

    fn status(&self) -> ServiceStatus {
        let phase = match self.phase {
            Phase::Off => ServicePhase::Off,
            Phase::Up { .. } => ServicePhase::Up,
            Phase::Waiting { .. } => ServicePhase::Waiting,
            Phase::Stopping { .. } => ServicePhase::Stopping,
        };
        let pid = self.main_pid().map(Pid::as_raw);
        ServiceStatus { name: self.service.name.clone(), phase, pid, deaths: self.deaths }
    }
}

fn spawn(service: &Service, env: &BTreeMap<String, String>) -> io::Result<Pid> {
    let [program, arguments @ ..] = service.argv.as_slice() else {
        return Err(io::Error::other("its command is empty"));
    };
    let log = open_log(&service.name)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(env).envs(&service.env).current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: between fork and exec only two system calls are made, both async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            SigSet::empty().thread_set_mask()?;
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    // Reaped by `reap`, with everyone else.
    let child = command.spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).expect("Linux pids fit 22 bits")))
}

fn open_log(name: &str) -> io::Result<File> {
    let path = Path::new(LOG_DIR).join(format!("{name}.log"));
    if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_MAX) {
        fs::rename(&path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The names of the services that start at boot.
fn enabled_file() -> PathBuf {
    Path::new(STATE_DIR).join(SERVER_DIR).join("enabled.json")
}

fn read_enabled() -> Vec<String> {
    // A server that never started a service has no such file.
    fs::read(enabled_file()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// On the disk when it returns: a power cut right after `up` must not forget what runs here.
fn write_enabled(names: Vec<String>) -> io::Result<()> {
    let (path, new) = (enabled_file(), enabled_file().with_extension("new"));
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&names)?)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(Path::new(STATE_DIR).join(SERVER_DIR))?.sync_all()
}
