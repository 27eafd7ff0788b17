//! Certificates, connections and the HTTPS API between members of one cell, and those who are not.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Extension;
use axum::http::StatusCode;
use axum::routing::{get, post};
use http_body_util::{BodyExt, Full};
use hyper::Method;
use kopek_core::{ServerId, SiteName};
use kopek_link::*;
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SOON: Duration = Duration::from_secs(5);

fn cell() -> CellAuthority {
    CellAuthority::create("test").unwrap()
}

fn server(cell: &CellAuthority, name: &str) -> Identity {
    let csr = Csr::new().unwrap();
    let address: IpAddr = "10.9.8.7".parse().unwrap();
    let cert = cell.issue_server(&csr.csr_pem, &ServerId::parse(name).unwrap(), &[address]).unwrap();
    Identity::from_pem(cell.ca_pem(), &cert, &csr.key_pem).unwrap()
}

fn admin(cell: &CellAuthority, name: &str) -> Identity {
    let csr = Csr::new().unwrap();
    let cert = cell.issue_admin(&csr.csr_pem, name).unwrap();
    Identity::from_pem(cell.ca_pem(), &cert, &csr.key_pem).unwrap()
}

/// Trusts one cell's CA and has a certificate of another's, so that only the other side can refuse it.
fn stranger(trusted: &CellAuthority) -> Identity {
    let csr = Csr::new().unwrap();
    let cert = cell().issue_server(&csr.csr_pem, &ServerId::parse("s1").unwrap(), &[]).unwrap();
    Identity::from_pem(trusted.ca_pem(), &cert, &csr.key_pem).unwrap()
}

async fn listener() -> (TcpListener, SocketAddr) {
    listener_on("127.0.0.1").await
}

async fn listener_on(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Accepts once and says who called, or why nobody could.
fn accept_one(
    identity: Identity,
    listener: TcpListener,
) -> tokio::task::JoinHandle<Result<Option<Peer>, String>> {
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = identity.acceptor().accept(stream).await.map_err(|error| error.to_string())?;
        let peer = peer_of(stream.get_ref().1);
        let _ = stream.write_all(b"hello").await;
        let _ = stream.shutdown().await;
        Ok(peer)
    })
}

#[tokio::test]
async fn servers_of_one_cell_know_each_other_by_name() {
    let cell = cell();
    let (listener, address) = listener().await;
    let accepted = accept_one(server(&cell, "s2"), listener);
    let stream = dial(&server(&cell, "s1"), address, SOON).await.unwrap();
    assert_eq!(peer_of(stream.get_ref().1), Some(Peer::Server(ServerId::parse("s2").unwrap())));
    assert_eq!(accepted.await.unwrap().unwrap(), Some(Peer::Server(ServerId::parse("s1").unwrap())));
}

#[tokio::test]
async fn a_server_of_another_cell_is_not_trusted_by_the_one_that_dials() {
    let (listener, address) = listener().await;
    let accepted = accept_one(server(&cell(), "s2"), listener);
    let outcome = dial(&server(&cell(), "s1"), address, SOON).await;
    assert!(matches!(outcome, Err(DialError::Tls { .. })), "{outcome:?}");
    assert!(accepted.await.unwrap().is_err());
}

#[tokio::test]
async fn a_server_of_another_cell_is_not_let_in() {
    let ours = cell();
    let (listener, address) = listener().await;
    let accepted = accept_one(server(&ours, "s2"), listener);
    if let Ok(mut stream) = dial(&stranger(&ours), address, SOON).await {
        assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
    }
    assert!(accepted.await.unwrap().is_err());
}

