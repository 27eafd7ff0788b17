//! The cell's own certificate authority. It signs only what it decides itself: of a request nothing is taken
//! but the public key, so a joining server cannot name itself something else. Called by `kopek cell init`
//! and by the controller when a server joins.
//!
//! The certificates serve as server and as client ones, because etcd and MariaDB use the same files.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kopek_core::{Digest, ServerId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::identity::Peer;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clocks of servers that have not yet found their time server may lag.
const BACKDATED: Duration = DAY;
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const SERVER_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the cell's CA certificate or key cannot be used")]
    Unusable(#[source] rcgen::Error),
    #[error("the cell's CA file holds no certificate; restore it from another server")]
    NoCertificate,
    #[error("the certificate request is refused: it is damaged or not signed by its own key")]
    BadRequest(#[source] rcgen::Error),
    #[error("cannot make a certificate for {subject}")]
    Issue { subject: String, source: rcgen::Error },
}

/// The CA's certificate and private key.
pub struct CellAuthority {
    ca_pem: String,
    fingerprint: Digest,
    issuer: Issuer<'static, KeyPair>,
}

impl CellAuthority {
    /// A new CA with a new key. `cell` is only shown to people.
    pub fn create(cell: &str) -> Result<CellAuthority, AuthorityError> {
        let subject = format!("Kopek cell {cell}");
        let failed = |source| AuthorityError::Issue { subject: subject.clone(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = valid_for(AUTHORITY_LIFE);
        params.distinguished_name.push(DnType::CommonName, subject.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?;
        CellAuthority::from_pem(&certificate.pem(), &key.serialize_pem())
    }

    pub fn from_pem(ca_pem: &str, key_pem: &str) -> Result<CellAuthority, AuthorityError> {
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Unusable)?;
        let issuer = Issuer::from_ca_cert_pem(ca_pem, key).map_err(AuthorityError::Unusable)?;
        let fingerprint = ca_fingerprint(ca_pem).ok_or(AuthorityError::NoCertificate)?;
        Ok(CellAuthority { ca_pem: ca_pem.to_owned(), fingerprint, issuer })
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The private key, PKCS#8. Whoever has it is the cell.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// BLAKE3 of the CA certificate's DER: what a join token carries.
    pub fn fingerprint(&self) -> &Digest {
        &self.fingerprint
    }

    /// PEM of a server's certificate, good for its name, `addresses`, and loopback.
    pub fn issue_server(
        &self,
        csr_pem: &str,
        name: &ServerId,
        addresses: &[IpAddr],
    ) -> Result<String, AuthorityError> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let mut names: Vec<String> = vec![name.to_string(), "localhost".to_owned()];
        for address in addresses.iter().copied().chain(loopback).map(|address| address.to_string()) {
            if !names.contains(&address) {
                names.push(address);
            }
        }
        self.issue(csr_pem, &Peer::Server(name.clone()), names)
    }

    /// PEM of a certificate with which a person (`name`) commands the cell.
    pub fn issue_admin(&self, csr_pem: &str, name: &str) -> Result<String, AuthorityError> {
        self.issue(csr_pem, &Peer::Admin(name.to_owned()), Vec::new())
    }

    fn issue(&self, csr_pem: &str, subject: &Peer, names: Vec<String>) -> Result<String, AuthorityError> {
        let request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(AuthorityError::BadRequest)?;
        let failed = |source| AuthorityError::Issue { subject: subject.to_string(), source };
        let mut params = valid_for(SERVER_LIFE);
        params.subject_alt_names = CertificateParams::new(names).map_err(failed)?.subject_alt_names;
        if params.subject_alt_names.is_empty() {
            // Some verifiers refuse a certificate without any alternative name.
            params.subject_alt_names = vec![SanType::DnsName("admin".try_into().map_err(failed)?)];
        }
        params.distinguished_name.push(DnType::CommonName, subject.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&request.public_key, &self.issuer).map_err(failed)?.pem())
    }
}

/// A new private key (PKCS#8) and the request to have it certified.
pub struct Csr {
    pub key_pem: String,
    pub csr_pem: String,
}

impl Csr {
    pub fn new() -> Result<Csr, AuthorityError> {
        let failed = |source| AuthorityError::Issue { subject: "a new key".to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(failed)?;
        Ok(Csr { key_pem: key.serialize_pem(), csr_pem: request.pem().map_err(failed)? })
    }
}

/// The fingerprint of the first certificate in `ca_pem`; nothing if there is none.
pub fn ca_fingerprint(ca_pem: &str) -> Option<Digest> {
    CertificateDer::from_pem_slice(ca_pem.as_bytes()).ok().map(|der| fingerprint_of(&der))
}

pub(crate) fn fingerprint_of(der: &CertificateDer<'_>) -> Digest {
    Digest::parse(blake3::hash(der).to_hex().as_str()).expect("BLAKE3 gives 64 hexadecimal digits")
}

fn valid_for(life: Duration) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + life;
    params
}
