use std::sync::atomic::Ordering::SeqCst;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::origin::Origin;
use crate::rig::{Rig, eventually, here, rig};

async fn with_one() -> (Rig, Origin) {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    (rig, origin)
}

#[tokio::test]
async fn a_large_upload_streams_to_the_instance_while_it_arrives() {
    let (rig, origin) = with_one().await;
    for framing in ["Content-Length: 1048576", "Transfer-Encoding: chunked"] {
        origin.site.received.store(0, SeqCst);
        let mut stream = rig.connect().await;
        let head =
            format!("POST /upload HTTP/1.1\r\nHost: blog.org\r\nConnection: close\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let is_chunked = framing.ends_with("chunked");
        for half in 1..=2_u64 {
            if is_chunked {
                stream.write_all(b"80000\r\n").await.unwrap();
            }
            stream.write_all(&vec![b'x'; 1 << 19]).await.unwrap();
            if is_chunked {
                stream.write_all(b"\r\n").await.unwrap();
            }
            let there = async || origin.site.received.load(SeqCst) == half << 19;
            eventually("what was sent so far is there", there).await;
        }
        if is_chunked {
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("1048576"), "{response}");
    }
}

#[tokio::test]
async fn a_slow_client_occupies_no_instance_until_its_small_body_is_there() {
    let (rig, origin) = with_one().await;
    let mut stream = rig.connect().await;
    let head =
        "POST /upload HTTP/1.1\r\nHost: blog.org\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello";
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("the edge has the request", async || rig.counter("in_flight").await == 1).await;
    // Others come and go meanwhile: had it been sent on, it would be there by now.
    for _ in 0..5 {
        assert_eq!(rig.get("/who").await.body, "a");
    }
    assert_eq!(origin.requests(), ["GET /who"; 5]);
    stream.write_all(b"world").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("\r\n\r\n10"), "{response}");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_send_its_body() {
    let (rig, _origin) = with_one().await;
    let mut stream = rig.connect().await;
    let head = "POST /upload HTTP/1.1\r\nHost: blog.org\r\nConnection: close\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\n5"), "{response}");
}
