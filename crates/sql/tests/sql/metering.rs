//! What is counted and what is limited.

use std::io::{Seek, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kopek_core::Micros;
use kopek_core::desired::DatabaseLimits;
use kopek_core::meter::{Counts, Metered, SiteMeter};
use mysql_async::prelude::Queryable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::sleep;

use crate::ground::{Cell, Member, Server, until};

/// One site, `blog`, on one server with its database.
struct Rig {
    member: Option<Member>,
    server: Server,
    socket: PathBuf,
    _cell: Cell,
}

impl Rig {
    async fn new(limits: DatabaseLimits) -> Rig {
        let member = Member::new("m1").await;
        member.root("CREATE TABLE blog.t (id INT PRIMARY KEY AUTO_INCREMENT, secret TEXT)").await;
        let cell = Cell::new();
        let mut server = cell.server(1).await.with_member(&member).with_instance("blog.1");
        server.learns("blog", Some((1, 1)));
        server.limits("blog", limits);
        let socket = server.listens("blog.1").await;
        // What looks whether the socket is there is no client of these tests.
        let rig = Rig { member: Some(member), server, socket, _cell: cell };
        until("nobody is there", async || rig.counts().await.connected == 0).await;
        rig
    }

    /// What the site sees, its complaints included; goes on after an error.
    async fn site(&self, statements: &str) -> String {
        let output = self.client(statements).output().await.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap().trim().to_owned()
    }

    fn client(&self, statements: &str) -> Command {
        let mut command = Command::new("mariadb");
        command.args([
            "--no-defaults",
            "-N",
            "-B",
            "--force",
            "--skip-reconnect",
            "-ublog",
            "-psecret",
            "blog",
        ]);
        command.arg(format!("--socket={}", self.socket.display()));
        // By standard input: with `-e` it ends at the first error whatever it is told.
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(statements.as_bytes()).unwrap();
        input.rewind().unwrap();
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// A client that prepares what it asks, by the binary protocol.
    async fn prepares(&self) -> mysql_async::Conn {
        let options = mysql_async::OptsBuilder::default()
            .socket(Some(self.socket.to_str().unwrap()))
            .user(Some("blog"))
            .pass(Some("secret"))
            .db_name(Some("blog"));
        mysql_async::Conn::new(options).await.unwrap()
    }

    async fn meter(&self) -> SiteMeter {
        serde_json::from_str(&self.status("site blog").await).unwrap()
    }

    async fn counts(&self) -> Counts {
        self.meter().await.metered.counts
    }

    async fn status(&self, question: &str) -> String {
        let mut stream = UnixStream::connect(self.server.dirs.sql_socket()).await.unwrap();
        stream.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// How often a statement was executed, with how many rows and errors.
fn top(metered: &Metered, text: &str) -> (u64, u64, u64) {
    let one = metered.top.iter().find(|one| one.text == text);
    let one = one.unwrap_or_else(|| panic!("{text}: {:?}", metered.top));
    (one.count, one.rows, one.errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_site_asks_is_counted_by_class_and_digest_and_without_its_secrets() {
    let rig = Rig::new(DatabaseLimits::default()).await;
    let idle = rig.meter().await;
    assert_eq!((idle.metered.counts.clone(), idle.server.as_str()), (Counts::default(), "s1"));
    let statements = "INSERT INTO t (secret) VALUES ('hidden1'), ('hidden2');
        SELECT * FROM t WHERE secret = 'hidden1'; SELECT * FROM t WHERE secret = 'hidden2';
        UPDATE t SET secret = 'hidden3'; SELECT id FROM t; SELECT wrong FROM t; SELECT SLEEP(1.1)";
    let seen = rig.site(statements).await;
    assert!(seen.contains("Unknown column 'wrong'"), "{seen}");
    let meter = rig.meter().await;
    let counts = &meter.metered.counts;
    // Two rows for the three selects, one for SLEEP; the client asks for nothing of its own in this mode.
    assert_eq!((counts.reads, counts.writes, counts.errors), (5, 2, 1), "{counts:?}");
    assert_eq!((counts.rows_sent, counts.rows_changed), (1 + 1 + 2 + 1, 2 + 2), "{counts:?}");
    assert_eq!((counts.connections, counts.repeated_statements), (1, 0), "{counts:?}");
    assert!(counts.bytes_in > 200 && counts.bytes_out > 300, "{counts:?}");
    assert_eq!(meter.metered.latency.total(), counts.statements());
    assert!(meter.metered.latency.quantile(1_000).unwrap() > Micros(1_100_000));
    until("it is gone", async || rig.counts().await.connected == 0).await;

    assert_eq!(meter.metered.top[0].text, "SELECT SLEEP (?)", "{:?}", meter.metered.top);
    assert_eq!(top(&meter.metered, "SELECT * FROM t WHERE secret = ?"), (2, 2, 0));
    assert_eq!(top(&meter.metered, "SELECT wrong FROM t"), (1, 0, 1));
    let slow = &meter.metered.slow;
    assert_eq!((slow.len(), &slow[0].text[..], slow[0].rows), (1, "SELECT SLEEP (?)", 1), "{slow:?}");
    assert!(!serde_json::to_string(&meter).unwrap().contains("hidden"));

    let all: Vec<SiteMeter> = serde_json::from_str(&rig.status("sites").await).unwrap();
    let [SiteMeter { site, metered: Metered { counts, top, .. }, .. }] = &all[..] else { panic!("{all:?}") };
    assert_eq!((site.as_str(), counts, &top[..]), ("blog", &rig.counts().await, &[][..]));
    let metrics = rig.status("metrics").await;
    for line in [
        "kopek_sql_statements_total{site=\"blog\",class=\"read\"} 5",
        "kopek_sql_errors_total{site=\"blog\"} 1",
        "kopek_sql_statement_seconds_bucket{site=\"blog\",le=\"1.048576\"} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_is_counted_at_each_execution() {
    let rig = Rig::new(DatabaseLimits::default()).await;
    let mut client = rig.prepares().await;
    let before = rig.counts().await;
    let insert = client.prep("INSERT INTO t (secret) VALUES (?), (?)").await.unwrap();
    client.exec_drop(&insert, ("hidden1", "hidden2")).await.unwrap();
    let select = client.prep("SELECT secret FROM t WHERE secret > ?").await.unwrap();
    for _ in 0..3 {
        let seen: Vec<String> = client.exec(&select, ("hidden1",)).await.unwrap();
        assert_eq!(seen, ["hidden2"]);
    }
    client.close(select).await.unwrap();
    let unknown = client.exec_drop(&insert, ("hidden3", vec![b'x'; 2 << 20])).await;
    assert!(unknown.is_err(), "a TEXT has 64 KiB");
    let metered = rig.meter().await.metered;
    let counts = &metered.counts;
    let grown = (counts.reads - before.reads, counts.writes - before.writes, counts.others - before.others);
    // Others: the two that were prepared.
    assert_eq!(grown, (3, 2, 2), "{counts:?}");
    assert_eq!((counts.rows_sent - before.rows_sent, counts.rows_changed), (3, 2), "{counts:?}");
    assert_eq!(top(&metered, "SELECT secret FROM t WHERE secret > ?"), (3, 3, 0));
    assert_eq!(top(&metered, "INSERT INTO t(secret) VALUES (?)"), (2, 2, 1));
    assert!(counts.bytes_in - before.bytes_in > 2 << 20, "{counts:?}");
    assert!(!serde_json::to_string(&metered).unwrap().contains("hidden"));

    // By text they are statements of their own.
    let before = rig.counts().await;
    rig.site("PREPARE p FROM 'SELECT id FROM t WHERE secret = ?'; SET @a = 'hidden'; EXECUTE p USING @a")
        .await;
    assert_eq!(rig.counts().await.others - before.others, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_done_again_after_the_loss_of_its_member_counts_once() {
    let mut rig = Rig::new(DatabaseLimits::default()).await;
    let mut client = rig.prepares().await;
    client.query_drop("START TRANSACTION").await.unwrap();
    client.query_drop("INSERT INTO t (secret) VALUES ('a')").await.unwrap();
    let before = rig.counts().await;
    let member = rig.member.take().unwrap();
    rig.member = Some(member.restarted().await);
    client.query_drop("INSERT INTO t (secret) VALUES ('b')").await.unwrap();
    client.query_drop("COMMIT").await.unwrap();
    let seen: Vec<String> = client.query("SELECT secret FROM t").await.unwrap();
    assert_eq!(seen, ["a", "b"]);
    let metered = rig.meter().await.metered;
    let Counts { reads, writes, others, errors, repeated_transactions, .. } = metered.counts;
    let grown = (reads - before.reads, writes - before.writes, others - before.others, errors);
    assert_eq!((grown, repeated_transactions), ((1, 1, 1, 0), 1));
    assert_eq!(top(&metered, "INSERT INTO t(secret) VALUES (?)"), (2, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sql_itself_answers_is_counted_too() {
    let rig = Rig::new(DatabaseLimits::default()).await;
    let before = rig.counts().await;
    // The member has forgotten the warning by our own COMMIT.
    let seen =
        rig.site("SET sql_mode=''; INSERT INTO t (id) VALUES ('x'); SHOW WARNINGS; SELECT ROW_COUNT()").await;
    assert!(seen.contains("Incorrect integer value"), "{seen}");
    let metered = rig.meter().await.metered;
    let Counts { reads, writes, rows_sent, .. } = metered.counts;
    assert_eq!((reads - before.reads, writes, rows_sent - before.rows_sent), (2, 1, 2));
    assert_eq!(top(&metered, "SHOW WARNINGS"), (1, 1, 0));
    // As it was written, whatever the member got.
    assert_eq!(top(&metered, "SELECT ROW_COUNT ()"), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_than_the_limit_gets_mysqls_error_and_the_others_go_on() {
    let mut rig = Rig::new(DatabaseLimits { connections: Some(2), ..DatabaseLimits::default() }).await;
    let long = "SELECT SLEEP(4); SELECT 'went on'";
    let sessions = [rig.client(long).spawn().unwrap(), rig.client(long).spawn().unwrap()];
    until("both are there", async || rig.counts().await.connected == 2).await;
    let refused = rig.site("SELECT 1").await;
    assert!(refused.contains("ERROR 1203 (42000)"), "{refused}");
    let text = "User blog already has more than 'max_user_connections' active connections";
    assert!(refused.contains(text), "{refused}");
    rig.server.limits("blog", DatabaseLimits::default());
    until("the limit is gone", async || rig.site("SELECT 'well'").await == "well").await;
    assert!(rig.counts().await.refused_connections >= 1);
    for session in sessions {
        let output = session.wait_with_output().await.unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\nwent on\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_queries_a_second_than_the_limit_get_mysqls_error_until_there_is_room_again() {
    let rig = Rig::new(DatabaseLimits { queries_per_second: Some(3), ..DatabaseLimits::default() }).await;
    let answers = rig.site(&"SELECT 'well';".repeat(60)).await;
    let (well, refused) = (
        answers.lines().filter(|line| *line == "well").count(),
        answers.matches("ERROR 1226 (42000)").count(),
    );
    // A burst of ten seconds' worth, and what has come meanwhile.
    assert!((29..=36).contains(&well) && well + refused == 60, "{well} and {refused}: {answers}");
    let text = "User 'blog' has exceeded the 'max_queries_per_second' resource (current value: 3)";
    assert!(answers.contains(text), "{answers}");
    let counts = rig.counts().await;
    assert_eq!((counts.refused_statements, counts.errors), (refused as u64, refused as u64), "{counts:?}");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.site("SELECT 'again'").await, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_takes_too_long_is_interrupted_and_its_session_goes_on() {
    let rig = Rig::new(DatabaseLimits { longest_query_ms: Some(700), ..DatabaseLimits::default() }).await;
    let start = Instant::now();
    let seen =
        rig.site("SELECT CONNECTION_ID() INTO @c; SELECT SLEEP(30); SELECT @c = CONNECTION_ID(), 'on'").await;
    assert!(seen.contains("ERROR 1969 (70100)"), "{seen}");
    assert!(seen.contains("Query execution was interrupted (max_statement_time exceeded)"), "{seen}");
    assert!(seen.contains("1\ton"), "{seen}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());

    // Rows that were sent before stay, the error follows them.
    let rows = rig
        .site("SELECT seq, IF(seq > 20000, SLEEP(9), REPEAT('x', 99)) FROM seq_1_to_30000; SELECT 'on'")
        .await;
    assert!(
        rows.contains("ERROR 1969 (70100)") && rows.contains("on"),
        "{}",
        &rows[rows.len().saturating_sub(300)..]
    );

    // A write on its own, which is held until it has been committed.
    rig.site("INSERT INTO t (secret) VALUES ('a')").await;
    let written = rig.site("UPDATE t SET secret = SLEEP(20); SELECT secret FROM t; SELECT 'on'").await;
    assert!(written.contains("ERROR 1969 (70100)") && written.contains("a\non"), "{written}");
    let counts = rig.counts().await;
    assert_eq!((counts.interrupted_statements, counts.errors), (3, 3), "{counts:?}");

    // Statements that end about when their time does: each is either answered or interrupted, and none disturbs the
    // next one.
    let close: String = (0..12).map(|n| format!("SELECT SLEEP(0.{}); SELECT 'next{n}';", 694 + n)).collect();
    let seen = rig.site(&close).await;
    assert_eq!(seen.matches("next").count(), 12, "{seen}");
}
