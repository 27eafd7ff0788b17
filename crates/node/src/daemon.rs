//! A daemon that the agent starts: mariadbd, etcd, keepalived. It outlives the agent (the data plane goes on
//! without it) and is adopted again by the next one: never two of a name, and never a stranger that got its
//! process id. Called by mariadb, etcd.rs and keepalived.rs.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kopek_core::config::Dirs;
use rustix::process::{PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

/// A log grows to this size, then becomes `NAME.log.1` and replaces the one before.
const LOG_MAX: u64 = 10 << 20;
const LOG_CHECK: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A daemon that lived this long counts as one that had started well.
const LIVED_WELL: Duration = Duration::from_secs(10);
/// Signals waiting for the supervisor: reloads, which may be lost when one is waiting already.
const SIGNALS_MAX: usize = 4;
/// Where Debian puts programs. The agent's own PATH is not trusted to have the sbin folders.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run, and as whom.
#[derive(Debug, Clone)]
pub struct Program {
    /// Names the pid file and the log file; one per server.
    pub name: &'static str,
    pub executable: &'static str,
    /// The Debian package that brings the executable.
    pub package: &'static str,
    pub args: Vec<OsString>,
    /// Added to PATH, which is all that it inherits.
    pub environment: Vec<(&'static str, OsString)>,
    /// None: root, as the agent.
    pub account: Option<Account>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("{executable} is not installed; run: apt-get install {package}")]
    Missing { executable: &'static str, package: &'static str },
    #[error("there is no user {user}; run: apt-get install {package}")]
    NoUser { user: &'static str, package: &'static str },
    #[error("cannot start {name}")]
    Start { name: &'static str, source: io::Error },
    #[error("cannot use {path}")]
    File { path: PathBuf, source: io::Error },
}

impl Account {
    pub fn named(user: &'static str, package: &'static str) -> Result<Account, DaemonError> {
        match nix::unistd::User::from_name(user) {
            Ok(Some(found)) => Ok(Account { uid: found.uid.as_raw(), gid: found.gid.as_raw() }),
            _ => Err(DaemonError::NoUser { user, package }),
        }
    }
}

impl Program {
    /// The executable's path.
    pub fn located(&self) -> Result<PathBuf, DaemonError> {
        located(self.executable, self.package)
    }
}

/// Where an executable is, or which Debian package brings it.
pub fn located(executable: &'static str, package: &'static str) -> Result<PathBuf, DaemonError> {
    PATH.split(':')
        .map(|folder| Path::new(folder).join(executable))
        .find(|path| path.is_file())
        .ok_or(DaemonError::Missing { executable, package })
}

/// A command with a clean environment, as all of a server's programs get it.
pub fn clean_command(path: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null()).current_dir("/");
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// One running process, known by its pid and start time, watched by a pidfd. Dropping it leaves it running.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
    log: PathBuf,
    /// Of one that this agent started itself: has the exit status.
    child: Option<Child>,
}

/// A pid is used again; together with the start time (in clock ticks since boot) it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    pid: i32,
    ticks: u64,
}

impl Daemon {
    /// The daemon that an earlier agent started, if it still runs.
    pub fn adopt(dirs: &Dirs, name: &'static str) -> Option<Daemon> {
        let identity = Identity::parse(&fs::read_to_string(pid_file(dirs, name)).ok()?)?;
        Daemon::watched(dirs, name, identity, None).ok().flatten()
    }

