//! A write on its own: it becomes a transaction with a token. Called by `execute`.

use std::io;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use tokio::time::sleep;
use tracing::debug;

use super::deaths::Deaths;
use super::{BROKE, DEADLOCK_PAUSE, TRIES_MAX, Work, lost, opens_cursor};
use crate::answer::{Expected, Said};
use crate::backend::{Backend, HANDSHAKE_MAX};
use crate::caps::Status;
use crate::effect::Repeat;
use crate::packet::{command, command_packet};
use crate::session::attempt::{Ending, Shown, Withhold, is_leaving, is_passing};
use crate::session::repeat::{Fate, Former, without_status};
use crate::session::{End, Session, relieved_for_good};
use crate::token::Token;
use crate::writer::changed_from;

/// `SHOW WARNINGS` has 64 rows at most (`max_error_count`).
const WARNINGS_MAX: usize = 1 << 20;

impl Session {
    /// Whether the command is a write on its own whose fate a token can tell.
    pub(super) fn may_be_wrapped(&self, work: &Work) -> bool {
        work.effect.repeat == Repeat::Uncommitted
            && work.command.is_whole()
            && work.expected == Expected::Results
            && !opens_cursor(work)
            && !self.is_in_transaction()
            && self.why_bound().is_none()
            && self.tokens.is_there()
    }

    pub(super) async fn write_alone(&mut self, work: &Work) -> Result<Said, End> {
        let (mut passing, mut deaths) = (0, Deaths::default());
        for tried in 0..TRIES_MAX {
            self.note_repetition(tried);
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
            let former = self.former();
            let (mut answer, said) = match self.pass_answer(work.expected, Withhold::All, &mut shown).await? {
                Ending::Withheld { answer, said } => (answer, said),
                // It was too long to hold, and the client has it.
                Ending::Answered(said) => (BytesMut::new(), said),
                ending @ (Ending::Broke | Ending::Lost) if shown.is_nothing() => {
                    if matches!(ending, Ending::Broke) {
                        deaths.add(former.as_ref(), Instant::now());
                    }
                    if deaths.are_too_many() {
                        return Err(lost(BROKE));
                    }
                    self.backend = None;
                    continue;
                }
                Ending::Broke | Ending::Lost => return Err(lost("a part of its answer was sent")),
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
                    ended = ended(backend, end) => ended,
                    () = relieved => Err(io::ErrorKind::TimedOut.into()),
                },
                None => continue,
            };
            let outcome = match ended {
                Ok((_, Said { error: None, status, .. })) => {
                    self.status = status.unwrap_or(self.status);
                    Outcome::Sure
                }
                Ok((_, Said { error: Some(code), .. }))
                    if is_passing(code)
                        && passing < self.sites.manners.deadlocks.tries()
                        && shown.is_nothing() =>
                {
                    passing += 1;
                    Outcome::Again
                }
                // More than the group takes (1105), or a disk is full: the member has undone it.
                Ok((refusal, refused @ Said { error: Some(code), .. }))
                    if !is_leaving(code) && shown.is_nothing() =>
                {
                    debug!(site = %self.site, code, "a commit was refused");
                    self.backend = None;
                    self.row_count = Some(-1);
                    self.tell(&refusal).await?;
                    return Ok(refused);
                }
                Ok((_, Said { error: Some(code), .. })) if !is_leaving(code) => {
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
            self.keep(work, &said);
            if said.error.is_none() {
                self.keep_stay(work);
            }
            return Ok(said);
        }
        Err(lost("every other writer was lost too"))
    }

    pub(super) fn new_token(&mut self) -> Token {
        let slot = self.slot.get_or_insert_with(|| self.sites.slots.take());
        Token::new(self.number, slot)
    }

    pub(super) fn former(&self) -> Option<Former> {
        let backend = self.backend.as_ref()?;
        Some(Former { writer: backend.writer.clone(), thread: backend.thread })
    }

    /// Sends commands of which the token is the `nth`, counted from 0, and passes over the answers up to it.
    /// False: the member is lost.
    pub(super) async fn send_with_token(&mut self, together: &[u8], nth: usize) -> bool {
        let Some(backend) = &mut self.backend else { return false };
        let writer = backend.writer.clone();
        let sent = async {
            backend.wire.send(together).await?;
            let mut last = Said::default();
            for _ in 0..=nth {
                last = backend.pass_over(Expected::Results).await?;
            }
            io::Result::Ok(last)
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
}

/// The member's answer to our own COMMIT or ROLLBACK.
async fn ended(backend: &mut Backend, end: &str) -> io::Result<(BytesMut, Said)> {
    backend.wire.send(&command_packet(command::QUERY, end.as_bytes())).await?;
    backend.read_whole(Expected::Results, HANDSHAKE_MAX).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sure,
    Again,
}
