//! Taking a rack away. Works from the rack's names alone, so that it also removes what is left of one that was
//! half made, or whose every process was killed; each step does nothing where there is nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::{self, Group};
use crate::disk;
use crate::error::{Doing, RackError};
use crate::names::Names;
use crate::network;
use crate::rack::Rack;
use crate::record::{Lock, Process, Record, unfinished};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Rack,
    /// The folder does not exist, or is empty: there was nothing to do.
    Nothing,
}

impl Rack {
    /// Ends every process of the rack in `dir` and removes its mounts, loop devices, namespaces, interfaces, cgroups,
    /// disks and record; the folder too, unless something else lies in it. Refuses a folder that is no rack.
    pub fn down(dir: &Path) -> Result<Removed, RackError> {
        let Some(names) = names_of(dir)? else {
            return Ok(Removed::Nothing);
        };
        let _lock = Lock::take(&names.dir)?;
        end_processes(&names)?;
        release_disks(&names)?;
        {
            let _machine = Lock::machine()?;
            for netns in network::namespaces(&names) {
                network::remove_netns(&netns)?;
            }
            for link in network::links(&names) {
                network::remove_link(&link)?;
            }
            network::tidy_netns_dir();
            cgroup::remove_everywhere(&names.cgroup())?;
            cgroup::remove_empty_top();
        }
        remove_files(&names)?;
        Ok(Removed::Rack)
    }

    /// What the rack in `dir` has on the machine at this moment, one line each; after `down` there is nothing.
    pub fn leftovers(dir: &Path) -> Vec<String> {
        let names = absolute(dir).map(|dir| named_by_record(&dir)).unwrap_or_else(|_| Names::of(dir));
        let processes = Group::named(&names.cgroup()).map(|group| group.processes()).unwrap_or_default();
        let shown = |paths: Vec<PathBuf>| paths.into_iter().map(|path| path.display().to_string());
        let mut left = Vec::new();
        left.extend(processes.iter().map(|pid| format!("process {}", cgroup::describe(&[*pid]))));
        left.extend(
            network::namespaces(&names).into_iter().map(|netns| format!("network namespace {netns}")),
        );
        left.extend(network::links(&names).into_iter().map(|link| format!("interface {link}")));
        left.extend(shown(disk::loops_on(&names.dir)).map(|device| format!("loop device {device}")));
        left.extend(shown(cgroup::found(&names.cgroup())).map(|group| format!("cgroup {group}")));
        left.extend(shown(files(&names)).map(|file| format!("file {file}")));
        left
    }
}

/// None where there is nothing to remove.
fn names_of(dir: &Path) -> Result<Option<Names>, RackError> {
    let dir = match dir.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.doing(|| format!("look at {}", dir.display()))?,
    };
    let names = named_by_record(&dir);
    if names.record().exists() {
        return Ok(Some(names));
    }
    // A first `up` that died before it made anything.
    let _ = fs::remove_file(unfinished(&dir));
    let mut entries = fs::read_dir(&dir).doing(|| format!("read {}", dir.display()))?;
    if entries.next().is_none() { Ok(None) } else { Err(RackError::NotARack { dir }) }
}

/// The record's id counts, if it can be read: the folder may have been renamed.
fn named_by_record(dir: &Path) -> Names {
    let mut names = Names::of(dir);
    if let Ok(record) = Record::read(&names.record()) {
        names.id = record.id;
    }
    names
}

/// Like `canonicalize`, for a folder that may be gone.
fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match (dir.canonicalize(), dir.parent(), dir.file_name()) {
        (Err(_), Some(parent), Some(name)) => {
            Ok(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.canonicalize()?.join(name))
        }
        (found, _, _) => found,
    }
}

fn end_processes(names: &Names) -> Result<(), RackError> {
    // A damaged record names no process; the cgroup has them all anyway.
    if let Ok(record) = Record::read(&names.record()) {
        let inits = record.servers.iter().filter_map(|server| server.init);
        let forwards = record.forwards.iter().map(|forward| forward.process);
        for process in inits.chain(forwards).filter(Process::is_alive) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
    Group::named(&names.cgroup())?.kill()
}

fn release_disks(names: &Names) -> Result<(), RackError> {
    let images = files(names).into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "img"));
    for image in images {
        disk::detach_idle(&image);
        disk::wait_released(&image)?;
    }
    Ok(())
}

/// The record goes last: until then, `down` can be repeated.
fn remove_files(names: &Names) -> Result<(), RackError> {
    for file in files(names) {
        fs::remove_file(&file).doing(|| format!("remove {}", file.display()))?;
    }
    // Fails if the folder holds something that is not ours.
    let _ = fs::remove_dir(&names.dir);
    Ok(())
}

/// Every file that a rack makes in its folder; the record last.
fn files(names: &Names) -> Vec<PathBuf> {
    let entries = fs::read_dir(&names.dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_disk = |path: &PathBuf| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix('s'));
        path.extension().is_some_and(|ext| ext == "img")
            && stem.is_some_and(|number| number.parse::<u8>().is_ok())
    };
    let mut found: Vec<PathBuf> = entries.filter(is_disk).collect();
    found.extend([unfinished(&names.dir), names.record()].into_iter().filter(|path| path.exists()));
    found
}
