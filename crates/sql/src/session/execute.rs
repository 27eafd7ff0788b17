//! What is done with each command of a client. Called by `session`.
//!
//! ```text
//!  in a transaction, or a read:        ready ─► send ─► answer ─► kept for a repetition
//!  a write on its own:                 ready ─► BEGIN, token, write ─► answer held ─► COMMIT ─► answer
//!  COMMIT of a transaction that wrote: ready ─► token, COMMIT ─► answer
//! ```
//! A write on its own becomes a transaction with a token, because otherwise nobody could tell after the loss of
//! its writer whether it had taken place.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kopek_core::desired::Database;
use kopek_statement::{Kind, Marks, Reading, adapted, read, with_row_count};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::attempt::{Ending, Shown, Withhold, is_leaving, is_passing};
use super::repeat::{Fate, Former, without_status};
use super::{CLIENT_STALL, End, Flow, Session, relieved_for_good};
use crate::answer::{Expected, Said};
use crate::backend::{Backend, OpenError, Shape};
use crate::caps::Status;
use crate::carry::{Carry, statement_id};
use crate::effect::{Effect, PLAIN, Repeat, SCHEMA, Stays, UNKNOWN, effect_of};
use crate::handshake::Login;
use crate::inbox::{self, Command, Passed};
use crate::login::{Arrived, LoginError};
use crate::manners::Texts;
use crate::packet::{HEADER, ServerError, command, command_packet, ok_packet};
use crate::threads::killing_actual;
use crate::token::Token;
use crate::transaction::{Done, Seen, Transaction, now_micros};
use crate::warm::Left;
use crate::wire::Wire;
use crate::writer::changed_from;

/// Nothing is repeated more often than this after lost writers.
const TRIES_MAX: u32 = 20;
/// `SHOW WARNINGS` has 64 rows at most (`max_error_count`).
const WARNINGS_MAX: usize = 1 << 20;
/// After a deadlock the other one goes first.
const DEADLOCK_PAUSE: Duration = Duration::from_millis(5);

/// A command and what is known of it.
pub(super) struct Work {
    command: Command,
    expected: Expected,
    effect: Effect,
    reading: Option<Reading>,
    /// First sent at.
    micros: u64,
}

impl Work {
    fn is(&self, kind: Kind) -> bool {
        self.reading.is_some_and(|reading| reading.kind == kind)
    }

    fn packet(&self) -> &[u8] {
        &self.command.packet
    }
}

impl Session {
    pub(super) async fn answer(&mut self, mut command: Command) -> Result<Flow, End> {
        let kind = command.kind();
        match kind {
            command::QUIT => return Ok(Flow::Over),
            command::STMT_CLOSE => {
                self.close_statement(&command).await;
                return Ok(Flow::On);
            }
            command::CHANGE_USER => {
                self.change_user(&command).await?;
                return Ok(Flow::On);
            }
            command::BINLOG_DUMP | command::TABLE_DUMP => {
                self.pass_replication(&command).await?;
                return Ok(Flow::Over);
            }
            command::PROCESS_KILL => self.kill_actual(&mut command),
            _ => {}
        }
        let saved = (self.warnings.take(), self.row_count.take());
        let Some(work) = self.understand(command, saved).await? else { return Ok(Flow::On) };
        if work.effect.needs_files {
            self.sites.barrier.settled(&self.site).await;
        }
        let changes_beginnings = work.reading.as_ref().is_some_and(changes_beginnings);
        if changes_beginnings {
            self.sites.warm.forget(&self.site);
        }
        if self.may_be_wrapped(&work) {
            self.write_alone(work).await?;
        } else {
            self.execute(work).await?;
        }
        if changes_beginnings {
            self.sites.warm.forget(&self.site);
        }
        Ok(Flow::On)
    }