    /// Starts it in a session of its own. The caller has tried `adopt` before.
    pub fn start(dirs: &Dirs, program: &Program) -> Result<Daemon, DaemonError> {
        let path = program.located()?;
        let name = program.name;
        let log_path = log_file(dirs, name);
        let pid_path = pid_file(dirs, name);
        let log =
            opened_log(&log_path).map_err(|source| DaemonError::File { path: log_path.clone(), source })?;
        let pid_out = opened_pid_file(&pid_path)
            .map_err(|source| DaemonError::File { path: pid_path.clone(), source })?;
        let failed = |source| DaemonError::Start { name, source };
        let mut command = clean_command(&path, program.account);
        command.args(&program.args).envs(program.environment.iter().map(|(key, value)| (key, value)));
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
        // SAFETY: between fork and exec only system calls are made, no memory is allocated and no lock taken.
        unsafe { command.pre_exec(move || detach(&pid_out)) };
        let child = command.spawn().map_err(failed)?;
        // The child wrote its own pid file before exec, so no daemon is lost when the agent dies here.
        let identity = fs::read_to_string(&pid_path)
            .ok()
            .and_then(|text| Identity::parse(&text))
            .ok_or_else(|| failed(io::Error::other("it left no pid file")))?;
        let daemon = Daemon::watched(dirs, name, identity, Some(child)).map_err(failed)?;
        daemon.ok_or_else(|| failed(io::Error::other("it ended at once")))
    }

    fn watched(
        dirs: &Dirs,
        name: &'static str,
        identity: Identity,
        child: Option<Child>,
    ) -> io::Result<Option<Daemon>> {
        let Some(pid) = rustix::process::Pid::from_raw(identity.pid) else {
            return Ok(None);
        };
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) else {
            return Ok(None);
        };
        // Looked at after the pidfd is open: now the pid cannot change its owner unnoticed.
        if child.is_none() && Identity::of(identity.pid) != Some(identity) {
            return Ok(None);
        }
        // SAFETY: an OwnedFd names the same descriptor for as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Some(Daemon { name, identity, pidfd, log: log_file(dirs, name), child }))
    }

    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Waits for its end and gives back how it ended, for people. Meanwhile keeps its log small. May be
    /// dropped and called again.
    pub async fn ended(&mut self) -> String {
        let mut check = tokio::time::interval(LOG_CHECK);
        loop {
            tokio::select! {
                _ = self.pidfd.readable() => break,
                _ = check.tick() => keep_small(&self.log),
            }
        }
        let how = match self.child.as_mut() {
            Some(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            None => "it ended".to_owned(),
        };
        // What it started and left behind (scripts of a state transfer) is in its session and process group.
        if let Some(group) = rustix::process::Pid::from_raw(self.identity.pid) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        how
    }

    /// Does nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// SIGTERM, and SIGKILL when it has not ended after `grace`.
    pub async fn stop(mut self, grace: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            warn!(daemon = self.name, ?grace, "did not end on SIGTERM: killed");
            self.signal(Signal::KILL);
            self.ended().await;
        }
    }
}

impl Identity {
    fn of(pid: i32) -> Option<Identity> {
        Identity::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// From the text of /proc/PID/stat (proc(5)): field 1 is the pid, field 3 the state, 22 the start time. A
    /// zombie has ended. The name in field 2 may contain anything, but the last `)` ends it.
    fn parse(stat: &str) -> Option<Identity> {
        let (start, rest) = stat.rsplit_once(')')?;
        let pid = start.split(' ').next()?.parse().ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let alive = fields.next()? != "Z";
        let ticks = fields.nth(18)?.parse().ok()?;
        alive.then_some(Identity { pid, ticks })
    }
}

/// In the child, before exec: a session of its own, and /proc/self/stat copied into the pid file.
fn detach(pid_file: &File) -> io::Result<()> {
    rustix::process::setsid()?;
    let stat = rustix::fs::open(
        c"/proc/self/stat",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut text = [0u8; 1024];
    let length = rustix::io::read(&stat, &mut text)?;
    rustix::io::write(pid_file, &text[..length])?;
    Ok(())
}

fn pid_file(dirs: &Dirs, name: &str) -> PathBuf {
    dirs.run.join(format!("{name}.pid"))
}

/// Where a daemon's output goes.
pub fn log_file(dirs: &Dirs, name: &str) -> PathBuf {
    dirs.log.join(format!("{name}.log"))
}

fn opened_pid_file(path: &Path) -> io::Result<File> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)
}

