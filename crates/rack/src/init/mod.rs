//! `kopek dev-init`, PID 1 of a virtual server. The library starts it twice over: first on the machine, where it
//! moves into the server's network and makes the other namespaces, then as PID 1 in them. Both run without
//! threads. Promise: standard output carries `pid N`, then `ready` or `failed WHY`, and then closes; from
//! `ready` on, the disk is mounted, the enabled services are started and the control socket answers.

mod control;
mod supervise;
mod world;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kopek_core::ServerId;
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

pub use control::ServiceOrder;
pub(crate) use control::{Answer, Order, ask};
pub use supervise::{ServicePhase, ServiceStatus};

use crate::Service;

/// Everything that a server's init must know, as one JSON document on its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BootSpec {
    pub server: ServerId,
    /// The file of its network namespace.
    pub netns: PathBuf,
    pub image: PathBuf,
    /// Text of its /etc/hosts.
    pub hosts: String,
    /// For services; `Rack::command` gives the same.
    pub env: BTreeMap<String, String>,
    pub services: Vec<Service>,
}

/// The hidden subcommand `dev-init`; takes no arguments. Call it before any thread is started.
pub fn init_main() -> ! {
    let result = if std::process::id() == 1 { world_of_its_own() } else { enter_namespaces() };
    match result {
        Ok(()) => std::process::exit(0),
        Err(why) => {
            // To whoever waits for `ready`; nobody may wait any more.
            let _ = writeln!(io::stdout(), "failed {}", why.replace('\n', "; "));
            std::process::exit(1)
        }
    }
}

/// First run, on the machine.
fn enter_namespaces() -> Result<(), String> {
    let spec_text =
        io::read_to_string(io::stdin()).map_err(|e| format!("cannot read the boot document: {e}"))?;
    let spec: BootSpec = parse(&spec_text)?;
    // Fails only for a process group's leader, and the library never starts us as one.
    let _ = nix::unistd::setsid();
    let netns = File::open(&spec.netns).map_err(|e| format!("cannot open {}: {e}", spec.netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| format!("cannot enter its network: {e}"))?;
    let fresh = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(fresh).map_err(|e| format!("cannot make namespaces: {e}"))?;
    // A child is the first process of the new pid namespace. It keeps our name for those who list processes.
    let name = std::env::args_os().next().unwrap_or_default();
    let child = Command::new("/proc/self/exe").arg0(name).arg("dev-init").stdin(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("cannot start PID 1: {e}"))?;
    println!("pid {}", child.id());
    let mut stdin = child.stdin.take().expect("the child was started with a pipe");
    stdin.write_all(spec_text.as_bytes()).map_err(|e| format!("PID 1 ended early: {e}"))
}

/// Second run, as PID 1.
fn world_of_its_own() -> Result<(), String> {
    let mut spec_text = String::new();
    io::stdin().read_to_string(&mut spec_text).map_err(|e| format!("cannot read the boot document: {e}"))?;
    let spec = parse(&spec_text)?;
    world::build(&spec).map_err(|e| e.to_string())?;
    supervise::run(spec)
}

fn parse(text: &str) -> Result<BootSpec, String> {
    serde_json::from_str(text).map_err(|e| format!("the boot document is damaged: {e}"))
}
