//! Where a server's answer ends and what it says, read off the heads of its packets as they pass; rows are
//! counted and never looked into. Called by `exchange` for every byte that a member sends.
//!
//! ```text
//!          OK, ERR                                     OK or EOF with "more results"
//!   Head ──────────► done          ┌─────────────────────────────────────────────────┐
//!    │ ▲ 0xFB: the client's file   │                                                 │
//!    │ └──────── WantsFile         ▼            EOF                EOF, OK, ERR      │
//!    └─ number of columns ──► Columns ──► ColumnsEnd ──► Rows ─────────────► done ───┘
//! ```
//! Promise: whatever bytes come, nothing is read past the slice that was given, and the answer's end is found
//! where the protocol has it ("Result Set Packets" in MariaDB's documentation).

use crate::caps::{Caps, Status};
use crate::packet::{FULL, HEADER, Reader, command, header};

/// What is read of a packet: the longest is an OK packet's two lengths, status and warnings.
const HEAD_MAX: usize = 32;

/// What kind of answer a command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// None at all.
    Nothing,
    /// One packet, whatever it is.
    Single,
    /// Results: as many as there are statements.
    Results,
    /// The same, of a command that asks for a cursor: then no rows may follow the columns.
    ResultsOrCursor,
    Prepared,
    /// Rows or column definitions without a head, up to EOF.
    Rest,
}

impl Expected {
    pub(crate) fn of(kind: u8) -> Expected {
        match kind {
            command::QUIT | command::STMT_CLOSE | command::STMT_SEND_LONG_DATA => Expected::Nothing,
            command::QUERY | command::STMT_EXECUTE | command::STMT_BULK_EXECUTE | command::PROCESS_INFO => {
                Expected::Results
            }
            command::STMT_PREPARE => Expected::Prepared,
            command::STMT_FETCH | command::FIELD_LIST => Expected::Rest,
            _ => Expected::Single,
        }
    }
}

/// What an answer said, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Said {
    /// Of the last OK or EOF packet; an error brings none.
    pub(crate) status: Option<Status>,
    pub(crate) affected: u64,
    /// `affected` of all results.
    pub(crate) changed: u64,
    pub(crate) insert_id: u64,
    pub(crate) warnings: u16,
    /// Number of the error that ended it.
    pub(crate) error: Option<u16>,
    pub(crate) rows: u64,
    pub(crate) results: u32,
    /// Statement id and number of parameters.
    pub(crate) prepared: Option<(u32, u16)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Single,
    Columns {
        left: u64,
    },
    ColumnsEnd,
    Rows,
    Prepared,
    /// Definitions of parameters, then of columns, each list with an EOF if the client wants one.
    Definitions {
        left: u32,
        next: u32,
    },
    DefinitionsEnd {
        next: u32,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// More is to come.
    More,
    /// The server waits for the client's file (LOAD DATA LOCAL INFILE).
    WantsFile,
    Done,
}

#[derive(Debug)]
pub(crate) struct Answer {
    state: State,
    ends_with_ok: bool,
    /// A status that says so means this answer, and not a cursor of a stored procedure's own.
    may_be_cursor: bool,
    /// Bytes of the current packet that are still to pass.
    skip: usize,
    /// The packet that passes is continued by the next one.
    continued: bool,
    /// Once the current packet has passed.
    wants_file: bool,
    /// Number of the last packet.
    sequence: u8,
    said: Said,
}

impl Answer {
    pub(crate) fn new(expected: Expected, caps: Caps) -> Answer {
        let state = match expected {
            Expected::Nothing => State::Done,
            Expected::Single => State::Single,
            Expected::Results | Expected::ResultsOrCursor => State::Head,
            Expected::Prepared => State::Prepared,
            Expected::Rest => State::Rows,
        };
        let ends_with_ok = caps.has(Caps::DEPRECATE_EOF);
        let may_be_cursor = expected == Expected::ResultsOrCursor;
        let said = Said::default();
        Answer {
            state,
            ends_with_ok,
            may_be_cursor,
            skip: 0,
            continued: false,
            wants_file: false,
            sequence: 0,
            said,
        }
    }