    /// `None`: it was answered here.
    async fn understand(
        &mut self,
        mut command: Command,
        saved: (Option<Bytes>, Option<i64>),
    ) -> Result<Option<Work>, End> {
        let kind = command.kind();
        let expected = Expected::of(kind);
        let (effect, reading) = match kind {
            command::QUERY => {
                let reading = read(command.body(), self.dialect());
                if reading.marks.intersects(Marks::DIAGNOSTICS | Marks::ROW_COUNT) {
                    (self.warnings, self.row_count) = saved;
                    if self.show_saved_warnings(&command).await? {
                        return Ok(None);
                    }
                }
                self.adapt(&mut command, &reading);
                (effect_of(&reading), Some(reading))
            }
            command::STMT_PREPARE => {
                let reading = read(command.body(), self.dialect());
                self.adapt(&mut command, &reading);
                (PLAIN, Some(reading))
            }
            command::STMT_EXECUTE | command::STMT_BULK_EXECUTE => {
                let id = statement_id(&command.packet);
                let reading = id.and_then(|id| self.carry.statement(id)).map(|statement| statement.reading);
                (reading.as_ref().map_or(UNKNOWN, effect_of), reading)
            }
            command::INIT_DB => (SCHEMA, None),
            command::SET_OPTION => (Effect { stays: Stays::Setting, ..PLAIN }, None),
            command::PING
            | command::STATISTICS
            | command::FIELD_LIST
            | command::PROCESS_INFO
            | command::STMT_FETCH
            | command::STMT_RESET
            | command::STMT_SEND_LONG_DATA
            | command::RESET_CONNECTION => (PLAIN, None),
            _ => (UNKNOWN, None),
        };
        let mut work = Work { command, expected, effect, reading, micros: now_micros() };
        if opens_cursor(&work) {
            work.expected = Expected::ResultsOrCursor;
        }
        Ok(Some(work))
    }

    /// Texts that a pool cannot take as they are.
    fn adapt(&self, command: &mut Command, reading: &Reading) {
        if !command.is_whole() {
            return;
        }
        let text = command.body();
        let other = match self.row_count {
            _ if reading.kind == Kind::Kill => {
                killing_actual(text, |given| self.sites.ways.threads.actual(&self.site, given))
            }
            _ if self.is_foreign => None,
            Some(rows) if reading.marks.contains(Marks::ROW_COUNT) => {
                with_row_count(text, self.dialect(), rows)
            }
            _ if self.sites.manners.texts == Texts::AsTheyAre => None,
            _ => adapted(text, reading, self.dialect(), &format!("kopek{}.", self.number)),
        };
        if let Some(other) = other
            && other.len() < inbox::WHOLE_MAX
        {
            command.packet = command_packet(command.kind(), &other);
        }
    }

