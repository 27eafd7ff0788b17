//! Executes a site's SQL dump. A dump is a stranger's program: it runs with the site's own account, from the
//! site's own address, in a client that is nobody and has its file and shell commands switched off.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kopek_core::assignment::AssignedDatabase;
use kopek_core::part::site_loopback;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, UnixListener, UnixStream};

use super::CLIENT_PORT;
use super::databases::DatabaseError;
use super::home::Home;
use crate::daemon::{Account, DaemonError, clean_command, located};

/// nobody and nogroup on every Debian (base-passwd).
const NOBODY: Account = Account { uid: 65_534, gid: 65_534 };
/// Dumps have INSERTs of megabytes in one line; they are handed on in pieces.
const PIECE: u64 = 64 << 10;
/// The server's message, and some of the statement.
const COMPLAINT_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("line {line}: {message}")]
    Statement { line: u64, message: String },
    #[error("the mariadb client failed: {message}")]
    Client { message: String },
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Program(#[from] DaemonError),
    #[error("cannot read the dump {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot run the mariadb client")]
    Run(#[source] io::Error),
}

pub async fn import_dump(home: &Home, assigned: &AssignedDatabase, file: &Path) -> Result<(), DumpError> {
    let dump = tokio::fs::File::open(file)
        .await
        .map_err(|source| DumpError::Unreadable { path: file.to_owned(), source })?;
    let path = located("mariadb", "mariadb-client")?;
    let entrance = Entrance::open(&home.run(), assigned.number).map_err(DumpError::Run)?;
    let database = &assigned.database;
    let mut command = clean_command(&path, Some(NOBODY));
    command.args(["--no-defaults", "--protocol=socket", "--batch", "--skip-reconnect", "--local-infile=0"]);
    command.args([
        "--binary-mode",
        "--sandbox",
        "--max-allowed-packet=64M",
        "--default-character-set=utf8mb4",
    ]);
    command.arg(format!("--socket={}", entrance.socket.display()));
    command.arg(format!("--user={}", database.user)).arg(format!("--database={}", database.name));
    command.env("MYSQL_PWD", &database.password);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(DumpError::Run)?;
    let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
        return Err(DumpError::Run(io::ErrorKind::BrokenPipe.into()));
    };
    let complaint = async {
        let mut text = Vec::new();
        let mut stderr = stderr;
        (&mut stderr).take(COMPLAINT_MAX).read_to_end(&mut text).await?;
        tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
        io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let (fed, complaint) = tokio::select! {
        done = async { tokio::join!(feed(dump, stdin), complaint) } => done,
        error = entrance.relay() => return Err(DumpError::Run(error)),
    };
    let status = child.wait().await.map_err(DumpError::Run)?;
    let complaint = complaint.map_err(DumpError::Run)?;
    if !status.success() {
        return Err(explained(&complaint));
    }
    // The client was content, so it has read all that we could give it.
    fed.map_err(|source| DumpError::Unreadable { path: file.to_owned(), source })
}

/// `ERROR 1064 (42000) at line 3: You have an error …`
fn explained(complaint: &str) -> DumpError {
    let error = complaint.lines().rfind(|line| line.starts_with("ERROR"));
    let told = error.and_then(|error| {
        let (_, rest) = error.split_once("at line ")?;
        let (line, message) = rest.split_once(": ")?;
        Some(DumpError::Statement { line: line.parse().ok()?, message: message.trim_end().to_owned() })
    });
    told.unwrap_or_else(|| DumpError::Client {
        message: error.or(complaint.lines().last()).unwrap_or("no message").to_owned(),
    })
}

/// A socket that only our client may open, and that leads to the member as if from the site's own address.
struct Entrance {
    socket: PathBuf,
    listener: UnixListener,
    number: u32,
    _folder: tempfile::TempDir,
}

impl Entrance {
    fn open(run: &Path, number: u32) -> io::Result<Entrance> {
        let folder = tempfile::Builder::new().prefix("import-").tempdir_in(run)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
        let socket = folder.path().join("sock");
        let listener = UnixListener::bind(&socket)?;
        chown(&socket, Some(NOBODY.uid), Some(NOBODY.gid))?;
        chown(folder.path(), Some(NOBODY.uid), Some(NOBODY.gid))?;
        Ok(Entrance { socket, listener, number, _folder: folder })
    }

    /// Serves until dropped.
    async fn relay(&self) -> io::Error {
        loop {
            let one = async {
                let (client, _) = self.listener.accept().await?;
                self.connect(client).await
            };
            if let Err(error) = one.await {
                return error;
            }
        }
    }

    async fn connect(&self, mut client: UnixStream) -> io::Result<()> {
        let from = TcpSocket::new_v4()?;
        from.bind((site_loopback(self.number), 0).into())?;
        let mut member = from.connect(([127, 0, 0, 1], CLIENT_PORT).into()).await?;
        // A connection that either side breaks is the client's to complain about.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut member).await;
        Ok(())
    }
}

/// Hands the dump to the client, line by line rewritten where it could not work here.
async fn feed(dump: tokio::fs::File, mut client: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut dump = BufReader::with_capacity(PIECE as usize, dump);
    let mut piece = Vec::new();
    let mut at_line_start = true;
    loop {
        piece.clear();
        if (&mut dump).take(PIECE).read_until(b'\n', &mut piece).await? == 0 {
            let _ = client.shutdown().await;
            return Ok(());
        }
        let rewritten = if at_line_start { fitted(&piece) } else { None };
        at_line_start = piece.ends_with(b"\n");
        // The client closes its end at the first error; its complaint tells more than ours could.
        if client.write_all(rewritten.as_deref().unwrap_or(&piece)).await.is_err() {
            return Ok(());
        }
    }
}

/// A line of mysqldump's or phpMyAdmin's that a pool cannot take as it is: tables of engines that do not
/// replicate become InnoDB, and routines, triggers and views belong to who imports them, not to an account of
/// the server where the dump was made.
fn fitted(line: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(line).ok()?;
    if text.starts_with(") ") {
        let upper = text.to_ascii_uppercase();
        for engine in ["ENGINE=MYISAM", "ENGINE=ARIA"] {
            if let Some(at) = upper.find(engine) {
                let (before, after) = (&text[..at], &text[at + engine.len()..]);
                return Some(format!("{before}ENGINE=InnoDB{after}").into_bytes());
            }
        }
        return None;
    }
    if text.starts_with("/*!50") || text.starts_with("CREATE DEFINER=") {
        let (before, rest) = text.split_once("DEFINER=`")?;
        let (_user, rest) = rest.split_once("`@`")?;
        let (_host, after) = rest.split_once('`')?;
        return Some(format!("{before}{}", after).into_bytes());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(line: &str) -> String {
        String::from_utf8(fitted(line.as_bytes()).unwrap_or(line.into())).unwrap()
    }

    #[test]
    fn tables_that_would_not_replicate_become_innodb() {
        assert_eq!(fit(") ENGINE=MyISAM AUTO_INCREMENT=3;\n"), ") ENGINE=InnoDB AUTO_INCREMENT=3;\n");
        let text = "INSERT INTO t VALUES ('ENGINE=MyISAM');\n";
        assert_eq!(fit(text), text);
    }

    #[test]
    fn definers_of_another_server_are_left_out() {
        assert_eq!(fit("CREATE DEFINER=`a`@`%` PROCEDURE p()\n"), "CREATE  PROCEDURE p()\n");
        assert_eq!(
            fit("/*!50003 CREATE*/ /*!50017 DEFINER=`a`@`b`*/ /*!50003 TRIGGER\n"),
            "/*!50003 CREATE*/ /*!50017 */ /*!50003 TRIGGER\n"
        );
        assert_eq!(
            fit("/*!50013 DEFINER=`a`@`b` SQL SECURITY DEFINER */\n"),
            "/*!50013  SQL SECURITY DEFINER */\n"
        );
    }

    #[test]
    fn the_servers_complaint_gives_line_and_message() {
        let told = explained(
            "--------------\nselct 2\n--------------\n\nERROR 1064 (42000) at line 5: You have: an error\n",
        );
        assert!(
            matches!(&told, DumpError::Statement { line: 5, message } if message == "You have: an error"),
            "{told:?}"
        );
        assert!(matches!(explained("ERROR 1045 (28000): Access denied"), DumpError::Client { .. }));
    }
}
