//! How new the data on disk is. Known without starting: from `grastate.dat` after a clean stop, from InnoDB's
//! log after a crash. Starting a group from any but the newest loses what was committed.
//!
//! A copy from another member is written without a single fsync, so a power cut within some 30 s of it leaves files
//! that are empty or old, with a position that looks good. It is marked from its begin until it is on disk:
//!
//! ```text
//!            a copy begins              in the group, and all of it on disk
//!   saved ──────────────────► unsaved ───────────────────────────────────────► saved
//!                                │ its mariadbd ended: what is there proves nothing, and is copied anew
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kopek_core::observed::Position;

use super::home::{Home, PACKAGE, grastate};
use crate::daemon::{DaemonError, clean_command, located};

/// The group id of one that was never in a group.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// Replaying a full InnoDB log on a slow disk.
const RECOVER_LIMIT: Duration = Duration::from_secs(120);
const RECOVERED: &str = "Recovered position:";

#[derive(Debug, thiserror::Error)]
pub enum PositionError {
    #[error(transparent)]
    Program(#[from] DaemonError),
    #[error("cannot run mariadbd --wsrep-recover")]
    Run(#[source] io::Error),
    #[error("mariadbd --wsrep-recover did not end in {} s", RECOVER_LIMIT.as_secs())]
    Late,
    #[error("mariadbd --wsrep-recover told no position: {last}")]
    Silent { last: String },
    #[error("cannot note that an unfinished copy belongs to no group")]
    Disown(#[source] io::Error),
}

/// Where a start goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub position: Position,
    /// Galera does not know it by itself: it must be told (`--wsrep-start-position`).
    pub recovered: bool,
}

pub fn nothing() -> Position {
    Position { group: NOBODY.to_owned(), seqno: -1 }
}

/// Only while mariadbd does not run.
pub async fn on_disk(home: &Home) -> Result<Found, PositionError> {
    if home.copy_mark().exists() {
        disown(&home.data()).map_err(PositionError::Disown)?;
        return Ok(Found { position: nothing(), recovered: false });
    }
    match saved(&home.data()) {
        // No data yet, or a state transfer was cut off: what is there belongs to no group.
        None => Ok(Found { position: nothing(), recovered: false }),
        Some(position) if position.group == NOBODY => Ok(Found { position: nothing(), recovered: false }),
        Some(position) if position.seqno >= 0 => Ok(Found { position, recovered: false }),
        Some(_) => Ok(Found { position: recover(home).await?, recovered: true }),
    }
}

/// What `grastate.dat` says; seqno -1 after a crash.
fn saved(data: &Path) -> Option<Position> {
    let text = fs::read_to_string(grastate(data)).ok()?;
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some(Position { group: field("uuid")?.to_owned(), seqno: field("seqno")?.parse().ok()? })
}

/// Lets Galera start a group here although another member may have left last: the controller compared.
pub fn allow_bootstrap(data: &Path) -> io::Result<()> {
    let path = grastate(data);
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let allowed = text.replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1");
    if allowed == text { Ok(()) } else { replace(&path, &allowed) }
}

/// Whether another member's data are being received: its script keeps them in this folder at first. Galera's own
/// state says nothing: it is nobody's for a moment also when a member only catches up. Looked at while it starts.
pub fn is_being_copied(data: &Path) -> bool {
    data.join(".sst").exists()
}

/// Before the first file of a copy can reach the disk, or as soon as it is seen.
pub fn mark_copy(home: &Home) -> io::Result<()> {
    let mark = home.copy_mark();
    if mark.exists() {
        return Ok(());
    }
    fs::write(&mark, "")?;
    sync_folder(&home.state())
}

/// Blocks until everything that was copied is on disk; then the mark goes.
pub fn save_copy(home: &Home) -> io::Result<()> {
    rustix::fs::syncfs(fs::File::open(home.data())?)?;
    match fs::remove_file(home.copy_mark()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(&home.state()),
    }
}

/// Galera too shall take what is there for nothing, and ask for a new copy.
fn disown(data: &Path) -> io::Result<()> {
    let state =
        format!("# GALERA saved state\nversion: 2.1\nuuid:    {NOBODY}\nseqno:   -1\nsafe_to_bootstrap: 0\n");
    match saved(data) {
        Some(position) if position.group == NOBODY => Ok(()),
        _ => replace(&grastate(data), &state),
    }
}

/// A power cut leaves the old text or the new one: an empty state would say that the data are nobody's.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let unready: PathBuf = path.with_extension("new");
    fs::write(&unready, text)?;
    // A copy that was cut off may have no state file; its folder belongs to mariadbd's account as well.
    let folder = path.parent().unwrap_or(Path::new("/"));
    let owner = fs::metadata(path).or_else(|_| fs::metadata(folder))?;
    std::os::unix::fs::chown(&unready, Some(owner.uid()), Some(owner.gid()))?;
    fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))?;
    fs::File::open(&unready)?.sync_all()?;
    fs::rename(&unready, path)?;
    sync_folder(folder)
}

