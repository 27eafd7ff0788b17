//! Starting an instance, and finding one again. Called by the agent.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use kopek_core::InstanceId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::launch::{self, Launched};
use crate::network::{NetworkError, connect};
use crate::spec::{RUNNING_FILE, SPEC_FILE};
use crate::stop::{CleanError, clean};
use crate::{InstanceSpec, Running, process};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("instance {id} cannot start: {} is missing; pour it here first", .path.display())]
    Missing { id: InstanceId, path: PathBuf },
    #[error("instance {id} cannot start: {} cannot be written", .path.display())]
    Unwritable { id: InstanceId, path: PathBuf, source: io::Error },
    #[error("instance {id} cannot start: what is left of an earlier start does not go away")]
    Leftover { id: InstanceId, source: CleanError },
    #[error("instance {id} cannot start: it gets no network")]
    Network { id: InstanceId, source: NetworkError },
    #[error("instance {id} cannot start: the launcher {} does not run", .launcher.display())]
    Launcher { id: InstanceId, launcher: PathBuf, source: io::Error },
    #[error("instance {id} cannot start: {why}")]
    Refused { id: InstanceId, why: String },
}

/// Starts the container and gives it back as soon as its first program was told to go; `probe` says when it
/// serves. What an earlier start of the same id left is removed before; a failed start leaves nothing.
pub fn start(spec: &InstanceSpec, launcher: &Path) -> Result<Running, StartError> {
    for path in [&spec.image_root, &spec.volume, &spec.sql_socket_dir] {
        if !path.is_dir() {
            return Err(StartError::Missing { id: spec.id.clone(), path: path.clone() });
        }
    }
    let started = begin(spec).and_then(|()| launch(spec, launcher));
    if started.is_err()
        && let Err(error) = clean(&spec.dir)
    {
        tracing::warn!(instance = %spec.id, error = %error, "a failed start left something behind");
    }
    started
}

/// The document lies in the instance's folder before anything else is made, so that `clean` knows what to
/// look for.
fn begin(spec: &InstanceSpec) -> Result<(), StartError> {
    let id = || spec.id.clone();
    let unwritable = |source| StartError::Unwritable { id: id(), path: spec.dir.clone(), source };
    if spec.dir.exists() {
        // The network stays: `connect` may just have made it for this very start.
        crate::stop::clean_but_network(&spec.dir)
            .map_err(|source| StartError::Leftover { id: id(), source })?;
    }
    std::fs::create_dir_all(&spec.dir).map_err(unwritable)?;
    let text = serde_json::to_vec_pretty(spec).expect("an InstanceSpec has only texts and numbers");
    std::fs::write(spec.dir.join(SPEC_FILE), text).map_err(unwritable)?;
    let begun = Instant::now();
    connect(spec).map_err(|source| StartError::Network { id: id(), source })?;
    debug!(instance = %spec.id, took_us = begun.elapsed().as_micros() as u64, "network");
    Ok(())
}

fn launch(spec: &InstanceSpec, launcher: &Path) -> Result<Running, StartError> {
    let begun = Instant::now();
    let answer = ask_launcher(spec, launcher).map_err(|source| StartError::Launcher {
        id: spec.id.clone(),
        launcher: launcher.to_owned(),
        source,
    })?;
    match answer {
        Launched::Runs { running, steps } => {
            debug!(instance = %spec.id, took_us = begun.elapsed().as_micros() as u64, ?steps, "launched");
            Ok(running)
        }
        Launched::Failed { why } => Err(StartError::Refused { id: spec.id.clone(), why }),
    }
}

fn ask_launcher(spec: &InstanceSpec, launcher: &Path) -> io::Result<Launched> {
    let mut child = Command::new(launcher)
        .arg(launch::SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is piped above");
    let sent = stdin.write_all(&serde_json::to_vec(spec)?);
    drop(stdin);
    let output = child.wait_with_output()?;
    sent?;
    // Not a status but an answer says that it worked: a launcher that was killed has none.
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        io::Error::other(format!("it ended without an answer ({}) {said}", output.status))
    })
}

/// The instance as it runs from before the agent was restarted; None if it does not, or never did.
pub fn adopt(spec: &InstanceSpec) -> Option<Running> {
    let running = read_running(&spec.dir)?;
    process::open(running.pid, running.started_at).map(|_| running)
}

pub(crate) fn read_running(dir: &Path) -> Option<Running> {
    serde_json::from_slice(&std::fs::read(dir.join(RUNNING_FILE)).ok()?).ok()
}

/// Ids of the instances that have a folder under `instances` (`<state>/instances`): those that run, and
/// remains of those that did. `clean` takes `instances.join(id)`.
pub fn leftovers(instances: &Path) -> Vec<InstanceId> {
    let entries = std::fs::read_dir(instances).into_iter().flatten().flatten();
    let mut ids: Vec<InstanceId> =
        entries.filter_map(|entry| InstanceId::parse(entry.file_name().to_str()?).ok()).collect();
    ids.sort();
    ids
}

/// Resolves when the container's first process has ended, and with it the container.
pub async fn watch(running: &Running) -> io::Result<()> {
    let Some(process) = process::open(running.pid, running.started_at) else { return Ok(()) };
    // SAFETY: the AsyncFd owns the descriptor from here on, so it stays open and the same until both go.
    let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?;
    // A pidfd becomes readable when its process ends (pidfd_open(2)), and stays so.
    process.readable().await.map(|_| ())
}
