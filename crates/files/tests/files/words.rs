//! The vocabulary of these tests: folders, packed trees, and servers with a real agent's hand beside them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use kopek_core::assignment::AssignedVolume;
use kopek_core::config::{Dirs, GATE_PORT, ServerConfig};
use kopek_core::part::{FilesPart, FilesReport};
use kopek_core::{Bytes, Digest, InstanceId, ServerId, SiteName};
use kopek_files::{PackError, PackOptions, Packed, Symlinks, pack_source};
use kopek_link::{CellAuthority, Csr, Identity, Parts};
use tempfile::TempDir;
use walkdir::WalkDir;

pub fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes files (`("a/b.php", "text")`), folders (`("a/", "")`) and links (`("a/l", "-> target")`).
pub fn fill(folder: &Path, entries: &[(&str, &str)]) {
    for (name, text) in entries {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.strip_prefix("-> ") {
            Some(target) => symlink(target, &path).unwrap(),
            None if name.ends_with('/') => fs::create_dir_all(&path).unwrap(),
            None => fs::write(&path, text).unwrap(),
        }
    }
}

pub fn options() -> PackOptions {
    PackOptions::site(Symlinks::Within, Bytes::mib(64))
}

pub fn pack_bytes(from: &Path, options: &PackOptions) -> Result<(Packed, Vec<u8>), PackError> {
    let mut bytes = Vec::new();
    let packed = pack_source(from, &mut bytes, options, &mut |_| {})?;
    Ok((packed, bytes))
}

/// Why packing was refused: one line.
pub fn refusal(from: &Path) -> String {
    let line = pack_bytes(from, &options()).unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line:?} is more than one line");
    line
}

/// A packed tree on disk.
pub struct Tree {
    pub path: PathBuf,
    pub digest: Digest,
}

/// Packs a tree of these entries into `shelf`.
pub fn tree(shelf: &Path, entries: &[(&str, &str)]) -> Tree {
    let source = temp();
    fill(source.path(), entries);
    tree_of(shelf, source.path())
}

pub fn tree_of(shelf: &Path, source: &Path) -> Tree {
    let (packed, bytes) = pack_bytes(source, &options()).unwrap();
    let path = shelf.join(format!("{}.tar.zst", packed.digest));
    fs::write(&path, bytes).unwrap();
    Tree { path, digest: packed.digest }
}

/// What lies in a folder: kind, permissions, time and content of each entry; hard links by their first name.
pub fn listing(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut first_names = BTreeMap::new();
    let mut listing = BTreeMap::new();
    for entry in WalkDir::new(folder).min_depth(1).sort_by_file_name() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let path = entry.path().strip_prefix(folder).unwrap().to_owned();
        let line = if meta.is_symlink() {
            format!("-> {:?}", fs::read_link(entry.path()).unwrap())
        } else if meta.is_dir() {
            format!("folder {:o} {}", meta.mode() & 0o7777, meta.mtime())
        } else {
            let first: &mut PathBuf = first_names.entry(meta.ino()).or_insert_with(|| path.clone());
            let content = fs::read(entry.path()).unwrap();
            format!("{first:?} {:o} {} {content:?}", meta.mode() & 0o7777, meta.mtime())
        };
        listing.insert(path, line);
    }
    listing
}

