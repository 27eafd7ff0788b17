//! Folders, certificates, configuration and the first data of a member. The data folder is complete or absent.
//!
//! Every server of a pool makes the same first data and gives it the same place in history: position 1 of a
//! group whose id comes from the cell's authority and the pool's name. So the first members join each other by catching up (2 s)
//! instead of copying everything (13 s, of which Galera's script sleeps 10).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kopek_core::PoolName;

use super::client::Client;
use super::home::{Home, PACKAGE, PROVIDER, grastate, group_id};
use crate::daemon::{Account, DaemonError, clean_command, located};

const FIRST_START_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Program(#[from] DaemonError),
    #[error("Galera is not installed ({PROVIDER} is missing); run: apt-get install galera-4")]
    NoGalera,
    #[error("cannot use {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot run {program}")]
    Run { program: &'static str, source: io::Error },
    #[error("{program} failed: {last}")]
    Failed { program: &'static str, last: String },
}

/// Makes what is missing; cheap when nothing is.
pub async fn prepare(home: &Home, pool: &PoolName) -> Result<(), SetupError> {
    let account = Home::account()?;
    located("mariadbd", PACKAGE)?;
    // The state transfer's programs: better missed now than when a member has to be rebuilt.
    located("mariadb-backup", "mariadb-backup")?;
    located("socat", "socat")?;
    if !Path::new(PROVIDER).is_file() {
        return Err(SetupError::NoGalera);
    }
    folders(home, account)?;
    certificates(home, account)?;
    write(&home.configuration_file(), home.configuration(pool).as_bytes(), 0o644, None)?;
    if home.data().is_dir() { Ok(()) } else { first_data(home, pool, account).await }
}

fn folders(home: &Home, account: Account) -> Result<(), SetupError> {
    for (path, mode, owner) in [
        (home.dirs.state.clone(), None, None),
        (home.dirs.run.clone(), None, None),
        (home.state(), Some(0o755), None),
        (home.tls(), Some(0o700), Some(account)),
        (home.temporary(), Some(0o700), Some(account)),
        (home.run(), Some(0o755), Some(account)),
    ] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).and_then(|()| {
            // mysql must be able to pass through the folders that it shares with others.
            let old = fs::metadata(&path)?.permissions().mode() & 0o7777;
            let mode = mode.unwrap_or(old | 0o011);
            if mode != old {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            give(&path, owner)
        });
        made.map_err(|source| SetupError::File { path, source })?;
    }
    Ok(())
}

/// mariadbd runs as mysql, which cannot read root's copy of the key.
fn certificates(home: &Home, account: Account) -> Result<(), SetupError> {
    for name in ["ca.pem", "server.pem", "server.key"] {
        let from = home.dirs.etc.join(name);
        let bytes = fs::read(&from).map_err(|source| SetupError::File { path: from, source })?;
        write(&home.tls().join(name), &bytes, 0o600, Some(account))?;
    }
    Ok(())
}

async fn first_data(home: &Home, pool: &PoolName, account: Account) -> Result<(), SetupError> {
    let unready = home.state().join("data.new");
    let failed = |source| SetupError::File { path: unready.clone(), source };
    match fs::remove_dir_all(&unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => (),
    }
    fs::DirBuilder::new().mode(0o700).create(&unready).map_err(failed)?;
    give(&unready, Some(account)).map_err(failed)?;
    install(home, &unready, account).await?;
    place_in_history(home, pool, &unready, account).await?;
    // Not every program that wrote there has put its files on disk.
    fs::File::open(&unready).and_then(|folder| Ok(rustix::fs::syncfs(folder)?)).map_err(failed)?;
    fs::rename(&unready, home.data()).map_err(failed)?;
    // The rename must not be undone by a power cut once somebody relies on it.
    fs::File::open(home.state()).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// System tables; root and mysql by the socket's credentials, no anonymous user, no test database.
async fn install(home: &Home, unready: &Path, account: Account) -> Result<(), SetupError> {
    const PROGRAM: &str = "mariadb-install-db";
    let mut command = clean_command(&located(PROGRAM, PACKAGE)?, Some(account));
    command.arg(home.defaults_argument()).arg(argument("--datadir", unready));
    command.args(["--auth-root-authentication-method=socket", "--auth-root-socket-user=mysql"]);
    command.args(["--skip-test-db", "--skip-name-resolve", "--force", "--wsrep-on=OFF"]);
    let output = command
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| SetupError::Run { program: PROGRAM, source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let last =
        text.lines().rfind(|line| line.contains("ERROR")).or(text.lines().last()).unwrap_or("no output");
    Err(SetupError::Failed { program: PROGRAM, last: last.to_owned() })
}

/// Runs the new data once as a group of one that nobody can reach, so that InnoDB too knows its position.
async fn place_in_history(
    home: &Home,
    pool: &PoolName,
    unready: &Path,
    account: Account,
) -> Result<(), SetupError> {
    const PROGRAM: &str = "mariadbd";
    let ca = home.tls().join("ca.pem");
    let ca = fs::read(&ca).map_err(|source| SetupError::File { path: ca, source })?;
    let start = format!(
        "# GALERA saved state\nversion: 2.1\nuuid:    {}\nseqno:   0\nsafe_to_bootstrap: 1\n",
        group_id(&ca, pool)
    );
    write(&grastate(unready), start.as_bytes(), 0o600, Some(account))?;
    let socket = home.run().join("first.sock");
    let mut command = clean_command(&located(PROGRAM, PACKAGE)?, Some(account));
    command.arg(home.defaults_argument()).arg(argument("--datadir", unready));
    command.arg(argument("--socket", &socket)).arg(argument("--pid-file", &home.run().join("first.pid")));
    command.args(["--skip-networking", "--wsrep-new-cluster", "--wsrep-cluster-address=gcomm://"]);
    command.args(["--wsrep-cluster-name=first", "--wsrep-node-address=127.0.0.1"]);
    command.arg("--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:4567;pc.recovery=FALSE");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |source| SetupError::Run { program: PROGRAM, source };
    let child = command.spawn().map_err(failed)?;
    let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    let output = child.wait_with_output();
    tokio::pin!(output);
    let synced = async {
        while !synced(&socket).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::select! {
        ended = &mut output => Some(ended),
        () = synced => None,
        () = tokio::time::sleep(FIRST_START_LIMIT) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            output.await
        }
    };
    let ended = ended.map_err(failed)?;
    let placed = fs::read_to_string(grastate(unready)).is_ok_and(|text| text.contains("seqno:   1\n"));
    if placed {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&ended.stderr);
    let last = log.lines().rfind(|line| line.contains("[ERROR]")).unwrap_or("it did not reach position 1");
    Err(SetupError::Failed { program: PROGRAM, last: last.to_owned() })
}

async fn synced(socket: &Path) -> bool {
    match Client::connect(socket).await {
        Ok(mut client) => client.status().await.is_ok_and(|status| status.accepts_writes()),
        Err(_) => false,
    }
}

fn argument(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("{name}="));
    argument.push(path);
    argument
}

/// By a temporary file and rename, and only if it differs.
fn write(path: &Path, bytes: &[u8], mode: u32, owner: Option<Account>) -> Result<(), SetupError> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let unready = path.with_extension("new");
    fs::write(&unready, b"")
        .and_then(|()| fs::set_permissions(&unready, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::write(&unready, bytes))
        .and_then(|()| give(&unready, owner))
        .and_then(|()| fs::rename(&unready, path))
        .map_err(|source| SetupError::File { path: path.to_owned(), source })
}

fn give(path: &Path, owner: Option<Account>) -> io::Result<()> {
    match owner {
        Some(Account { uid, gid }) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