fn opened_log(path: &Path) -> io::Result<File> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The daemon keeps its descriptor, so the log is copied and cut, not renamed. A line written in between may
/// be lost.
fn keep_small(log: &Path) {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_MAX) {
        let old = log.with_extension("log.1");
        let cut = fs::copy(log, &old).and_then(|_| OpenOptions::new().write(true).open(log)?.set_len(0));
        if let Err(error) = cut {
            warn!(log = %log.display(), %error, "cannot rotate the log");
        }
    }
}

/// How long to wait before the next start: 100 ms, doubled up to 30 s, anew after a life of 10 s.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: BACKOFF_FIRST }
    }
}

impl Backoff {
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= LIVED_WELL {
            self.next = BACKOFF_FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(BACKOFF_LAST);
        wait
    }
}

/// ```text
///            started or adopted
///   Starting ──────────────────► Running ──┐
///      ▲                                   │ died, or could not be started
///      └──────────── BackOff ◄─────────────┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    Starting,
    Running { pid: i32 },
    BackOff { why: String },
}

/// A daemon that is kept running until `stop`. Dropping it ends the watch and leaves the daemon running.
#[derive(Debug)]
pub struct Supervised {
    life: watch::Receiver<Life>,
    signals: mpsc::Sender<Signal>,
    stop: oneshot::Sender<Duration>,
    task: tokio::task::JoinHandle<()>,
}

impl Supervised {
    /// `prepare` runs before each start, not before an adoption.
    pub fn keep(dirs: &Dirs, program: Program, prepare: impl FnMut() + Send + 'static) -> Supervised {
        let (life_in, life) = watch::channel(Life::Starting);
        let (signals, signals_in) = mpsc::channel(SIGNALS_MAX);
        let (stop, stop_in) = oneshot::channel();
        let task = tokio::spawn(supervise(dirs.clone(), program, prepare, life_in, signals_in, stop_in));
        Supervised { life, signals, stop, task }
    }

    pub fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// Reaches the daemon if it runs now.
    pub fn signal(&self, signal: Signal) {
        let _ = self.signals.try_send(signal);
    }

    /// SIGTERM, SIGKILL after `grace`. Returns when it has ended.
    pub async fn stop(self, grace: Duration) {
        if self.stop.send(grace).is_ok() {
            let _ = self.task.await;
        }
    }
}

async fn supervise(
    dirs: Dirs,
    program: Program,
    mut prepare: impl FnMut(),
    life: watch::Sender<Life>,
    mut signals: mpsc::Receiver<Signal>,
    mut stop: oneshot::Receiver<Duration>,
) {
    let mut backoff = Backoff::default();
    loop {
        let since = Instant::now();
        let daemon = match Daemon::adopt(&dirs, program.name) {
            Some(daemon) => Ok(daemon),
            None => {
                prepare();
                Daemon::start(&dirs, &program)
            }
        };
        let why = match daemon {
            Ok(mut daemon) => {
                info!(daemon = program.name, pid = daemon.pid(), "runs");
                life.send_replace(Life::Running { pid: daemon.pid() });
                loop {
                    tokio::select! {
                        how = daemon.ended() => break how,
                        Some(signal) = signals.recv() => daemon.signal(signal),
                        order = &mut stop => {
                            // Dropped without a grace time: the watch ends, the daemon goes on.
                            if let Ok(grace) = order {
                                daemon.stop(grace).await;
                            }
                            return;
                        }
                    }
                }
            }
            Err(error) => explained(&error),
        };
        let wait = backoff.after(since.elapsed());
        warn!(daemon = program.name, why, ?wait, "does not run; starts again");
        life.send_replace(Life::BackOff { why });
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            _ = &mut stop => return,
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn explained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
