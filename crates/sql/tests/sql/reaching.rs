//! Who reaches which database, and who does not.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kopek_core::InstanceId;
use kopek_core::config::{Dirs, SQL_PORT};
use kopek_link::{Csr, DialError, Identity, Parts, Preamble, dial_stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::ground::{
    Cell, Member, SOON, address, answer_of, client, client_command, long_statement, site, until,
};

const WHO: &str = "SELECT CONCAT(name, ' ', CURRENT_USER()) FROM blog.who";

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_reaches_its_own_database_on_its_own_server_and_no_other_sites() {
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1").with_instance("shop.1");
    s1.learns("blog", Some((1, 1)));
    s1.learns("shop", Some((1, 1)));
    let (blog, shop) = (s1.listens("blog.1").await, s1.listens("shop.1").await);
    assert_eq!(std::fs::metadata(&blog).unwrap().permissions().mode() & 0o777, 0o666);
    assert_eq!(client(&blog, "blog", WHO).await.unwrap(), "m1 blog@127.1.0.5");
    let refused = client(&shop, "blog", "SELECT 1").await.unwrap_err();
    assert!(refused.contains("Access denied for user 'blog'@'127.1.0.6'"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_reaches_the_writer_on_another_server_byte_for_byte() {
    let (cell, member) = (Cell::new(), Member::new("m2").await);
    let mut s1 = cell.server(1).await.with_instance("blog.1");
    let mut s2 = cell.server(2).await.with_member(&member);
    s1.learns("blog", Some((2, 1)));
    s2.learns("blog", Some((2, 1)));
    let socket = s1.listens("blog.1").await;
    assert_eq!(client(&socket, "blog", WHO).await.unwrap(), "m2 blog@127.1.0.5");

    let up = "0123456789".repeat(10_000);
    let back = client(&socket, "blog", &format!("SELECT REPEAT('{up}', 200)")).await.unwrap();
    assert!(back == up.repeat(200), "20 MB came back changed ({} bytes)", back.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_waits_for_the_writer_and_for_a_member_that_is_still_starting() {
    let (cell, mut member) = (Cell::new(), Member::new("m1").await);
    member.process.kill().await.unwrap();
    let mut s1 = cell.server(1).await.with_instance("blog.1");
    s1.learns("blog", None);
    let socket = s1.listens("blog.1").await;
    let mut waiting = client_command(&socket, "blog", WHO).spawn().unwrap();
    sleep(Duration::from_millis(500)).await;
    s1.part.member = Some(member.address());
    s1.learns("blog", Some((1, 1)));
    sleep(Duration::from_millis(500)).await;
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    let _member = member.started().await;
    let served = timeout(SOON, waiting.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(answer_of(served).unwrap(), "m1 blog@127.1.0.5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_waited_in_vain_gets_an_error_with_the_sites_name() {
    let cell = Cell::new();
    let mut s1 = cell.server(1).await.with_instance("blog.1");
    s1.learns("blog", None);
    let socket = s1.listens("blog.1").await;
    let start = Instant::now();
    let complaint = client(&socket, "blog", "SELECT 1").await.unwrap_err();
    assert!(
        complaint.contains("1047") && complaint.contains("no database writer for site blog now"),
        "{complaint}"
    );
    let waited = start.elapsed();
    assert!((9..13).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_256_waiting_sleepers_of_a_site_are_turned_away_at_once() {
    let cell = Cell::new();
    let mut s1 = cell.server(1).await.with_instance("blog.1").with_instance("shop.1");
    s1.learns("blog", None);
    s1.learns("shop", None);
    let (socket, other) = (s1.listens("blog.1").await, s1.listens("shop.1").await);
    let mut waiting = Vec::new();
    for _ in 0..256 {
        waiting.push(UnixStream::connect(&socket).await.unwrap());
    }
    // One of these may have been turned away already: the connection that found the socket was still counted.
    until("one too many is turned away", async || {
        let mut packet = Vec::new();
        let mut late = UnixStream::connect(&socket).await.unwrap();
        let ended = timeout(Duration::from_millis(200), late.read_to_end(&mut packet)).await.is_ok();
        waiting.push(late);
        ended && packet[3..].starts_with(&[0, 0xff, 0x10, 0x04]) && packet.ends_with(b"of site blog")
    })
    .await;
    let mut neighbour = UnixStream::connect(&other).await.unwrap();
    timeout(Duration::from_millis(300), neighbour.read_u8()).await.expect_err("the other site's waits");
    let left = Instant::now();
    drop(waiting);
    until("places are free again", async || {
        let mut next = UnixStream::connect(&socket).await.unwrap();
        timeout(Duration::from_millis(200), next.read_u8()).await.is_err()
    })
    .await;
    // Places whose clients left unnoticed would be free only after 10 s.
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_has_512_connections_and_no_more_while_another_has_its_own() {
    // Each has four ends in this process, and shells often allow 1024.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1").with_instance("shop.1");
    s1.learns("blog", Some((1, 1)));
    s1.learns("shop", Some((1, 1)));
    let (blog, shop) = (s1.listens("blog.1").await, s1.listens("shop.1").await);
    // The first word on a connection: the member's greeting (protocol version 10) or an error packet.
    let first_word = async |socket: &Path| {
        let mut connection = UnixStream::connect(socket).await.unwrap();
        let mut packet = [0; 7];
        timeout(SOON, connection.read_exact(&mut packet)).await.expect("a first word").unwrap();
        (connection, packet[4..].to_vec())
    };
    let mut open = Vec::new();
    // The connection that found the socket may still count.
    until("512 are not too many", async || {
        while open.len() < 512 {
            let (connection, word) = first_word(&blog).await;
            if word[0] != 10 {
                return false;
            }
            open.push(connection);
        }
        true
    })
    .await;
    assert_eq!(first_word(&blog).await.1, [0xff, 0x10, 0x04], "one too many");
    assert_eq!(first_word(&shop).await.1[0], 10, "the other site's");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_takes_only_servers_and_only_the_right_epoch() {
    let (cell, member) = (Cell::new(), Member::new("m2").await);
    let mut s2 = cell.server(2).await.with_member(&member);
    s2.learns("blog", Some((2, 7)));
    let relay = SocketAddr::new(address(2), SQL_PORT);
    let s1 = Identity::load(&cell.server(1).await.dirs.etc).unwrap();
    let csr = Csr::new().unwrap();
    let cert = cell.authority.issue_admin(&csr.csr_pem, "ann").unwrap();
    let admin = Identity::from_pem(cell.authority.ca_pem(), &cert, &csr.key_pem).unwrap();

    let want = |name: &str, epoch| Preamble::Sql { site: site(name), epoch };
    until("the right epoch is taken", async || dial_stream(&s1, relay, &want("blog", 7), SOON).await.is_ok())
        .await;
    for (identity, want, reason) in [
        (&s1, want("blog", 6), "s2 serves site blog in epoch 7, not 6"),
        (&s1, want("blog", 8), "s2 serves site blog in epoch 7, not 8"),
        (&s1, want("shop", 7), "s2 does not serve site shop"),
        (&s1, Preamble::Gate { instance: InstanceId::parse("blog.1").unwrap() }, "database connections only"),
        (&admin, want("blog", 7), "only servers of the cell"),
    ] {
        match dial_stream(identity, relay, &want, SOON).await {
            Err(DialError::Refused { why, .. }) => assert!(why.contains(reason), "{why}"),
            outcome => panic!("{want:?} led to {outcome:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_goes_on_and_even_starts_again_while_the_agent_is_gone() {
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let socket = s1.listens("blog.1").await;
    let cache = s1.dirs.state.join("parts/sql.json");
    until("the part is kept", async || cache.exists()).await;
    let nobody = TempDir::new().unwrap();
    let elsewhere = Dirs { run: nobody.path().into(), ..Dirs::default() };
    drop(std::mem::replace(&mut s1.agent, Parts::serve(&elsewhere).await.unwrap()));
    std::fs::remove_file(s1.dirs.agent_socket()).unwrap();
    assert_eq!(client(&socket, "blog", WHO).await.unwrap(), "m1 blog@127.1.0.5");
    s1.stop().await;
    assert!(UnixStream::connect(&socket).await.is_err(), "nobody listens between the two");
    s1.start();
    assert_eq!(client(&s1.listens("blog.1").await, "blog", WHO).await.unwrap(), "m1 blog@127.1.0.5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_was_removed_is_made_again_and_one_that_leaves_the_part_is_removed() {
    let cell = Cell::new();
    let mut s1 = cell.server(1).await.with_instance("blog.1");
    s1.learns("blog", None);
    let socket = s1.listens("blog.1").await;
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    s1.listens("blog.1").await;
    s1.part.listeners.clear();
    s1.learns("blog", None);
    until("the socket is gone", async || !socket.exists()).await;
}

struct Netns(String);

impl Netns {
    async fn new() -> Netns {
        let namespace = Netns(format!("ks{}", std::process::id()));
        namespace.make().await;
        namespace
    }

    async fn make(&self) {
        ip(&["netns", "add", &self.0]).await;
        ip(&["-n", &self.0, "link", "set", "lo", "up"]).await;
    }

    /// As for an instance that is made anew under the same name.
    async fn replace(&self) {
        ip(&["netns", "del", &self.0]).await;
        self.make().await;
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    async fn ask(&self, statements: &str) -> Result<String, String> {
        let client = ["mariadb", "--no-defaults", "-N", "-B", "-h127.0.0.1", "-P3306", "-ublog", "-psecret"];
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(client).args(["-e", statements]);
        answer_of(command.output().await.unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

async fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().await.unwrap().success(), "ip {arguments:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_finds_mysql_on_its_own_loopback_also_in_a_namespace_made_anew() {
    let (cell, member, namespace) = (Cell::new(), Member::new("m1").await, Netns::new().await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.part.listeners.get_mut(&InstanceId::parse("blog.1").unwrap()).unwrap().netns = namespace.path();
    s1.learns("blog", Some((1, 1)));
    let is_served = async || namespace.ask(WHO).await == Ok("m1 blog@127.1.0.5".to_owned());
    until("127.0.0.1:3306 answers", is_served).await;
    assert!(tokio::net::TcpStream::connect("127.0.0.1:3306").await.is_err(), "the host's own is untouched");

    namespace.replace().await;
    until("it answers in the new namespace", is_served).await;

    let session = long_statement(&s1.listens("blog.1").await);
    until("the session runs", async || member.sleepers_of("blog").await == "1").await;
    s1.part.listeners.clear();
    s1.learns("blog", Some((1, 1)));
    let cut = timeout(SOON, session.wait_with_output()).await.expect("cut").unwrap();
    answer_of(cut).unwrap_err();
    let is_refused =
        async || namespace.ask(WHO).await.is_err_and(|complaint| complaint.contains("Can't connect"));
    until("nobody listens any more", is_refused).await;
}
