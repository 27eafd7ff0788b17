//! Images and running instances: how a site's container comes to be, is watched, and goes without a trace.
//!
//! The agent calls this crate; `kopek image build` calls `image`. One instance, from decision to gone:
//!
//! ```text
//! connect(&spec)            its network: a named namespace, a veth pair, a route     (idempotent, optional:
//!                           start does it; call it first when `kopek sql` must listen before the site runs)
//! start(&spec, launcher)    our own binary again, single-threaded, mounts and libcontainer   → Running
//! probe(address, limit)     until the web server answers
//! watch(&running)           resolves when the container's first process has ended
//! stop(&running, grace)     the image's own graceful signal, SIGKILL when late, then clean
//! clean(&spec.dir)          removes whatever is left of it, also after a crash of anything; idempotent
//! adopt(&spec)              after a restart of the agent: still running?             → Option<Running>
//! leftovers(dir)            the ids under `<state>/instances`, to clean those nobody wants
//! exec_command(&running, launcher, who, argv)   a std Command whose exit code is the inner one
//! Gauge::open(&spec.cgroup) processor time, memory, tasks, runnable tasks; LoadAverage::tick damps them
//! firewall(&rules)          once at the agent's start and whenever the cell's networks change
//! ```
//!
//! `start`, `stop`, `clean`, `connect` and `firewall` block for milliseconds (`stop` up to its grace): call
//! them from `spawn_blocking`. `watch` and `probe` are futures. `launcher` is the `kopek` binary; its `main`
//! must call `reexec()` before it starts any thread. libcontainer is never called from anywhere else: its
//! clone inside a process with threads can deadlock.
//!
//! Promise: a container sees nothing of another's nor of the server's, and when it is gone, so are its
//! mounts, its network, its control groups and its scratch files.

pub mod cgroup;
pub mod exec;
pub mod image;
pub mod launch;
pub mod load;
pub mod network;
pub mod probe;
pub mod spec;
pub mod start;
pub mod stop;

mod container;
mod mount;
mod process;
mod seccomp;

pub use cgroup::{Gauge, Reading};
pub use exec::{Who, exec_command};
pub use image::{BuiltImage, build_image};
pub use load::LoadAverage;
pub use network::{Firewall, connect, firewall};
pub use probe::probe;
pub use spec::{InstanceSpec, Running};
pub use start::{adopt, leftovers, start, watch};
pub use stop::{Stopped, clean, stop};

use std::process::ExitCode;

/// Runs one of the hidden single-threaded subcommands if this process was started as one. The binary's
/// `main` calls it first, before any thread exists:
///
/// ```no_run
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     if let Some(code) = kopek_instance::reexec() {
///         return code;
///     }
///     // … the ordinary command line …
///     ExitCode::SUCCESS
/// }
/// ```
pub fn reexec() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        launch::SUBCOMMAND => Some(launch::launch_main()),
        exec::SUBCOMMAND => Some(exec::exec_main(arguments)),
        _ => None,
    }
}
