//! Clients that do not keep to the protocol or ask for too much: each gets MySQL's own error or is closed, the log
//! names its site, memory stays bounded, and the other site's clients do not notice.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use crate::ground::{Cell, Member, SOON, Server, client, until, was_logged};
use crate::raw::Raw;

struct Two {
    member: Member,
    _cell: Cell,
    s1: Server,
    blog: PathBuf,
    shop: PathBuf,
}

/// Two sites on one member.
async fn two_sites() -> Two {
    two_sites_on(Member::new("m1").await).await
}

async fn two_sites_on(member: Member) -> Two {
    let cell = Cell::new();
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1").with_instance("shop.1");
    s1.learns("blog", Some((1, 1)));
    s1.learns("shop", Some((1, 1)));
    let (blog, shop) = (s1.listens("blog.1").await, s1.listens("shop.1").await);
    client(&blog, "blog", "SELECT 1").await.unwrap();
    client(&shop, "shop", "SELECT 1").await.unwrap();
    Two { member, _cell: cell, s1, blog, shop }
}

/// What a neighbour waits at most: a client process alone takes 30 ms here, more on a loaded machine.
async fn is_served(socket: &Path, user: &str) {
    let served = timeout(Duration::from_secs(5), client(socket, user, "SELECT 1")).await;
    assert_eq!(served.expect("the neighbour is served soon").unwrap(), "1");
}

