//! `sql` before one database without a cell, for tests/differential and bench: answers logins of one account,
//! passes those of others on. Says `listening` on stdout, ends when its stdin does.
//!
//! alone [--listen-socket PATH --member-socket PATH] [--listen-port PORT --member HOST:PORT] --user USER
//!       --password PASSWORD [--schema NAME] [--tls-certificate FILE --tls-key FILE] [--warm NUMBER]
//!       [--texts pool] [--tokens kept] [--deadlocks repeated]

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use kopek_core::ServerId;
use kopek_core::desired::Database;
use kopek_link::{CellAuthority, Csr, Identity};
use kopek_sql::alone::{Alone, Deadlocks, Endpoint, Manners, Texts, Tokens, serve};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let filter = std::env::var("KOPEK_LOG").unwrap_or_else(|_| "error".to_owned());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let given: BTreeMap<&str, &String> =
        words.chunks_exact(2).map(|pair| (pair[0].trim_start_matches("--"), &pair[1])).collect();
    let mut doors = Vec::new();
    if let (Some(listen), Some(member)) = (given.get("listen-socket"), given.get("member-socket")) {
        doors.push((Endpoint::Socket(listen.into()), Endpoint::Socket(member.into())));
    }
    if let (Some(listen), Some(member)) = (given.get("listen-port"), given.get("member")) {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, listen.parse()?));
        doors.push((Endpoint::Port(listen), Endpoint::Port(member.parse()?)));
    }
    let word = |name: &str| given.get(name).map(|word| word.to_string()).unwrap_or_default();
    let account = Database { name: word("schema"), user: word("user"), password: word("password") };
    let tls = match (given.get("tls-certificate"), given.get("tls-key")) {
        (Some(certificate), Some(key)) => Some(acceptor(certificate, key)?),
        _ => None,
    };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let manners = Manners {
        texts: if word("texts") == "pool" { Texts::ForPool } else { Texts::AsTheyAre },
        tokens: if word("tokens") == "kept" { Tokens::Kept } else { Tokens::None },
        deadlocks: if word("deadlocks") == "repeated" { Deadlocks::Repeated } else { Deadlocks::Told },
        // None by default: tests count connections and wait until one is gone.
        warm_max: given.get("warm").map_or(Ok(0), |number| number.parse())?,
    };
    serve(Alone { identity: identity()?, tls, account, manners, doors }, || println!("listening"))?;
    Ok(())
}

fn acceptor(certificate: &str, key: &str) -> Result<TlsAcceptor, Failure> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn identity() -> Result<Identity, Failure> {
    let cell = CellAuthority::create("alone")?;
    let csr = Csr::new()?;
    let certificate = cell.issue_server(&csr.csr_pem, &ServerId::parse("alone")?, &[])?;
    Ok(Identity::from_pem(cell.ca_pem(), &certificate, &csr.key_pem)?)
}
