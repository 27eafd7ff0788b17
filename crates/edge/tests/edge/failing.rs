use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use tokio::task::JoinSet;

use crate::gate::Gate;
use crate::origin::Origin;
use crate::rig::{Rig, draining, eventually, here, identity, rig, there};

/// Two instances, of which `blog.1` gets the next request.
async fn with_two() -> (Rig, Origin, Origin) {
    let rig = rig().await;
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    rig.gate.lead("blog.1", a.address);
    rig.gate.lead("blog.2", b.address);
    rig.route(&[here("blog.1"), here("blog.2")]).await;
    (rig, a, b)
}

const TO_FIRST: (&str, &str) = ("cookie", "kopek_i=blog.1");

#[tokio::test]
async fn a_get_whose_instance_dies_half_way_is_answered_by_another() {
    let (rig, mut a, b) = with_two().await;
    b.release();
    let reply = rig.send(Method::GET, "/wait", "", &[TO_FIRST]);
    let killer = async {
        eventually("the request arrived", async || a.requests() == ["GET /wait"]).await;
        a.kill().await;
        Instant::now()
    };
    let (reply, killed) = tokio::join!(reply, killer);
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "b"));
    assert!(killed.elapsed() < Duration::from_millis(500), "{:?}", killed.elapsed());
    assert_eq!(rig.counter("errors").await, 0);
    assert!(rig.counter("retried").await >= 1);
}

#[tokio::test]
async fn a_post_that_may_have_been_carried_out_is_not_repeated() {
    let (rig, mut a, b) = with_two().await;
    b.release();
    let reply = rig.send(Method::POST, "/wait", "pay=1", &[TO_FIRST]);
    let killer = async {
        eventually("the request arrived", async || a.requests() == ["POST /wait"]).await;
        a.kill().await;
    };
    let (reply, ()) = tokio::join!(reply, killer);
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert_eq!(b.requests(), [""; 0]);
}

#[tokio::test]
async fn a_post_that_reached_nobody_goes_to_another_instance() {
    let (rig, mut a, b) = with_two().await;
    a.kill().await;
    let reply = rig.send(Method::POST, "/who", "pay=1", &[TO_FIRST]).await;
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "b"));
    assert_eq!(b.requests(), ["POST /who"]);
    assert_eq!(rig.counters().await["sites"]["blog"]["instances"]["blog.1"]["avoided"], true);
}

#[tokio::test]
async fn nobody_notices_when_one_of_two_instances_dies() {
    let (rig, mut a, _b) = with_two().await;
    let rig = std::sync::Arc::new(rig);
    let mut requests = JoinSet::new();
    for number in 0..100 {
        if number == 50 {
            a.kill().await;
        }
        let rig = rig.clone();
        requests.spawn(async move {
            let began = Instant::now();
            (rig.get("/who").await.status, began.elapsed())
        });
        // The pace of the clients: 100 requests a second.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while let Some(outcome) = requests.join_next().await {
        let (status, took) = outcome.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn the_only_instance_may_restart_and_requests_wait_for_it() {
    let rig = rig().await;
    let mut origin = Origin::start("before").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    assert_eq!(rig.get("/who").await.body, "before");
    origin.kill().await;
    let restart = async {
        eventually("a request is held", async || rig.counter("held").await == 1).await;
        Origin::start_at("after", origin.address).await
    };
    let (reply, _origin) = tokio::join!(rig.post("/who", "x"), restart);
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "after"));
    assert_eq!(rig.counter("errors").await, 0);
}

#[tokio::test]
async fn a_draining_instance_ends_its_requests_and_gets_no_new_ones() {
    let (rig, a, b) = with_two().await;
    let slow = rig.send(Method::GET, "/wait", "", &[TO_FIRST]);
    let drain = async {
        eventually("the request arrived", async || a.requests().len() == 1).await;
        rig.route(&[draining("blog.1"), here("blog.2")]).await;
        for _ in 0..4 {
            assert_eq!(rig.send(Method::GET, "/who", "", &[TO_FIRST]).await.body, "b");
        }
        a.release();
    };
    let (slow, ()) = tokio::join!(slow, drain);
    assert_eq!((slow.status, slow.body.as_str()), (StatusCode::OK, "a"));
    rig.route(&[draining("blog.1")]).await;
    assert_eq!(rig.get("/who").await.body, "a", "there is no other");
    assert_eq!(b.requests().len(), 4);
}

#[tokio::test]
async fn requests_on_an_instance_that_left_the_table_go_elsewhere_at_once_if_they_may() {
    let (rig, a, b) = with_two().await;
    b.release();
    let get = rig.send(Method::GET, "/wait", "", &[TO_FIRST]);
    let post = rig.send(Method::POST, "/wait", "x", &[TO_FIRST]);
    let drop_it = async {
        eventually("both arrived", async || a.requests().len() == 2).await;
        rig.route(&[here("blog.2")]).await;
        eventually("the GET went on", async || b.requests() == ["GET /wait"]).await;
        a.release();
    };
    let (get, post, ()) = tokio::join!(get, post, drop_it);
    assert_eq!(get.body, "b");
    assert_eq!((post.status, post.body.as_str()), (StatusCode::OK, "a"), "it may end where it began");
}

#[tokio::test]
async fn a_frozen_server_is_left_by_requests_that_already_wait_for_it() {
    let rig = rig().await;
    let far = Gate::on_tls(identity("s2")).await;
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    far.lead("blog.1", a.address);
    rig.gate.lead("blog.2", b.address);
    b.release();
    rig.route(&[there("blog.1", &far), here("blog.2")]).await;
    let reply = rig.send(Method::GET, "/wait", "", &[TO_FIRST]);
    let freeze = async {
        eventually("the request arrived", async || a.requests().len() == 1).await;
        far.freeze();
        Instant::now()
    };
    let (reply, frozen) = tokio::join!(reply, freeze);
    assert_eq!(reply.body, "b");
    assert!(frozen.elapsed() < Duration::from_secs(3), "{:?}", frozen.elapsed());
    let began = Instant::now();
    assert_eq!(rig.send(Method::GET, "/who", "", &[TO_FIRST]).await.body, "b");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
