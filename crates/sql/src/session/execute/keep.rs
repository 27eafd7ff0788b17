//! What a session keeps of a command that was answered: for a repetition, and for another backend. Called by
//! `execute`.

use bytes::Bytes;
use kopek_statement::{Kind, Marks};

use super::{Work, opens_cursor};
use crate::answer::{Expected, Said};
use crate::caps::Status;
use crate::effect::{Repeat, Stays};
use crate::packet::command;
use crate::session::Session;
use crate::session::attempt::Shown;
use crate::transaction::{Done, Seen};
use crate::warm::Left;

impl Session {
    /// What a command that was answered leaves behind.
    pub(super) fn keep_in_transaction(&mut self, work: &Work, said: &Said, shown: &Shown) {
        let was_open = self.transaction.is_open;
        self.keep(work, said);
        let is_open = self.status.has(Status::IN_TRANSACTION);
        self.transaction.is_open = is_open;
        let stays = if said.error.is_some() { Stays::Nothing } else { work.effect.stays };
        if is_open {
            self.transaction.has_written |= work.effect.repeat != Repeat::Freely;
            if work.effect.repeat == Repeat::Never || !work.command.is_whole() {
                self.transaction.spoil("a transaction with a statement that cannot be repeated");
            }
            if work.command.is_whole() && (work.expected == Expected::Results || stays != Stays::Nothing) {
                return self.log(work, stays, said, shown.seen());
            }
        }
        if said.error.is_none() {
            self.keep_stay(work);
        }
        if was_open && !is_open {
            self.end_transaction();
        }
    }

    fn log(&mut self, work: &Work, stays: Stays, said: &Said, seen: Seen) {
        let inserts = work.is(Kind::Insert) || work.is(Kind::Replace);
        let done = Done {
            packet: Bytes::copy_from_slice(work.packet()),
            stays,
            seen,
            micros: work.micros,
            insert_id: if inserts { said.insert_id } else { 0 },
        };
        if !self.transaction.push(done) {
            self.carry.stick("more settings than are kept");
        }
        if let Stays::Stuck(why) = stays {
            self.carry.stick(why);
        }
    }

    pub(in crate::session) fn end_transaction(&mut self) {
        for done in self.transaction.end() {
            self.carry.keep(done.stays, &done.packet);
        }
    }

    /// What the session keeps of a command.
    pub(super) fn keep(&mut self, work: &Work, said: &Said) {
        self.status = said.status.unwrap_or(self.status);
        if said.error.is_some() {
            return;
        }
        self.carry.inserted(said.insert_id);
        match work.command.kind() {
            command::STMT_PREPARE => {
                if let (Some((id, parameters)), Some(reading)) = (said.prepared, work.reading) {
                    match work.command.is_whole() {
                        true => self.carry.prepared(id, parameters, work.packet(), reading),
                        false => self.carry.stick("a prepared statement that was too large to be kept"),
                    }
                }
            }
            command::RESET_CONNECTION => {
                self.transaction.end();
                self.carry.reset();
                self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0 | Status::AUTOCOMMIT.0);
            }
            command::STMT_SEND_LONG_DATA => self.carry.stick("data that was sent ahead of its statement"),
            command::STMT_EXECUTE if opens_cursor(work) => self.carry.stick("an open cursor"),
            _ => {}
        }
        if let Stays::Stuck(_) = work.effect.stays
            && work.reading.is_none_or(|reading| matches!(reading.kind, Kind::SetOther | Kind::Other))
        {
            self.carry.was_left(Left::Unknown);
        }
        if work.reading.is_some_and(|reading| reading.marks.contains(Marks::MULTI)) {
            // One of them may have chosen another schema.
            self.carry.was_left(Left::OtherSchema);
        }
    }

    pub(super) fn keep_stay(&mut self, work: &Work) {
        match work.command.is_whole() {
            true => self.carry.keep(work.effect.stays, work.packet()),
            false if work.effect.stays != Stays::Nothing => {
                self.carry.stick("a setting that was too large to be kept");
            }
            false => {}
        }
    }
}