/// Of this process, in which `sql` runs.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_place_of_a_login_is_a_bad_handshake_and_in_place_of_commands_the_end() {
    let two = two_sites().await;
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..60 {
        let mut garbage: Vec<u8> = (0..random.random_range(1..2_000)).map(|_| random.random()).collect();
        let mut raw = if round % 2 == 0 {
            Raw::greeted(&two.blog).await
        } else {
            Raw::logged_in(&two.blog, "blog").await
        };
        if round % 4 < 2 {
            // One whole packet of it; else its first bytes are a length.
            garbage.truncate(1_000);
            raw.send((round % 2) as u8 ^ 1, &garbage).await;
        } else {
            let _ = raw.stream.write_all(&garbage).await;
        }
        let _ = raw.stream.shutdown().await;
        assert!(raw.is_closed().await);
    }
    let mut raw = Raw::logged_in(&two.blog, "blog").await;
    raw.send(0, &vec![0x19; 2 * MIB]).await;
    assert_eq!(raw.error().await, Some(1835), "nobody closes a statement with so many words");
    let mut raw = Raw::greeted(&two.blog).await;
    raw.send(1, b"not a login").await;
    assert_eq!(raw.error().await, Some(1043));
    assert!(raw.is_closed().await);
    assert!(was_logged(&["site=blog", "does not speak the protocol"]));
    is_served(&two.blog, "blog").await;
    is_served(&two.shop, "shop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_more_than_any_login_has_is_a_bad_handshake() {
    let two = two_sites().await;
    let mut raw = Raw::greeted(&two.blog).await;
    raw.stream.write_all(&[0xff, 0xff, 0xff, 1]).await.unwrap();
    assert_eq!(raw.error().await, Some(1043));
    assert!(raw.is_closed().await);
    assert!(was_logged(&["site=blog", "does not speak the protocol"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_out_of_order_gets_mysqls_error_for_it() {
    let two = two_sites().await;
    for statement in ["SELECT 1", "INSERT INTO blog.who VALUES ('x')", "COMMIT"] {
        let mut raw = Raw::logged_in(&two.blog, "blog").await;
        raw.send(5, &[b"\x03", statement.as_bytes()].concat()).await;
        assert_eq!(raw.error().await, Some(1156), "{statement}");
        assert!(raw.is_closed().await, "{statement}");
    }
    assert!(was_logged(&["site=blog", "out of order"]));
    assert_eq!(two.member.root("SELECT COUNT(*) FROM blog.who").await, "1");
    is_served(&two.blog, "blog").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_that_never_ends_holds_nobody_up() {
    let two = two_sites().await;
    let mut held = Vec::new();
    for length in [10, 100_000, 1 << 20, 0xff_ffff] {
        let mut raw = Raw::logged_in(&two.blog, "blog").await;
        let head = [length as u8, (length >> 8) as u8, (length >> 16) as u8, 0];
        raw.stream.write_all(&[&head[..], b"\x03SELE"].concat()).await.unwrap();
        held.push(raw);
    }
    is_served(&two.blog, "blog").await;
    is_served(&two.shop, "shop").await;
    for mut raw in held {
        raw.stream.shutdown().await.unwrap();
        assert!(raw.is_closed().await);
    }
    until("the member's connections end", async || {
        let asked = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'blog' AND time > 2";
        two.member.root(asked).await == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_a_gibibyte_is_too_big_and_never_held() {
    let two = two_sites().await;
    let mut raw = Raw::logged_in(&two.blog, "blog").await;
    let before = resident();
    let packet = [&[0xff, 0xff, 0xff, 0][..], b"\x03SELECT '", &vec![b'x'; 0xff_ffff - 9]].concat();
    let most = {
        let (mut reading, mut writing) = raw.stream.split();
        let writing = async {
            for number in 0..64u8 {
                let mut packet = packet.clone();
                packet[3] = number;
                if writing.write_all(&packet).await.is_err() {
                    return number;
                }
            }
            64
        };
        let answer = async {
            let mut answer = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut answer).await;
            answer
        };
        let mut most = before;
        let watching = async {
            loop {
                most = most.max(resident());
                sleep(Duration::from_millis(5)).await;
            }
        };
        let (sent, answer) = tokio::select! {
            both = async { tokio::join!(writing, answer) } => both,
            () = watching => unreachable!(),
        };
        assert!(sent < 8, "{sent} packets of 16 MiB were taken");
        assert_eq!(answer[5..7], 1153u16.to_le_bytes(), "{answer:?}");
        most
    };
    // Two copies of the packet are the test's own.
    assert!(most < before + 64 * MIB, "{} MiB more", (most - before) / MIB);
    assert!(was_logged(&["WARN", "site=blog", "max_allowed_packet"]));
    is_served(&two.shop, "shop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_slows_only_itself() {
    let two = two_sites().await;
    let before = resident();
    let mut lazy = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::logged_in(&two.blog, "blog").await;
        raw.query("SELECT REPEAT('x', 1000000) FROM information_schema.columns").await;
        lazy.push(raw);
    }
    until("their results wait", async || {
        let asked = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'blog' AND info LIKE '%REPEAT%'";
        two.member.root(asked).await == "20"
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    let more = resident().saturating_sub(before);
    assert!(more < 32 * MIB, "{} MiB more for 20 of them", more / MIB);
    is_served(&two.blog, "blog").await;
    is_served(&two.shop, "shop").await;
    drop(lazy);
    until("the member has ended them", async || {
        let asked = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT REPEAT%'";
        two.member.root(asked).await == "0"
    })
    .await;
}

/// What nobody reads must not keep the site at its former writer.
#[tokio::test(flavor = "multi_thread")]
async fn neither_a_client_that_never_reads_nor_half_a_statement_keeps_the_writer_from_moving() {
    let (mut two, m2) = tokio::join!(two_sites(), Member::new("m2"));
    let mut s2 = two._cell.server(2).await.with_member(&m2);
    s2.learns("blog", Some((1, 1)));
    let mut lazy = Raw::logged_in(&two.blog, "blog").await;
    lazy.query("SELECT REPEAT('x', 1000000) FROM information_schema.columns").await;
    let mut half = Raw::logged_in(&two.blog, "blog").await;
    half.stream.write_all(b"\xff\xff\xff\0\x03SELECT '").await.unwrap();
    half.stream.write_all(&vec![b'x'; 2 * MIB]).await.unwrap();
    until("both are at the member", async || {
        two.member
            .root("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT REPEAT%'")
            .await
            == "1"
    })
    .await;
    for server in [&mut s2, &mut two.s1] {
        server.learns_after("blog", (2, 2), (1, 1));
    }
    let start = Instant::now();
    assert_eq!(client(&two.blog, "blog", "SELECT name FROM blog.who").await.unwrap(), "m2");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    drop((lazy, half));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_passwords_locks_nobody_out() {
    let two = two_sites().await;
    let flood = async |socket: PathBuf| {
        for _ in 0..40 {
            let mut raw = Raw::greeted(&socket).await;
            raw.log_in("blog", "wrong").await;
            while let Some((sequence, payload)) = raw.packet().await {
                match payload[0] {
                    0xfe => raw.send(sequence + 1, &[7; 20]).await,
                    _ => {
                        assert_eq!(payload[..3], [0xff, 0x15, 0x04]);
                        break;
                    }
                }
            }
        }
    };
    let floods: Vec<_> = (0..8).map(|_| tokio::spawn(flood(two.blog.clone()))).collect();
    // Connections that say nothing, which the member counts as errors of their host.
    let silent: Vec<_> = (0..20).map(|_| Raw::greeted(&two.blog)).collect();
    for silent in silent {
        drop(silent.await);
    }
    while !floods.iter().all(tokio::task::JoinHandle::is_finished) {
        is_served(&two.shop, "shop").await;
        is_served(&two.blog, "blog").await;
    }
    for flood in floods {
        flood.await.unwrap();
    }
    assert!(was_logged(&["site=blog", "access denied"]));
    is_served(&two.blog, "blog").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_above_the_pools_limit_is_refused_in_the_members_words_and_not_repeated() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let provider = format!("--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{port}");
    let member = Member::new_with(
        "m1",
        &[
            "--wsrep-on=ON",
            "--wsrep-provider=/usr/lib/galera/libgalera_smm.so",
            "--wsrep-new-cluster",
            "--wsrep-cluster-address=gcomm://",
            "--wsrep-node-address=127.0.0.1",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--wsrep-max-ws-size=65536",
            &provider,
        ],
    )
    .await;
    member.root("CREATE TABLE blog.big (id INT PRIMARY KEY, v LONGBLOB)").await;
    let two = two_sites_on(member).await;
    let big = "INSERT INTO blog.big VALUES (1, REPEAT('x', 200000))";
    let asked = async || two.member.root("SHOW GLOBAL STATUS LIKE 'Com_insert'").await;
    for statement in [big.to_owned(), format!("BEGIN; {big}; COMMIT")] {
        let before = asked().await;
        let start = Instant::now();
        let complaint = client(&two.blog, "blog", &statement).await.unwrap_err();
        assert!(complaint.contains("ERROR 1105 (HY000)"), "{complaint}");
        assert!(complaint.contains("Maximum writeset size exceeded"), "{complaint}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let times = |text: &str| text.split('\t').nth(1).unwrap().parse::<u32>().unwrap();
        // The statement itself and at most one token.
        assert!(times(&asked().await) - times(&before) <= 2, "executed again: {before}, {}", asked().await);
    }
    assert_eq!(client(&two.blog, "blog", "SELECT COUNT(*) FROM blog.big").await.unwrap(), "0");
    let small = "INSERT INTO blog.big VALUES (1, 'x'); SELECT COUNT(*) FROM blog.big";
    assert_eq!(client(&two.blog, "blog", small).await.unwrap(), "1");
    is_served(&two.shop, "shop").await;
}

/// A file system of its own for a member's data, which is gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    async fn under(member: &Member, size: &str) -> SmallDisk {
        let data = member.data();
        let aside = data.with_extension("aside");
        std::fs::rename(&data, &aside).unwrap();
        std::fs::create_dir(&data).unwrap();
        let run = async |program: &str, args: &[&str]| {
            let status = tokio::process::Command::new(program).args(args).status().await.unwrap();
            assert!(status.success(), "{program} {args:?}");
        };
        let (from, to) = (format!("{}/.", aside.display()), data.display().to_string());
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &to]).await;
        run("cp", &["-a", &from, &to]).await;
        SmallDisk(data)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_the_writers_error_and_reads_go_on_and_so_do_writes_once_there_is_room() {
    let installed = Member::installed().await;
    let disk = SmallDisk::under(&installed, "200m").await;
    let member = installed.started_with(&["--innodb-log-file-size=16M"]).await.with_accounts("m1").await;
    member
        .root("CREATE TABLE blog.big (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(7500)) CHARSET=latin1")
        .await;
    let two = two_sites_on(member).await;
    let ballast = disk.0.join("ballast");
    let room = nix::sys::statvfs::statvfs(&disk.0).unwrap();
    let free = (room.blocks_available() * room.fragment_size()) as usize;
    std::fs::write(&ballast, vec![1; free - 6 * MIB]).unwrap();
    let fill = "INSERT INTO blog.big (v) VALUES (REPEAT('x', 7000));".repeat(500);
    let mut complaint = String::new();
    for _ in 0..20 {
        if let Err(error) = timeout(SOON, client(&two.blog, "blog", &fill)).await.expect("an answer") {
            complaint = error;
            break;
        }
    }
    assert!(complaint.contains("ERROR 1114 (HY000)"), "{complaint}");
    is_served(&two.shop, "shop").await;
    is_served(&two.blog, "blog").await;
    assert_eq!(client(&two.blog, "blog", "SELECT COUNT(*) > 10 FROM blog.big").await.unwrap(), "1");
    std::fs::remove_file(&ballast).unwrap();
    let again = "INSERT INTO who VALUES ('again'); SELECT COUNT(*) FROM who";
    for (socket, site) in [(&two.shop, "shop"), (&two.blog, "blog")] {
        assert_eq!(client(socket, site, &format!("USE {site}; {again}")).await.unwrap(), "2");
    }
}
