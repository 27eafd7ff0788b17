//! `kopek doctor`: what this machine lacks to be a server, and what is wrong with the cell.

use anyhow::{Result, bail};
use kopek_core::api::{CellView, PoolView, ServerView};
use serde::Serialize;

use super::Global;
use super::output::{Format, say};

/// Programs that the agent runs, with the Debian package that brings each.
const PROGRAMS: [(&str, &str); 9] = [
    ("mariadbd", "mariadb-server"),
    ("mariadb", "mariadb-client"),
    ("mariabackup", "mariadb-backup"),
    ("socat", "socat"),
    ("etcd", "etcd-server"),
    ("keepalived", "keepalived"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("mmdebstrap", "mmdebstrap"),
];
const PATHS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

#[derive(Serialize)]
struct Finding {
    subject: String,
    well: bool,
    say: String,
}

pub async fn doctor(global: &Global) -> Result<()> {
    let mut findings: Vec<Finding> = PROGRAMS.iter().map(|(name, package)| program(name, package)).collect();
    findings.push(kernel("fanotify", "/proc/sys/fs/fanotify"));
    findings.push(kernel("overlay file systems", "/proc/filesystems"));
    findings.push(Finding {
        subject: "root".to_owned(),
        well: nix::unistd::geteuid().is_root(),
        say: "a server's processes run as root".to_owned(),
    });
    match global.cell() {
        Ok(cell) => {
            let servers: Vec<ServerView> = cell.get("/servers").await?;
            findings.extend(servers.iter().map(|server| Finding {
                subject: format!("server {}", server.name),
                well: server.state == "up",
                say: format!(
                    "{}, {} disk free, {} memory free",
                    server.state, server.disk_free, server.memory_free
                ),
            }));
            let pools: Vec<PoolView> = cell.get("/pools").await?;
            findings.extend(pools.iter().map(|pool| Finding {
                subject: format!("pool {}", pool.name),
                well: pool.members.iter().all(|member| member.state == "synced"),
                say: pool.state.clone(),
            }));
            let view: CellView = cell.get("/cell").await?;
            findings.extend(view.blocked.iter().map(|blocked| Finding {
                subject: "plan".to_owned(),
                well: false,
                say: blocked.clone(),
            }));
        }
        Err(error) => {
            findings.push(Finding { subject: "cell".to_owned(), well: false, say: format!("{error:#}") });
        }
    }
    match global.format() {
        Format::Json => say(serde_json::to_string_pretty(&findings)?)?,
        Format::Table => {
            for Finding { subject, well, say: found } in &findings {
                say(format_args!("{} {subject:<22} {found}", if *well { "ok  " } else { "BAD " }))?;
            }
        }
    }
    match findings.iter().filter(|finding| !finding.well).count() {
        0 => Ok(()),
        bad => bail!("{bad} of {} checks failed", findings.len()),
    }
}

fn program(name: &str, package: &str) -> Finding {
    let found = located(name);
    Finding {
        subject: name.to_owned(),
        well: found.is_some(),
        say: found.unwrap_or_else(|| format!("missing; apt-get install {package}")),
    }
}

/// Refuses a machine that cannot be a server, before anything is made on it.
pub fn require_programs() -> Result<()> {
    match PROGRAMS.iter().find(|(name, _)| located(name).is_none()) {
        Some((name, package)) => bail!("{name} is missing; apt-get install {package}"),
        None => Ok(()),
    }
}

fn located(name: &str) -> Option<String> {
    // A file: what is there may also be a folder, or nothing but a mount point.
    PATHS.iter().map(|path| format!("{path}/{name}")).find(|path| std::path::Path::new(path).is_file())
}

fn kernel(subject: &str, path: &str) -> Finding {
    let there = match path {
        "/proc/filesystems" => std::fs::read_to_string(path).is_ok_and(|text| text.contains("overlay")),
        path => std::path::Path::new(path).exists(),
    };
    Finding {
        subject: subject.to_owned(),
        well: there,
        say: if there { "in the kernel".to_owned() } else { "not in this kernel; boot Debian's".to_owned() },
    }
}
