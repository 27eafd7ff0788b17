//! This server's key and certificates, and who the other side of a connection is. Nothing here trusts any CA
//! but the cell's. The cryptography is ring's, named explicitly: which provider another crate would make the
//! process's default does not matter.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kopek_core::ServerId;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Both ends are Kopek of about the same age: no older version is needed.
pub(crate) const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {path}: {source}; `kopek server join` and `kopek cell init` write it")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Unwritable { path: PathBuf, source: std::io::Error },
    #[error("the {what} is not usable: {why}; join the cell again")]
    Invalid { what: &'static str, why: String },
}

fn invalid(what: &'static str, why: impl ToString) -> IdentityError {
    IdentityError::Invalid { what, why: why.to_string() }
}

/// Who holds a certificate of the cell, by its common name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Server(ServerId),
    Admin(String),
}

impl Peer {
    /// Of `server:s1` or `admin:NAME`.
    fn parse(text: &str) -> Option<Peer> {
        match text.split_once(':')? {
            ("server", name) => ServerId::parse(name).ok().map(Peer::Server),
            ("admin", name) if !name.is_empty() => Some(Peer::Admin(name.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Server(name) => write!(f, "server:{name}"),
            Peer::Admin(name) => write!(f, "admin:{name}"),
        }
    }
}

/// Who the other end of a finished handshake is; nothing if it showed no certificate.
pub fn peer_of(connection: &CommonState) -> Option<Peer> {
    peer_in(connection.peer_certificates()?.first()?)
}

fn peer_in(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    Peer::parse(name)
}

/// A member of the cell: this server, or a person with an admin certificate. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    peer: Peer,
    ca_pem: String,
    client: Arc<ClientConfig>,
    /// Requires a client certificate.
    server: Arc<ServerConfig>,
    /// Takes clients without a certificate too.
    open_server: Arc<ServerConfig>,
}

impl Identity {
    /// From `ca.pem`, `server.pem` and `server.key` in `etc`.
    pub fn load(etc: &Path) -> Result<Identity, IdentityError> {
        let read = |name: &str| {
            let path = etc.join(name);
            fs::read_to_string(&path).map_err(|source| IdentityError::Unreadable { path, source })
        };
        Identity::from_pem(&read("ca.pem")?, &read("server.pem")?, &read("server.key")?)
    }

    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Identity, IdentityError> {
        let ca_der = CertificateDer::from_pem_slice(ca.as_bytes())
            .map_err(|error| invalid("CA certificate", error))?;
        let mut chain = CertificateDer::pem_slice_iter(cert.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| invalid("certificate", error))?;
        let leaf = chain.first().ok_or_else(|| invalid("certificate", "the file holds none"))?;
        let peer = peer_in(leaf)
            .ok_or_else(|| invalid("certificate", "its name is neither server:NAME nor admin:NAME"))?;
        // A joining server reads the CA from the chain, see `fetch_ca`.
        if !chain.contains(&ca_der) {
            chain.push(ca_der);
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| invalid("key", error))?;

        let roots = roots_of(ca)?;
        let client = client_builder(roots.clone())?
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| invalid("key or certificate", error))?;
        let server = |clients: Clientele| -> Result<Arc<ServerConfig>, IdentityError> {
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
            if let Clientele::Anyone = clients {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|error| invalid("CA certificate", error))?;
            let config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(VERSIONS)
                .map_err(|error| invalid("TLS version", error))?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(|error| invalid("key or certificate", error))?;
            Ok(Arc::new(config))
        };
        Ok(Identity(Arc::new(Inner {
            peer,
            ca_pem: ca.to_owned(),
            client: Arc::new(client),
            server: server(Clientele::Cell)?,
            open_server: server(Clientele::Anyone)?,
        })))
    }

    /// Writes `ca.pem`, `server.pem` and `server.key` for `load`, each whole and readable by its owner only.
    pub fn write(etc: &Path, ca: &str, cert: &str, key: &str) -> Result<(), IdentityError> {
        for (name, text) in [("ca.pem", ca), ("server.pem", cert), ("server.key", key)] {
            let path = etc.join(name);
            write_private(&path, text).map_err(|source| IdentityError::Unwritable { path, source })?;
        }
        Ok(())
    }

    /// Who we are ourselves.
    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Takes only clients with a certificate of the cell.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.server.clone())
    }

    /// Takes clients with a certificate of the cell or with none.
    pub fn open_acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.open_server.clone())
    }

    /// Presents our certificate and takes servers of the cell whose certificate has the dialled address.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.0.client.clone())
    }

    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }
}

enum Clientele {
    Cell,
    Anyone,
}

/// Verifies servers by `ca_pem` and shows no certificate: for the join call.
pub(crate) fn anonymous_connector(ca_pem: &str) -> Result<TlsConnector, IdentityError> {
    Ok(TlsConnector::from(Arc::new(client_builder(roots_of(ca_pem)?)?.with_no_client_auth())))
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_builder(
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, IdentityError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| invalid("TLS version", error))?
        .with_root_certificates(roots))
}

fn roots_of(ca_pem: &str) -> Result<Arc<RootCertStore>, IdentityError> {
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|error| invalid("CA certificate", error))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|error| invalid("CA certificate", error))?;
    Ok(Arc::new(roots))
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_neither_a_server_nor_an_administrator_is_nobody() {
        for peer in [Peer::Server(ServerId::parse("s1").unwrap()), Peer::Admin("ann".to_owned())] {
            assert_eq!(Peer::parse(&peer.to_string()), Some(peer));
        }
        for other in ["s1", "", "server:", "server:../s1", "admin:", "Admin:ann", "root:ann"] {
            assert_eq!(Peer::parse(other), None, "{other:?}");
        }
    }
}
