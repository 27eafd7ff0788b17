//! Counting what was answered, and refusing what is above the site's rate. Called by `execute`.

use kopek_statement::normalised;

use super::{Said, Work, statement_id};
use crate::carry::Prepared;
use crate::digests::TEXT_MAX;
use crate::inbox::Command;
use crate::meter::{Answered, Class};
use crate::packet::{ServerError, command};
use crate::session::Session;

impl Session {
    /// The client has the whole answer.
    pub(super) fn note(&mut self, work: &Work, said: &Said) {
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
        let answered = Answered {
            class,
            digest: work.reading.filter(|_| kind != command::STMT_PREPARE).map(|reading| reading.digest),
            took: work.at.elapsed().into(),
            rows: said.rows,
            changed: said.changed,
            error: said.error,
            bytes: self.client.take_traffic(),
        };
        let dialect = self.dialect();
        self.metered.meter.answered(&answered, || match kind {
            command::STMT_EXECUTE | command::STMT_BULK_EXECUTE => {
                let prepared = statement_id(&work.command.packet).and_then(|id| self.carry.statement(id));
                match prepared.and_then(Prepared::text) {
                    Some(text) => normalised(text, dialect, TEXT_MAX),
                    None => "(a prepared statement whose text was not kept)".to_owned(),
                }
            }
            _ => normalised(work.command.body(), dialect, TEXT_MAX),
        });
    }

    /// A large one is on its way already and passes.
    pub(super) fn refusal(&self, command: &Command) -> Option<ServerError> {
        let is_statement = matches!(
            command.kind(),
            command::QUERY | command::STMT_PREPARE | command::STMT_EXECUTE | command::STMT_BULK_EXECUTE
        );
        if !is_statement || !command.is_whole() || self.metered.meter.admits_statement() {
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
