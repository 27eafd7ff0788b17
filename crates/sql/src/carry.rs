//! What a session has made of itself beyond its login, so that it can be brought to another member: settings
//! in their order, the schema, prepared statements. Called by `session`.
//!
//! Promise: a session that is not stuck is after `bring` as it was, for every statement that can follow but
//! those that ask for the outcome of the one before.

use std::collections::BTreeMap;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use kopek_statement::Reading;

use crate::answer::Expected;
use crate::backend::Backend;
use crate::effect::Stays;
use crate::packet::{HEADER, command, command_packet, put_packet};
use crate::warm::Left;

/// A session that sets more than this is not brought elsewhere: most set three variables.
const SETTINGS_MAX: usize = 128;
const BYTES_MAX: usize = 256 * 1024;

#[derive(Default)]
pub(crate) struct Carry {
    /// The command that chose it; none as long as it is the one of the login.
    schema: Option<Bytes>,
    /// Commands, as packets.
    settings: Vec<Bytes>,
    prepared: BTreeMap<u32, Prepared>,
    bytes: usize,
    stuck: Option<&'static str>,
    left: Option<Left>,
    last_insert_id: u64,
}

/// A statement that the client prepared, by the id that the client knows.
pub(crate) struct Prepared {
    /// The command, as a packet.
    packet: Bytes,
    pub(crate) reading: Reading,
    parameters: u16,
    /// The id at the backend of now.
    id: u32,
    /// The parameters' types, as last told: a client tells them only when they change.
    types: Option<Bytes>,
    /// The backend of now knows them.
    types_told: bool,
}

impl Prepared {
    /// Without its command byte, if it was kept.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        self.packet.get(HEADER + 1..)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BringError {
    #[error("the new writer broke off")]
    Broken(#[from] io::Error),
    #[error("the new writer refuses what the session had set (error {0})")]
    Refused(u16),
}

impl Carry {
    /// Why the session cannot be brought elsewhere.
    pub(crate) fn stuck(&self) -> Option<&'static str> {
        self.stuck
    }

    pub(crate) fn stick(&mut self, why: &'static str) {
        self.stuck.get_or_insert(why);
    }

    /// How clean the backend is.
    pub(crate) fn left(&self) -> Left {
        match (self.stuck, self.left) {
            // Both are undone by COM_RESET_CONNECTION: temporary tables go, locks are released.
            (_, None) => Left::Usual,
            (_, Some(left)) => left,
        }
    }

    pub(crate) fn was_left(&mut self, left: Left) {
        if self.left != Some(Left::Unknown) {
            self.left = Some(left);
        }
    }

    /// Keeps what a statement, in a whole packet, has changed.
    pub(crate) fn keep(&mut self, stays: Stays, packet: &[u8]) {
        match stays {
            Stays::Nothing => {}
            Stays::Stuck(why) => self.stick(why),
            Stays::Schema => {
                self.was_left(Left::OtherSchema);
                self.schema = Some(Bytes::copy_from_slice(packet));
            }
            Stays::Setting => {
                // The usual case of a setting that is repeated for every page of a long connection.
                if self.settings.last().is_some_and(|last| last == packet) {
                    return;
                }
                self.bytes += packet.len();
                if self.settings.len() == SETTINGS_MAX || self.bytes > BYTES_MAX {
                    self.settings.clear();
                    return self.stick("more settings than are kept");
                }
                self.settings.push(Bytes::copy_from_slice(packet));
            }
        }
    }

    pub(crate) fn inserted(&mut self, id: u64) {
        if id > 0 {
            self.last_insert_id = id;
        }
    }

    pub(crate) fn prepared(&mut self, id: u32, parameters: u16, packet: &[u8], reading: Reading) {
        self.bytes += packet.len();
        if self.bytes > BYTES_MAX {
            self.stick("more prepared statements than are kept");
        }
        let packet = if self.stuck.is_some() { Bytes::new() } else { Bytes::copy_from_slice(packet) };
        let prepared = Prepared { packet, reading, parameters, id, types: None, types_told: false };
        self.prepared.insert(id, prepared);
    }

    pub(crate) fn closed(&mut self, id: u32) {
        if let Some(gone) = self.prepared.remove(&id) {
            self.bytes -= gone.packet.len().min(self.bytes);
        }
    }

    pub(crate) fn statement(&self, id: u32) -> Option<&Prepared> {
        self.prepared.get(&id)
    }

    /// COM_RESET_CONNECTION: everything but the schema is as after the login.
    pub(crate) fn reset(&mut self) {
        let (schema, left) = (self.schema.take(), self.left);
        *self = Carry { schema, left, ..Carry::default() };
    }

