//! Stopping an instance, and removing every trace of one. Called by the agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{self, CgroupError};
use crate::network::{NetworkError, disconnect};
use crate::start::read_running;
use crate::{InstanceSpec, Running, process};

/// How an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It finished its requests and ended by itself.
    Gracefully,
    /// It was killed when the grace was over.
    Killed,
}

#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    #[error("the tasks of {} cannot be removed", .dir.display())]
    Tasks { dir: PathBuf, source: CgroupError },
    #[error("the network of {} cannot be removed", .dir.display())]
    Network { dir: PathBuf, source: NetworkError },
    #[error("{} cannot be removed", .dir.display())]
    Files { dir: PathBuf, source: io::Error },
}

/// Lets the web server finish its requests for at most `grace`, then kills it; then cleans. Route requests
/// elsewhere before.
pub fn stop(running: &Running, grace: Duration) -> Result<Stopped, CleanError> {
    let ended = match process::open(running.pid, running.started_at) {
        None => true,
        Some(process) => {
            // It may end this very moment, which is what is wanted.
            let _ = process::signal(&process, running.stop_signal);
            process::has_ended(&process, grace)
        }
    };
    clean(&running.dir)?;
    Ok(if ended { Stopped::Gracefully } else { Stopped::Killed })
}

/// Removes what there is of the instance whose folder is `dir`: its tasks, control groups, network and
/// files. Its mounts go with its tasks. Whatever had crashed, and however often it is repeated, nothing is
/// left and that is no error.
pub fn clean(dir: &Path) -> Result<(), CleanError> {
    let spec = InstanceSpec::read(dir);
    kill(dir, spec.as_ref())?;
    if let Some(spec) = &spec {
        disconnect(spec).map_err(|source| CleanError::Network { dir: dir.to_owned(), source })?;
    }
    remove_files(dir)
}

/// For a start that follows at once.
pub(crate) fn clean_but_network(dir: &Path) -> Result<(), CleanError> {
    kill(dir, InstanceSpec::read(dir).as_ref())?;
    remove_files(dir)
}

/// The end of a container's first process ends the others. A launch that broke off before there was one
/// may have left tasks in the control group.
fn kill(dir: &Path, spec: Option<&InstanceSpec>) -> Result<(), CleanError> {
    if let Some(running) = read_running(dir)
        && let Some(process) = process::open(running.pid, running.started_at)
    {
        let _ = process::signal(&process, libc::SIGKILL);
    }
    match spec {
        Some(spec) => {
            cgroup::remove(&spec.cgroup).map_err(|source| CleanError::Tasks { dir: dir.to_owned(), source })
        }
        None => Ok(()),
    }
}

fn remove_files(dir: &Path) -> Result<(), CleanError> {
    let failed = |source| CleanError::Files { dir: dir.to_owned(), source };
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}
