//! What is counted and what is limited, with a real mariadbd and the real client behind one `sql`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kopek_core::config::{Dirs, SQL_PORT, ServerConfig};
use kopek_core::desired::{Database, DatabaseLimits};
use kopek_core::meter::SiteMeter;
use kopek_core::part::{RoutedWriter, SqlListener, SqlPart, SqlSite};
use kopek_core::{InstanceId, Micros, ServerId, SiteName};
use kopek_link::{CellAuthority, Csr, Identity, Parts};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(30);

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what}: still not after {SOON:?}"));
}

/// One site, `blog`, on one server with its database.
struct Rig {
    folder: TempDir,
    dirs: Dirs,
    agent: Parts,
    part: SqlPart,
    sql: JoinHandle<()>,
    /// Ends with the rig.
    _mariadbd: Child,
}

impl Rig {
    async fn new(limits: DatabaseLimits) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let path = |name: &str| folder.path().join(name);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mariadbd = mariadbd(folder.path(), port).await;
        let dirs = Dirs { etc: path("etc"), state: path("state"), run: path("run"), log: path("log") };
        std::fs::create_dir(&dirs.etc).unwrap();
        let (server, address) = (ServerId::parse("s1").unwrap(), own_address());
        let (authority, csr) = (CellAuthority::create("test").unwrap(), Csr::new().unwrap());
        let cert = authority.issue_server(&csr.csr_pem, &server, &[address]).unwrap();
        Identity::write(&dirs.etc, authority.ca_pem(), &cert, &csr.key_pem).unwrap();
        let agent = Parts::serve(&dirs).await.unwrap();
        let relay = SocketAddr::new(address, SQL_PORT);
        let writer = RoutedWriter { server: server.clone(), relay, epoch: 1, former: None };
        let [name, user, password] = ["blog", "blog", "secret"].map(str::to_owned);
        let database = Some(Database { name, user, password });
        let listener = SqlListener { socket: path("instance/mysqld.sock"), netns: "/nonexistent".into() };
        let part = SqlPart {
            server,
            sites: BTreeMap::from([(blog(), SqlSite { number: 5, writer: Some(writer), database, limits })]),
            listeners: BTreeMap::from([(InstanceId::parse("blog.1").unwrap(), listener)]),
            member: Some(SocketAddr::from(([127, 0, 0, 1], port))),
            writes_for: BTreeMap::from([(blog(), 1)]),
        };
        let text = format!("name = \"s1\"\naddress = \"{address}\"\ninterface = \"lo\"\n");
        let config = ServerConfig::parse(&text, Path::new("kopek.toml")).unwrap();
        let running = dirs.clone();
        let sql = tokio::spawn(async move { kopek_sql::run(running, config).await.unwrap() });
        agent.publish(part.clone());
        let rig = Rig { folder, dirs, agent, part, sql, _mariadbd: mariadbd };
        until("the socket is there", async || UnixStream::connect(&rig.socket()).await.is_ok()).await;
        rig
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("instance/mysqld.sock")
    }

    /// What the site sees, its complaints included; goes on after an error.
    async fn site(&self, statements: &str) -> String {
        let output = self.client(statements).output().await.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap().trim().to_owned()
    }

    fn client(&self, statements: &str) -> Command {
        client(&self.socket(), &["-ublog", "-psecret", "blog"], statements)
    }

    async fn meter(&self) -> SiteMeter {
        serde_json::from_str(&self.status("site blog").await).unwrap()
    }

    async fn status(&self, question: &str) -> String {
        let mut stream = UnixStream::connect(self.dirs.sql_socket()).await.unwrap();
        stream.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn limits(&mut self, limits: DatabaseLimits) {
        self.part.sites.get_mut(&blog()).unwrap().limits = limits;
        self.agent.publish(self.part.clone());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.sql.abort();
    }
}

fn blog() -> SiteName {
    SiteName::parse("blog").unwrap()
}

/// A loopback address of this test process only, because the relay's port is always the same.
fn own_address() -> IpAddr {
    let process = std::process::id();
    IpAddr::from([127, 200 + (process % 50) as u8, (process / 50 % 250) as u8, 1])
}

