use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use kopek_edge::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::gate::Gate;
use crate::origin::Origin;
use crate::rig::{eventually, here, identity, limits, rig, rig_with, there};

#[tokio::test]
async fn a_request_reaches_the_site_that_its_host_names() {
    let rig = rig().await;
    let (blog, shop) = (Origin::start("blog").await, Origin::start("shop").await);
    rig.gate.lead("blog.1", blog.address);
    rig.gate.lead("shop.1", shop.address);
    rig.route_sites(&[("blog", &[here("blog.1")]), ("shop", &[here("shop.1")])]).await;
    for (host, site) in [("blog.org", "blog"), ("Shop.ORG:8080", "shop"), ("shop.org.", "shop")] {
        let reply = rig.send(Method::GET, "/who", "", &[("host", host)]).await;
        assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, site), "{host}");
    }
    let absolute = rig.send(Method::GET, "http://shop.org/who", "", &[]).await;
    assert_eq!(absolute.body, "shop", "the target wins over the Host header");
    assert_eq!(shop.requests().last().unwrap(), "GET /who");
}

#[tokio::test]
async fn an_unknown_host_is_named_plainly() {
    let rig = rig().await;
    assert_eq!(rig.get("/").await.status, StatusCode::SERVICE_UNAVAILABLE, "nothing is routed yet");
    rig.route(&[]).await;
    let reply = rig.send(Method::GET, "/", "", &[("host", "nobody.example:81")]).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert!(reply.body.contains("There is no site for nobody.example here."), "{}", reply.body);
    let reply = rig.send(Method::GET, "/", "", &[("host", "<b>x</b>")]).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        rig.send(Method::CONNECT, "blog.org:80", "", &[]).await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn the_instance_learns_who_the_client_is_and_nothing_that_the_client_claims() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    let claims = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "https"), ("host", "blog.org:8080")];
    let seen = rig.send(Method::GET, "/headers", "", &claims).await.body;
    assert_eq!(
        seen,
        "host: blog.org:8080\nx-forwarded-for: 127.0.0.1\nx-real-ip: 127.0.0.1\n\
         x-forwarded-host: blog.org:8080\nx-forwarded-proto: http\n"
    );
}

#[tokio::test]
async fn a_new_request_goes_to_the_instance_with_the_least_work_in_flight() {
    let rig = rig().await;
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    rig.gate.lead("blog.1", a.address);
    rig.gate.lead("blog.2", b.address);
    rig.route(&[here("blog.1"), here("blog.2")]).await;
    let slow = rig.get("/wait");
    tokio::pin!(slow);
    let arrived = async || a.requests().len() + b.requests().len() == 1;
    tokio::select! {
        _ = &mut slow => unreachable!("it waits until it is released"),
        () = eventually("the slow request arrived", arrived) => {}
    }
    let idle = if a.requests().is_empty() { "b" } else { "a" };
    for _ in 0..6 {
        assert_ne!(rig.get("/who").await.body, idle);
    }
    a.release();
    b.release();
    assert_eq!(slow.await.status, StatusCode::OK);
    eventually("nothing is in flight", async || rig.counter("in_flight").await == 0).await;
}

#[tokio::test]
async fn a_visitor_stays_on_one_of_several_instances_by_cookie() {
    let rig = rig().await;
    let (a, b) = (Origin::start("blog.1").await, Origin::start("blog.2").await);
    rig.gate.lead("blog.1", a.address);
    rig.gate.lead("blog.2", b.address);
    rig.route(&[here("blog.1"), here("blog.2")]).await;
    let first = rig.get("/who").await;
    let cookie = format!("kopek_i={}; Path=/; HttpOnly; SameSite=Lax", first.body);
    assert_eq!(first.header("set-cookie"), Some(cookie.as_str()));
    for _ in 0..6 {
        let again =
            rig.send(Method::GET, "/who", "", &[("cookie", &format!("kopek_i={}", first.body))]).await;
        assert_eq!((again.body.as_str(), again.header("set-cookie")), (first.body.as_str(), None));
    }
    rig.route(&[here("blog.1")]).await;
    assert_eq!(rig.get("/who").await.header("set-cookie"), None, "one instance needs no cookie");
}

#[tokio::test]
async fn an_instance_on_another_server_is_reached_over_mutual_tls() {
    let rig = rig().await;
    let gate = Gate::on_tls(identity("s2")).await;
    let origin = Origin::start("far").await;
    gate.lead("blog.1", origin.address);
    rig.route(&[there("blog.1", &gate)]).await;
    assert_eq!(rig.get("/who").await.body, "far");
}

#[tokio::test]
async fn connections_to_an_instance_stay_warm_between_requests() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    for _ in 0..20 {
        assert_eq!(rig.get("/who").await.body, "a");
    }
    assert!(rig.gate.opened() <= 2, "one for each worker, not {}", rig.gate.opened());
}

/// An instance with one process, which stays with a connection for as long as it is open, as Apache's do.
async fn lone_process() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            while stream.read(&mut request).await.is_ok_and(|length| length > 0) {
                tokio::time::sleep(Duration::from_millis(30)).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    });
    address
}

#[tokio::test]
async fn nobody_waits_for_ever_behind_a_visitor_who_always_comes_again() {
    let rig = rig_with(Limits { workers: 1, ..limits() }).await;
    rig.gate.lead("blog.1", lone_process().await);
    rig.route(&[here("blog.1")]).await;
    let busy = async {
        loop {
            assert_eq!(rig.get("/").await.body, "ok");
        }
    };
    let others = futures::future::join_all((0..5).map(|_| rig.get("/")));
    tokio::select! {
        () = busy => unreachable!("it always comes again"),
        replies = others => assert!(replies.iter().all(|reply| reply.body == "ok")),
        () = tokio::time::sleep(Duration::from_secs(5)) => panic!("they wait for ever"),
    }
}

#[tokio::test]
async fn after_a_change_of_protocol_bytes_flow_both_ways() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    let mut stream = rig.connect().await;
    let hello = "GET /echo HTTP/1.1\r\nHost: blog.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(hello.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = [0; 3];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    assert_eq!(rig.counter("in_flight").await, 1);
    drop(stream);
    eventually("it is not in flight any more", async || rig.counter("in_flight").await == 0).await;
    let of_instance = async || rig.counters().await["sites"]["blog"]["instances"]["blog.1"]["in_flight"] == 0;
    eventually("nor at its instance", of_instance).await;
}

#[tokio::test]
async fn a_large_response_arrives_whole() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    let began = Instant::now();
    assert_eq!(rig.get("/big").await.body.len(), 8 << 20);
    assert!(began.elapsed() < Duration::from_secs(5));
    let head = rig.send(Method::HEAD, "/big", "", &[]).await;
    assert_eq!((head.header("content-length"), head.body.len()), (Some("8388608"), 0));
}
