//! Whether a change of a table took place whose answer was lost with its writer. No token can tell, since such a change
//! is no part of a transaction; the table's definition before and after does. Called by `execute`.
//!
//! Promise: a change is done once more only where the table is as it was before; then doing it again is as good as
//! doing it once. Another session's change of the same table in the very time of a failover is taken for this one's.

use blake3::Hash;
use bytes::BytesMut;
use kopek_statement::{Kind, Reading, changed_table};

use super::attempt::is_leaving;
use super::{End, Session};
use crate::answer::{Expected, Said};
use crate::caps::Status;
use crate::effect::{Effect, Repeat};
use crate::inbox::Command;
use crate::packet::{HEADER, Reader, command, command_packet, header, ok_packet};
use crate::writer::changed_from;

/// A table has 4,096 columns at most; their names and comments stay below this.
const DEFINITION_MAX: usize = 16 << 20;
const NO_SUCH_TABLE: u16 = 1146;
const COUNTER: &[u8] = b" AUTO_INCREMENT=";

/// A statement that changes a table's definition.
pub(super) struct Change {
    /// SHOW CREATE TABLE, as a packet.
    ask: BytesMut,
    before: Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    NotAsked,
    /// The member would not say.
    Untold,
    Was(Definition),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Definition {
    None,
    Some(Hash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    NotDone,
    Done,
    /// The member is lost.
    Lost,
}

impl Change {
    /// Whether a loss can be got over.
    pub(super) fn can_be_told(&self) -> bool {
        matches!(self.before, Before::Was(_))
    }
}

impl Session {
    /// Nothing for a statement that is none, or where more than its own effect would be lost with the writer.
    pub(super) fn change_of(
        &self,
        command: &Command,
        effect: &Effect,
        reading: Option<&Reading>,
    ) -> Option<Box<Change>> {
        let is_change = command.kind() == command::QUERY
            && command.is_whole()
            && effect.repeat == Repeat::Never
            && matches!(reading?.kind, Kind::CreateTable | Kind::AlterTable | Kind::OtherDdl);
        // It ends the transaction that is open. One that has not written may as well be ended by us.
        if !is_change || self.transaction.has_written || self.why_bound().is_some() {
            return None;
        }
        let table = changed_table(command.body(), self.dialect())?;
        let ask = command_packet(command::QUERY, &[b"SHOW CREATE TABLE ", table].concat());
        Some(Box::new(Change { ask, before: Before::NotAsked }))
    }

    /// Before each try: whether the one before it has changed the table.
    pub(super) async fn look_at(&mut self, change: &mut Change) -> Result<Looked, End> {
        let Some(backend) = &mut self.backend else { return Ok(Looked::Lost) };
        let writer = backend.writer.clone();
        let asking = async {
            backend.wire.send(&change.ask).await?;
            backend.read_whole(Expected::Results, DEFINITION_MAX).await
        };
        let answered = tokio::select! {
            answered = asking => answered,
            () = changed_from(self.sites.part(), &self.site, &writer) => return Ok(Looked::Lost),
        };
        let now = match answered {
            Err(_) => return Ok(Looked::Lost),
            Ok((_, Said { error: Some(code), .. })) if is_leaving(code) => return Ok(Looked::Lost),
            Ok((_, Said { error: Some(NO_SUCH_TABLE), .. })) => Some(Definition::None),
            Ok((answer, said)) => definition(&answer, &said).map(Definition::Some),
        };
        match (change.before, now) {
            (Before::NotAsked, now) => {
                change.before = now.map_or(Before::Untold, Before::Was);
                Ok(Looked::NotDone)
            }
            (Before::Was(before), Some(now)) if before == now => Ok(Looked::NotDone),
            (Before::Was(_), Some(_)) => Ok(Looked::Done),
            (Before::Untold, _) | (Before::Was(_), None) => {
                Err(End::Lost { why: "whether a change of a table took place is not known".to_owned() })
            }
        }
    }

    /// What the client was not told any more. Its transaction has ended with the change; the one that was begun
    /// again at the new member goes with its backend.
    pub(super) async fn tell_done(&mut self) -> Result<Said, End> {
        if self.transaction.is_open {
            self.backend = None;
            self.end_transaction();
            self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
        }
        self.tell(&ok_packet(1, self.status)).await?;
        Ok(Said::default())
    }
}

/// Of the one row of SHOW CREATE TABLE, which the answer's end follows, the second column; without the counter, which
/// goes on with each new row.
fn definition(answer: &[u8], said: &Said) -> Option<Hash> {
    if said.error.is_some() || said.rows != 1 {
        return None;
    }
    let (mut at, mut row, mut last) = (0, None, None);
    while let Some((length, _)) = header(answer.get(at..)?) {
        (row, last) = (last, Some(answer.get(at + HEADER..at + HEADER + length)?));
        at += HEADER + length;
        if at >= answer.len() {
            break;
        }
    }
    let mut row = Reader::new(row?);
    row.lenenc_bytes()?;
    let text = row.lenenc_bytes()?;
    let Some(counter) = text.windows(COUNTER.len()).rposition(|window| window == COUNTER) else {
        return Some(blake3::hash(text));
    };
    let (before, after) = (&text[..counter], &text[counter + COUNTER.len()..]);
    let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some(blake3::hash(&[before, &after[digits..]].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{put_lenenc, put_packet};

    fn shown(text: &str) -> Option<Hash> {
        let mut row = BytesMut::new();
        for column in ["t", text] {
            put_lenenc(&mut row, column.len() as u64);
            row.extend_from_slice(column.as_bytes());
        }
        let mut answer = BytesMut::new();
        put_packet(&mut answer, 1, &[b"\x02"]);
        put_packet(&mut answer, 2, &[b"column"]);
        put_packet(&mut answer, 3, &[b"column"]);
        put_packet(&mut answer, 4, &[&row]);
        put_packet(&mut answer, 5, &[b"\xfe\0\0\x02\0\0\0"]);
        definition(&answer, &Said { rows: 1, ..Said::default() })
    }

    #[test]
    fn a_definition_is_another_when_it_says_something_else_than_its_counter() {
        let one = shown("CREATE TABLE `t` (`a` int) ENGINE=InnoDB AUTO_INCREMENT=7 COMMENT='x'");
        assert!(one.is_some());
        assert_eq!(one, shown("CREATE TABLE `t` (`a` int) ENGINE=InnoDB AUTO_INCREMENT=1234 COMMENT='x'"));
        assert_eq!(one, shown("CREATE TABLE `t` (`a` int) ENGINE=InnoDB COMMENT='x'"));
        assert_ne!(one, shown("CREATE TABLE `t` (`a` int) ENGINE=InnoDB COMMENT='y'"));
    }
}