async fn mariadbd(folder: &Path, port: u16) -> Child {
    let data = format!("--datadir={}", folder.join("data").display());
    let installed = Command::new("mariadb-install-db")
        .args(["--no-defaults", "--user=mysql", "--skip-test-db", "--auth-root-authentication-method=normal"])
        .arg(&data)
        .env("TMPDIR", folder)
        .output()
        .await
        .unwrap();
    assert!(installed.status.success(), "{installed:?}");
    let root = folder.join("root.sock");
    let process = Command::new("mariadbd")
        .args(["--no-defaults", "--user=mysql", "--skip-name-resolve", "--bind-address=127.0.0.1"])
        .args(["--skip-networking=0", "--innodb-buffer-pool-size=16M"])
        .args([data, format!("--port={port}"), format!("--socket={}", root.display())])
        .arg(format!("--pid-file={}", folder.join("pid").display()))
        .env("TMPDIR", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let account = "CREATE DATABASE blog; CREATE USER blog@127.1.0.5 IDENTIFIED BY 'secret';
                   GRANT ALL ON blog.* TO blog@127.1.0.5;
                   CREATE TABLE blog.t (id INT PRIMARY KEY AUTO_INCREMENT, secret TEXT)";
    until("mariadbd answers", async || {
        client(&root, &["-uroot"], "SELECT 1").output().await.unwrap().status.success()
    })
    .await;
    assert!(client(&root, &["-uroot"], account).output().await.unwrap().status.success());
    process
}

fn client(socket: &Path, account: &[&str], statements: &str) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "-N", "-B", "--force", "--skip-reconnect"]).args(account);
    command.arg(format!("--socket={}", socket.display()));
    // By standard input: with `-e` it ends at the first error whatever it is told.
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(statements.as_bytes()).unwrap();
    input.rewind().unwrap();
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_site_asks_is_counted_by_class_and_digest_and_without_its_secrets() {
    let rig = Rig::new(DatabaseLimits::default()).await;
    let idle = rig.meter().await;
    assert_eq!((idle.counts(), idle.server.as_str()), ((0, 0, 0, 0), "s1"));
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
    until("it is gone", async || rig.meter().await.metered.counts.connected == 0).await;

    let top = &meter.metered.top;
    let of =
        |text: &str| top.iter().find(|one| one.text == text).unwrap_or_else(|| panic!("{text}: {top:?}"));
    assert_eq!(top[0].text, "SELECT SLEEP (?)", "{top:?}");
    let by_secret = of("SELECT * FROM t WHERE secret = ?");
    assert_eq!((by_secret.count, by_secret.rows, by_secret.errors), (2, 2, 0));
    assert_eq!(of("SELECT wrong FROM t").errors, 1);
    let slow = &meter.metered.slow;
    assert_eq!((slow.len(), &slow[0].text[..], slow[0].rows), (1, "SELECT SLEEP (?)", 1), "{slow:?}");
    assert!(!serde_json::to_string(&meter).unwrap().contains("hidden"));

    let metrics = rig.status("metrics").await;
    for line in [
        "kopek_sql_statements_total{site=\"blog\",class=\"read\"} 5",
        "kopek_sql_errors_total{site=\"blog\"} 1",
        "kopek_sql_statement_seconds_bucket{site=\"blog\",le=\"1.048576\"} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

trait Told {
    fn counts(&self) -> (u64, u64, u64, u64);
}

impl Told for SiteMeter {
    fn counts(&self) -> (u64, u64, u64, u64) {
        let counts = &self.metered.counts;
        (counts.reads, counts.writes, counts.others, counts.connections)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_is_counted_at_each_execution() {
    let rig = Rig::new(DatabaseLimits::default()).await;
    let (reads, _, others, _) = rig.meter().await.counts();
    rig.site("PREPARE p FROM 'SELECT id FROM t WHERE secret = ?'; SET @a = 'hidden'; EXECUTE p USING @a")
        .await;
    let (reads_after, _, others_after, _) = rig.meter().await.counts();
    // In this form they are texts of their own.
    assert_eq!((reads_after - reads, others_after - others), (0, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_than_the_limit_gets_mysqls_error_and_the_others_go_on() {
    let mut rig = Rig::new(DatabaseLimits { connections: Some(2), ..DatabaseLimits::default() }).await;
    let long = "SELECT SLEEP(4); SELECT 'went on'";
    let sessions = [rig.client(long).spawn().unwrap(), rig.client(long).spawn().unwrap()];
    until("both are there", async || rig.meter().await.metered.counts.connected == 2).await;
    let refused = rig.site("SELECT 1").await;
    assert!(refused.contains("ERROR 1203 (42000)"), "{refused}");
    let text = "User blog already has more than 'max_user_connections' active connections";
    assert!(refused.contains(text), "{refused}");
    rig.limits(DatabaseLimits::default());
    until("the limit is gone", async || rig.site("SELECT 'well'").await == "well").await;
    assert!(rig.meter().await.metered.counts.refused_connections >= 1);
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
    let counts = rig.meter().await.metered.counts;
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
    let counts = rig.meter().await.metered.counts;
    assert_eq!((counts.interrupted_statements, counts.errors), (3, 3), "{counts:?}");

    // Statements that end about when their time does: each is either answered or interrupted, and none disturbs the
    // next one.
    let close: String = (0..12).map(|n| format!("SELECT SLEEP(0.{}); SELECT 'next{n}';", 694 + n)).collect();
    let seen = rig.site(&close).await;
    assert_eq!(seen.matches("next").count(), 12, "{seen}");
}