pub fn read(folder: &Path, name: &str) -> Option<String> {
    fs::read_to_string(folder.join(name)).ok()
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn site(name: &str) -> SiteName {
    SiteName::parse(name).unwrap()
}

/// Of the site with this number.
pub fn volume(tree: &Tree, number: u32) -> AssignedVolume {
    AssignedVolume { tree: tree.digest.clone(), number }
}

pub fn instance(id: &str) -> InstanceId {
    InstanceId::parse(id).unwrap()
}

pub fn server_id(name: &str) -> ServerId {
    ServerId::parse(name).unwrap()
}

pub struct Cell {
    authority: CellAuthority,
}

pub fn cell() -> Cell {
    Cell { authority: CellAuthority::create("test").unwrap() }
}

impl Cell {
    pub fn identity(&self, name: &str, address: IpAddr) -> Identity {
        let csr = Csr::new().unwrap();
        let cert = self.authority.issue_server(&csr.csr_pem, &server_id(name), &[address]).unwrap();
        Identity::from_pem(self.authority.ca_pem(), &cert, &csr.key_pem).unwrap()
    }

    pub fn admin(&self) -> Identity {
        let csr = Csr::new().unwrap();
        let cert = self.authority.issue_admin(&csr.csr_pem, "anna").unwrap();
        Identity::from_pem(self.authority.ca_pem(), &cert, &csr.key_pem).unwrap()
    }

    /// Starts `kopek files` with a real agent's end of its socket.
    pub async fn server(&self, name: &str) -> Server {
        let folder = temp();
        let address = fresh_address();
        let dirs = Dirs {
            etc: folder.path().join("etc"),
            state: folder.path().join("state"),
            run: folder.path().join("run"),
            log: folder.path().join("log"),
        };
        fs::create_dir_all(dirs.state.join("trees")).unwrap();
        let identity = self.identity(name, address);
        let agent = Parts::serve(&dirs).await.unwrap();
        let part = FilesPart {
            server: server_id(name),
            confirmed: Some(1),
            images: Vec::new(),
            volumes: BTreeMap::new(),
            peers: BTreeMap::new(),
            gates: BTreeMap::new(),
        };
        let mut server = Server { folder, dirs, address, identity, agent, part, process: None };
        server.start().await;
        server
    }
}

pub struct Server {
    #[expect(dead_code, reason = "removes the folder when it is dropped")]
    folder: TempDir,
    pub dirs: Dirs,
    pub address: IpAddr,
    pub identity: Identity,
    pub agent: Parts,
    pub part: FilesPart,
    /// Of its own, so that nothing of the process outlives it.
    process: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub async fn start(&mut self) {
        let text =
            format!("name = \"{}\"\naddress = \"{}\"\ninterface = \"lo\"\n", self.part.server, self.address);
        let config = ServerConfig::parse(&text, Path::new("kopek.toml")).unwrap();
        let (dirs, identity) = (self.dirs.clone(), self.identity.clone());
        let process = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        process.spawn(async move { kopek_files::run(dirs, config, identity).await.unwrap() });
        self.process = Some(process);
        self.agent.connected("files").wait_for(|connected| *connected).await.unwrap();
    }

    pub async fn stop(&mut self) {
        let process = self.process.take().unwrap();
        let limit = std::time::Duration::from_secs(10);
        tokio::task::spawn_blocking(move || process.shutdown_timeout(limit)).await.unwrap();
    }

    /// Hands out the part after `change`.
    pub fn wants(&mut self, change: impl FnOnce(&mut FilesPart)) {
        change(&mut self.part);
        self.agent.publish(self.part.clone());
    }

    /// Waits for a report that fulfils the condition.
    pub async fn reports(&self, condition: impl FnMut(&FilesReport) -> bool) -> FilesReport {
        let mut report = self.agent.files_report();
        let reported =
            tokio::time::timeout(std::time::Duration::from_secs(20), report.wait_for(condition)).await;
        match reported {
            Ok(report) => report.unwrap().clone(),
            Err(_) => panic!("not reported within 20 s; last: {:?}", self.agent.files_report().borrow()),
        }
    }

    pub fn gate(&self) -> SocketAddr {
        SocketAddr::new(self.address, GATE_PORT)
    }

    pub fn trees(&self) -> PathBuf {
        self.dirs.state.join("trees")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }
}

/// A loopback address of our own, because the gate's port is the same on all servers.
pub fn fresh_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = (std::process::id() % 250) as u8 + 1;
    IpAddr::from([127, 74, process, NEXT.fetch_add(1, Ordering::Relaxed)])
}
