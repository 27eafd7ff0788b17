//! One change of a big table at a time in a pool.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kopek_core::big_change::{BigChange, Phase};
use kopek_core::config::SQL_PORT;
use kopek_link::{Identity, Preamble, dial_stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::ground::{Cell, Member, SOON, Server, address, answer_of, client_command, site, until};
use crate::pair::{pair, running};

/// More rows than a table may have that is changed at once.
async fn has_big_table(member: &Member, name: &str) {
    member
        .root(&format!(
            "USE mysql; CREATE TABLE {name} (id INT PRIMARY KEY, text VARCHAR(100)) ENGINE=InnoDB;
             INSERT INTO {name} SELECT seq, 'some text' FROM seq_1_to_600000"
        ))
        .await;
}

async fn client(socket: &Path, user: &str, statements: &str) -> Result<String, String> {
    crate::ground::client(socket, user, &format!("USE {user}; {statements}")).await
}

fn changing(socket: &Path, user: &str, statements: &str) -> Child {
    client_command(socket, user, &format!("USE {user}; {statements}")).stdout(Stdio::piped()).spawn().unwrap()
}

async fn outcome(child: Child) -> Result<String, String> {
    let limit = 4 * SOON;
    answer_of(timeout(limit, child.wait_with_output()).await.expect("it ends").unwrap())
}

/// What the server's `sql` has told its agent of a site.
fn told(server: &Server, name: &str) -> Vec<BigChange> {
    let changes = server.agent.sql_report().borrow().big_changes.clone();
    changes.into_iter().filter(|change| change.site == site(name)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn big_changes_of_two_sites_on_two_members_follow_one_another_with_a_rest_between() {
    let cell = Cell::new();
    let (m1, m2) = pair().await;
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1");
    let mut s2 = cell.server(2).await.with_member(&m2).with_instance("shop.1");
    for server in [&mut s1, &mut s2] {
        server.learns("blog", Some((1, 1)));
        server.learns("shop", Some((2, 1)));
    }
    has_big_table(&m1, "blog.posts").await;
    has_big_table(&m1, "shop.orders").await;
    let (blog, shop) = (s1.listens("blog.1").await, s2.listens("shop.1").await);
    client(&shop, "shop", "SELECT COUNT(*) FROM orders").await.unwrap();

    let one = changing(&blog, "blog", "ALTER TABLE posts ADD COLUMN a INT, FORCE");
    until("the first has its turn", async || told(&s1, "blog").len() == 1).await;
    let other = changing(&shop, "shop", "CREATE INDEX i ON orders (text)");
    let ends = tokio::spawn(async move { (outcome(one).await, outcome(other).await) });
    let mut together = 0;
    while !ends.is_finished() {
        let (at_m1, at_m2) = tokio::join!(running(&m1, "ALTER"), running(&m2, "CREATE INDEX"));
        together += at_m1.min(at_m2);
    }
    let (one, other) = ends.await.unwrap();
    assert_eq!((one.as_deref(), other.as_deref()), (Ok(""), Ok("")));
    assert_eq!(together, 0, "both were at their members at the same time");

    until("both ends are told", async || {
        let is_done = |name| matches!(told(&s1, name)[..], [BigChange { phase: Phase::Done { .. }, .. }]);
        is_done("blog") && is_done("shop")
    })
    .await;
    let phases = (told(&s1, "blog")[0].phase.clone(), told(&s1, "shop")[0].phase.clone());
    let (Phase::Done { since, until: first_end }, Phase::Done { since: second_since, .. }) = phases else {
        unreachable!()
    };
    let (took, rest) = (first_end.millis_since(since), second_since.millis_since(first_end));
    println!("the first took {took} ms, the second began {rest} ms later");
    assert!(rest >= took.min(2_000), "no rest after {took} ms: {rest} ms");
    assert!(told(&s2, "shop").is_empty(), "one server keeps the line");
    assert_eq!(
        m2.root("SELECT COUNT(*) FROM shop.orders USE INDEX (i) WHERE text='some text'").await,
        "600000"
    );
}

/// One database is enough: the line is kept by `sql` alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_big_change_waits_for_its_turn_as_for_a_lock_and_a_small_one_does_not() {
    let cell = Cell::new();
    let m1 = Member::new("m1").await;
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    has_big_table(&m1, "blog.posts").await;
    let blog = s1.listens("blog.1").await;
    client(&blog, "blog", "CREATE TABLE small (id INT PRIMARY KEY)").await.unwrap();

    let identity = Identity::load(&s1.dirs.etc).unwrap();
    let relay = SocketAddr::new(address(1), SQL_PORT);
    let want = Preamble::SqlTurn { site: site("shop"), table: "orders".to_owned() };
    let mut holder = dial_stream(&identity, relay, &want, SOON).await.unwrap();
    assert_eq!(timeout(SOON, holder.read_u8()).await.unwrap().unwrap(), b'!');

    let started = Instant::now();
    for quick in [
        "ALTER TABLE small ADD a INT, FORCE",
        "ALTER TABLE posts COMMENT 'quick'",
        "ALTER TABLE posts ADD COLUMN q INT, ALGORITHM=INSTANT",
        "CREATE TABLE another AS SELECT * FROM posts LIMIT 10",
        "START TRANSACTION; INSERT INTO small VALUES (1, 1); ALTER TABLE posts DROP COLUMN q, ALGORITHM=NOCOPY",
    ] {
        client(&blog, "blog", quick).await.unwrap();
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());

    let impatient = "SET lock_wait_timeout=1; ALTER TABLE posts ADD COLUMN b INT";
    let error = client(&blog, "blog", impatient).await.unwrap_err();
    assert!(error.contains("ERROR 1205 (HY000)"), "{error}");
    let goes_on =
        "SET lock_wait_timeout=0; SET @a = 7; SET STATEMENT sql_mode='' FOR ALTER TABLE posts FORCE";
    assert!(client(&blog, "blog", goes_on).await.unwrap_err().contains("ERROR 1205"));
    until("they gave up", async || {
        matches!(
            told(&s1, "blog")[..],
            [BigChange { phase: Phase::GivenUp { .. }, .. }, BigChange { phase: Phase::GivenUp { .. }, .. },]
        )
    })
    .await;

    let mut leaving = changing(&blog, "blog", "ALTER TABLE posts ADD COLUMN c INT");
    let is_waiting = |number: usize| {
        let behind = site("shop");
        matches!(&told(&s1, "blog")[..], changes if changes.len() == number
            && changes[number - 1].phase == Phase::Waiting { behind: behind.clone() })
    };
    until("it waits behind the shop", async || is_waiting(3)).await;
    leaving.kill().await.unwrap();
    until("it is gone", async || matches!(told(&s1, "blog")[2].phase, Phase::GivenUp { .. })).await;

    let staying = changing(&blog, "blog", "ALTER TABLE posts ADD COLUMN d INT, FORCE; SELECT 'done'");
    until("it waits behind the shop", async || is_waiting(4)).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(running(&m1, "ALTER").await, 0, "nothing of it is at the member");
    // As when the holder's server is killed.
    drop(holder);
    assert_eq!(outcome(staying).await.as_deref(), Ok("done"));
    until("it is done", async || matches!(told(&s1, "blog")[3].phase, Phase::Done { .. })).await;
    assert!(matches!(told(&s1, "shop")[0].phase, Phase::Left { .. }));

    let duplicate = "ALTER TABLE posts ADD UNIQUE KEY (text)";
    assert!(client(&blog, "blog", duplicate).await.unwrap_err().contains("ERROR 1062"));
    until("its error is told", async || {
        matches!(told(&s1, "blog")[4].phase, Phase::Failed { code: 1062, .. })
    })
    .await;
    let mut next = dial_stream(&identity, relay, &want, SOON).await.unwrap();
    assert_eq!(timeout(SOON, next.read_u8()).await.unwrap().unwrap(), b'!');
    next.shutdown().await.unwrap();
}

/// The pool's net below what `sql` adapts: tables that a procedure makes.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_that_a_procedure_makes_are_on_both_members_whatever_its_engine() {
    let cell = Cell::new();
    let (m1, m2) = pair().await;
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let blog = s1.listens("blog.1").await;
    for (name, engine) in [("a", "Aria"), ("m", "MyISAM")] {
        client(
            &blog,
            "blog",
            &format!(
                "CREATE PROCEDURE make_{name}() CREATE TABLE {name} (n INT) ENGINE={engine};
                 CALL make_{name}(); INSERT INTO {name} VALUES (1), (2)"
            ),
        )
        .await
        .unwrap();
        assert_eq!(rows_at(&m2, name).await, "2", "{engine}");
    }
    client(
        &blog,
        "blog",
        "SET default_storage_engine=MEMORY; CREATE TABLE s (n INT); INSERT INTO s VALUES (1)",
    )
    .await
    .unwrap();
    assert_eq!(rows_at(&m2, "s").await, "1");
}

/// Of a table of the blog, with all that was written anywhere before.
async fn rows_at(member: &Member, table: &str) -> String {
    member.root(&format!("SET wsrep_sync_wait=1; SELECT COUNT(*) FROM blog.{table}")).await
}
