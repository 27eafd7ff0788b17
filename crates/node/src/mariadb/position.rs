//! How new the data on disk is. Known without starting: from `grastate.dat` after a clean stop, from InnoDB's
//! log after a crash. Starting a group from any but the newest loses what was committed.

use std::fs;
use std::io;
use std::path::Path;
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
    if allowed == text { Ok(()) } else { fs::write(path, allowed) }
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
mod tests {
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
}