    /// Only the statement as nearly everybody writes it.
    async fn show_saved_warnings(&mut self, command: &Command) -> Result<bool, End> {
        let text = command.body().trim_ascii().strip_suffix(b";").unwrap_or(command.body().trim_ascii());
        match &self.warnings {
            Some(warnings) if text.eq_ignore_ascii_case(b"SHOW WARNINGS") => {
                let warnings = warnings.clone();
                self.tell(&warnings).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn close_statement(&mut self, command: &Command) {
        let Some(id) = statement_id(&command.packet) else { return };
        if let Some(backend) = &mut self.backend {
            let addressed = self.carry.addressed(&command.packet);
            // No answer follows; a lost member is noticed by the next command.
            let _ = backend.wire.send(addressed.as_deref().unwrap_or(&command.packet)).await;
        }
        self.carry.closed(id);
    }

    /// Whether the command is a write on its own whose fate a token can tell.
    fn may_be_wrapped(&self, work: &Work) -> bool {
        work.effect.repeat == Repeat::Uncommitted
            && work.command.is_whole()
            && work.expected == Expected::Results
            && !opens_cursor(work)
            && !self.is_in_transaction()
            && self.why_bound().is_none()
            && self.tokens.is_there()
    }

    async fn write_alone(&mut self, work: Work) -> Result<(), End> {
        let mut passing = 0;
        for _ in 0..TRIES_MAX {
            self.ready().await?;
            let token = self.new_token();
            let mut shown = Shown::default();
            let mut together = command_packet(command::QUERY, b"START TRANSACTION");
            together.put_slice(&command_packet(command::QUERY, token.write().as_bytes()));
            let addressed = self.carry.addressed(work.packet());
            together.put_slice(addressed.as_deref().unwrap_or(work.packet()));
            if !self.send_with_token(&together, 1).await {
                self.backend = None;
                continue;
            }
            let (mut answer, said) = match self.pass_answer(work.expected, Withhold::All, &mut shown).await? {
                Ending::Withheld { answer, said } => (answer, said),
                // It was too long to hold, and the client has it.
                Ending::Answered(said) => (BytesMut::new(), said),
                Ending::Lost if shown.is_nothing() => {
                    self.backend = None;
                    continue;
                }
                Ending::Lost => return Err(lost("a part of its answer was sent")),
            };
            match said.error {
                Some(code) if is_leaving(code) => {
                    self.backend = None;
                    continue;
                }
                Some(code) if is_passing(code) && passing < self.sites.manners.deadlocks.tries() => {
                    passing += 1;
                    sleep(DEADLOCK_PAUSE * passing).await;
                    continue;
                }
                _ => {}
            }
            self.keep_diagnostics(&said).await;
            let Some(former) = self.former() else { continue };
            let end = if said.error.is_some() { "ROLLBACK" } else { "COMMIT" };
            let relieved = relieved_for_good(self.sites.part(), &self.site, &former.writer);
            let ended = match &mut self.backend {
                Some(backend) => tokio::select! {
                    ended = backend.query(end) => ended,
                    () = relieved => Err(std::io::ErrorKind::TimedOut.into()),
                },
                None => continue,
            };
            let outcome = match ended {
                Ok(Said { error: None, status, .. }) => {
                    self.status = status.unwrap_or(self.status);
                    Outcome::Sure
                }
                Ok(Said { error: Some(code), .. })
                    if is_passing(code)
                        && passing < self.sites.manners.deadlocks.tries()
                        && shown.is_nothing() =>
                {
                    passing += 1;
                    Outcome::Again
                }
                Ok(Said { error: Some(code), .. }) if !is_leaving(code) => {
                    return Err(lost(&format!("its commit failed with error {code}")));
                }
                Ok(_) | Err(_) if said.error.is_some() => {
                    self.backend = None;
                    Outcome::Sure
                }
                Ok(_) | Err(_) => {
                    self.backend = None;
                    match self.fate_of(token, &former).await? {
                        Fate::Committed => Outcome::Sure,
                        Fate::NotCommitted if shown.is_nothing() => Outcome::Again,
                        Fate::NotCommitted => return Err(lost("a part of its answer was sent")),
                    }
                }
            };
            if outcome == Outcome::Again {
                continue;
            }
            without_status(&mut answer, Status::IN_TRANSACTION.0);
            self.tell(&answer).await?;
            self.keep(&work, &said);
            if said.error.is_none() {
                self.keep_stay(&work);
            }
            return Ok(());
        }
        Err(lost("every other writer was lost too"))
    }

    fn new_token(&mut self) -> Token {
        let slot = self.slot.get_or_insert_with(|| self.sites.slots.take());
        Token::new(self.number, slot)
    }

    fn former(&self) -> Option<Former> {
        let backend = self.backend.as_ref()?;
        Some(Former { writer: backend.writer.clone(), thread: backend.thread })
    }

    /// Sends commands of which the token is the `nth`, counted from 0, and passes over the answers up to it.
    /// False: the member is lost.
    async fn send_with_token(&mut self, together: &[u8], nth: usize) -> bool {
        let Some(backend) = &mut self.backend else { return false };
        let writer = backend.writer.clone();
        let sent = async {
            backend.wire.send(together).await?;
            let mut last = Said::default();
            for _ in 0..=nth {
                last = backend.pass_over(Expected::Results).await?;
            }
            std::io::Result::Ok(last)
        };
        // A hung member answers nothing: the next part of the agent tells.
        let sent = tokio::select! {
            sent = sent => sent,
            () = changed_from(self.sites.part(), &self.site, &writer) => return false,
        };
        match sent {
            Ok(Said { error: None, .. }) => true,
            Ok(Said { error: Some(code), .. }) if is_leaving(code) => false,
            Ok(Said { error: Some(code), .. }) => {
                debug!(site = %self.site, code, "the site has no row for its tokens");
                self.tokens.was_missed();
                true
            }
            Err(_) => false,
        }
    }

    /// Our own COMMIT or ROLLBACK makes the member forget them.
    async fn keep_diagnostics(&mut self, said: &Said) {
        self.row_count = Some(match said.error {
            Some(_) => -1,
            None => i64::try_from(said.affected).unwrap_or(i64::MAX),
        });
        if said.warnings == 0 && said.error.is_none() {
            return;
        }
        let Some(backend) = &mut self.backend else { return };
        let writer = backend.writer.clone();
        let relieved = relieved_for_good(self.sites.part(), &self.site, &writer);
        let asking = async {
            backend.wire.send(&command_packet(command::QUERY, b"SHOW WARNINGS")).await?;
            backend.read_whole(Expected::Results, WARNINGS_MAX).await
        };
        let answered = tokio::select! {
            answered = asking => answered,
            () = relieved => return,
        };
        if let Ok((mut warnings, _)) = answered {
            without_status(&mut warnings, Status::IN_TRANSACTION.0);
            self.warnings = Some(warnings.freeze());
        }
    }

    /// Anything but a write on its own.
    async fn execute(&mut self, mut work: Work) -> Result<(), End> {
        let mut shown = Shown::default();
        let mut passing = 0;
        for _ in 0..TRIES_MAX {
            match self.ready().await {
                Err(End::RolledBack) if !shown.is_nothing() => {
                    return Err(lost("its transaction went another way"));
                }
                other => other?,
            }
            let commit = self.commit_token(&work);
            let former = self.former();
            let ending = self.try_once(&mut work, commit, &mut shown).await?;
            match ending {
                Ending::Answered(said) => {
                    if said.error.is_some_and(is_passing) {
                        self.end_transaction();
                        self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
                    }
                    self.keep_in_transaction(&work, &said, &shown);
                    return Ok(());
                }
                Ending::Withheld { answer, said } if self.is_foreign => {
                    self.tell(&answer).await?;
                    self.keep_in_transaction(&work, &said, &shown);
                    return Ok(());
                }
                Ending::Withheld { said, .. }
                    if said.error.is_some_and(is_passing)
                        && passing < self.sites.manners.deadlocks.tries()
                        && self.why_not_again(&work).is_none() =>
                {
                    passing += 1;
                    sleep(DEADLOCK_PAUSE * passing).await;
                    if self.transaction.is_open && !self.repeat_transaction().await? {
                        self.backend = None;
                    }
                }
                Ending::Withheld { answer, said } if said.error.is_some_and(is_passing) => {
                    self.tell(&answer).await?;
                    self.end_transaction();
                    self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
                    return Ok(());
                }
                // A leaving member's error, or a lost member.
                Ending::Withheld { .. } | Ending::Lost => {
                    self.backend = None;
                    if self.settle_commit(&work, commit, former, &shown).await? {
                        return Ok(());
                    }
                    if let Some(why) = self.why_not_again(&work) {
                        return Err(lost(why));
                    }
                }
            }
            shown.again();
        }
        Err(lost("every other writer was lost too"))
    }

    async fn try_once(
        &mut self,
        work: &mut Work,
        commit: Option<Token>,
        shown: &mut Shown,
    ) -> Result<Ending, End> {
        if let Some(token) = commit {
            let mut together = command_packet(command::QUERY, token.write().as_bytes());
            together.put_slice(work.packet());
            if !self.send_with_token(&together, 0).await {
                return Ok(Ending::Lost);
            }
        } else {
            let Session { client, backend, carry, .. } = self;
            let Some(backend) = backend else { return Ok(Ending::Lost) };
            let names_statement = matches!(
                work.command.kind(),
                command::STMT_EXECUTE
                    | command::STMT_BULK_EXECUTE
                    | command::STMT_FETCH
                    | command::STMT_RESET
                    | command::STMT_SEND_LONG_DATA
            );
            let addressed = names_statement.then(|| carry.addressed(&work.command.packet)).flatten();
            let packet = addressed.as_deref().unwrap_or(&work.command.packet);
            if backend.wire.send(packet).await.is_err() && work.command.is_whole() {
                return Ok(Ending::Lost);
            }
            match inbox::pass_rest(&mut work.command, client, &mut backend.wire).await? {
                Passed::Whole => {}
                // The member may have said why it takes no more.
                Passed::Refused => {}
                Passed::TooLong => {
                    self.backend = None;
                    let text = "Got a packet bigger than 'max_allowed_packet' bytes";
                    return Err(End::Refused(ServerError::new(1153, b"08S01", text)));
                }
            }
        }
        self.pass_answer(work.expected, Withhold::Passing, shown).await
    }

    /// A token for the COMMIT of a transaction that wrote.
    fn commit_token(&mut self, work: &Work) -> Option<Token> {
        let wants = work.is(Kind::Commit)
            && work.command.kind() == command::QUERY
            && work.reading.is_some_and(|reading| !reading.marks.contains(Marks::CHAIN_OR_RELEASE))
            && self.transaction.has_written
            && !self.is_foreign
            && self.carry.stuck().is_none()
            && self.tokens.is_there();
        wants.then(|| self.new_token())
    }

    /// After the loss of a writer: whether the command was a COMMIT that took place. Its client is told so.
    async fn settle_commit(
        &mut self,
        work: &Work,
        token: Option<Token>,
        former: Option<Former>,
        shown: &Shown,
    ) -> Result<bool, End> {
        if !work.is(Kind::Commit) || !shown.is_nothing() {
            return Ok(false);
        }
        let committed = match (token, former) {
            // There was nothing to lose.
            (None, _) if !self.transaction.has_written && self.why_bound().is_none() => true,
            (Some(token), Some(former)) => self.fate_of(token, &former).await? == Fate::Committed,
            _ => return Err(lost("whether its COMMIT took place is not known")),
        };
        if committed {
            self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
            self.tell(&ok_packet(1, self.status)).await?;
            self.end_transaction();
        }
        Ok(committed)
    }

    /// Why a command that was sent cannot be sent once more.
    fn why_not_again(&self, work: &Work) -> Option<&'static str> {
        if let Some(why) = self.why_bound() {
            return Some(why);
        }
        if !work.command.is_whole() {
            return Some("the statement was too large to be kept");
        }
        match work.effect.repeat {
            Repeat::Freely => None,
            Repeat::Uncommitted | Repeat::Commit if self.is_in_transaction() => None,
            Repeat::Uncommitted | Repeat::Commit => Some("whether the write took place is not known"),
            Repeat::Never => Some("the statement cannot be repeated"),
        }
    }

    /// What a command that was answered leaves behind.
    fn keep_in_transaction(&mut self, work: &Work, said: &Said, shown: &Shown) {
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

    fn end_transaction(&mut self) {
        for done in self.transaction.end() {
            self.carry.keep(done.stays, &done.packet);
        }
    }

    /// What the session keeps of a command.
    fn keep(&mut self, work: &Work, said: &Said) {
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

    fn keep_stay(&mut self, work: &Work) {
        match work.command.is_whole() {
            true => self.carry.keep(work.effect.stays, work.packet()),
            false if work.effect.stays != Stays::Nothing => {
                self.carry.stick("a setting that was too large to be kept");
            }
            false => {}
        }
    }

    /// The member rolled it back, or it could not be repeated: the client hears of a deadlock, as MySQL calls it.
    pub(super) async fn roll_back(&mut self) -> Result<(), End> {
        self.backend = None;
        self.end_transaction();
        self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
        let text = "Deadlock found when trying to get lock; try restarting transaction";
        self.tell(&ServerError::new(1213, b"40001", text).packet(1)).await
    }

    /// COM_PROCESS_KILL.
    fn kill_actual(&self, command: &mut Command) {
        let given = command.body().try_into().ok().map(u32::from_le_bytes);
        if let Some(actual) = given.and_then(|given| self.sites.ways.threads.actual(&self.site, given)) {
            command.packet = command_packet(command::PROCESS_KILL, &actual.to_le_bytes());
        }
    }

    /// A replica's or mysqlbinlog's: from here on the member speaks without end.
    async fn pass_replication(&mut self, command: &Command) -> Result<(), End> {
        self.ready().await?;
        let Session { client, backend, .. } = self;
        let Some(mut backend) = backend.take() else { return Ok(()) };
        backend.wire.send(&command.packet).await?;
        loop {
            if !backend.wire.input.is_empty() {
                let bytes = backend.wire.input.split();
                timeout(CLIENT_STALL, client.send(&bytes)).await.map_err(|_| End::Stalled)??;
            }
            if !client.input.is_empty() {
                backend.wire.send(&client.input.split()).await?;
            }
            let count = tokio::select! {
                count = backend.wire.fill() => count?,
                count = client.fill() => count?,
            };
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// COM_CHANGE_USER: another login on the same connection. Whatever the outcome, the session is as new.
    async fn change_user(&mut self, command: &Command) -> Result<(), End> {
        let Some(login) = Login::parse_change(command.body(), &self.login) else {
            return self.tell(&ServerError::new(1047, b"08S01", "Unknown command").packet(1)).await;
        };
        // Only the schema and the login of the backend count, and both change.
        (self.carry, self.status) = (Carry::default(), Status::AUTOCOMMIT);
        self.transaction = Transaction::default();
        self.ready().await?;
        let Some(mut backend) = self.backend.take() else { return Err(End::ClosedByMember) };
        let account = self.sites.account(&self.site).map(|(_, account)| account);
        let mut arrived = Arrived {
            wire: std::mem::replace(&mut self.client, Wire::closed()),
            login,
            sequence: 1,
            nonce: self.nonce,
        };
        let outcome = change(&mut arrived, &mut backend, account.as_ref()).await;
        let Arrived { wire, login, nonce, .. } = arrived;
        (self.client, self.nonce) = (wire, nonce);
        match outcome {
            Ok(whose) => {
                self.is_foreign = whose == Whose::Foreign;
                self.shape = backend.shape.clone();
                self.status = backend.status;
                self.login = login;
            }
            // The former user goes on, but as new; what else is left is not known.
            Err(LoginError::Denied { .. }) => self.carry.was_left(Left::Unknown),
            Err(error) => return Err(error.into()),
        }
        self.backend = Some(backend);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Own,
    Foreign,
}

async fn change(
    arrived: &mut Arrived,
    backend: &mut Backend,
    account: Option<&Database>,
) -> Result<Whose, LoginError> {
    let asked = arrived.login.schema.clone();
    if let Some(own) = account
        && own.user.as_bytes() == arrived.login.user
        && arrived.is_proved(own).await?
    {
        let caps = backend.shape.caps;
        let schema = asked.clone().filter(|asked| own.name.is_empty() || &asked[..] == own.name.as_bytes());
        let shape = Shape { caps, collation: arrived.login.collation, schema };
        let packet_schema = asked;
        return match backend.change_user(own, &Shape { schema: packet_schema, ..shape.clone() }).await {
            Ok(()) => {
                arrived.send(&ok_packet(0, backend.status)[HEADER..]).await?;
                Ok(Whose::Own)
            }
            Err(OpenError::Refused(error)) => {
                arrived.refuse(&error).await?;
                Err(LoginError::Denied { user: own.user.clone() })
            }
            Err(error) => Err(LoginError::Broken(std::io::Error::other(error))),
        };
    }
    arrived.relay_change_to(backend).await?;
    Ok(Whose::Foreign)
}

/// Whether a session that begins after the statement may find something else than one that began before.
fn changes_beginnings(reading: &Reading) -> bool {
    reading.marks.intersects(Marks::SETS_GLOBAL | Marks::MULTI | Marks::HIDDEN_TEXT)
        || matches!(reading.kind, Kind::Account | Kind::Maintenance | Kind::SetOther)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sure,
    Again,
}

fn lost(why: &str) -> End {
    End::Lost { why: why.to_owned() }
}

/// COM_STMT_EXECUTE's flags ask for a cursor.
fn opens_cursor(work: &Work) -> bool {
    work.command.kind() == command::STMT_EXECUTE
        && work.packet().get(HEADER + 5).is_some_and(|flags| *flags != 0)
}
