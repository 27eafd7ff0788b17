use std::time::{Duration, Instant};

use hyper::StatusCode;
use kopek_core::config::Dirs;
use kopek_edge::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::origin::Origin;
use crate::rig::{Rig, eventually, here, limits, rig, rig_with, start};

async fn with_one(limits: Limits) -> (Rig, Origin) {
    let rig = rig_with(limits).await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    (rig, origin)
}

/// What comes back until the edge closes the connection.
async fn raw(rig: &Rig, request: &str) -> String {
    let mut stream = rig.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    let read = stream.read_to_string(&mut response);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an end in time").unwrap();
    response
}

#[tokio::test]
async fn a_request_cannot_hide_another_one() {
    let (rig, origin) = with_one(limits()).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: blog.org\r\n\r\n";
    let both = format!(
        "POST /upload HTTP/1.1\r\nHost: blog.org\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        5 + hidden.len()
    );
    let response = raw(&rig, &both).await;
    assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "one answer, then the connection ends: {response}");
    assert_eq!(origin.requests(), ["POST /upload"]);
    for bad in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "X : y",
    ] {
        let response = raw(&rig, &format!("POST / HTTP/1.1\r\nHost: blog.org\r\n{bad}\r\n\r\nhello")).await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{bad}: {response}");
    }
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn headers_are_bounded_in_size_number_and_time() {
    let (rig, _origin) = with_one(Limits { client_header: Duration::from_millis(200), ..limits() }).await;
    let long = format!("GET / HTTP/1.1\r\nHost: blog.org\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert!(raw(&rig, &long).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nHost: blog.org\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert!(raw(&rig, &many).await.starts_with("HTTP/1.1 431 "));
    let began = Instant::now();
    assert_eq!(raw(&rig, "GET / HTTP/1.1\r\nHost: blog").await, "", "a slow client is cut off");
    assert!((150..2_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_stops_in_a_body_is_given_up() {
    let (rig, origin) = with_one(Limits { client_stall: Duration::from_millis(200), ..limits() }).await;
    for length in [10, 1 << 20] {
        let head =
            format!("POST /upload HTTP/1.1\r\nHost: blog.org\r\nContent-Length: {length}\r\n\r\nhello");
        let response = raw(&rig, &head).await;
        assert!(response.starts_with("HTTP/1.1 408 "), "{length}: {response}");
    }
    assert!(origin.requests().len() <= 1, "only the large one reached it");
    let avoided = &rig.counters().await["sites"]["blog"]["instances"]["blog.1"]["avoided"];
    assert_eq!(avoided, false, "the instance is not to blame");
}

#[tokio::test]
async fn an_instance_that_never_answers_is_given_up() {
    let (rig, _origin) = with_one(Limits { respond: Duration::from_millis(200), ..limits() }).await;
    assert_eq!(rig.get("/wait").await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn requests_under_way_end_before_the_edge_does() {
    let (mut rig, origin) = with_one(limits()).await;
    let mut stream = rig.connect().await;
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
    eventually("it is under way", async || origin.requests().len() == 1).await;
    let port = rig.port;
    rig.stop();
    let refused = async || TcpStream::connect(("127.0.0.1", port)).await.is_err();
    eventually("no new connections are taken", refused).await;
    origin.release();
    let released = Instant::now();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\na"), "{response}");
    assert!(released.elapsed() < limits().stop, "the connection was kept until it was cut");
    rig.ended().await.unwrap();
    let log = std::fs::read_to_string(rig.access_log("blog")).unwrap();
    assert!(log.contains("\"GET /wait HTTP/1.1\" 200 1 "), "{log}");
}

#[tokio::test]
async fn an_address_that_is_left_ends_its_connections_with_their_requests() {
    let (rig, origin) = with_one(limits()).await;
    let (mut idle, mut busy, mut fresh) = (rig.connect().await, rig.connect().await, rig.connect().await);
    idle.write_all(b"GET /who HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
    let mut byte = [0; 1];
    idle.read_exact(&mut byte).await.unwrap();
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
    eventually("it is under way", async || origin.requests().len() == 2).await;
    assert_eq!(rig.ask("leave 127.0.0.2").await, "0", "nobody came to that one");
    assert_eq!(rig.ask("leave 127.0.0.1").await, "3");
    let mut rest = String::new();
    idle.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("a"), "the idle one is closed after its answer: {rest}");
    // Its request was on the way when the address was left.
    fresh.write_all(b"GET /who HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    fresh.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("a"), "{answer}");
    assert_eq!(rig.ask("leave 127.0.0.1").await, "1", "the busy one");
    origin.release();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("a"), "{answer}");
    eventually("all are gone", async || rig.ask("leave 127.0.0.1").await == "0").await;
    // Who still comes is served once.
    let mut late = rig.connect().await;
    late.write_all(b"GET /who HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close"), "{answer}");
    // And when the address stays, as always.
    assert_eq!(rig.ask("stay 127.0.0.1").await, "0");
    let mut kept = rig.connect().await;
    for _ in 0..2 {
        kept.write_all(b"GET /who HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
        let mut answer = [0; 4096];
        let length = kept.read(&mut answer).await.unwrap();
        let answer = std::str::from_utf8(&answer[..length]).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("close"), "{answer}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let at = || folder.path().to_owned();
    let (_stop, stopped) = oneshot::channel();
    let edge = start(&Dirs { etc: at(), state: at(), run: at(), log: at() }, port, limits(), stopped);
    let error = tokio::task::spawn_blocking(|| edge.join().unwrap()).await.unwrap().unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on 0.0.0.0:{port}: ")), "{error}");
}

#[tokio::test]
async fn the_last_routes_are_enough_to_serve_without_the_agent() {
    let mut rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    rig.end_agent().await;
    assert_eq!(rig.get("/who").await.body, "a");
    rig.restart_edge().await;
    assert_eq!(rig.get("/who").await.body, "a", "from the copy on disk");
}
