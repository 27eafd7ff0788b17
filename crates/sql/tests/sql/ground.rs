//! What the tests stand on: real mariadbd, the real client, one or two `sql` processes with an agent's socket each.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use kopek_core::config::{Dirs, SQL_PORT, ServerConfig};
use kopek_core::desired::{Database, DatabaseLimits};
use kopek_core::part::{FormerWriter, RoutedWriter, SqlListener, SqlPart, SqlSite};
use kopek_core::{InstanceId, PoolName, ServerId, SiteName};
use kopek_link::{CellAuthority, Csr, Identity, Parts};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

pub const SOON: Duration = Duration::from_secs(15);

pub fn site(name: &str) -> SiteName {
    SiteName::parse(name).unwrap()
}

pub fn server(number: u8) -> ServerId {
    ServerId::parse(&format!("s{number}")).unwrap()
}

/// Loopback addresses of this test process only, because the relay's port is always the same.
pub fn address(number: u8) -> IpAddr {
    let process = std::process::id();
    IpAddr::from([127, 100 + (process % 100) as u8, (process / 100 % 250) as u8, number])
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what}: still not after {SOON:?}"));
}

/// A database server with the accounts that the agent would make: each only from its site's own address.
pub struct Member {
    folder: TempDir,
    port: u16,
    pub process: Child,
}

impl Member {
    pub async fn new(name: &str) -> Member {
        Member::new_with(name, &[]).await
    }

    pub async fn new_with(name: &str, options: &[&str]) -> Member {
        Member::installed().await.started_with(options).await.with_accounts(name).await
    }

    pub async fn with_accounts(self, name: &str) -> Member {
        let mut accounts = String::new();
        for (site, number) in [("blog", 5), ("shop", 6)] {
            accounts += &format!(
                "CREATE DATABASE {site}; CREATE DATABASE IF NOT EXISTS kopek;
                 CREATE TABLE kopek.site_{number} (slot BIGINT UNSIGNED NOT NULL PRIMARY KEY,
                                                   token BIGINT UNSIGNED NOT NULL);
                 CREATE USER {site}@127.1.0.{number} IDENTIFIED BY 'secret';
                 GRANT ALL ON {site}.* TO {site}@127.1.0.{number};
                 GRANT SELECT, INSERT, UPDATE ON kopek.site_{number} TO {site}@127.1.0.{number};
                 CREATE TABLE {site}.who (name TEXT); INSERT INTO {site}.who VALUES ('{name}');"
            );
        }
        self.root(&accounts).await;
        self
    }