    pub(crate) fn said(&self) -> &Said {
        &self.said
    }

    /// Bytes of the current packet that are still to come.
    pub(crate) fn passing(&self) -> usize {
        self.skip
    }

    /// The number of the last packet of it that was seen.
    pub(crate) fn sequence(&self) -> u8 {
        self.sequence
    }

    /// How many of the bytes belong to this answer and may be passed on, and what comes next. Bytes that are
    /// not counted have to be shown again, with more behind them.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> (usize, Next) {
        let mut at = 0;
        loop {
            let passing = self.skip.min(bytes.len() - at);
            at += passing;
            self.skip -= passing;
            if self.skip > 0 {
                return (at, Next::More);
            }
            if std::mem::take(&mut self.wants_file) {
                return (at, Next::WantsFile);
            }
            if self.state == State::Done && !self.continued {
                return (at, Next::Done);
            }
            let rest = &bytes[at..];
            let Some((length, sequence)) = header(rest) else { return (at, Next::More) };
            let seen = length.min(HEAD_MAX);
            let Some(head) = rest.get(HEADER..HEADER + seen) else { return (at, Next::More) };
            let was_continued = std::mem::replace(&mut self.continued, length == FULL);
            at += HEADER;
            self.sequence = sequence;
            self.skip = length;
            if !was_continued {
                self.heed(head, length);
            }
        }
    }

    /// What follows the packet with this head.
    fn heed(&mut self, head: &[u8], length: usize) {
        let first = head.first().copied();
        match self.state {
            State::Head => match first {
                Some(0x00) => self.end_result(head),
                Some(0xff) => self.fail(head),
                Some(0xfb) => self.wants_file = true,
                _ => match Reader::new(head).lenenc() {
                    Some(left) if left > 0 => self.state = State::Columns { left },
                    // No such packet exists; the next one may make sense again.
                    _ => self.state = State::Done,
                },
            },
            State::Single => {
                match first {
                    Some(0x00) => self.heed_ok(head),
                    Some(0xfe) if length < 9 => self.heed_eof(head),
                    Some(0xff) => self.fail(head),
                    _ => {}
                }
                self.state = State::Done;
            }
            State::Columns { left } => {
                if first == Some(0xff) {
                    return self.fail(head);
                }
                self.state = match left - 1 {
                    0 if self.ends_with_ok => State::Rows,
                    0 => State::ColumnsEnd,
                    left => State::Columns { left },
                };
            }
            State::ColumnsEnd => {
                if first == Some(0xff) {
                    return self.fail(head);
                }
                self.heed_eof(head);
                let has_cursor = self.may_be_cursor
                    && self.said.status.is_some_and(|status| status.has(Status::CURSOR_EXISTS));
                self.state = if has_cursor { self.after_result() } else { State::Rows };
            }
            State::Rows => match first {
                Some(0xff) => self.fail(head),
                Some(0xfe) if self.ends_with_ok && length < FULL => self.end_result(head),
                Some(0xfe) if length < 9 => {
                    self.heed_eof(head);
                    self.said.results += 1;
                    self.state = self.after_result();
                }
                _ => self.said.rows += 1,
            },
            State::Prepared => match first {
                Some(0x00) => self.heed_prepared(head),
                _ => self.fail(head),
            },
            State::Definitions { left, next } => {
                self.state = match left - 1 {
                    0 if self.ends_with_ok => definitions(next, 0),
                    0 => State::DefinitionsEnd { next },
                    left => State::Definitions { left, next },
                };
            }
            State::DefinitionsEnd { next } => self.state = definitions(next, 0),
            State::Done => {}
        }
    }

    fn heed_ok(&mut self, head: &[u8]) {
        let mut rest = Reader::new(head);
        rest.u8();
        self.said.affected = rest.lenenc().unwrap_or(0);
        self.said.changed = self.said.changed.saturating_add(self.said.affected);
        self.said.insert_id = rest.lenenc().unwrap_or(0);
        self.said.status = rest.u16().map(Status).or(self.said.status);
        self.said.warnings = rest.u16().unwrap_or(0);
    }

    fn heed_eof(&mut self, head: &[u8]) {
        let mut rest = Reader::new(head);
        rest.u8();
        self.said.warnings = rest.u16().unwrap_or(0);
        self.said.status = rest.u16().map(Status).or(self.said.status);
    }

    fn end_result(&mut self, head: &[u8]) {
        self.heed_ok(head);
        self.said.results += 1;
        self.state = self.after_result();
    }

    fn after_result(&self) -> State {
        match self.said.status {
            Some(status) if status.has(Status::MORE_RESULTS) => State::Head,
            _ => State::Done,
        }
    }

    fn fail(&mut self, head: &[u8]) {
        let mut rest = Reader::new(head);
        rest.u8();
        self.said.error = Some(rest.u16().unwrap_or(0));
        self.state = State::Done;
    }

    fn heed_prepared(&mut self, head: &[u8]) {
        let mut rest = Reader::new(head);
        rest.u8();
        let id = rest.u32().unwrap_or(0);
        let columns = rest.u16().unwrap_or(0);
        let parameters = rest.u16().unwrap_or(0);
        rest.u8();
        self.said.warnings = rest.u16().unwrap_or(0);
        self.said.prepared = Some((id, parameters));
        self.state = match parameters {
            0 => definitions(u32::from(columns), 0),
            _ => definitions(u32::from(parameters), u32::from(columns)),
        };
    }
}

