//! A cell's CA, and servers with folders and certificates of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_link::{CellAuthority, Csr, Identity};
use kopek_store::etcd::Pems;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

pub struct Cell {
    authority: CellAuthority,
}

/// One server's folders; they go when it is dropped.
pub struct Server {
    pub id: ServerId,
    pub identity: Identity,
    pub dirs: Dirs,
    _folder: TempDir,
}

impl Cell {
    pub fn new() -> Cell {
        Cell { authority: CellAuthority::create("test").unwrap() }
    }

    pub fn server(&self, name: &str) -> Server {
        let id = ServerId::parse(name).unwrap();
        let csr = Csr::new().unwrap();
        let certificate = self.authority.issue_server(&csr.csr_pem, &id, &[own_ip()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let dirs = Dirs {
            etc: path.join("etc"),
            state: path.join("state"),
            run: path.join("run"),
            log: path.join("log"),
        };
        for dir in [&dirs.etc, &dirs.state, &dirs.run, &dirs.log] {
            std::fs::create_dir(dir).unwrap();
        }
        Identity::write(&dirs.etc, self.authority.ca_pem(), &certificate, &csr.key_pem).unwrap();
        let identity = Identity::load(&dirs.etc).unwrap();
        Server { id, identity, dirs, _folder: folder }
    }

    pub fn ca_pem(&self) -> &str {
        self.authority.ca_pem()
    }

    /// A server of another cell that trusts this one's CA: only this one's side can refuse it.
    pub fn stranger(&self) -> Identity {
        let (csr, id) = (Csr::new().unwrap(), ServerId::parse("s1").unwrap());
        let theirs = CellAuthority::create("other").unwrap();
        let certificate = theirs.issue_server(&csr.csr_pem, &id, &[own_ip()]).unwrap();
        Identity::from_pem(self.ca_pem(), &certificate, &csr.key_pem).unwrap()
    }

    /// A connection of somebody who shows no certificate.
    pub async fn anonymous(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).unwrap()).unwrap();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(address.ip().into(), stream).await.unwrap()
    }

    /// The files of somebody who may use the API, but not the store.
    pub fn admin(&self) -> Pems {
        let csr = Csr::new().unwrap();
        let certificate = self.authority.issue_admin(&csr.csr_pem, "eve").unwrap();
        Pems { ca: self.authority.ca_pem().to_owned(), certificate, key: csr.key_pem }
    }
}

impl Server {
    pub fn pems(&self) -> Pems {
        Pems::read(&self.dirs.etc).unwrap()
    }
}

/// A loopback address on which nobody listens, and which no test that runs at the same time takes meanwhile: a
/// port that the kernel calls free on 127.0.0.1 is anybody's until it is listened on, also an outgoing connection's.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    SocketAddr::new(own_ip(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Of this process alone: a process id has at most 22 bits, and these lie above 127.64.0.0.
pub fn own_ip() -> IpAddr {
    let first = Ipv4Addr::new(127, 64, 0, 0).to_bits();
    Ipv4Addr::from_bits(first | (std::process::id() & 0x3f_ffff)).into()
}

/// Asks until it gets something, at most 30 s.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "waited 30 s for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
