//! Where the cell's state is: `<etc>/store.json`, one on every server.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_link::Identity;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::etcd::{EtcdStore, Pems};
use crate::served::{ServedStore, store_socket};
use crate::store::{Store, StoreError};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Location {
    /// In a file of `host`, whose agent serves it at `address`.
    Embedded { host: ServerId, address: SocketAddr },
    /// In an etcd cluster: `https://ADDRESS:PORT` of its members.
    Etcd { endpoints: Vec<String> },
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Embedded { host, address } => write!(f, "server {host} ({address})"),
            Location::Etcd { endpoints } => write!(f, "etcd ({})", endpoints.join(", ")),
        }
    }
}

/// `store.json` in the server's configuration folder.
pub fn location_file(etc: &Path) -> PathBuf {
    etc.join("store.json")
}

impl Location {
    pub fn read(path: &Path) -> Result<Location, StoreError> {
        let fail = |why: String| StoreError::File { path: path.display().to_string(), why };
        let text = std::fs::read(path)
            .map_err(|error| fail(format!("{error}; `kopek server join` and `kopek cell init` write it")))?;
        serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))
    }

    /// Addresses of the servers that keep it.
    pub(crate) fn servers(&self) -> Vec<IpAddr> {
        match self {
            Location::Embedded { address, .. } => vec![address.ip()],
            Location::Etcd { endpoints } => {
                let addresses = endpoints.iter().filter_map(|url| url.strip_prefix("https://")?.parse().ok());
                addresses.map(|address: SocketAddr| address.ip()).collect()
            }
        }
    }

    /// A reader finds the old content or the new, also after a power cut.
    pub fn write(&self, path: &Path) -> Result<(), StoreError> {
        self.write_beside(path)
            .map_err(|error| StoreError::File { path: path.display().to_string(), why: error.to_string() })
    }

    fn write_beside(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(folder)?;
        // This server's agent and controller write it when they follow a move, both at once.
        flock(&folder, FlockOperation::LockExclusive)?;
        // What a power cut leaves there, the next one writes over.
        let beside = path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        folder.sync_all()
    }
}

/// The store at one location, whatever becomes of it; `FollowingStore` is the one to work with. Connects
/// when first asked. etcd's certificates are read from `dirs.etc`.
pub async fn open(
    location: &Location,
    identity: &Identity,
    me: &ServerId,
    dirs: &Dirs,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match location {
        Location::Embedded { host, .. } if host == me => Arc::new(ServedStore::by_socket(store_socket(dirs))),
        Location::Embedded { address, .. } => Arc::new(ServedStore::by_tls(*address, identity.clone())),
        Location::Etcd { endpoints } => {
            // Each process begins elsewhere, so that the members share the work.
            let mut endpoints = endpoints.clone();
            let first = rand::random_range(0..endpoints.len().max(1));
            endpoints.rotate_left(first);
            Arc::new(EtcdStore::new(&endpoints, &Pems::read(&dirs.etc)?).await?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_location_reads_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = location_file(folder.path());
        let embedded = Location::Embedded {
            host: ServerId::parse("s1").unwrap(),
            address: "10.0.0.1:7405".parse().unwrap(),
        };
        let etcd = Location::Etcd { endpoints: vec!["https://10.0.0.1:2379".into()] };
        // Of one that a power cut interrupted.
        std::fs::write(path.with_extension("json.new"), "{").unwrap();
        for location in [embedded, etcd] {
            location.write(&path).unwrap();
            assert_eq!(Location::read(&path).unwrap(), location);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn an_agent_and_a_controller_may_write_it_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = location_file(folder.path());
        let etcd = Location::Etcd { endpoints: vec!["https://10.0.0.1:2379".into()] };
        let write_often = || (0..100).try_for_each(|_| etcd.write(&path));
        std::thread::scope(|scope| {
            let both = [scope.spawn(write_often), scope.spawn(write_often)];
            both.into_iter().for_each(|writing| writing.join().unwrap().unwrap());
        });
        assert_eq!(Location::read(&path).unwrap(), etcd);
    }

    #[test]
    fn a_location_names_its_servers() {
        let etcd = Location::Etcd {
            endpoints: vec!["https://10.0.0.1:2379".into(), "https://[fd00::2]:2379".into()],
        };
        let expected: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(etcd.servers(), expected);
    }

    #[test]
    fn a_missing_or_wrong_location_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = location_file(folder.path());
        assert!(Location::read(&path).unwrap_err().to_string().contains("store.json cannot be used"));
        std::fs::write(&path, "{\"redis\":{}}").unwrap();
        assert!(Location::read(&path).unwrap_err().to_string().contains("redis"));
    }
}
