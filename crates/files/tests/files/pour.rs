use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kopek_core::config::GATE_PORT;
use kopek_link::{Identity, Preamble, Welcome, dial_stream, read_preamble, send_welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::words::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_poured_from_a_server_that_has_its_tree() {
    let cell = cell();
    let (mut one, mut two) = (cell.server("s1").await, cell.server("s2").await);
    let tree = tree(&one.trees(), &[("index.php", "hello"), ("a/b.txt", "b")]);
    two.wants(|part| {
        part.volumes.insert(site("blog"), volume(&tree, 1));
        part.peers.insert(server_id("s1"), one.gate());
    });
    let report = two.reports(|report| report.volumes.contains_key(&site("blog"))).await;
    let seen = &report.volumes[&site("blog")];
    assert_eq!((&seen.tree, seen.files, seen.bytes.0), (&tree.digest, 2, 6));
    assert_eq!(read(&two.dirs.volume_tree(&site("blog")), "index.php").unwrap(), "hello");
    assert!(report.troubles.is_empty());
    // Whoever fetched it hands it on.
    let mut three = cell.server("s3").await;
    one.stop().await;
    three.wants(|part| {
        part.images.push(tree.digest.clone());
        part.peers.insert(server_id("s1"), one.gate());
        part.peers.insert(server_id("s2"), two.gate());
    });
    three.reports(|report| report.images == [tree.digest.clone()]).await;
    assert_eq!(read(&three.dirs.image_root(&tree.digest), "a/b.txt").unwrap(), "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_is_reported_and_comes_as_soon_as_somebody_does() {
    let cell = cell();
    let (one, mut two) = (cell.server("s1").await, cell.server("s2").await);
    let shelf = temp();
    let tree = tree(shelf.path(), &[("index.php", "late")]);
    two.wants(|part| {
        part.volumes.insert(site("blog"), volume(&tree, 1));
        part.peers.insert(server_id("s1"), one.gate());
    });
    let report = two.reports(|report| !report.troubles.is_empty()).await;
    let trouble = &report.troubles[&tree.digest];
    assert!(trouble.contains("no server has it: s1: ") && trouble.contains("it is not here"), "{trouble}");
    fs::rename(&tree.path, one.dirs.packed_tree(&tree.digest)).unwrap();
    let report = two.reports(|report| report.volumes.contains_key(&site("blog"))).await;
    assert!(report.troubles.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_trees_are_found_again_after_a_restart_and_a_deploy_replaces_them() {
    let cell = cell();
    let mut server = cell.server("s1").await;
    let one = tree(&server.trees(), &[("index.php", "1")]);
    let two = tree(&server.trees(), &[("index.php", "2")]);
    server.wants(|part| {
        part.volumes.insert(site("blog"), volume(&one, 1));
        part.images.push(one.digest.clone());
    });
    server.reports(|report| report.images.len() + report.volumes.len() == 2).await;
    server.stop().await;
    // Without its packed tree nothing could be poured again.
    fs::remove_file(&one.path).unwrap();
    server.agent = kopek_link::Parts::serve(&server.dirs).await.unwrap();
    server.start().await;
    server.reports(|report| report.images.len() + report.volumes.len() == 2).await;

    server.wants(|part| drop(part.volumes.insert(site("blog"), volume(&two, 1))));
    server
        .reports(|report| report.volumes.get(&site("blog")).is_some_and(|seen| seen.tree == two.digest))
        .await;
    assert_eq!(read(&server.dirs.volume_tree(&site("blog")), "index.php").unwrap(), "2");
    server.wants(|part| {
        part.volumes.clear();
        part.images.clear();
    });
    server.reports(|report| report.volumes.is_empty() && report.images.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_site_of_the_same_name_finds_no_file_of_the_earlier_one() {
    let cell = cell();
    let mut server = cell.server("s1").await;
    let tree = tree(&server.trees(), &[("index.php", "1")]);
    let live = server.dirs.volume_tree(&site("blog"));
    let half = live.parent().unwrap().with_file_name(".gone-blog");
    fill(&half, &[("tree/x", "of a removal that was interrupted")]);
    server.wants(|part| drop(part.volumes.insert(site("blog"), volume(&tree, 1))));
    server.reports(|report| report.volumes.contains_key(&site("blog"))).await;
    assert!(!half.exists());
    fill(&live, &[("uploads/secret.jpg", "theirs")]);
    // Deleted and created again so quickly that no part without it was seen.
    server.wants(|part| drop(part.volumes.insert(site("blog"), volume(&tree, 2))));
    server.reports(|report| report.volumes.get(&site("blog")).is_some_and(|seen| seen.number == 2)).await;
    assert_eq!(read(&live, "index.php").unwrap(), "1");
    assert!(!live.join("uploads").exists());
    // A deploy of the same site keeps what the site wrote.
    fill(&live, &[("uploads/own.jpg", "own")]);
    let next = crate::words::tree(&server.trees(), &[("index.php", "2")]);
    server.wants(|part| drop(part.volumes.insert(site("blog"), volume(&next, 2))));
    server
        .reports(|report| report.volumes.get(&site("blog")).is_some_and(|seen| seen.tree == next.digest))
        .await;
    assert_eq!(read(&live, "uploads/own.jpg").unwrap(), "own");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_deleted_sites_are_removed_but_not_on_the_word_of_an_old_part() {
    let cell = cell();
    let mut server = cell.server("s1").await;
    let tree = tree(&server.trees(), &[("index.php", "1")]);
    let folder = |name: &str| server.dirs.volume_tree(&site(name)).parent().unwrap().to_owned();
    let (blog, shop, half) = (folder("blog"), folder("shop"), folder("blog").with_file_name(".gone-old"));
    fill(&half, &[("tree/x", "x")]);
    server.wants(|part| {
        part.confirmed = None;
        part.volumes.insert(site("blog"), volume(&tree, 1));
        part.volumes.insert(site("shop"), volume(&tree, 2));
    });
    server.reports(|report| report.volumes.len() == 2).await;
    // An agent without an assignment, as after a restart without the store.
    server.wants(|part| part.volumes.clear());
    server.reports(|report| report.volumes.is_empty()).await;
    server.wants(|part| part.volumes = [(site("shop"), volume(&tree, 2))].into());
    server.reports(|report| report.volumes.len() == 1).await;
    assert!(blog.exists() && shop.exists() && half.exists());

    server.wants(|part| part.confirmed = Some(1));
    let gone = async {
        while blog.exists() || half.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.unwrap();
    assert_eq!(read(&shop, "tree/index.php").unwrap(), "1");
}

/// A server of the cell whose disk or memory is damaged: it sends `bytes` for every tree, and ends the stream
/// properly or not.
async fn damaged_server(
    identity: Identity,
    address: SocketAddr,
    bytes: Vec<u8>,
    end: End,
) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(address).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = identity.acceptor().accept(stream).await.unwrap();
            assert!(matches!(read_preamble(&mut stream).await.unwrap(), Preamble::Tree { .. }));
            count.fetch_add(1, Ordering::SeqCst);
            send_welcome(&mut stream, &Welcome::Open { bytes: None }).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
            if let End::Proper = end {
                stream.shutdown().await.unwrap();
            }
        }
    });
    asked
}

#[derive(Clone, Copy)]
enum End {
    Proper,
    Broken,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_transfer_is_refused_and_fetched_from_another_server() {
    let cell = cell();
    let (good, mut server) = (cell.server("s4").await, cell.server("s1").await);
    let tree = tree(&good.trees(), &[("index.php", "precious")]);
    let whole = fs::read(&tree.path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut asked = Vec::new();
    for (name, bytes, end) in
        [("s2", flipped, End::Proper), ("s3", whole[..whole.len() / 2].to_vec(), End::Broken)]
    {
        let address = SocketAddr::new(fresh_address(), GATE_PORT);
        asked.push(damaged_server(cell.identity(name, address.ip()), address, bytes, end).await);
        server.part.peers.insert(server_id(name), address);
    }
    server.wants(|part| {
        part.volumes.insert(site("blog"), volume(&tree, 1));
        part.peers.insert(server_id("s4"), good.gate());
    });
    server.reports(|report| report.volumes.contains_key(&site("blog"))).await;
    assert_eq!(asked.iter().map(|asked| asked.load(Ordering::SeqCst)).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(fs::read(server.dirs.packed_tree(&tree.digest)).unwrap(), whole);
    assert_eq!(fs::read_dir(server.trees()).unwrap().count(), 1, "nothing unfinished is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_was_damaged_on_our_own_disk_is_fetched_anew() {
    let cell = cell();
    let (one, mut two) = (cell.server("s1").await, cell.server("s2").await);
    let tree = tree(&one.trees(), &[("index.php", "precious")]);
    fs::write(two.dirs.packed_tree(&tree.digest), b"rubbish").unwrap();
    two.wants(|part| {
        part.images.push(tree.digest.clone());
        part.peers.insert(server_id("s1"), one.gate());
    });
    two.reports(|report| report.images.len() == 1 && report.troubles.is_empty()).await;
    assert_eq!(read(&two.dirs.image_root(&tree.digest), "index.php").unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_go_to_servers_of_the_cell_only() {
    let (cell, other_cell) = (cell(), cell());
    let server = cell.server("s1").await;
    let tree = tree(&server.trees(), &[("index.php", "secret")]);
    let preamble = Preamble::Tree { digest: tree.digest };
    let limit = std::time::Duration::from_secs(5);
    for stranger in [cell.admin(), other_cell.identity("s2", server.address)] {
        dial_stream(&stranger, server.gate(), &preamble, limit).await.map(drop).unwrap_err();
    }
    let mut stream =
        dial_stream(&cell.identity("s2", server.address), server.gate(), &preamble, limit).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, fs::read(&tree.path).unwrap());
}
