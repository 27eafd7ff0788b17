//! Counting each command once, when it has ended, and refusing what is above the site's rate. Called by `execute`.

use kopek_statement::normalised;

use super::{Work, statement_id};
use crate::answer::Said;
use crate::carry::Prepared;
use crate::digests::TEXT_MAX;
use crate::inbox::Command;
use crate::meter::{Answered, Class};
use crate::packet::{HEADER, ServerError, command};
use crate::session::{End, Session};

impl Session {
    /// The client has the whole answer, or gets no more of it.
    pub(super) fn note(&mut self, work: &Work, done: Result<&Said, &End>) {
        if let Some(backend) = &self.backend {
            self.metered.was_answered_in(backend.writer.epoch);
        }
        let kind = work.command.kind();
        let class = match kind {
            command::QUERY | command::STMT_EXECUTE | command::STMT_BULK_EXECUTE => {
                Some(work.reading.map_or(Class::Other, |reading| Class::of(reading.kind)))
            }
            command::STMT_PREPARE => Some(Class::Other),
            _ => None,
        };
        let (rows, changed, error) = match done {
            Ok(said) => (said.rows, said.changed, said.error),
            Err(end) => (0, 0, end.number()),
        };
        let answered = Answered {
            class,
            digest: work.reading.filter(|_| kind != command::STMT_PREPARE).map(|reading| reading.digest),
            took: work.at.elapsed().into(),
            rows,
            changed,
            error,
            bytes: self.client.take_traffic(),
        };
        self.metered.meter.answered(&answered, || self.text(work));
    }

    /// Without its literals. Of a prepared statement as the member has it, else as the client wrote it.
    fn text(&self, work: &Work) -> String {
        let asked = work.asked.as_deref().and_then(|packet| packet.get(HEADER + 1..));
        let text = match work.command.kind() {
            command::STMT_EXECUTE | command::STMT_BULK_EXECUTE => {
                let prepared = statement_id(&work.command.packet).and_then(|id| self.carry.statement(id));
                prepared.and_then(Prepared::text)
            }
            _ => Some(asked.unwrap_or(work.command.body())),
        };
        match text {
            Some(text) => normalised(text, self.dialect(), TEXT_MAX),
            None => "(a prepared statement whose text was not kept)".to_owned(),
        }
    }

    /// `tried`: how often before.
    pub(super) fn note_repetition(&self, tried: u32) {
        if tried > 0 {
            self.metered.meter.count(|counts| counts.repeated_statements += 1);
        }
    }

    /// Of what is executed; to prepare a statement is free. A large one is on its way already and passes.
    pub(super) fn refusal(&self, command: &Command) -> Option<ServerError> {
        let is_executed =
            matches!(command.kind(), command::QUERY | command::STMT_EXECUTE | command::STMT_BULK_EXECUTE);
        if !is_executed || !command.is_whole() || self.metered.meter.admits_statement() {
            return None;
        }
        // MySQL has the same error for its `max_queries_per_hour`.
        let most = self.metered.meter.limits().queries_per_second.unwrap_or_default();
        let user = String::from_utf8_lossy(&self.login.user);
        let text = format!(
            "User '{user}' has exceeded the 'max_queries_per_second' resource (current value: {most})"
        );
        Some(ServerError::new(1226, b"42000", text))
    }
}
