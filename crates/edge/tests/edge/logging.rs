use hyper::Method;
use tokio::io::AsyncWriteExt;

use crate::origin::Origin;
use crate::rig::{Rig, eventually, here, rig};

async fn lines(rig: &Rig, number: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(rig.access_log("blog")).unwrap_or_default();
    eventually("the lines are written", async || read().lines().count() >= number).await;
    read().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn each_request_becomes_one_line_in_combined_format_whatever_it_says() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    let headers = [("referer", "http://x.org/"), ("user-agent", "curl/8")];
    rig.send(Method::GET, "/who?a=1", "", &headers).await;
    rig.send(Method::GET, "/who", "", &[("user-agent", "x\" 200 1\t\"")]).await;
    let lines = lines(&rig, 2).await;
    let mut ends = Vec::new();
    for line in &lines {
        let (client, rest) = line.split_once(" - - [").unwrap();
        let (time, rest) = rest.split_once("] ").unwrap();
        assert_eq!(client, "127.0.0.1");
        jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).unwrap().to_timestamp().unwrap();
        ends.push(rest);
    }
    // The two came on different connections, perhaps to different workers.
    ends.sort_unstable_by_key(|end| end.len());
    assert_eq!(
        ends,
        [
            "\"GET /who HTTP/1.1\" 200 1 \"-\" \"x\\x22 200 1\\x09\\x22\"",
            "\"GET /who?a=1 HTTP/1.1\" 200 1 \"http://x.org/\" \"curl/8\"",
        ]
    );
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_is_logged_as_such() {
    let rig = rig().await;
    let origin = Origin::start("a").await;
    rig.gate.lead("blog.1", origin.address);
    rig.route(&[here("blog.1")]).await;
    let mut stream = rig.connect().await;
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: blog.org\r\n\r\n").await.unwrap();
    eventually("it is under way", async || origin.requests().len() == 1).await;
    drop(stream);
    assert!(lines(&rig, 1).await[0].ends_with("\"GET /wait HTTP/1.1\" 499 0 \"-\" \"-\""));
    assert_eq!(rig.counter("in_flight").await, 0);
}
