//! The long-running processes of a server: who is started with what. Each is a service of its own, so that
//! one may crash or be upgraded alone.
//!
//! ```text
//!  agent   store, instances, mariadbd, keepalived, etcd     hands parts to ▼
//!  edge    visitors ──► gates            files   gate ──► instances, pouring
//!  sql     instances ──► writers         control API, planning; one is active
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use kopek_core::config::{Dirs, ServerConfig};
use kopek_link::identity::Identity;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Service {
    Agent,
    Control,
    Edge,
    Files,
    Sql,
}

/// Runs until it fails or is stopped.
pub fn serve(service: Service, config: &Path) -> Result<()> {
    // hyper warns of every visitor who keeps a connection idle too long.
    let filter = EnvFilter::try_from_env("KOPEK_LOG").unwrap_or_else(|_| EnvFilter::new("info,hyper=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    open_many_files().context("cannot raise the limit of open files")?;
    let config = ServerConfig::read(config)?;
    let name = service.to_possible_value().expect("no service is hidden");
    crate::cli::require_root(&format!("kopek run {}", name.get_name()))?;
    let dirs = config.dirs.clone();
    std::fs::create_dir_all(&dirs.run).with_context(|| format!("cannot make {}", dirs.run.display()))?;
    private_folders(&dirs).context("cannot make the folders for what only root may read")?;
    let identity = Identity::load(&dirs.etc)?;
    if service == Service::Edge {
        // It makes its own threads and runtimes, one a core.
        return Ok(kopek_edge::run(dirs, config, identity)?);
    }
    let launcher = std::env::current_exe().context("cannot find our own binary")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(async {
        match service {
            Service::Agent => match kopek_node::agent::run(dirs, config, identity, launcher).await? {},
            Service::Control => match kopek_control::run(dirs, config, identity).await? {},
            Service::Files => Ok(kopek_files::run(dirs, config, identity).await?),
            Service::Sql => Ok(kopek_sql::run(dirs, config).await?),
            Service::Edge => unreachable!("the edge was started above"),
        }
    })
}

/// A connection takes two descriptors in a relay; the soft limit of 1,024 is for programs that use select(2).
fn open_many_files() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// Passwords of sites' databases, their configuration, their dumps: for root alone.
fn private_folders(dirs: &Dirs) -> std::io::Result<()> {
    for name in ["parts", "trees", "dumps"] {
        let folder = dirs.state.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