#[tokio::test]
async fn a_certificate_is_good_for_its_own_addresses_only() {
    let cell = cell();
    // A server has loopback, but not all of it; a person has no address at all.
    for (host, identity) in [("127.0.0.2", server(&cell, "s2")), ("127.0.0.1", admin(&cell, "ann"))] {
        let (listener, address) = listener_on(host).await;
        let accepted = accept_one(identity, listener);
        let outcome = dial(&server(&cell, "s1"), address, SOON).await;
        assert!(matches!(outcome, Err(DialError::Tls { .. })), "{outcome:?}");
        drop(accepted.await);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_at_the_limit() {
    let (_listener, address) = listener().await;
    let identity = server(&cell(), "s1");
    let outcome = timeout(SOON, dial(&identity, address, Duration::from_millis(100))).await.unwrap();
    assert!(matches!(outcome, Err(DialError::TimedOut { .. })), "{outcome:?}");
}

#[test]
fn certificates_serve_others_as_server_and_as_client() {
    let cell = cell();
    let csr = Csr::new().unwrap();
    let address: IpAddr = "10.9.8.7".parse().unwrap();
    let cert = cell.issue_server(&csr.csr_pem, &ServerId::parse("s1").unwrap(), &[address]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Identity::write(folder.path(), cell.ca_pem(), &cert, &csr.key_pem).unwrap();
    assert!(csr.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    for purpose in ["sslserver", "sslclient"] {
        let checked = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-verify_ip", "10.9.8.7", "-CAfile"])
            .args([folder.path().join("ca.pem"), folder.path().join("server.pem")])
            .output()
            .unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn a_certificate_is_good_from_the_day_before_and_for_two_years() {
    let cell = cell();
    let csr = Csr::new().unwrap();
    let cert = cell.issue_server(&csr.csr_pem, &ServerId::parse("s1").unwrap(), &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Identity::write(folder.path(), cell.ca_pem(), &cert, &csr.key_pem).unwrap();
    let hours_from_now = |hours: i64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let verified = Command::new("openssl")
            .args(["verify", "-attime", &(now + hours * 3_600).to_string(), "-CAfile"])
            .args([folder.path().join("ca.pem"), folder.path().join("server.pem")])
            .output();
        verified.unwrap().status.success()
    };
    let year = 365 * 24;
    let outcomes = [-25, -23, 0, 2 * year - 1, 2 * year + 1].map(hours_from_now);
    assert_eq!(outcomes, [false, true, true, true, false]);
}

#[test]
fn the_files_of_an_identity_are_private_and_load_again() {
    let cell = cell();
    let csr = Csr::new().unwrap();
    let cert = cell.issue_admin(&csr.csr_pem, "ann").unwrap();
    let folder = tempfile::tempdir().unwrap();
    Identity::write(folder.path(), cell.ca_pem(), &cert, &csr.key_pem).unwrap();
    assert_eq!(Identity::load(folder.path()).unwrap().peer(), &Peer::Admin("ann".to_owned()));
    for file in std::fs::read_dir(folder.path()).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_cell_that_is_loaded_again_issues_for_the_same_servers() {
    let first = cell();
    let again = CellAuthority::from_pem(first.ca_pem(), &first.key_pem()).unwrap();
    assert_eq!(again.fingerprint(), first.fingerprint());
    let (listener, address) = listener().await;
    let accepted = accept_one(server(&first, "s2"), listener);
    dial(&server(&again, "s1"), address, SOON).await.unwrap();
    accepted.await.unwrap().unwrap();
}

#[test]
fn a_damaged_request_is_refused() {
    let csr = Csr::new().unwrap().csr_pem;
    let middle = csr.len() / 2;
    let other = if csr.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let damaged = format!("{}{other}{}", &csr[..middle], &csr[middle + 1..]);
    assert!(cell().issue_admin(&damaged, "ann").is_err());
}

#[test]
fn nothing_is_taken_from_a_request_but_its_key() {
    let cell = cell();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut asked = rcgen::CertificateParams::new(["localhost".to_owned(), "10.1.1.1".to_owned()]).unwrap();
    asked.distinguished_name.push(rcgen::DnType::CommonName, "server:s1");
    let csr = asked.serialize_request(&key).unwrap().pem().unwrap();
    let pem = cell.issue_admin(&csr, "ann").unwrap();
    let identity = Identity::from_pem(cell.ca_pem(), &pem, &key.serialize_pem()).unwrap();
    assert_eq!(identity.peer(), &Peer::Admin("ann".to_owned()));
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, issued) = X509Certificate::from_der(&der).unwrap();
    let names = &issued.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::DNSName("admin")]);
}

#[tokio::test]
async fn a_stream_opens_or_is_refused_with_a_reason() {
    let cell = cell();
    let want = Preamble::Sql { site: SiteName::parse("blog").unwrap(), epoch: 7 };
    for welcome in [Welcome::Open { bytes: None }, Welcome::Refused { why: "epoch 7 is over".to_owned() }] {
        let (listener, address) = listener().await;
        let identity = server(&cell, "s2");
        let answer = welcome.clone();
        let other_side = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = identity.acceptor().accept(stream).await.unwrap();
            let wanted = read_preamble(&mut stream).await.unwrap();
            send_welcome(&mut stream, &answer).await.unwrap();
            stream.write_all(b"raw bytes").await.unwrap();
            stream.shutdown().await.unwrap();
            wanted
        });
        let outcome = dial_stream(&server(&cell, "s1"), address, &want, SOON).await;
        match (welcome, outcome) {
            (Welcome::Open { .. }, Ok(mut stream)) => {
                let mut rest = String::new();
                stream.read_to_string(&mut rest).await.unwrap();
                assert_eq!(rest, "raw bytes");
            }
            (Welcome::Refused { why }, Err(DialError::Refused { why: heard, .. })) => assert_eq!(heard, why),
            (welcome, outcome) => panic!("{welcome:?} led to {outcome:?}"),
        }
        assert_eq!(other_side.await.unwrap(), want);
    }
}

#[tokio::test]
async fn a_first_line_without_end_is_refused() {
    let endless = vec![b'x'; 4_096];
    let outcome = read_preamble(&mut endless.as_slice()).await;
    assert!(matches!(outcome, Err(PreambleError::TooLong)), "{outcome:?}");
}

#[tokio::test]
async fn the_longest_reason_still_fits_the_line() {
    let mut line = Vec::new();
    send_welcome(&mut line, &Welcome::Refused { why: "\u{1}".repeat(5_000) }).await.unwrap();
    read_welcome(&mut line.as_slice()).await.unwrap();
}

#[tokio::test]
async fn joining_takes_the_ca_that_the_token_names_and_no_other() {
    let ours = cell();
    let (listener, address) = listener().await;
    tokio::spawn({
        let identity = server(&ours, "s1");
        async move { serve_https(&identity, listener, Clients::Anyone, api()).await }
    });
    assert_eq!(fetch_ca(address, ours.fingerprint(), SOON).await.unwrap(), normal(ours.ca_pem()));
    let outcome = fetch_ca(address, cell().fingerprint(), SOON).await;
    assert!(matches!(outcome, Err(DialError::OtherCell { .. })), "{outcome:?}");
}

fn normal(pem: &str) -> String {
    pem.replace("\r\n", "\n")
}

#[tokio::test]
async fn showing_our_ca_without_a_certificate_of_it_fools_nobody() {
    let ours = cell();
    let (listener, address) = listener().await;
    let impostor = stranger(&ours);
    tokio::spawn(async move { serve_https(&impostor, listener, Clients::Anyone, api()).await });
    let outcome = fetch_ca(address, ours.fingerprint(), SOON).await;
    assert!(matches!(outcome, Err(DialError::Tls { .. })), "{outcome:?}");
}

/// Anybody who dials a server gets its certificates; its key stays where it is.
#[tokio::test]
async fn repeating_a_servers_certificates_without_its_key_fools_nobody() {
    let ours = cell();
    let cert = ours.issue_server(&Csr::new().unwrap().csr_pem, &ServerId::parse("s1").unwrap(), &[]).unwrap();
    let chain =
        [cert.as_str(), ours.ca_pem()].map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let own_key = PrivateKeyDer::from_pem_slice(Csr::new().unwrap().key_pem.as_bytes()).unwrap();
    let own_key = rustls::crypto::ring::sign::any_supported_type(&own_key).unwrap();
    let repeated = SingleCertAndKey::from(CertifiedKey::new(chain.to_vec(), own_key));
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(ring)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(repeated));
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    let joining = fetch_ca(address, ours.fingerprint(), SOON).await.map(drop);
    let member = dial(&server(&ours, "s2"), address, SOON).await.map(drop);
    for outcome in [joining, member] {
        assert!(matches!(outcome, Err(DialError::Tls { .. })), "{outcome:?}");
    }
}

fn api() -> Router {
    Router::new()
        .route(
            "/me",
            get(|Extension(peer): Extension<Option<Peer>>| async move {
                axum::Json(peer.map(|peer| peer.to_string()))
            }),
        )
        .route("/port", get(|Extension(from): Extension<SocketAddr>| async move { axum::Json(from.port()) }))
        .route("/taken", get(|| async { (StatusCode::CONFLICT, r#"{"error":"the name is taken"}"#) }))
        .route(
            "/standby",
            get(|| async {
                (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"not active","active":"10.9.8.7:7400"}"#)
            }),
        )
        .route("/done", post(|| async { StatusCode::NO_CONTENT }))
        .route("/silent", get(std::future::pending::<()>))
        .route(
            "/echo",
            post(|body: Bytes| async move { body }).layer(axum::extract::DefaultBodyLimit::disable()),
        )
}

async fn serve(cell: &CellAuthority, clients: Clients) -> SocketAddr {
    let (listener, address) = listener().await;
    let identity = server(cell, "s2");
    tokio::spawn(async move { serve_https(&identity, listener, clients, api()).await });
    address
}

#[tokio::test]
async fn the_api_knows_its_callers_and_those_without_certificate() {
    let cell = cell();
    let address = serve(&cell, Clients::Anyone).await;
    let member = Api::new(server(&cell, "s1"));
    let me: Option<String> = member.call(Method::GET, address, "/me", None::<&()>, SOON).await.unwrap();
    assert_eq!(me.as_deref(), Some("server:s1"));
    let stranger = Api::anonymous(cell.ca_pem()).unwrap();
    let me: Option<String> = stranger.call(Method::GET, address, "/me", None::<&()>, SOON).await.unwrap();
    assert_eq!(me, None);
}

#[tokio::test]
async fn an_api_for_anyone_takes_no_certificate_of_another_cell() {
    let cell = cell();
    let address = serve(&cell, Clients::Anyone).await;
    let stranger = Api::new(stranger(&cell));
    stranger.call::<(), Option<String>>(Method::GET, address, "/me", None, SOON).await.unwrap_err();
}

/// The join call carries the token.
#[tokio::test]
async fn who_has_no_certificate_yet_talks_only_to_the_cell_whose_ca_it_fetched() {
    let (ours, theirs) = (cell(), cell());
    let address = serve(&theirs, Clients::Anyone).await;
    let joining = Api::anonymous(ours.ca_pem()).unwrap();
    let error = joining.call::<(), ()>(Method::POST, address, "/done", None, SOON).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
}

#[tokio::test]
async fn an_api_for_members_lets_nobody_else_in() {
    let cell = cell();
    let address = serve(&cell, Clients::Members).await;
    for other in [Api::anonymous(cell.ca_pem()).unwrap(), Api::new(stranger(&cell))] {
        other.call::<(), Option<String>>(Method::GET, address, "/me", None, SOON).await.unwrap_err();
    }
    let member = Api::new(server(&cell, "s1"));
    member.call::<(), Option<String>>(Method::GET, address, "/me", None, SOON).await.unwrap();
}

#[tokio::test]
async fn the_api_keeps_its_connection_and_gives_the_servers_own_words() {
    let cell = cell();
    let address = serve(&cell, Clients::Members).await;
    let api = Api::new(server(&cell, "s1"));
    let mut ports = Vec::new();
    for _ in 0..3 {
        ports.push(api.call::<(), u16>(Method::GET, address, "/port", None, SOON).await.unwrap());
    }
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    let error = api.call::<(), ()>(Method::GET, address, "/taken", None, SOON).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.active()), ("the name is taken", None));
    let error = api.call::<(), ()>(Method::GET, address, "/standby", None, SOON).await.unwrap_err();
    assert_eq!(error.active(), Some("10.9.8.7:7400".parse().unwrap()));
    api.call::<(), ()>(Method::POST, address, "/done", None, SOON).await.unwrap();
}

#[tokio::test]
async fn a_streamed_body_arrives_whole() {
    let cell = cell();
    let address = serve(&cell, Clients::Members).await;
    let sent = hyper::body::Bytes::from(vec![7; 5 << 20]);
    let answer = Api::new(server(&cell, "s1"))
        .send_body(Method::POST, address, "/echo", Full::new(sent.clone()))
        .await
        .unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), sent);
}

#[tokio::test]
async fn a_server_that_is_down_is_told_apart_from_one_that_refuses() {
    let cell = cell();
    let (listener, address) = listener().await;
    drop(listener);
    let api = Api::new(server(&cell, "s1"));
    let error = api.call::<(), ()>(Method::GET, address, "/me", None, SOON).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_call_that_is_not_answered_is_given_up_at_its_limit() {
    let cell = cell();
    let address = serve(&cell, Clients::Members).await;
    let api = Api::new(server(&cell, "s1"));
    let limit = Duration::from_millis(300);
    let called = api.call::<(), ()>(Method::GET, address, "/silent", None, limit);
    let error = timeout(SOON, called).await.expect("it waits on").unwrap_err();
    assert!(matches!(error, ApiError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn strangers_do_not_keep_members_out() {
    let cell = cell();
    let address = serve(&cell, Clients::Anyone).await;
    let api = Api::new(server(&cell, "s1"));
    let connected = api.call::<(), u16>(Method::GET, address, "/port", None, SOON).await.unwrap();
    let first = TcpStream::connect(address).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..256 {
        others.push(TcpStream::connect(address).await.unwrap());
    }
    // Before anybody's time for a handshake is over.
    let mut first = first;
    let ended = timeout(SOON, first.read(&mut [0; 1])).await.expect("the oldest stranger is still there");
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let port = api.call::<(), u16>(Method::GET, address, "/port", None, SOON).await.unwrap();
    assert_eq!(port, connected, "a member that was there before them was cut");
    let late = Api::new(server(&cell, "s3"));
    let me: Option<String> = late.call(Method::GET, address, "/me", None::<&()>, SOON).await.unwrap();
    assert_eq!(me.as_deref(), Some("server:s3"));
}