pub fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

async fn recover(home: &Home) -> Result<Position, PositionError> {
    let path = located("mariadbd", PACKAGE)?;
    let mut command = clean_command(&path, Some(Home::account()?));
    command.arg(home.defaults_argument());
    command.args(["--wsrep-recover", "--wsrep-cluster-address=gcomm://", "--skip-networking"]);
    command.stdout(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(RECOVER_LIMIT, command.output())
        .await
        .map_err(|_| PositionError::Late)?
        .map_err(PositionError::Run)?;
    let log = String::from_utf8_lossy(&output.stderr);
    recovered(&log)
        .ok_or_else(|| PositionError::Silent { last: log.lines().last().unwrap_or("no output").to_owned() })
}

fn recovered(log: &str) -> Option<Position> {
    let (_, rest) = log.rsplit_once(RECOVERED)?;
    let word = rest.split_ascii_whitespace().next()?;
    let mut parts = word.split(',').next()?.split(':');
    Some(Position { group: parts.next()?.to_owned(), seqno: parts.next()?.parse().ok()? })
}

#[cfg(test)]
pub mod tests {
    use kopek_core::config::Dirs;

    use super::super::MemberConfig;
    use super::*;

    const GROUP: &str = "6d2c1f60-0000-4000-8000-00000000000a";

    #[test]
    fn the_recovered_position_is_read_from_the_log() {
        let log = format!("x\n2026-11-22 WSREP: Recovered position: {GROUP}:42\nbye\n");
        assert_eq!(recovered(&log), Some(Position { group: GROUP.to_owned(), seqno: 42 }));
        let with_gtid = format!("WSREP: Recovered position: {GROUP}:7,0-1-2\n");
        assert_eq!(recovered(&with_gtid).map(|p| p.seqno), Some(7));
        assert_eq!(recovered("nothing of the kind"), None);
    }

    #[test]
    fn a_saved_position_is_read_and_may_be_allowed_to_start_a_group() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(saved(data.path()), None);
        let text = format!(
            "# GALERA saved state\nversion: 2.1\nuuid:    {GROUP}\nseqno:   -1\nsafe_to_bootstrap: 0\n"
        );
        fs::write(grastate(data.path()), text).unwrap();
        assert_eq!(saved(data.path()), Some(Position { group: GROUP.to_owned(), seqno: -1 }));
        allow_bootstrap(data.path()).unwrap();
        assert!(fs::read_to_string(grastate(data.path())).unwrap().contains("safe_to_bootstrap: 1"));
    }

    pub fn home_with(state: &str) -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir().unwrap();
        let within = |name: &str| folder.path().join(name);
        let dirs =
            Dirs { etc: within("etc"), state: within("state"), run: within("run"), log: within("log") };
        let server = kopek_core::ServerId::parse("s1").unwrap();
        let home = Home::new(&dirs, MemberConfig::new(&server, "10.0.0.1".parse().unwrap()));
        fs::create_dir_all(home.data()).unwrap();
        fs::write(grastate(&home.data()), state).unwrap();
        (folder, home)
    }

    fn state(group: &str, seqno: i64) -> String {
        format!(
            "# GALERA saved state\nversion: 2.1\nuuid:    {group}\nseqno:   {seqno}\nsafe_to_bootstrap: 0\n"
        )
    }

    #[tokio::test]
    async fn a_copy_proves_nothing_before_it_is_on_disk_however_good_its_position_looks() {
        let (_folder, home) = home_with(&state(GROUP, 42));
        mark_copy(&home).unwrap();
        let nobodys = Found { position: nothing(), recovered: false };
        assert_eq!(on_disk(&home).await.unwrap(), nobodys);
        assert_eq!(saved(&home.data()), Some(nothing()), "Galera takes it for nothing too");

        let (_folder, home) = home_with(&state(GROUP, 42));
        mark_copy(&home).unwrap();
        save_copy(&home).unwrap();
        save_copy(&home).unwrap();
        assert_eq!(on_disk(&home).await.unwrap().position, Position { group: GROUP.to_owned(), seqno: 42 });
    }

    #[test]
    fn a_copy_is_seen_by_its_folder() {
        let (_folder, home) = home_with(&state(GROUP, -1));
        assert!(!is_being_copied(&home.data()), "it crashed, or catches up");
        fs::create_dir(home.data().join(".sst")).unwrap();
        assert!(is_being_copied(&home.data()));
    }
}