    /// A command that names a prepared statement, as the backend of now knows that. The packet is whole.
    pub(crate) fn addressed(&mut self, packet: &[u8]) -> Option<BytesMut> {
        let id = statement_id(packet)?;
        let statement = self.prepared.get_mut(&id)?;
        let is_execute = packet[HEADER] == command::STMT_EXECUTE;
        let at = HEADER + 1 + 4 + 1 + 4 + usize::from(statement.parameters).div_ceil(8);
        let told = (is_execute && statement.parameters > 0).then(|| packet.get(at).copied()).flatten();
        match told {
            Some(1) => {
                let types = packet.get(at + 1..at + 1 + 2 * usize::from(statement.parameters))?;
                if statement.types.as_deref() != Some(types) {
                    statement.types = Some(Bytes::copy_from_slice(types));
                }
                statement.types_told = true;
            }
            Some(_) if !statement.types_told => {
                let types = statement.types.clone()?;
                statement.types_told = true;
                let mut out = BytesMut::with_capacity(packet.len() + types.len());
                let body = [
                    &packet[HEADER..HEADER + 1],
                    &statement.id.to_le_bytes(),
                    &packet[HEADER + 5..at],
                    &[1],
                    &types,
                    &packet[at + 1..],
                ];
                put_packet(&mut out, 0, &body);
                return Some(out);
            }
            _ => {}
        }
        if statement.id == id {
            return None;
        }
        let mut out = BytesMut::from(packet);
        out[HEADER + 1..HEADER + 5].copy_from_slice(&statement.id.to_le_bytes());
        Some(out)
    }

    /// Makes a clean backend into the session's.
    pub(crate) async fn bring(&mut self, backend: &mut Backend) -> Result<(), BringError> {
        let mut together = BytesMut::new();
        let last_insert_id = (self.last_insert_id > 0).then(|| {
            let text = format!("SET last_insert_id={}", self.last_insert_id);
            command_packet(command::QUERY, text.as_bytes()).freeze()
        });
        for packet in self.schema.iter().chain(&self.settings).chain(&last_insert_id) {
            together.put_slice(packet);
        }
        if !together.is_empty() {
            backend.wire.send(&together).await?;
        }
        for packet in self.schema.iter().chain(&self.settings).chain(&last_insert_id) {
            if let Some(code) = backend.pass_over(Expected::of(packet[HEADER])).await?.error {
                return Err(BringError::Refused(code));
            }
        }
        for statement in self.prepared.values_mut() {
            let said = backend.run(&statement.packet, Expected::Prepared).await?;
            let Some((id, _)) = said.prepared else {
                return Err(BringError::Refused(said.error.unwrap_or(0)));
            };
            statement.id = id;
            statement.types_told = false;
        }
        Ok(())
    }
}

/// Of a command that names one.
pub(crate) fn statement_id(packet: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(packet.get(HEADER + 1..HEADER + 5)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use kopek_statement::{Dialect, read};

    use super::*;

    fn execute(id: u32, types: &[u8], value: u8) -> BytesMut {
        let mut body = BytesMut::new();
        body.put_u32_le(id);
        body.put_slice(&[0, 1, 0, 0, 0, 0]);
        body.put_u8(u8::from(!types.is_empty()));
        body.put_slice(types);
        body.put_u8(value);
        command_packet(command::STMT_EXECUTE, &body)
    }

    #[test]
    fn a_statement_is_addressed_by_its_new_id_with_the_types_that_the_new_backend_does_not_know() {
        let mut carry = Carry::default();
        let reading = read(b"SELECT ?", Dialect::default());
        carry.prepared(7, 1, b"packet", reading);
        assert_eq!(carry.addressed(&execute(7, &[1, 0], 9)), None, "nothing to change");
        assert_eq!(carry.addressed(&execute(7, &[], 9)), None);
        let statement = carry.prepared.get_mut(&7).unwrap();
        (statement.id, statement.types_told) = (40, false);
        assert_eq!(carry.addressed(&execute(7, &[], 9)), Some(execute(40, &[1, 0], 9)));
        assert_eq!(carry.addressed(&execute(7, &[], 9)), Some(execute(40, &[], 9)), "told once");
        assert_eq!(carry.addressed(&execute(8, &[], 9)), None, "unknown: the member says so");
    }

    #[test]
    fn settings_are_bounded() {
        let mut carry = Carry::default();
        for number in 0..=SETTINGS_MAX {
            assert_eq!(carry.stuck(), None, "after {number}");
            carry.keep(Stays::Setting, format!("SET @a = {number}").as_bytes());
        }
        assert!(carry.stuck().is_some());
        assert!(carry.settings.is_empty());
    }
}
