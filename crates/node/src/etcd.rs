//! This server's member of the cell's store: etcd 3.4 behind mutual TLS, kept running. Called by the agent
//! on the servers that carry the store.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::info;

use crate::daemon::{Daemon, Program, Supervised};

/// Where the store's clients connect, with a certificate of the cell.
pub const CLIENT_PORT: u16 = 2379;
/// Where members talk to each other, with a certificate of the cell.
pub const PEER_PORT: u16 = 2380;
/// Health and metrics, plain, on the server's own loopback only.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2381);
/// Time for a clean stop: etcd hands over its leadership first.
pub const GRACE: Duration = Duration::from_secs(10);

/// What a member must know to start. The same for every start; `origin` counts only for the first.
#[derive(Debug, Clone)]
pub struct EtcdMember {
    pub name: ServerId,
    /// Members of different clusters never talk to each other, nor use each other's data.
    pub cluster: String,
    pub address: IpAddr,
    /// Every member's address, this one's among them, as the cluster is when this member first starts.
    pub members: BTreeMap<ServerId, IpAddr>,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// All members start for the first time, together.
    New,
    /// The member was added to a cluster that runs (`etcdctl member add`).
    Existing,
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("cannot make the store's folder {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot remove {path}, the data of a store that the cell has left")]
    Stale { path: PathBuf, source: io::Error },
}

impl EtcdMember {
    /// Starts or adopts it and keeps it running. The certificates are those in `<etc>`. What runs of another
    /// cluster is stopped, and what such clusters left on this server is deleted.
    pub async fn keep(&self, dirs: &Dirs) -> Result<Supervised, EtcdError> {
        let folder = self.folder(dirs);
        // Made below, before a start: what runs without it is of another cluster.
        if !folder.exists()
            && let Some(stale) = Daemon::adopt(dirs, "etcd")
        {
            stale.stop(GRACE).await;
        }
        remove_all_but(&clusters(dirs), &self.cluster)?;
        private_folder(&folder).map_err(|source| EtcdError::Folder { path: folder, source })?;
        Ok(Supervised::keep(dirs, self.program(dirs), || ()))
    }

    fn folder(&self, dirs: &Dirs) -> PathBuf {
        clusters(dirs).join(&self.cluster)
    }

    fn program(&self, dirs: &Dirs) -> Program {
        let client = SocketAddr::new(self.address, CLIENT_PORT);
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), CLIENT_PORT);
        let peer = SocketAddr::new(self.address, PEER_PORT);
        let members: Vec<String> = self
            .members
            .iter()
            .map(|(name, address)| format!("{name}=https://{}", SocketAddr::new(*address, PEER_PORT)))
            .collect();
        let origin = match self.origin {
            Origin::New => "new",
            Origin::Existing => "existing",
        };
        let mut args = Vec::new();
        let mut option = |name: &str, value: OsString| {
            let mut arg = OsString::from(format!("--{name}="));
            arg.push(value);
            args.push(arg);
        };
        option("name", self.name.as_str().into());
        option("data-dir", self.folder(dirs).into());
        option("listen-client-urls", format!("https://{client},https://{local}").into());
        option("advertise-client-urls", format!("https://{client}").into());
        option("listen-peer-urls", format!("https://{peer}").into());
        option("initial-advertise-peer-urls", format!("https://{peer}").into());
        option("initial-cluster", members.join(",").into());
        option("initial-cluster-state", origin.into());
        option("initial-cluster-token", self.cluster.as_str().into());
        option("listen-metrics-urls", format!("http://{HEALTH}").into());
        for prefix in ["", "peer-"] {
            option(&format!("{prefix}cert-file"), dirs.etc.join("server.pem").into());
            option(&format!("{prefix}key-file"), dirs.etc.join("server.key").into());
            option(&format!("{prefix}trusted-ca-file"), dirs.etc.join("ca.pem").into());
        }
        option("quota-backend-bytes", (2u64 << 30).to_string().into());
        option("logger", "zap".into());
        option("log-level", "warn".into());
        args.extend(kopek_store::etcd::SETTINGS.iter().map(OsString::from));
        Program {
            name: "etcd",
            executable: "etcd",
            package: "etcd-server",
            args,
            environment: Vec::new(),
            account: None,
        }
    }
}

/// Whether this server's member has a leader and answers. To be asked in the server's network namespace.
pub async fn is_healthy() -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(HEALTH).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer).await?;
        io::Result::Ok(answer.contains("200 OK") && answer.contains("\"health\":\"true\""))
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), asked).await, Ok(Ok(true)))
}

/// The data of this server's member, in a folder named for its cluster.
fn clusters(dirs: &Dirs) -> PathBuf {
    dirs.state.join("etcd")
}

fn remove_all_but(folder: &Path, kept: &str) -> Result<(), EtcdError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(EtcdError::Stale { path: folder.to_owned(), source }),
    };
    for entry in entries {
        let entry = entry.map_err(|source| EtcdError::Stale { path: folder.to_owned(), source })?;
        if entry.file_name() != kept {
            let path = entry.path();
            info!(path = %path.display(), "removes the data of a store that the cell has left");
            fs::remove_dir_all(&path).map_err(|source| EtcdError::Stale { path, source })?;
        }
    }
    Ok(())
}

/// etcd refuses a data folder that others may read.
fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}
