//! Sessions go on when their writer changes or is lost.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use crate::ground::{Cell, Member, SOON, answer_of, client, client_command, long_statement, until};

/// A client that is told one statement after the other.
struct Talk {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    fn begin(socket: &Path) -> Talk {
        let mut command = tokio::process::Command::new("mariadb");
        command.args([
            "--no-defaults",
            "-N",
            "-B",
            "--unbuffered",
            "--skip-reconnect",
            "-ublog",
            "-psecret",
            "-S",
        ]);
        command
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Talk { child, to, from: BufReader::new(from).lines() }
    }

    /// Statements of which the last one gives one row.
    async fn ask(&mut self, statements: &str) -> String {
        if self.to.write_all(format!("{statements};\n").as_bytes()).await.is_err() {
            return "the end".to_owned();
        }
        let line = timeout(SOON, self.from.next_line())
            .await
            .unwrap_or_else(|_| panic!("no answer to {statements}"));
        line.unwrap().unwrap_or_else(|| "the end".to_owned())
    }

    async fn complaint(self) -> String {
        drop(self.to);
        answer_of(timeout(SOON, self.child.wait_with_output()).await.unwrap().unwrap()).unwrap_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_writer_changes_its_sessions_go_on_at_the_new_one_and_others_are_left_alone() {
    let cell = Cell::new();
    let (m1, m2) = tokio::join!(Member::new("m1"), Member::new("m2"));
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1").with_instance("shop.1");
    let mut s2 = cell.server(2).await.with_member(&m2).with_instance("blog.2");
    for server in [&mut s1, &mut s2] {
        server.learns("blog", Some((1, 1)));
        server.learns("shop", Some((1, 1)));
    }
    let (here, there, other) =
        (s1.listens("blog.1").await, s2.listens("blog.2").await, s1.listens("shop.1").await);
    let _sessions = [long_statement(&here), long_statement(&there)];
    let mut others = client_command(&other, "shop", "SELECT SLEEP(600)").spawn().unwrap();
    until("both sessions run on m1", async || m1.sleepers_of("blog").await == "2").await;
    until("the other site's too", async || m1.sleepers_of("shop").await == "1").await;
    let mut talk = Talk::begin(&here);
    assert_eq!(talk.ask("SELECT name FROM blog.who").await, "m1");

    s2.learns("blog", Some((2, 2)));
    s1.learns("blog", Some((2, 2)));
    until("both reads began anew on m2", async || m2.sleepers_of("blog").await == "2").await;
    until("none is left on m1", async || m1.sleepers_of("blog").await == "0").await;
    assert_eq!(talk.ask("SELECT name FROM blog.who").await, "m2");
    assert!(others.try_wait().unwrap().is_none(), "the other site's connection goes on");
    assert_eq!(m1.sleepers_of("shop").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_brings_its_settings_and_its_open_transaction_to_the_new_writer() {
    let cell = Cell::new();
    let (m1, m2) = tokio::join!(Member::new("m1"), Member::new("m2"));
    for member in [&m1, &m2] {
        member.root("CREATE TABLE blog.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT); INSERT INTO blog.t VALUES (7, 1)").await;
    }
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1");
    let mut s2 = cell.server(2).await.with_member(&m2);
    s1.learns("blog", Some((1, 1)));
    s2.learns("blog", Some((1, 1)));
    let mut talk = Talk::begin(&s1.listens("blog.1").await);
    talk.ask("SET @a = 5, SESSION sql_mode = 'ANSI'; USE blog; PREPARE s FROM 'SELECT id, v, ''s'' FROM t WHERE id = ?'; SELECT 1").await;
    talk.ask("BEGIN; INSERT INTO t (v) VALUES (2); UPDATE t SET v = v + 1 WHERE id = 7; SELECT v FROM t WHERE id = 7").await;
    drop(m1);
    s2.learns("blog", Some((2, 2)));
    s1.learns("blog", Some((2, 2)));
    assert_eq!(
        talk.ask("SELECT LAST_INSERT_ID(), @a, @@sql_mode LIKE '%ANSI_QUOTES%', DATABASE()").await,
        "8\t5\t1\tblog"
    );
    assert_eq!(m2.root("SELECT COUNT(*) FROM blog.t").await, "1", "not committed yet");
    talk.ask("COMMIT; SELECT 1").await;
    assert_eq!(m2.root("SELECT id, v FROM blog.t ORDER BY id").await, "7\t2\n8\t2");
    assert_eq!(talk.ask("SET @i = 8; EXECUTE s USING @i").await, "8\t2\ts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_would_go_another_way_is_rolled_back_with_a_deadlock_and_the_session_goes_on() {
    let cell = Cell::new();
    let (m1, m2) = tokio::join!(Member::new("m1"), Member::new("m2"));
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1");
    let mut s2 = cell.server(2).await.with_member(&m2);
    s1.learns("blog", Some((1, 1)));
    s2.learns("blog", Some((1, 1)));
    let mut talk = Talk::begin(&s1.listens("blog.1").await);
    assert_eq!(talk.ask("BEGIN; SELECT name FROM blog.who").await, "m1");
    drop(m1);
    s2.learns("blog", Some((2, 2)));
    s1.learns("blog", Some((2, 2)));
    talk.ask("INSERT INTO blog.who VALUES ('x'); SELECT 1").await;
    assert!(talk.complaint().await.contains("ERROR 1213 (40001)"));
    assert_eq!(m2.root("SELECT COUNT(*) FROM blog.who").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_brought_ends_as_a_lost_connection() {
    let cell = Cell::new();
    let (m1, m2) = tokio::join!(Member::new("m1"), Member::new("m2"));
    let mut s1 = cell.server(1).await.with_member(&m1).with_instance("blog.1");
    let mut s2 = cell.server(2).await.with_member(&m2);
    s1.learns("blog", Some((1, 1)));
    s2.learns("blog", Some((1, 1)));
    let socket = s1.listens("blog.1").await;
    let mut talk = Talk::begin(&socket);
    talk.ask("CREATE TEMPORARY TABLE blog.t (a INT); SELECT 1").await;
    s2.learns("blog", Some((2, 2)));
    s1.learns("blog", Some((2, 2)));
    // It may still be answered by the former writer, which has a moment to end what it does.
    until("the session ends", async || talk.ask("SELECT 1").await == "the end").await;
    let complaint = talk.complaint().await;
    assert!(complaint.contains("ERROR 2013") || complaint.contains("ERROR 2006"), "{complaint}");
    assert_eq!(client(&socket, "blog", "SELECT name FROM blog.who").await.unwrap(), "m2");
}

/// The heart of it: whatever moment the member dies in, each write took place once.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_are_under_way_when_the_member_dies_take_place_once_and_nobody_sees_an_error() {
    const CLIENTS: usize = 4;
    const WRITES: usize = 120;
    let (cell, mut member) = (Cell::new(), Member::new("m1").await);
    member.root("CREATE TABLE blog.n (k UUID PRIMARY KEY DEFAULT UUID(), v INT)").await;
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let socket = s1.listens("blog.1").await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        // Half of them write on their own, half in transactions.
        let statements: String = (0..WRITES)
            .map(|n| {
                let insert = format!("INSERT INTO blog.n (v) VALUES ({})", number * WRITES + n);
                if number % 2 == 0 { format!("{insert};") } else { format!("BEGIN;{insert};COMMIT;") }
            })
            .collect();
        clients.push(tokio::spawn(client_command(&socket, "blog", &statements).output()));
    }
    for round in 0..4 {
        until("some were written", async || {
            let count: usize = member.root("SELECT COUNT(*) FROM blog.n").await.parse().unwrap();
            count >= (round + 1) * CLIENTS * WRITES / 8
        })
        .await;
        member = member.restarted().await;
    }
    for client in clients {
        let output = timeout(Duration::from_secs(60), client).await.expect("they end").unwrap().unwrap();
        answer_of(output).expect("no error");
    }
    let counts = member.root("SELECT COUNT(*), COUNT(DISTINCT v) FROM blog.n").await;
    let all = CLIENTS * WRITES;
    assert_eq!(counts, format!("{all}\t{all}"));
}

/// As installers make them, one after the other: twice would be an error, and none too.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_changed_when_the_member_dies_are_changed_once_and_nobody_sees_an_error() {
    const TABLES: usize = 60;
    let (cell, mut member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let socket = s1.listens("blog.1").await;
    let statements: String = (0..TABLES)
        .map(|n| {
            format!(
                "BEGIN; SELECT 1; CREATE TABLE t{n} (a INT AUTO_INCREMENT PRIMARY KEY, gone INT); INSERT INTO t{n} VALUES (7, 7);
                 ALTER TABLE t{n} ADD b INT; CREATE INDEX i ON t{n} (b); ALTER TABLE t{n} DROP gone;
                 CREATE TABLE gone (a INT PRIMARY KEY); DROP TABLE gone;"
            )
        })
        .collect();
    let client = tokio::spawn(client_command(&socket, "blog", &format!("USE blog; {statements}")).output());
    const COUNT: &str =
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'blog' AND table_name LIKE 't%'";
    for round in 0..6 {
        until("some were made", async || {
            let count: usize = member.root(COUNT).await.parse().unwrap();
            count >= (round + 1) * TABLES / 8
        })
        .await;
        member = member.restarted().await;
    }
    let output = timeout(Duration::from_secs(60), client).await.expect("it ends").unwrap().unwrap();
    answer_of(output).expect("no error");
    assert_eq!(member.root(COUNT).await, TABLES.to_string());
    let columns = "SELECT GROUP_CONCAT(DISTINCT column_name, column_key) FROM information_schema.columns
                   WHERE table_schema = 'blog' AND table_name LIKE 't%'";
    assert_eq!(member.root(columns).await, "aPRI,bMUL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_relieved_cuts_those_who_have_not_heard_of_it() {
    let (cell, member) = (Cell::new(), Member::new("m2").await);
    let mut s1 = cell.server(1).await.with_instance("blog.1");
    let mut s2 = cell.server(2).await.with_member(&member);
    s1.learns("blog", Some((2, 1)));
    s2.learns("blog", Some((2, 1)));
    let _session = long_statement(&s1.listens("blog.1").await);
    until("the session runs", async || member.sleepers_of("blog").await == "1").await;
    s2.learns("blog", Some((1, 2)));
    until("it is cut", async || member.sleepers_of("blog").await == "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_comes_back_in_a_later_epoch_has_no_connections_of_the_earlier_one() {
    const WHICH: &str =
        "SELECT id FROM information_schema.processlist WHERE user = 'blog' AND info LIKE '%SLEEP(%'";
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let _session = long_statement(&s1.listens("blog.1").await);
    until("the session runs", async || member.sleepers_of("blog").await == "1").await;
    let before = member.root(WHICH).await;
    // Another server wrote in epoch 2; word of that never came here.
    s1.learns("blog", Some((1, 3)));
    until("it runs anew", async || {
        let now = member.root(WHICH).await;
        !now.is_empty() && !now.contains(&before)
    })
    .await;
}
