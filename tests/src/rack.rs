//! A virtual rack, driven by the `kopek` command as a person would. Ends with its value, unless it is kept.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kopek_core::api::{CellView, InstanceView, PoolView, ServerView, SiteView};
use kopek_core::event::Event;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::wait::until;

/// No command of a test takes longer, but an `up` that builds its image first.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);
const UP_LIMIT: Duration = Duration::from_secs(900);
const WHOLE_LIMIT: Duration = Duration::from_secs(90);

pub struct Rack {
    kopek: PathBuf,
    dir: PathBuf,
    is_kept: bool,
}

/// `kopek --json dev status`
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    pub servers: Vec<StatusServer>,
    pub vips: Vec<IpAddr>,
    pub forwards: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct StatusServer {
    pub name: String,
    pub address: IpAddr,
    pub state: String,
    /// The server's init, as the machine numbers it.
    pub pid: Option<i32>,
}

/// What a command that is expected to fail said.
#[derive(Debug)]
pub struct Refused {
    pub code: i32,
    pub message: String,
}

/// The binary under test: `KOPEK_BIN`, else the one beside the running program.
pub fn kopek_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KOPEK_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // Test programs lie in `deps`, one below.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("kopek")).find(|path| path.is_file());
    found.with_context(|| format!("there is no kopek beside {}; `cargo build -p kopek`", own.display()))
}

impl Rack {
    /// A rack of its own for a test, without a loopback port.
    pub async fn up(servers: usize) -> Result<Rack> {
        let dir = tempfile::Builder::new().prefix("kopek-e2e-").tempdir_in("/var/tmp")?.keep();
        let rack = Rack { kopek: kopek_binary()?, dir, is_kept: false };
        rack.bring_up(servers, None).await?;
        Ok(rack)
    }

    /// A rack in a given place. Taken down when its value ends, also if it could not be brought up.
    pub fn in_dir(kopek: &Path, dir: &Path) -> Rack {
        Rack { kopek: kopek.to_owned(), dir: dir.to_owned(), is_kept: false }
    }

    pub async fn bring_up(&self, servers: usize, listen: Option<SocketAddr>) -> Result<()> {
        let listen = listen.map_or("127.0.0.1:0".to_owned(), |listen| listen.to_string());
        let mut command =
            self.command(&["dev", "up", "--listen", &listen, "--servers", &servers.to_string()]);
        command.arg("--dir").arg(&self.dir);
        checked(run(command, UP_LIMIT).await?, "kopek dev up").map(drop)
    }

    /// It stays when this value ends.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    pub fn kopek(&self) -> &Path {
        &self.kopek
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub async fn down(&mut self) -> Result<()> {
        self.is_kept = true;
        self.dev("down", &[]).await.map(drop)
    }

    // Commands

