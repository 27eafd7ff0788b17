//! A session's wait for the pool's turn before it changes a big table, as it would wait for a table's metadata
//! lock: for `lock_wait_timeout`, then error 1205. Called by `answer`.
//!
//! No turn is taken for a small table, in a transaction that has written (its locks would be held meanwhile), and
//! for what only the member sees: a procedure, EXECUTE of a text in a variable.

use std::io;
use std::pin::pin;
use std::time::Duration;

use kopek_statement::{TableName, rebuilt_tables};
use tokio::time::timeout;
use tracing::debug;

use super::Work;
use crate::answer::{Expected, Said};
use crate::carry::{Prepared, statement_id};
use crate::effect::Repeat;
use crate::manners::Texts;
use crate::packet::{HEADER, Reader, ServerError, command, command_packet, header};
use crate::session::{End, Session, relieved_for_good};
use crate::turn::{Turn, take};

/// A rebuild of 90 MB stopped a pool for 1.3 s on two cores. Below this nobody notices.
const BIG_BYTES: u64 = 64 << 20;
/// InnoDB counts rows at once and sizes up to 10 s late, so this is for tables that were just filled.
const BIG_ROWS: u64 = 500_000;
/// One row of two columns.
const ANSWER_MAX: usize = 16 * 1024;
/// Read ahead from a client that waits, to notice when it leaves.
const AHEAD_MAX: usize = 16 * 1024;

pub(super) enum Awaited {
    Go(Option<Turn>),
    /// The client has got an error.
    Told(Said),
}

/// What the member says of a table that is big.
struct Big {
    patience: Duration,
    table: String,
}

impl Session {
    /// Those for which a turn may be needed, if they are big.
    pub(super) fn tables_rebuilt_by(&self, work: &Work) -> Vec<TableName> {
        let Some(reading) = &work.reading else { return Vec::new() };
        let has_locks = self.transaction.is_open && self.transaction.has_written;
        let is_alone = self.sites.manners.texts == Texts::AsTheyAre;
        if work.effect.repeat != Repeat::Never || has_locks || is_alone {
            return Vec::new();
        }
        let text = match work.command.kind() {
            command::QUERY if work.command.is_whole() => work.command.body(),
            command::STMT_EXECUTE => {
                let statement = statement_id(work.packet()).and_then(|id| self.carry.statement(id));
                statement.and_then(Prepared::text).unwrap_or_default()
            }
            _ => return Vec::new(),
        };
        rebuilt_tables(text, reading, self.dialect())
    }

    pub(super) async fn await_turn(&mut self, tables: &[TableName]) -> Result<Awaited, End> {
        self.ready().await?;
        match self.big_one(tables).await {
            Some(Big { patience, table }) => self.wait_in_line(patience, table).await,
            None => Ok(Awaited::Go(None)),
        }
    }

    /// Asked on the session's own connection, which knows its schema and settings. What the question makes the
    /// member forget (the outcome of the statement before), the answer to the statement itself would too.
    async fn big_one(&mut self, tables: &[TableName]) -> Option<Big> {
        let question = question(tables)?;
        let backend = self.backend.as_mut()?;
        let writer = backend.writer.clone();
        let relieved = relieved_for_good(self.sites.part(), &self.site, &writer);
        let asking = async {
            backend.wire.send(&command_packet(command::QUERY, question.as_bytes())).await?;
            backend.read_whole(Expected::Results, ANSWER_MAX).await
        };
        let answered = tokio::select! {
            answered = asking => answered,
            () = relieved => Err(io::ErrorKind::TimedOut.into()),
        };
        match answered {
            Ok((answer, said)) if said.error.is_none() && said.rows > 0 => big_in(&answer),
            Ok(_) => None,
            Err(error) => {
                debug!(site = %self.site, %error, "the size of a table could not be asked");
                self.backend = None;
                None
            }
        }
    }

