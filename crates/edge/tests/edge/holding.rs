use std::time::{Duration, Instant};

use hyper::StatusCode;

use crate::origin::Origin;
use crate::rig::{eventually, here, limits, rig, rig_with};
use kopek_edge::Limits;

#[tokio::test]
async fn a_request_waits_while_there_is_no_instance_and_goes_on_within_milliseconds() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[]).await;
    let request = async {
        let reply = rig.post("/who", "x").await;
        (reply, Instant::now())
    };
    let appear = async {
        eventually("the request is held", async || rig.counter("held").await == 1).await;
        let published = Instant::now();
        rig.route(&[here("blog.1")]).await;
        published
    };
    let ((reply, answered), published) = tokio::join!(request, appear);
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "a"));
    // Far less in truth; other tests take the cores.
    assert!(answered - published < Duration::from_millis(200), "{:?}", answered - published);
}

#[tokio::test]
async fn a_request_that_waited_too_long_is_asked_to_come_back() {
    let rig = rig_with(Limits { hold: Duration::from_millis(200), ..limits() }).await;
    rig.route(&[]).await;
    let began = Instant::now();
    let reply = rig.get("/").await;
    assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));
    assert!((200..1_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!((rig.counter("errors").await, rig.counter("held").await), (1, 1));
}

#[tokio::test]
async fn a_full_waiting_room_turns_requests_away_at_once_and_empties_when_clients_leave() {
    let rig = rig_with(Limits { held_per_site: 2, ..limits() }).await;
    rig.route(&[]).await;
    let waiting = async { tokio::join!(rig.get("/1"), rig.get("/2")) };
    let third = async {
        eventually("two are held", async || rig.counter("held").await == 2).await;
        let began = Instant::now();
        let reply = rig.get("/3").await;
        assert_eq!((reply.status, reply.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    };
    tokio::select! {
        _ = waiting => unreachable!("they wait for 30 s"),
        () = third => {}
    }
    // The two clients above are gone now.
    eventually("the room is empty", async || rig.counter("in_flight").await == 0).await;
    let again = rig.get("/4");
    tokio::select! {
        _ = again => unreachable!("there is room, so it waits"),
        () = eventually("it is held", async || rig.counter("held").await == 3) => {}
    }
}

#[tokio::test]
async fn bodies_of_waiting_requests_are_bounded_in_sum() {
    let rig = rig_with(Limits { held_bytes: 10, ..limits() }).await;
    rig.route(&[]).await;
    assert_eq!(rig.post("/", "eleven byte").await.status, StatusCode::SERVICE_UNAVAILABLE);
    tokio::select! {
        _ = rig.post("/", "ten bytes.") => unreachable!("there is room, so it waits"),
        () = eventually("it is held", async || rig.counter("held").await == 1) => {}
    }
}

#[tokio::test]
async fn a_request_whose_turn_went_to_another_asks_again() {
    let turn = Duration::from_millis(20);
    let forever = Duration::from_secs(60);
    let rig =
        rig_with(Limits { workers: 1, turn, idle_upstream: forever, connect: forever, ..limits() }).await;
    let origin = Origin::start_with_one_process("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    // Only a request on a new connection asks for turns: the one that keeps the process busy must not.
    rig.get("/warm").await;
    let story = async {
        eventually("the only process is busy", async || origin.requests().len() == 2).await;
        let tell = rig.gate.open_next_late();
        let second = rig.get("/second");
        let story = async {
            eventually("the second is next", async || rig.gate.opened() == 2).await;
            let story = async {
                eventually("the third comes after it", async || rig.gate.opened() == 3).await;
                // Nothing tells that it has asked.
                tokio::time::sleep(turn * 2).await;
                origin.release();
                // The third's turn: the process takes the second's connection, and waits for its request.
                tokio::time::sleep(turn).await;
                tell.send(()).unwrap();
            };
            tokio::join!(rig.get("/third"), story).0
        };
        tokio::join!(second, story)
    };
    let (first, (second, third)) = tokio::join!(rig.get("/wait"), story);
    assert_eq!([first.status, second.status, third.status], [StatusCode::OK; 3]);
    assert_eq!(origin.requests(), ["GET /warm", "GET /wait", "GET /second", "GET /third"]);
}
