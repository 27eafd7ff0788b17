//! What a rack has on the machine, noted while it runs, and looked for when it should be gone. Looks on its own:
//! asking the rack would only prove that it forgets.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::rack::Rack;

pub struct Traces {
    dir: PathBuf,
    /// Part of every name that the rack has in the kernel.
    id: String,
    /// With the time of their start: numbers are used again.
    processes: Vec<(i32, u64)>,
}

impl Traces {
    pub async fn of(rack: &Rack) -> Result<Traces> {
        let id = rack.cell().await?.name.trim_start_matches("rack-").to_owned();
        let traces = Traces { dir: rack.dir().to_owned(), processes: in_cgroups_of(&id)?, id };
        let seen = traces.left()?;
        // Whoever finds nothing now would find nothing later either.
        for kind in ["process", "cgroup", "loop device", "interface", "network namespace", "file"] {
            if !seen.iter().any(|trace| trace.starts_with(kind)) {
                bail!("the running rack in {} shows no {kind}; the search is broken", traces.dir.display());
            }
        }
        Ok(traces)
    }

    pub fn processes(&self) -> impl Iterator<Item = i32> {
        self.processes.iter().map(|(pid, _)| *pid)
    }

    pub fn gone(&self) -> Result<()> {
        let left = self.left()?;
        if !left.is_empty() {
            bail!("left of the rack in {}: {}", self.dir.display(), left.join(", "));
        }
        Ok(())
    }

    fn left(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = in_cgroups_of(&self.id)?
            .iter()
            .chain(self.processes.iter().filter(|process| start_of(process.0) == Some(process.1)))
            .map(|(pid, _)| format!("process {pid}"))
            .collect();
        left.sort();
        left.dedup();
        let dir = self.dir.to_string_lossy();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        left.extend(mounts.lines().filter(|line| line.contains(&*dir)).map(|line| format!("mount {line}")));
        for entry in fs::read_dir("/sys/block")? {
            let backing = fs::read_to_string(entry?.path().join("loop/backing_file")).unwrap_or_default();
            if backing.contains(&*dir) {
                left.push(format!("loop device on {}", backing.trim()));
            }
        }
        left.extend(names_in(Path::new("/sys/class/net"), &self.id).map(|name| format!("interface {name}")));
        left.extend(
            names_in(Path::new("/run/netns"), &self.id).map(|name| format!("network namespace {name}")),
        );
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let group = hierarchy?.path().join("kopek").join(&self.id);
            if group.exists() {
                left.push(format!("cgroup {}", group.display()));
            }
        }
        left.extend(names_in(&self.dir, "").map(|name| format!("file {dir}/{name}")));
        Ok(left)
    }
}

fn names_in(folder: &Path, part: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(move |name| name.contains(part))
}

fn in_cgroups_of(id: &str) -> Result<Vec<(i32, u64)>> {
    let marker = format!(":/kopek/{id}/");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // It may be gone meanwhile.
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if groups.contains(&marker)
            && let Some(start) = start_of(pid)
        {
            found.push((pid, start));
        }
    }
    Ok(found)
}

/// Field 22 of proc_pid_stat(5). None for a zombie: it has nothing left but its number.
fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}
