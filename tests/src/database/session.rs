//! One connection of a client to its site's database, as PHP's mysqli makes it: through the socket of an instance,
//! plain statements, no statement of its own at the start. Called by crew.rs and tables.rs.

use std::path::Path;
use std::time::Duration;

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, OptsBuilder};
use tokio::time::timeout;

use crate::database::history::Outcome;

pub const USER: &str = "chaos";
pub const PASSWORD: &str = "chaos-secret";
/// PHP would wait 60 s (`default_socket_timeout`). Longer than `sql` waits for a writer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Errors that come before anything was done, or after all of it was undone (MariaDB's numbers): too many
/// connections (1040, 1203), access denied (1044, 1045), lock wait timeout of one statement (1205), deadlock or failed
/// certification (1213), read-only (1290). Every other one, such as an error during COMMIT (1180), leaves it open.
const REFUSALS: [u16; 7] = [1040, 1044, 1045, 1203, 1205, 1213, 1290];
/// The member is not part of a group that works ("WSREP has not yet prepared node"): said before a statement begins.
const NOT_PREPARED: u16 = 1047;

/// Why a statement was not answered as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Without what differs from one to the next, to be counted.
    pub kind: String,
    pub fate: Outcome,
}

pub struct Session {
    conn: Conn,
}

impl Session {
    pub async fn open(socket: &Path) -> Result<Session, Problem> {
        let options = OptsBuilder::default()
            .socket(Some(socket.to_string_lossy()))
            .user(Some(USER))
            .pass(Some(PASSWORD))
            .db_name(Some(USER))
            // Given, so that they are not asked for.
            .max_allowed_packet(Some(16 << 20))
            .wait_timeout(Some(28_800))
            .prefer_socket(false)
            .stmt_cache_size(0);
        let opened = timeout(PATIENCE, Conn::new(options)).await;
        let conn =
            opened.map_err(|_| Problem::late()).and_then(|conn| conn.map_err(|error| Problem::of(&error)));
        // No statement was sent, so none was done.
        conn.map(|conn| Session { conn })
            .map_err(|problem| Problem { kind: format!("connect: {}", problem.kind), fate: Outcome::Refused })
    }

    /// Gives how many rows were changed.
    pub async fn change(&mut self, statement: &str) -> Result<u64, Problem> {
        match timeout(PATIENCE, self.conn.query_drop(statement)).await {
            Ok(Ok(())) => Ok(self.conn.affected_rows()),
            Ok(Err(error)) => Err(Problem::of(&error)),
            Err(_) => Err(Problem::late()),
        }
    }

    pub async fn rows<R: FromRow + Send + 'static>(&mut self, statement: &str) -> Result<Vec<R>, Problem> {
        match timeout(PATIENCE, self.conn.query(statement)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(Problem::of(&error)),
            Err(_) => Err(Problem::late()),
        }
    }

    /// COM_QUIT, as at the end of a script.
    pub async fn close(self) {
        let _ = timeout(PATIENCE, self.conn.disconnect()).await;
    }
}

impl Problem {
    fn late() -> Problem {
        let kind = format!("no answer in {} s", PATIENCE.as_secs());
        Problem { kind, fate: Outcome::Unknown }
    }

    fn of(error: &mysql_async::Error) -> Problem {
        match error {
            mysql_async::Error::Server(said) => {
                let is_refused = REFUSALS.contains(&said.code) || said.code == NOT_PREPARED;
                let fate = if is_refused { Outcome::Refused } else { Outcome::Unknown };
                let message: String = said.message.chars().take(60).collect();
                // PHP's script would end here as well; what follows begins anew.
                Problem { kind: format!("{} {message}", said.code), fate }
            }
            mysql_async::Error::Io(error) => {
                Problem { kind: format!("connection lost: {error}"), fate: Outcome::Unknown }
            }
            other => Problem { kind: other.to_string(), fate: Outcome::Unknown },
        }
    }
}