fn definitions(left: u32, next: u32) -> State {
    if left == 0 { State::Done } else { State::Definitions { left, next } }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::packet::put_packet;

    const OLD: Caps = Caps(0);
    const NEW: Caps = Caps::DEPRECATE_EOF;

    /// Packets one after the other.
    fn packets(payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (sequence, payload) in payloads.iter().enumerate() {
            put_packet(&mut out, sequence as u8 + 1, &[payload]);
        }
        out.to_vec()
    }

    const EOF: &[u8] = &[0xfe, 0, 0, 2, 0];
    const COLUMN: &[u8] = b"\x03def and so on";

    /// The whole is one answer, also when it comes in pieces of any size and more follows it.
    fn is_one_answer(expected: Expected, caps: Caps, payloads: &[&[u8]]) -> Said {
        let whole = packets(payloads);
        let mut last = None;
        for piece in [1, 3, 7, whole.len()] {
            let mut answer = Answer::new(expected, caps);
            let (mut shown, mut from) = (0, 0);
            let next = loop {
                shown = (shown + piece).min(whole.len());
                let (taken, next) = answer.take(&whole[from..shown]);
                from += taken;
                if next != Next::More || shown == whole.len() {
                    break next;
                }
            };
            assert_eq!((next, from), (Next::Done, whole.len()), "in pieces of {piece}");
            last = Some(*answer.said());
        }
        let mut answer = Answer::new(expected, caps);
        let followed = [&whole[..], &packets(&[b"\x00next"])[..]].concat();
        assert_eq!(answer.take(&followed), (whole.len(), Next::Done));
        last.unwrap()
    }

    #[test]
    fn ok_and_errors_end_an_answer() {
        let said = is_one_answer(Expected::Results, NEW, &[&[0, 3, 7, 3, 0, 1, 0]]);
        assert_eq!((said.affected, said.insert_id, said.warnings), (3, 7, 1));
        assert_eq!(said.status, Some(Status(3)));
        let said = is_one_answer(Expected::Results, OLD, &[b"\xff\x28\x04#42000no"]);
        assert_eq!(said.error, Some(1064));
    }

    #[test]
    fn rows_end_with_eof_or_with_ok_in_its_place() {
        let said = is_one_answer(Expected::Results, OLD, &[&[1], COLUMN, EOF, b"\x01a", b"\x01b", EOF]);
        assert_eq!((said.rows, said.results), (2, 1));
        let ok = &[0xfe, 0, 0, 2, 0, 0, 0];
        let said = is_one_answer(Expected::Results, NEW, &[&[2], COLUMN, COLUMN, b"\x01a\x01b", ok]);
        assert_eq!((said.rows, said.status), (1, Some(Status(2))));
    }

    #[test]
    fn more_results_follow_as_long_as_the_status_says_so() {
        let more = &[0, 1, 0, 10, 0, 0, 0];
        let said = is_one_answer(Expected::Results, NEW, &[more, more, &[0, 0, 0, 2, 0, 0, 0]]);
        assert_eq!(said.results, 3);
        let said = is_one_answer(Expected::Results, NEW, &[more, b"\xff\x28\x04#42000no"]);
        assert_eq!(said.error, Some(1064));
    }

    #[test]
    fn a_cursor_has_columns_and_no_rows() {
        let cursor = &[0xfe, 0, 0, 0x42, 0];
        is_one_answer(Expected::ResultsOrCursor, OLD, &[&[1], COLUMN, cursor]);
        is_one_answer(Expected::ResultsOrCursor, NEW, &[&[1], COLUMN, &[0xfe, 0, 0, 0x42, 0, 0, 0]]);
        // A procedure's own, of which the client knows nothing.
        is_one_answer(Expected::Results, OLD, &[&[1], COLUMN, cursor, b"\x01a", EOF]);
    }

    #[test]
    fn a_prepared_statement_has_its_parameters_and_columns_defined() {
        let head = |columns, parameters| [0, 9, 0, 0, 0, columns, 0, parameters, 0, 0, 0, 0];
        let said = is_one_answer(Expected::Prepared, OLD, &[&head(1, 2), COLUMN, COLUMN, EOF, COLUMN, EOF]);
        assert_eq!(said.prepared, Some((9, 2)));
        is_one_answer(Expected::Prepared, NEW, &[&head(1, 2), COLUMN, COLUMN, COLUMN]);
        is_one_answer(Expected::Prepared, OLD, &[&head(2, 0), COLUMN, COLUMN, EOF]);
        is_one_answer(Expected::Prepared, OLD, &[&head(0, 0)]);
        is_one_answer(Expected::Prepared, OLD, &[b"\xff\x28\x04#42000no"]);
    }

    #[test]
    fn a_row_that_begins_like_the_end_is_none_when_it_is_long() {
        let row = [&[0xfe][..], &[b'x'; 20]].concat();
        is_one_answer(Expected::Results, OLD, &[&[1], COLUMN, EOF, &row, EOF]);
    }

    #[test]
    fn a_row_of_more_than_sixteen_mebibytes_is_one_row() {
        let mut bytes = packets(&[&[1], COLUMN, EOF]);
        bytes.extend([0xff, 0xff, 0xff, 4]);
        bytes.resize(bytes.len() + FULL, b'x');
        // Its rest looks like an error and is none.
        bytes.extend([3, 0, 0, 5, 0xff, 1, 1]);
        bytes.extend(packets(&[EOF]));
        let mut answer = Answer::new(Expected::Results, OLD);
        assert_eq!(answer.take(&bytes), (bytes.len(), Next::Done));
        assert_eq!(answer.said().rows, 1);
    }

    #[test]
    fn a_file_is_wanted_and_then_the_answer_goes_on() {
        let wanted = packets(&[b"\xfb/tmp/x"]);
        let mut answer = Answer::new(Expected::Results, NEW);
        assert_eq!(answer.take(&wanted[..6]), (0, Next::More));
        assert_eq!(answer.take(&wanted), (wanted.len(), Next::WantsFile));
        let ok = packets(&[&[0, 1, 0, 2, 0, 0, 0]]);
        assert_eq!(answer.take(&ok), (ok.len(), Next::Done));
    }

    proptest! {
        #[test]
        fn no_bytes_lead_it_astray(bytes in prop::collection::vec(any::<u8>(), 0..400), old in any::<bool>()) {
            for expected in [Expected::Single, Expected::Results, Expected::Prepared, Expected::Rest] {
                let mut answer = Answer::new(expected, if old { OLD } else { NEW });
                let (taken, _) = answer.take(&bytes);
                prop_assert!(taken <= bytes.len());
            }
        }
    }
}