    async fn wait_in_line(&mut self, patience: Duration, table: String) -> Result<Awaited, End> {
        let taking = take(self.sites.ways.clone(), self.site.clone(), table);
        let mut taking = pin!(timeout(patience, taking));
        loop {
            let Session { client, backend, .. } = self;
            let from_member = async {
                match backend {
                    Some(backend) => backend.wire.fill_after_idling().await.unwrap_or(0),
                    None => std::future::pending().await,
                }
            };
            let said = tokio::select! {
                biased;
                taken = &mut taking => {
                    let Ok(turn) = taken else { break };
                    return Ok(Awaited::Go(Some(turn)));
                }
                count = client.fill(), if client.input.len() < AHEAD_MAX => match count? {
                    0 => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
                    _ => continue,
                },
                count = from_member => count,
            };
            match said {
                0 => self.member_ended().await?,
                _ => self.member_spoke().await?,
            }
        }
        // ER_LOCK_WAIT_TIMEOUT, as when another connection has the table's metadata lock.
        let text = "Lock wait timeout exceeded; try restarting transaction";
        self.tell(&ServerError::new(1205, b"HY000", text).packet(1)).await?;
        Ok(Awaited::Told(Said { error: Some(1205), ..Said::default() }))
    }
}

/// One row if any of the tables is big. None: no name can be asked for.
fn question(tables: &[TableName]) -> Option<String> {
    // What a backslash means depends on the session.
    let asked = tables.iter().filter(|table| {
        ![Some(&table.name), table.schema.as_ref()].into_iter().flatten().any(|name| name.contains('\\'))
    });
    let text = |name: &str| format!("'{}'", name.replace('\'', "''"));
    let names: Vec<String> = asked
        .map(|TableName { schema, name }| {
            let schema = schema.as_deref().map_or("DATABASE()".to_owned(), text);
            format!("(table_schema={schema} AND table_name={})", text(name))
        })
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "SELECT @@lock_wait_timeout,table_name FROM information_schema.tables WHERE ({}) \
             AND (data_length+index_length>{BIG_BYTES} OR table_rows>{BIG_ROWS}) LIMIT 1",
            names.join(" OR ")
        )
    })
}

/// From the answer's only row: the last packet but one.
fn big_in(answer: &[u8]) -> Option<Big> {
    let (mut rest, mut row, mut last) = (answer, None, None);
    while let Some((length, _)) = header(rest) {
        row = last.replace(rest.get(HEADER..HEADER + length)?);
        rest = &rest[HEADER + length..];
    }
    let mut row = Reader::new(row?);
    let seconds = std::str::from_utf8(row.lenenc_bytes()?).ok()?.parse().ok()?;
    let table = String::from_utf8_lossy(row.lenenc_bytes()?).into_owned();
    Some(Big { patience: Duration::from_secs(seconds), table })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::packet::put_packet;

    #[test]
    fn a_question_names_each_table_and_leaves_out_what_could_be_read_in_two_ways() {
        let table = |schema: Option<&str>, name: &str| TableName {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        };
        let asked = question(&[table(None, "it's"), table(Some("s"), "t"), table(None, "a\\")]).unwrap();
        let names =
            "(table_schema=DATABASE() AND table_name='it''s') OR (table_schema='s' AND table_name='t')";
        assert!(asked.contains(&format!("WHERE ({names}) AND")), "{asked}");
        assert_eq!(question(&[table(None, "a\\")]), None);
    }

    #[test]
    fn patience_and_table_are_in_the_row_before_the_end() {
        let mut answer = BytesMut::new();
        for (sequence, payload) in
            [&b"\x02"[..], b"def1", b"def2", b"\x0586400\x05posts", b"\xfe\0\0\x02\0"].iter().enumerate()
        {
            put_packet(&mut answer, sequence as u8 + 1, &[payload]);
        }
        let big = big_in(&answer).unwrap();
        assert_eq!((big.patience.as_secs(), big.table.as_str()), (86_400, "posts"));
        assert!(big_in(&answer[..10]).is_none());
    }
}