    /// `kopek WORDS`, spoken to this rack's cell.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        checked(run(self.command(words), COMMAND_LIMIT).await?, &words.join(" "))
    }

    pub async fn ask<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let text = self.run(&[&["--json"], words].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("kopek {} answers {text:?}", words.join(" ")))
    }

    /// Runs a command that must fail.
    pub async fn refused(&self, words: &[&str]) -> Result<Refused> {
        let output = run(self.command(words), COMMAND_LIMIT).await?;
        if output.status.success() {
            bail!("kopek {} did not fail", words.join(" "));
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(Refused { code: output.status.code().unwrap_or(-1), message })
    }

    /// `kopek dev VERB WORDS` on this rack.
    pub async fn dev(&self, verb: &str, words: &[&str]) -> Result<String> {
        let dir = self.dir.to_string_lossy();
        self.run(&[&["dev", verb, "--dir", &dir], words].concat()).await
    }

    /// Runs a command in a server.
    pub async fn exec(&self, server: &str, words: &[&str]) -> Result<String> {
        self.dev("exec", &[&[server, "--"], words].concat()).await
    }

    /// `kopek WORDS`, not begun yet.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.kopek);
        command.args(words).env("KOPEK_CELL", self.dir.join("admin")).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    // What is

    pub async fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&self.dev("status", &["--json"]).await?)?)
    }

    pub async fn cell(&self) -> Result<CellView> {
        self.ask(&["cell", "show"]).await
    }

    pub async fn servers(&self) -> Result<Vec<ServerView>> {
        self.ask(&["server", "ls"]).await
    }

    pub async fn server(&self, name: &str) -> Result<ServerView> {
        self.ask(&["server", "show", name]).await
    }

    pub async fn pools(&self) -> Result<Vec<PoolView>> {
        self.ask(&["pool", "ls"]).await
    }

    pub async fn site(&self, name: &str) -> Result<SiteView> {
        self.ask(&["site", "show", name]).await
    }

    pub async fn instances(&self, site: &str) -> Result<Vec<InstanceView>> {
        self.ask(&["instance", "ls", "--site", site]).await
    }

    pub async fn serving(&self, site: &str) -> Result<Vec<InstanceView>> {
        let instances = self.instances(site).await?;
        Ok(instances.into_iter().filter(|instance| instance.phase == "serving").collect())
    }

    pub async fn events(&self) -> Result<Vec<Event>> {
        let text = self.run(&["--json", "events"]).await?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The newest event of a kind about a subject that begins so.
    pub async fn newest_event(&self, subject: &str, what: &str) -> Result<Option<Event>> {
        let is_it = |event: &Event| event.subject.starts_with(subject) && event.what.starts_with(what);
        Ok(self.events().await?.into_iter().rfind(is_it))
    }

    pub async fn vip_holder(&self, vip: IpAddr) -> Result<Option<String>> {
        let cell = self.cell().await?;
        let held = cell.vips.into_iter().find(|view| view.address == vip);
        Ok(held.and_then(|view| view.holder).map(|holder| holder.to_string()))
    }

    /// A process of a server whose command line has this text, as the machine numbers it.
    pub async fn processes(&self, server: &str, text: &str) -> Result<Vec<i32>> {
        let status = self.status().await?;
        let init = status.servers.iter().find(|view| view.name == server).and_then(|view| view.pid);
        let init = init.with_context(|| format!("{server} does not run"))?;
        let space = std::fs::read_link(format!("/proc/{init}/ns/pid"))?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // A process may be gone meanwhile.
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let its_space = std::fs::read_link(format!("/proc/{pid}/ns/pid"));
            if words.contains(text) && its_space.is_ok_and(|its| its == space) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The first process of an instance, as the machine numbers it.
    pub async fn instance_init(&self, instance: &InstanceView) -> Result<i32> {
        let id = self.cell().await?.name.trim_start_matches("rack-").to_owned();
        let (rack, name) = (format!(":/kopek/{id}/{}/", instance.server), instance.id.to_string());
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let is_its =
                groups.lines().any(|line| line.contains(&rack) && line.split('/').any(|part| part == name));
            let own_number =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last());
            if is_its && own_number == Some("1") {
                return Ok(pid);
            }
        }
        bail!("no process of {name} on {}", instance.server)
    }

    /// Waits until every server is up and in its pool, and every VIP is held where it is to stay: the planner
    /// spreads the addresses of a young rack some seconds after its first server took them all.
    pub async fn whole(&self) -> Result<()> {
        let look = || async {
            let servers = self.servers().await?;
            let cell = self.cell().await?;
            let up = servers.iter().all(|server| server.state == "up" && server.pool == "synced");
            let held = cell.vips.iter().all(|vip| vip.holder.is_some() && vip.holder == vip.wanted);
            let counts = || servers.iter().map(|server| server.vips.len());
            let spread = counts().max() <= counts().min().map(|least| least + 1);
            Ok((up && held && spread).then_some(()))
        };
        let waited =
            until("every server to be up and every VIP to be where it stays", WHOLE_LIMIT, look).await;
        if waited.is_err() {
            for server in self.servers().await? {
                eprintln!("{}: {}, pool {}", server.name, server.state, server.pool);
            }
        }
        waited
    }

    /// After a failure in the middle of something: brings back what was killed, frozen or cut.
    pub async fn mend(&self) -> Result<()> {
        for server in self.status().await?.servers {
            self.dev("heal", &[&server.name]).await?;
            if ["killed", "powered-off"].iter().any(|off| server.state.starts_with(off)) {
                self.dev("power-on", &[&server.name]).await?;
            }
        }
        self.whole().await
    }

    /// For a person after a failure: what happened last, and where to look.
    pub async fn tell_last(&self) {
        let events = self.events().await.unwrap_or_default();
        eprintln!("the last events:");
        for event in events.iter().skip(events.len().saturating_sub(12)) {
            eprintln!("  {}  {:<12} {} ({})", clock(event.at.0), event.subject, event.what, event.reason);
        }
    }
}

/// UTC, as in the servers' logs.
fn clock(millis: u64) -> String {
    let seconds = millis / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, millis % 1000)
}

impl Drop for Rack {
    fn drop(&mut self) {
        // For whoever looks for the cause of a failure.
        if self.is_kept || std::env::var_os("KOPEK_E2E_KEEP").is_some() {
            return;
        }
        let mut down = std::process::Command::new(&self.kopek);
        let down = down.args(["dev", "down", "--dir"]).arg(&self.dir).output();
        match down {
            Ok(output) if output.status.success() => {
                // Without a rack, an empty folder of ours may be left.
                let _ = std::fs::remove_dir(&self.dir);
            }
            Ok(output) => eprintln!("kopek dev down: {}", String::from_utf8_lossy(&output.stderr).trim()),
            Err(error) => eprintln!("cannot take down the rack in {}: {error}", self.dir.display()),
        }
    }
}

async fn run(mut command: Command, limit: Duration) -> Result<Output> {
    let ended = tokio::time::timeout(limit, command.output()).await;
    let ended = ended.with_context(|| format!("{command:?} took more than {} s", limit.as_secs()))?;
    ended.with_context(|| format!("cannot run {command:?}"))
}

fn checked(output: Output, what: &str) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
