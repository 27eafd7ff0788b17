//! Wiring of `kopek files`: every long-lived task, and who talks to whom.
//!
//! ```text
//!  agent ──FilesPart──► pour ──► images/, volumes/, trees/ ◄── (tree requests of peers)
//!    ▲         └──────► gate ◄── gate.sock (edge here), 7402 (edges and pours elsewhere)
//!    └───FilesReport── report ◄── pour, gate
//! ```

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use kopek_core::config::{Dirs, GATE_PORT, ServerConfig};
use kopek_core::part::{FilesPart, FilesReport};
use kopek_link::Identity;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::flight::Flights;
use crate::gate::Gate;
use crate::report::{self, Report};
use crate::{gate, keep, pour};

/// Why `kopek files` cannot run.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(
        "cannot listen on {address}: {source}; stop what uses the port or correct `address` in kopek.toml"
    )]
    Port { address: SocketAddr, source: io::Error },
    #[error("cannot make {path}: {source}; kopek files must run as root")]
    Folder { path: PathBuf, source: io::Error },
}

/// Runs until it is dropped or cannot start.
pub async fn run(dirs: Dirs, config: ServerConfig, identity: Identity) -> Result<(), FilesError> {
    raise_descriptor_limit();
    for path in [dirs.state.join("trees"), dirs.run.clone()] {
        std::fs::create_dir_all(&path).map_err(|source| FilesError::Folder { path, source })?;
    }
    let address = SocketAddr::new(config.address, GATE_PORT);
    let port = TcpListener::bind(address).await.map_err(|source| FilesError::Port { address, source })?;
    let path = dirs.gate_socket();
    let socket = gate::bind_socket(&path).map_err(|source| FilesError::Folder { path, source })?;

    let following = kopek_link::follow::<FilesPart>(&dirs);
    let report = Report::new(FilesReport::default());
    let flights = Arc::new(Flights::default());
    let gate = Gate::new(following.part.clone(), flights.clone(), dirs.clone());
    tokio::join!(
        report::count(flights, report.clone()),
        report::send(report.clone(), following.report),
        pour::pour(dirs.clone(), identity.clone(), following.part.clone(), report),
        keep::sweep(dirs, following.part),
        gate.clone().serve_socket(socket),
        gate.serve_port(port, identity),
    );
    Ok(())
}

/// The gate holds thousands of connections, and the limit that processes start with is often 1,024.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "fewer connections than usual will fit through the gate");
    }
}
