//! What is done with each command of a client. Called by `session`.
//!
//! ```text
//!  in a transaction, or a read:        ready ─► send ─► answer ─► kept for a repetition
//!  a write on its own:                 ready ─► BEGIN, token, write ─► answer held ─► COMMIT ─► answer
//!  COMMIT of a transaction that wrote: ready ─► token, COMMIT ─► answer
//! ```
//! A write on its own becomes a transaction with a token, because otherwise nobody could tell after the loss of
//! its writer whether it had taken place.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kopek_statement::{Kind, Marks, Reading, adapted, read, with_row_count};
use tokio::time::sleep;

use self::turn::Awaited;
use super::attempt::{Ending, Shown, Withhold, is_passing};
use super::change::Looked;
use super::repeat::{Fate, Former};
use super::{CLIENT_STALL, End, Flow, Session};
use crate::answer::{Answer, Expected, Said};
use crate::backend::HANDSHAKE_MAX;
use crate::caps::Status;
use crate::carry::statement_id;
use crate::effect::{Effect, PLAIN, Repeat, SCHEMA, Stays, UNKNOWN, effect_of};
use crate::forbidden::forbidden;
use crate::inbox::{self, Command, Passed};
use crate::manners::Texts;
use crate::packet::{HEADER, ServerError, command, command_packet, ok_packet};
use crate::threads::killing_actual;
use crate::token::Token;
use crate::transaction::now_micros;

mod deaths;
mod keep;
mod note;
mod turn;
mod write_alone;

use deaths::Deaths;

/// Nothing is repeated more often than this after lost writers.
const TRIES_MAX: u32 = 20;
const BROKE: &str = "the next one too, with the same statement";
/// After a deadlock the other one goes first.
const DEADLOCK_PAUSE: Duration = Duration::from_millis(5);