    pub async fn installed() -> Member {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let installed = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--user=mysql", "--skip-test-db"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", folder.path().join("data").display()))
            // A mariadbd that starts deletes the temporary tables of others in a folder that they share.
            .env("TMPDIR", folder.path())
            .output()
            .await
            .unwrap();
        assert!(installed.status.success(), "{installed:?}");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("true").spawn().unwrap();
        Member { folder, port, process }
    }

    pub async fn started(self) -> Member {
        self.started_with(&[]).await
    }

    pub async fn started_with(mut self, options: &[&str]) -> Member {
        self.process = Command::new("mariadbd")
            .args(["--no-defaults", "--user=mysql", "--skip-name-resolve", "--bind-address=127.0.0.1"])
            .args(["--skip-networking=0", "--max-allowed-packet=64M", "--innodb-buffer-pool-size=16M"])
            .arg("--max-connections=600")
            .arg(format!("--port={}", self.port))
            .arg(format!("--datadir={}", self.folder.path().join("data").display()))
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--pid-file={}", self.folder.path().join("pid").display()))
            .args(options)
            .env("TMPDIR", self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        until("mariadbd answers", async || client(&self.socket(), "root", "SELECT 1").await.is_ok()).await;
        self
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("root.sock")
    }

    /// As after the loss of its process: kill -9 and a new start on the same data.
    pub async fn restarted(mut self) -> Member {
        self.process.kill().await.unwrap();
        self.started().await
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub async fn root(&self, statements: &str) -> String {
        client(&self.socket(), "root", statements).await.unwrap()
    }

    /// How many statements of a user run that wait for something.
    pub async fn sleepers_of(&self, user: &str) -> String {
        self.root(&format!(
            "SELECT COUNT(*) FROM information_schema.processlist WHERE user = '{user}' AND info LIKE '%SLEEP(%'"
        ))
        .await
    }
}

/// The answer, or the client's complaint.
pub async fn client(socket: &Path, user: &str, statements: &str) -> Result<String, String> {
    answer_of(client_command(socket, user, statements).output().await.unwrap())
}

pub fn client_command(socket: &Path, user: &str, statements: &str) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "-N", "-B", "--max-allowed-packet=64M", "-psecret", "-u", user, "-S"]);
    command.arg(socket).args(["-e", statements]);
    if user == "root" {
        command.arg("--skip-password");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

pub fn answer_of(output: Output) -> Result<String, String> {
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// All that was logged in this process.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Said;

impl std::io::Write for Said {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        SAID.lock().unwrap().extend(line);
        print!("{}", String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether a line of the log has all of these words.
pub fn was_logged(words: &[&str]) -> bool {
    let said = SAID.lock().unwrap();
    String::from_utf8_lossy(&said).lines().any(|line| words.iter().all(|word| line.contains(word)))
}

pub struct Cell {
    pub authority: CellAuthority,
}

impl Cell {
    pub fn new() -> Cell {
        Cell { authority: CellAuthority::create("test").unwrap() }
    }

    pub async fn server(&self, number: u8) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let dirs = Dirs { etc: path("etc"), state: path("state"), run: path("run"), log: path("log") };
        std::fs::create_dir(&dirs.etc).unwrap();
        let csr = Csr::new().unwrap();
        let cert = self.authority.issue_server(&csr.csr_pem, &server(number), &[address(number)]).unwrap();
        Identity::write(&dirs.etc, self.authority.ca_pem(), &cert, &csr.key_pem).unwrap();
        let agent = Parts::serve(&dirs).await.unwrap();
        let part = SqlPart {
            server: server(number),
            sites: BTreeMap::new(),
            listeners: BTreeMap::new(),
            member: None,
            writes_for: BTreeMap::new(),
        };
        let mut server = Server { number, folder, dirs, agent, part, running: None };
        server.start();
        server
    }
}

pub struct Server {
    number: u8,
    folder: TempDir,
    pub dirs: Dirs,
    pub agent: Parts,
    pub part: SqlPart,
    running: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(&mut self) {
        // Shown with a test that fails, and kept for those that ask what was said of a site.
        let shown = tracing_subscriber::fmt().with_env_filter("debug").with_ansi(false);
        let _ = shown.with_writer(|| Said).try_init();
        let (number, address) = (self.number, address(self.number));
        let text = format!("name = \"s{number}\"\naddress = \"{address}\"\ninterface = \"lo\"\n");
        let config = ServerConfig::parse(&text, Path::new("kopek.toml")).unwrap();
        let dirs = self.dirs.clone();
        self.running = Some(tokio::spawn(async move { kopek_sql::run(dirs, config).await.unwrap() }));
    }

    pub async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
    }

    pub fn socket(&self, instance: &str) -> PathBuf {
        self.folder.path().join("instances").join(instance).join("mysqld.sock")
    }

    /// An instance without a network namespace: its socket is enough here.
    pub fn with_instance(mut self, id: &str) -> Self {
        let listener = SqlListener { socket: self.socket(id), netns: "/nonexistent".into() };
        self.part.listeners.insert(InstanceId::parse(id).unwrap(), listener);
        self
    }

    pub fn with_member(mut self, member: &Member) -> Self {
        self.part.member = Some(member.address());
        self
    }

    /// Tells this server who the site's writer is; the writer itself also that it is.
    pub fn learns(&mut self, name: &str, writer: Option<(u8, u64)>) {
        self.learns_of(name, writer, None);
    }

    /// The same of a planned move: the writer before lives and has to close the site first.
    pub fn learns_after(&mut self, name: &str, writer: (u8, u64), former: (u8, u64)) {
        let (number, epoch) = former;
        let relay = SocketAddr::new(address(number), SQL_PORT);
        self.learns_of(name, Some(writer), Some(FormerWriter { server: server(number), relay, epoch }));
    }

    fn learns_of(&mut self, name: &str, writer: Option<(u8, u64)>, former: Option<FormerWriter>) {
        let routed = writer.map(|(number, epoch)| RoutedWriter {
            server: server(number),
            relay: SocketAddr::new(address(number), SQL_PORT),
            epoch,
            former,
        });
        let number = if name == "blog" { 5 } else { 6 };
        let [schema, user, password] = [name, name, "secret"].map(str::to_owned);
        let database = Some(Database { name: schema, user, password });
        let (limits, pool) = (DatabaseLimits::default(), PoolName::first());
        self.part.sites.insert(site(name), SqlSite { number, writer: routed, database, limits, pool });
        match writer {
            Some((number, epoch)) if number == self.number => self.part.writes_for.insert(site(name), epoch),
            _ => self.part.writes_for.remove(&site(name)),
        };
        self.agent.publish(self.part.clone());
    }

    pub fn limits(&mut self, name: &str, limits: DatabaseLimits) {
        self.part.sites.get_mut(&site(name)).unwrap().limits = limits;
        self.agent.publish(self.part.clone());
    }

    pub async fn listens(&self, instance: &str) -> PathBuf {
        let socket = self.socket(instance);
        until("the socket is there", async || UnixStream::connect(&socket).await.is_ok()).await;
        socket
    }
}

/// A statement that ends only when its connection does.
pub fn long_statement(socket: &Path) -> Child {
    client_command(socket, "blog", "SELECT SLEEP(600)").spawn().unwrap()
}
