//! Why a rack, or one of its servers, could not do what was asked. Display is one line that names the thing and
//! the remedy; the command line shows it as it is.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use kopek_core::ServerId;
use kopek_core::units::Bytes;

use crate::ServerState;

#[derive(Debug, thiserror::Error)]
pub enum RackError {
    #[error("a virtual rack needs root (namespaces, mounts, a bridge): run the command with sudo")]
    NotRoot,
    #[error("{program} is missing: apt-get install {package}")]
    ProgramMissing { program: &'static str, package: &'static str },
    #[error("this kernel lacks {what}: use Linux 5.14 or newer with {what}")]
    KernelLacks { what: &'static str },
    #[error("{dir} has {free} free, a rack of {servers} needs {needs}: free some, or choose another --dir")]
    DiskTooSmall { dir: PathBuf, servers: usize, needs: Bytes, free: Bytes },
    #[error(
        "{free} of memory is free, a rack of {servers} needs {needs}: end other programs, or start fewer with --servers"
    )]
    MemoryTooSmall { servers: usize, needs: Bytes, free: Bytes },
    #[error("{address} is in use: end the program that listens there, or choose another port")]
    PortInUse { address: SocketAddr },
    #[error("cannot listen on {address}: {source}; choose another")]
    CannotListen { address: SocketAddr, source: io::Error },
    #[error("{wanted} servers asked for; a rack has 1 to {max}")]
    ServerCount { wanted: usize, max: usize },
    #[error("no subnet 10.74.0.0/24 to 10.74.255.0/24 is free: take down a rack with `kopek dev down`")]
    NoSubnet,

    #[error("{dir} already holds a rack: `kopek dev down --dir {dir}` removes it")]
    AlreadyARack { dir: PathBuf },
    #[error("{dir} is no rack and not empty: choose another --dir")]
    DirInUse { dir: PathBuf },
    #[error("{dir} holds no rack: `kopek dev up --dir {dir}` makes one")]
    NotARack { dir: PathBuf },
    #[error("{path} is damaged ({why}): `kopek dev down` removes the rack")]
    DamagedRecord { path: PathBuf, why: String },
    #[error("another `kopek dev` command has been at work on {dir} for a minute: wait for it or end it")]
    Busy { dir: PathBuf },

    #[error("no server {server} in this rack; there are {known}")]
    UnknownServer { server: ServerId, known: String },
    #[error("{server} is {state}: `kopek dev {remedy} {server}` first")]
    WrongState { server: ServerId, state: ServerState, remedy: &'static str },
    #[error("{server} runs already")]
    AlreadyRunning { server: ServerId },
    #[error("{server} has no service {service:?}; there are {known}")]
    UnknownService { server: ServerId, service: String, known: String },
    #[error("{server} did not boot: {why}")]
    BootFailed { server: ServerId, why: String },
    #[error("{server}'s init does not answer: {why}; `kopek dev kill {server}`, then `power-on`")]
    InitSilent { server: ServerId, why: String },
    #[error("{what} is still in use by {holders} after {seconds} s: end them and repeat the command")]
    StillInUse { what: String, holders: String, seconds: u64 },

    #[error("`{command}` failed: {output}")]
    Command { command: String, output: String },
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
}

/// `file.read(..).doing(|| format!("read {path}"))?` names the action in an I/O error.
pub(crate) trait Doing<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, RackError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, RackError> {
        self.map_err(|error| RackError::Io { what: what().into(), source: error.into() })
    }
}
