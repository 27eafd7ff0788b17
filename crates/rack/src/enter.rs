//! Running a command in a virtual server: `kopek dev exec`, and the tests' hands and eyes.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Output};

use kopek_core::ServerId;

use crate::cgroup::Group;
use crate::error::{Doing, RackError};
use crate::rack::Rack;

/// As shells report a program that a signal ended.
const SIGNAL_CODES: i32 = 128;

impl Rack {
    /// Runs `argv` in the server with our standard input and outputs; gives back its exit code, 128 + N if signal N
    /// ended it, 127 if there is no such program.
    pub fn exec<S: AsRef<OsStr>>(&self, server: &ServerId, argv: &[S]) -> Result<i32, RackError> {
        let status = self.command(server, argv)?.status().doing(|| "run nsenter")?;
        Ok(exit_code(status))
    }

    /// Runs `argv` in the server and captures what it prints.
    pub fn output<S: AsRef<OsStr>>(&self, server: &ServerId, argv: &[S]) -> Result<Output, RackError> {
        self.command(server, argv)?.output().doing(|| "run nsenter")
    }

    /// A command that will run `argv` in the server, in `/`, with the services' environment and our TERM. It belongs
    /// to the server: whatever ends the server ends it.
    pub fn command<S: AsRef<OsStr>>(&self, server: &ServerId, argv: &[S]) -> Result<Command, RackError> {
        let init = self.running_init(server)?;
        let record = self.record()?;
        let mut command = Command::new("nsenter");
        let namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"];
        command.arg(format!("--target={}", init.pid)).args(namespaces).arg("--").args(argv);
        command.env_clear().envs(self.environment(&record, server));
        command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
        join(&mut command, &self.group(server)?)?;
        Ok(command)
    }
}

pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| SIGNAL_CODES + status.signal().unwrap_or_default())
}

/// Makes the child a member of the group before it executes anything.
pub(crate) fn join(command: &mut Command, group: &Group) -> Result<(), RackError> {
    let path = group.leaf().join("cgroup.procs");
    let mut members =
        OpenOptions::new().write(true).open(&path).doing(|| format!("open {}", path.display()))?;
    // SAFETY: between fork and exec only write(2) is called, which is async-signal-safe. "0" means the writer.
    unsafe {
        command.pre_exec(move || members.write_all(b"0"));
    }
    Ok(())
}
