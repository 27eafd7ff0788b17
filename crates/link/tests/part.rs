//! Parts from the agent to its neighbours, over the real socket.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_core::part::{EdgePart, FilesPart, FilesReport};
use kopek_link::{Following, Parts, follow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

fn dirs(folder: &tempfile::TempDir) -> Dirs {
    Dirs { state: folder.path().join("state"), run: folder.path().join("run"), ..Dirs::default() }
}

fn part(server: &str) -> EdgePart {
    EdgePart { server: ServerId::parse(server).unwrap(), routes: Default::default() }
}

async fn comes<T: Clone>(channel: &mut watch::Receiver<T>, right: impl FnMut(&T) -> bool) -> T {
    timeout(Duration::from_secs(5), channel.wait_for(right)).await.expect("it came").unwrap().clone()
}

#[tokio::test]
async fn a_follower_gets_what_was_published_before_and_after_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    parts.publish(part("before"));
    let mut following: Following<EdgePart> = follow(&dirs(&folder));
    comes(&mut following.part, |seen| *seen == Some(part("before"))).await;
    parts.publish(part("after"));
    comes(&mut following.part, |seen| *seen == Some(part("after"))).await;
}

#[tokio::test]
async fn a_follower_goes_on_without_the_agent_and_follows_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    parts.publish(part("first"));
    let mut following: Following<EdgePart> = follow(&dirs(&folder));
    comes(&mut following.part, |seen| *seen == Some(part("first"))).await;
    drop(parts);
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    comes(&mut parts.connected("edge"), |connected| *connected).await;
    assert_eq!(
        *following.part.borrow(),
        Some(part("first")),
        "an agent without a part yet takes nothing away"
    );
    parts.publish(part("second"));
    comes(&mut following.part, |seen| *seen == Some(part("second"))).await;
}

#[tokio::test]
async fn a_follower_that_starts_without_an_agent_has_the_last_part() {
    let folder = tempfile::tempdir().unwrap();
    let cache = dirs(&folder).state.join("parts/edge.json");
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    parts.publish(part("kept"));
    let mut following: Following<EdgePart> = follow(&dirs(&folder));
    comes(&mut following.part, |seen| seen.is_some()).await;
    timeout(Duration::from_secs(5), async {
        while !cache.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(parts);
    std::fs::remove_file(dirs(&folder).agent_socket()).unwrap();
    let again: Following<EdgePart> = follow(&dirs(&folder));
    assert_eq!(*again.part.borrow(), Some(part("kept")));
    std::fs::write(cache, "{\"server\":").unwrap();
    let damaged: Following<EdgePart> = follow(&dirs(&folder));
    assert_eq!(*damaged.part.borrow(), None);
}

#[tokio::test]
async fn a_files_part_from_the_disk_is_not_confirmed_by_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let cache = dirs(&folder).state.join("parts/files.json");
    let confirmed = FilesPart {
        server: ServerId::parse("s1").unwrap(),
        confirmed: Some(7),
        images: Default::default(),
        volumes: Default::default(),
        peers: Default::default(),
        gates: Default::default(),
    };
    std::fs::create_dir_all(cache.parent().unwrap()).unwrap();
    std::fs::write(cache, serde_json::to_vec(&confirmed).unwrap()).unwrap();
    let mut following: Following<FilesPart> = follow(&dirs(&folder));
    assert_eq!(*following.part.borrow(), Some(FilesPart { confirmed: None, ..confirmed.clone() }));
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    parts.publish(confirmed.clone());
    comes(&mut following.part, |seen| *seen == Some(confirmed.clone())).await;
}

#[tokio::test]
async fn reports_reach_the_agent_and_are_repeated_to_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    let following: Following<FilesPart> = follow(&dirs(&folder));
    let digest = kopek_core::Digest::parse(&"ab".repeat(32)).unwrap();
    let report = FilesReport { images: vec![digest], ..FilesReport::default() };
    following.report.send(serde_json::to_value(&report).unwrap()).await.unwrap();
    comes(&mut parts.files_report(), |seen| *seen == report).await;
    drop(parts);
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    comes(&mut parts.files_report(), |seen| *seen == report).await;
}

#[tokio::test]
async fn the_agent_sees_who_follows() {
    let folder = tempfile::tempdir().unwrap();
    let parts = Parts::serve(&dirs(&folder)).await.unwrap();
    let mut connected = parts.connected("edge");
    let connect = async || {
        let mut stream = tokio::net::UnixStream::connect(dirs(&folder).agent_socket()).await.unwrap();
        stream.write_all(b"{\"follow\":\"edge\"}\n").await.unwrap();
        stream
    };
    let mut first = connect().await;
    comes(&mut connected, |connected| *connected).await;
    // The next process follows before the one that it replaces has left.
    parts.publish(part("s1"));
    let mut second = connect().await;
    second.read_u8().await.unwrap();
    first.shutdown().await.unwrap();
    timeout(Duration::from_secs(5), first.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    assert!(*connected.borrow(), "the second one still follows");
    drop(second);
    comes(&mut connected, |connected| !*connected).await;
    let mode = std::fs::metadata(dirs(&folder).agent_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody but root may follow");
}

#[tokio::test]
async fn a_line_without_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let _parts = Parts::serve(&dirs(&folder)).await.unwrap();
    let mut stream = tokio::net::UnixStream::connect(dirs(&folder).agent_socket()).await.unwrap();
    let chunk = vec![b'x'; 1 << 20];
    let cut = async {
        for _ in 0..64 {
            if stream.write_all(&chunk).await.is_err() {
                return true;
            }
        }
        stream.read_u8().await.is_err()
    };
    assert!(timeout(Duration::from_secs(20), cut).await.unwrap());
}
