//! Connections to other servers, each step within one limit. Called by edge, files and sql for their streams
//! and by `http` for the APIs.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kopek_core::Digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::authority::fingerprint_of;
use crate::identity::{Identity, VERSIONS, provider};
use crate::preamble::{Preamble, PreambleError, Welcome, read_welcome, send_preamble};

pub type Tls = tokio_rustls::client::TlsStream<TcpStream>;

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot connect to {address}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("{address} did not answer within {} ms", .limit.as_millis())]
    TimedOut { address: SocketAddr, limit: Duration },
    #[error("no trusted connection to {address}")]
    Tls { address: SocketAddr, source: std::io::Error },
    #[error("{address} broke off before it said yes or no")]
    Preamble { address: SocketAddr, source: PreambleError },
    #[error("{address} refuses: {why}")]
    Refused { address: SocketAddr, why: String },
    #[error("{address} belongs to another cell: its CA is not {fingerprint}; check the token")]
    OtherCell { address: SocketAddr, fingerprint: Digest },
}

/// A TLS connection to a server of the cell.
pub async fn dial(identity: &Identity, address: SocketAddr, limit: Duration) -> Result<Tls, DialError> {
    within(address, limit, connect(&identity.connector(), address)).await
}

/// A stream on the gate's or the relay's port: dials, sends the preamble and waits until the other side opens.
pub async fn dial_stream(
    identity: &Identity,
    address: SocketAddr,
    preamble: &Preamble,
    limit: Duration,
) -> Result<Tls, DialError> {
    within(address, limit, async {
        let mut stream = connect(&identity.connector(), address).await?;
        let broken = |source| DialError::Preamble { address, source };
        send_preamble(&mut stream, preamble).await.map_err(broken)?;
        match read_welcome(&mut stream).await.map_err(broken)? {
            Welcome::Open { .. } => Ok(stream),
            Welcome::Refused { why } => Err(DialError::Refused { address, why }),
        }
    })
    .await
}

/// The CA certificate (PEM) of the cell at `address`, if it is the one that `fingerprint` names and the server
/// there holds a certificate of it. For joining, before there is anything else to trust.
pub async fn fetch_ca(
    address: SocketAddr,
    fingerprint: &Digest,
    limit: Duration,
) -> Result<String, DialError> {
    let verifier = Arc::new(ByFingerprint { fingerprint: fingerprint.clone(), found: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .expect("ring has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let outcome = within(address, limit, connect(&TlsConnector::from(Arc::new(config)), address)).await;
    let found = verifier.found.lock().expect("nothing panics while it holds the lock").take();
    match (outcome, found) {
        (Ok(_), Some(ca)) => Ok(pem_of(&ca)),
        (Err(error @ (DialError::Connect { .. } | DialError::TimedOut { .. })), _) => Err(error),
        (_, None) => Err(DialError::OtherCell { address, fingerprint: fingerprint.clone() }),
        (Err(error), Some(_)) => Err(error),
    }
}

pub(crate) async fn connect(connector: &TlsConnector, address: SocketAddr) -> Result<Tls, DialError> {
    let tcp = TcpStream::connect(address).await.map_err(|source| DialError::Connect { address, source })?;
    tcp.set_nodelay(true).map_err(|source| DialError::Connect { address, source })?;
    let name = ServerName::IpAddress(address.ip().into());
    connector.connect(name, tcp).await.map_err(|source| DialError::Tls { address, source })
}

pub(crate) async fn within<T>(
    address: SocketAddr,
    limit: Duration,
    step: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    timeout(limit, step).await.unwrap_or(Err(DialError::TimedOut { address, limit }))
}

/// Trusts the one CA that has the fingerprint, taken from the presented chain, and checks the server's
/// certificate by it as always.
#[derive(Debug)]
struct ByFingerprint {
    fingerprint: Digest,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let ca = intermediates
            .iter()
            .find(|certificate| fingerprint_of(certificate) == self.fingerprint)
            .ok_or(TlsError::InvalidCertificate(CertificateError::UnknownIssuer))?;
        *self.found.lock().expect("nothing panics while it holds the lock") = Some(ca.clone().into_owned());
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| TlsError::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// RFC 7468: base64 in lines of 64 characters between the two marks.
fn pem_of(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
