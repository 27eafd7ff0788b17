use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kopek_link::{DialError, Preamble, Welcome, dial_stream, read_welcome, send_preamble};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

use crate::words::*;

const LIMIT: Duration = Duration::from_secs(5);

/// Stands for an instance: gives each connection to the test.
async fn listening() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if connections.send(stream).await.is_err() {
                break;
            }
        }
    });
    (address, receiver)
}

/// A server with `blog.1` behind its gate.
async fn gated(cell: &Cell) -> (Server, mpsc::Receiver<TcpStream>) {
    let mut server = cell.server("s1").await;
    let (address, connections) = listening().await;
    server.wants(|part| part.gates.extend([(instance("blog.1"), address)]));
    (server, connections)
}

async fn through_socket(server: &Server, id: &str) -> Result<UnixStream, String> {
    let mut stream = UnixStream::connect(server.dirs.gate_socket()).await.unwrap();
    send_preamble(&mut stream, &Preamble::Gate { instance: instance(id) }).await.unwrap();
    match read_welcome(&mut stream).await.unwrap() {
        Welcome::Open { .. } => Ok(stream),
        Welcome::Refused { why } => Err(why),
    }
}

/// The part arrives a moment after it is published.
async fn opened(server: &Server, id: &str) -> UnixStream {
    let start = tokio::time::Instant::now();
    loop {
        match through_socket(server, id).await {
            Ok(stream) => return stream,
            Err(why) => assert!(start.elapsed() < LIMIT, "{why}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), text: &str) {
    let mut bytes = vec![0; text.len()];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
}

/// Speaks both ways, then ends its own half while much comes back.
async fn converse(mut edge: impl AsyncRead + AsyncWrite + Unpin, mut instance: TcpStream) {
    send(&mut edge, "GET / HTTP/1.1\r\n\r\n").await;
    receive(&mut instance, "GET / HTTP/1.1\r\n\r\n").await;
    send(&mut instance, "HTTP/1.1 200 OK\r\n\r\n").await;
    receive(&mut edge, "HTTP/1.1 200 OK\r\n\r\n").await;

    let much = vec![7; 3_000_000];
    let upload = async {
        edge.write_all(&much).await.unwrap();
        edge.shutdown().await.unwrap();
        let mut back = Vec::new();
        edge.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, much);
    };
    let answer = async {
        let mut got = Vec::new();
        instance.read_to_end(&mut got).await.unwrap();
        instance.write_all(&got).await.unwrap();
        instance.shutdown().await.unwrap();
    };
    tokio::time::timeout(LIMIT, async { tokio::join!(upload, answer) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_of_the_same_server_speaks_with_an_instance_over_the_socket() {
    let cell = cell();
    let (server, mut connections) = gated(&cell).await;
    let mode = server.dirs.gate_socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let edge = opened(&server, "blog.1").await;
    converse(edge, connections.recv().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_of_another_server_speaks_with_an_instance_over_tls() {
    let cell = cell();
    let (server, mut connections) = gated(&cell).await;
    drop(opened(&server, "blog.1").await);
    connections.recv().await.unwrap();
    let preamble = Preamble::Gate { instance: instance("blog.1") };
    let edge =
        dial_stream(&cell.identity("s2", server.address), server.gate(), &preamble, LIMIT).await.unwrap();
    converse(edge, connections.recv().await.unwrap()).await;
    dial_stream(&cell.admin(), server.gate(), &preamble, LIMIT).await.map(drop).unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_not_here_or_does_not_answer_is_refused_with_the_reason() {
    let cell = cell();
    let (mut server, mut connections) = gated(&cell).await;
    assert_eq!(through_socket(&server, "shop.9").await.unwrap_err(), "shop.9 does not run here");
    let other = cell.identity("s2", server.address);
    let preamble = Preamble::Gate { instance: instance("shop.9") };
    let error = dial_stream(&other, server.gate(), &preamble, LIMIT).await.map(drop).unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error}");

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    server.wants(|part| part.gates.extend([(instance("shop.1"), closed)]));
    drop(opened(&server, "blog.1").await);
    connections.recv().await.unwrap();
    let start = tokio::time::Instant::now();
    let why = loop {
        let why = through_socket(&server, "shop.1").await.unwrap_err();
        if why != "shop.1 does not run here" {
            break why;
        }
        assert!(start.elapsed() < LIMIT);
    };
    assert!(why.starts_with("shop.1 does not answer: "), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_reported_and_idle_connections_are_not() {
    let cell = cell();
    let (server, mut connections) = gated(&cell).await;
    let id = instance("blog.1");
    let mut edges = Vec::new();
    for _ in 0..3 {
        edges.push((opened(&server, "blog.1").await, connections.recv().await.unwrap()));
    }
    server.reports(|report| report.in_flight.get(&id) == Some(&0)).await;
    for (edge, instance) in &mut edges[..2] {
        send(edge, "GET / HTTP/1.1\r\n\r\n").await;
        receive(instance, "GET /").await;
    }
    server.reports(|report| report.in_flight.get(&id) == Some(&2)).await;
    send(&mut edges[0].1, "HTTP/1.1 200 OK\r\n\r\n").await;
    server.reports(|report| report.in_flight.get(&id) == Some(&1)).await;
    drop(edges);
    server.reports(|report| !report.in_flight.contains_key(&id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_on_when_its_instance_leaves_the_part() {
    let cell = cell();
    let (mut server, mut connections) = gated(&cell).await;
    let mut edge = opened(&server, "blog.1").await;
    let mut inside = connections.recv().await.unwrap();
    send(&mut edge, "GET /slow HTTP/1.1\r\n\r\n").await;
    server.wants(|part| part.gates.clear());
    let start = tokio::time::Instant::now();
    while through_socket(&server, "blog.1").await.is_ok() {
        assert!(start.elapsed() < LIMIT, "new connections are still let through");
    }
    send(&mut inside, "HTTP/1.1 200 OK\r\n\r\n").await;
    receive(&mut edge, "HTTP/1.1 200 OK\r\n\r\n").await;
}