/// A command and what is known of it.
pub(super) struct Work {
    command: Command,
    expected: Expected,
    effect: Effect,
    reading: Option<Reading>,
    /// What the client wrote, where the member gets another text.
    asked: Option<BytesMut>,
    /// First sent at.
    micros: u64,
    /// When it came.
    at: Instant,
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
        if !command.is_whole() && is_small(kind) {
            return Err(End::Refused(ServerError::new(1835, b"HY000", "Malformed communication packet")));
        }
        match kind {
            command::QUIT => return Ok(Flow::Over),
            command::STMT_CLOSE => {
                self.close_statement(&command).await;
                return Ok(Flow::On);
            }
            command::CHANGE_USER => {
                Box::pin(self.change_user(&command)).await?;
                return Ok(Flow::On);
            }
            command::BINLOG_DUMP | command::TABLE_DUMP => {
                return Box::pin(self.pass_replication(&command)).await;
            }
            command::PROCESS_KILL => self.kill_actual(&mut command),
            _ => {}
        }
        if let Some(error) = self.refusal(&command) {
            self.tell(&error.packet(1)).await?;
            return Ok(Flow::On);
        }
        let mut work = self.understand(command);
        let done = self.carry_out(&mut work).await;
        self.note(&work, done.as_ref());
        done.map(|_| Flow::On)
    }

    /// Until the client has its answer, however often the command has to be sent.
    async fn carry_out(&mut self, work: &mut Work) -> Result<Said, End> {
        if let Some(warnings) = self.saved_warnings(work) {
            self.tell(&warnings).await?;
            let mut answer = Answer::new(work.expected, self.shape.caps);
            answer.take(&warnings);
            return Ok(*answer.said());
        }
        if let Some(error) = self.forbidden(work) {
            self.tell(&error.packet(1)).await?;
            return Ok(Said { error: Some(error.code), ..Said::default() });
        }
        if work.effect.needs_files {
            self.sites.barrier.settled(&self.site).await;
        }
        let turn = match self.tables_rebuilt_by(work) {
            tables if tables.is_empty() => None,
            tables => match Box::pin(self.await_turn(&tables)).await? {
                Awaited::Go(turn) => turn,
                Awaited::Told(said) => return Ok(said),
            },
        };
        let changes_beginnings = work.reading.as_ref().is_some_and(changes_beginnings);
        if changes_beginnings {
            self.sites.warm.forget(&self.site);
        }
        let said = match self.may_be_wrapped(work) {
            true => Box::pin(self.write_alone(work)).await?,
            false => self.execute(work).await?,
        };
        if let Some(turn) = turn {
            turn.end(said.error.unwrap_or(0)).await;
        }
        if changes_beginnings {
            self.sites.warm.forget(&self.site);
        }
        Ok(said)
    }

    fn understand(&mut self, mut command: Command) -> Work {
        let at = Instant::now();
        let saved = (self.warnings.take(), self.row_count.take());
        let mut asked = None;
        let kind = command.kind();
        let expected = Expected::of(kind);
        let (effect, reading) = match kind {
            command::QUERY => {
                let reading = read(command.body(), self.dialect());
                if reading.marks.intersects(Marks::DIAGNOSTICS | Marks::ROW_COUNT) {
                    (self.warnings, self.row_count) = saved;
                }
                asked = self.adapt(&mut command, &reading);
                (effect_of(&reading), Some(reading))
            }
            command::STMT_PREPARE => {
                let reading = read(command.body(), self.dialect());
                asked = self.adapt(&mut command, &reading);
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
        let mut work = Work { command, expected, effect, reading, asked, micros: now_micros(), at };
        if opens_cursor(&work) {
            work.expected = Expected::ResultsOrCursor;
        }
        work
    }

    /// Texts that a pool cannot take as they are. Gives what it was, if it is another one now.
    fn adapt(&self, command: &mut Command, reading: &Reading) -> Option<BytesMut> {
        if !command.is_whole() {
            return None;
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
            _ => adapted(text, reading, self.dialect(), &self.lock_prefix),
        };
        let other = other.filter(|other| other.len() < inbox::WHOLE_MAX)?;
        let packet = command_packet(command.kind(), &other);
        Some(std::mem::replace(&mut command.packet, packet))
    }

    /// Of a site's own account; another one is the operator's.
    fn forbidden(&self, work: &Work) -> Option<ServerError> {
        let is_text = matches!(work.command.kind(), command::QUERY | command::STMT_PREPARE);
        let reading = work.reading.as_ref().filter(|_| is_text && !self.is_foreign)?;
        forbidden(work.command.body(), reading)
    }

    /// Only the statement as nearly everybody writes it.
    fn saved_warnings(&self, work: &Work) -> Option<Bytes> {
        let warnings = self.warnings.as_ref().filter(|_| work.command.kind() == command::QUERY)?;
        let text = work.command.body().trim_ascii();
        let text = text.strip_suffix(b";").unwrap_or(text);
        text.eq_ignore_ascii_case(b"SHOW WARNINGS").then(|| warnings.clone())
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

    /// Anything but a write on its own.
    async fn execute(&mut self, work: &mut Work) -> Result<Said, End> {
        let mut shown = Shown::default();
        let (mut passing, mut deaths) = (0, Deaths::default());
        let mut change = self.change_of(&work.command, &work.effect, work.reading.as_ref());
        for tried in 0..TRIES_MAX {
            self.note_repetition(tried);
            match self.ready().await {
                Err(End::RolledBack) if !shown.is_nothing() => {
                    return Err(lost("its transaction went another way"));
                }
                other => other?,
            }
            if let Some(change) = &mut change {
                match Box::pin(self.look_at(change)).await? {
                    Looked::NotDone => {}
                    Looked::Done => return self.tell_done().await,
                    Looked::Lost => {
                        self.backend = None;
                        continue;
                    }
                }
            }
            let commit = self.commit_token(work);
            let former = self.former();
            let ending = self.try_once(work, commit, &mut shown).await?;
            match ending {
                Ending::Answered(said) => {
                    if said.error.is_some_and(is_passing) {
                        self.end_transaction();
                        self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
                    }
                    self.keep_in_transaction(work, &said, &shown);
                    return Ok(said);
                }
                Ending::Withheld { answer, said } if self.is_foreign => {
                    self.tell(&answer).await?;
                    self.keep_in_transaction(work, &said, &shown);
                    return Ok(said);
                }
                Ending::Withheld { said, .. }
                    if said.error.is_some_and(is_passing)
                        && passing < self.sites.manners.deadlocks.tries()
                        && self.why_not_again(work).is_none() =>
                {
                    passing += 1;
                    sleep(DEADLOCK_PAUSE * passing).await;
                    if self.transaction.is_open && !Box::pin(self.repeat_transaction()).await? {
                        self.backend = None;
                    }
                }
                Ending::Withheld { answer, said } if said.error.is_some_and(is_passing) => {
                    self.tell(&answer).await?;
                    self.end_transaction();
                    self.status = Status(self.status.0 & !Status::IN_TRANSACTION.0);
                    return Ok(said);
                }
                // A leaving member's error, or a lost member.
                Ending::Withheld { .. } | Ending::Lost | Ending::Broke => {
                    self.backend = None;
                    if matches!(ending, Ending::Broke) {
                        deaths.add(former.as_ref(), Instant::now());
                    }
                    if Box::pin(self.settle_commit(work, commit, former, &shown)).await? {
                        return Ok(Said::default());
                    }
                    if let Some(why) = self.why_not_again(work)
                        && !(shown.is_nothing() && change.as_ref().is_some_and(|change| change.can_be_told()))
                    {
                        return Err(lost(why));
                    }
                    if deaths.are_too_many() {
                        return Err(lost(BROKE));
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

    /// A replica's or mysqlbinlog's: from here on the member speaks without end. Who may not have that goes on as
    /// before, or this would be a way around everything that is done with statements.
    async fn pass_replication(&mut self, command: &Command) -> Result<Flow, End> {
        self.ready().await?;
        let Session { client, backend, .. } = self;
        let Some(mut backend) = backend.take() else { return Ok(Flow::Over) };
        backend.wire.send(&command.packet).await?;
        backend.wire.fill_to(HEADER + 1).await?;
        if backend.wire.input[HEADER] == 0xff {
            let (answer, _) = backend.read_whole(Expected::Single, HANDSHAKE_MAX).await?;
            self.backend = Some(backend);
            self.tell(&answer).await?;
            return Ok(Flow::On);
        }
        loop {
            if !backend.wire.input.is_empty() {
                let bytes = backend.wire.input.split();
                client.send_within(CLIENT_STALL, &bytes).await.map_err(|_| End::Stalled)??;
            }
            if !client.input.is_empty() {
                backend.wire.send(&client.input.split()).await?;
            }
            let count = tokio::select! {
                count = backend.wire.fill() => count?,
                count = client.fill() => count?,
            };
            if count == 0 {
                return Ok(Flow::Over);
            }
        }
    }
}

/// Whether a session that begins after the statement may find something else than one that began before.
fn changes_beginnings(reading: &Reading) -> bool {
    reading.marks.intersects(Marks::SETS_GLOBAL | Marks::MULTI | Marks::HIDDEN_TEXT)
        || matches!(reading.kind, Kind::Account | Kind::Maintenance | Kind::SetOther)
}

/// Of these nobody sends a mebibyte.
fn is_small(kind: u8) -> bool {
    matches!(kind, command::STMT_CLOSE | command::CHANGE_USER | command::BINLOG_DUMP | command::TABLE_DUMP)
}

fn lost(why: &str) -> End {
    End::Lost { why: why.to_owned() }
}

/// COM_STMT_EXECUTE's flags ask for a cursor.
fn opens_cursor(work: &Work) -> bool {
    work.command.kind() == command::STMT_EXECUTE
        && work.packet().get(HEADER + 5).is_some_and(|flags| *flags != 0)
}
