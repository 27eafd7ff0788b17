//! Packets of the MySQL protocol: three bytes of length, one of sequence, the payload. A payload of 2^24 - 1
//! bytes is continued in the next packet. Source: MariaDB's "Protocol: 0 - Packet" and "OK_Packet",
//! "ERR_Packet" pages.

use bytes::{BufMut, BytesMut};

use crate::caps::Status;

pub(crate) const HEADER: usize = 4;
/// A payload that says: I go on in the next packet.
pub(crate) const FULL: usize = 0xff_ffff;

/// First bytes of commands (`enum_server_command`).
pub(crate) mod command {
    pub(crate) const QUIT: u8 = 0x01;
    pub(crate) const INIT_DB: u8 = 0x02;
    pub(crate) const QUERY: u8 = 0x03;
    pub(crate) const FIELD_LIST: u8 = 0x04;
    pub(crate) const STATISTICS: u8 = 0x09;
    pub(crate) const PROCESS_INFO: u8 = 0x0a;
    pub(crate) const PROCESS_KILL: u8 = 0x0c;
    pub(crate) const PING: u8 = 0x0e;
    pub(crate) const CHANGE_USER: u8 = 0x11;
    pub(crate) const BINLOG_DUMP: u8 = 0x12;
    pub(crate) const TABLE_DUMP: u8 = 0x13;
    pub(crate) const STMT_PREPARE: u8 = 0x16;
    pub(crate) const STMT_EXECUTE: u8 = 0x17;
    pub(crate) const STMT_SEND_LONG_DATA: u8 = 0x18;
    pub(crate) const STMT_CLOSE: u8 = 0x19;
    pub(crate) const STMT_RESET: u8 = 0x1a;
    pub(crate) const SET_OPTION: u8 = 0x1b;
    pub(crate) const STMT_FETCH: u8 = 0x1c;
    pub(crate) const RESET_CONNECTION: u8 = 0x1f;
    /// MariaDB's own.
    pub(crate) const STMT_BULK_EXECUTE: u8 = 0xfa;
}

/// Length of the payload, and the sequence number, from a packet's first four bytes.
pub(crate) fn header(bytes: &[u8]) -> Option<(usize, u8)> {
    let [a, b, c, sequence, ..] = *bytes else { return None };
    Some((usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16, sequence))
}

/// Appends one packet; `payload` is shorter than `FULL`.
pub(crate) fn put_packet(out: &mut BytesMut, sequence: u8, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|piece| piece.len()).sum();
    assert!(length < FULL, "a packet of {length} bytes has to be split");
    out.put_uint_le(length as u64, 3);
    out.put_u8(sequence);
    for piece in payload {
        out.put_slice(piece);
    }
}

/// A command in one packet.
pub(crate) fn command_packet(kind: u8, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER + 1 + payload.len());
    put_packet(&mut out, 0, &[&[kind], payload]);
    out
}

/// An error as a server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) code: u16,
    /// Five characters of SQLSTATE.
    pub(crate) state: [u8; 5],
    pub(crate) text: String,
}

impl ServerError {
    pub(crate) fn new(code: u16, state: &[u8; 5], text: impl Into<String>) -> ServerError {
        ServerError { code, state: *state, text: text.into() }
    }

    /// `None` if the payload is no ERR packet.
    pub(crate) fn parse(payload: &[u8]) -> Option<ServerError> {
        let mut rest = Reader::new(payload);
        (rest.u8()? == 0xff).then_some(())?;
        let code = rest.u16()?;
        let text = rest.rest();
        let (state, text) = match text {
            [b'#', state @ ..] if state.len() >= 5 => (state[..5].try_into().ok()?, &state[5..]),
            _ => (*b"HY000", text),
        };
        Some(ServerError { code, state, text: String::from_utf8_lossy(text).into_owned() })
    }

    pub(crate) fn packet(&self, sequence: u8) -> BytesMut {
        let mut out = BytesMut::new();
        let code = self.code.to_le_bytes();
        put_packet(&mut out, sequence, &[&[0xff], &code, b"#", &self.state, self.text.as_bytes()]);
        out
    }

    /// In place of a greeting no SQLSTATE may be sent: the client has not said yet that it knows them.
    pub(crate) fn packet_before_greeting(&self) -> BytesMut {
        let mut out = BytesMut::new();
        put_packet(&mut out, 0, &[&[0xff], &self.code.to_le_bytes(), self.text.as_bytes()]);
        out
    }
}

/// An OK packet of nothing done.
pub(crate) fn ok_packet(sequence: u8, status: Status) -> BytesMut {
    let mut out = BytesMut::new();
    put_packet(&mut out, sequence, &[&[0, 0, 0], &status.0.to_le_bytes(), &[0, 0]]);
    out
}

/// The status in an OK packet's payload.
pub(crate) fn ok_status(payload: &[u8]) -> Option<Status> {
    let mut rest = Reader::new(payload);
    rest.u8()?;
    // Affected rows and insert id.
    rest.lenenc()?;
    rest.lenenc()?;
    rest.u16().map(Status)
}

/// A length-encoded integer.
pub(crate) fn put_lenenc(out: &mut BytesMut, value: u64) {
    match value {
        0..0xfb => out.put_u8(value as u8),
        0xfb..0x1_0000 => {
            out.put_u8(0xfc);
            out.put_u16_le(value as u16);
        }
        0x1_0000..0x100_0000 => {
            out.put_u8(0xfd);
            out.put_uint_le(value, 3);
        }
        _ => {
            out.put_u8(0xfe);
            out.put_u64_le(value);
        }
    }
}

/// Reads fields from a payload's front; `None` where it is too short.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn lenenc(&mut self) -> Option<u64> {
        let count = match self.u8()? {
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            0xfb | 0xff => return None,
            small => return Some(u64::from(small)),
        };
        let bytes = self.take(count)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    pub(crate) fn lenenc_bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.lenenc()?).ok()?;
        self.take(length)
    }

    /// Up to a zero byte, which is passed over; to the end if there is none.
    pub(crate) fn zero_ended(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0);
        let (text, rest) = match end {
            Some(end) => (&self.0[..end], &self.0[end + 1..]),
            None => (self.0, &self.0[self.0.len()..]),
        };
        self.0 = rest;
        text
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_as_it_was_written() {
        let error = ServerError::new(1045, b"28000", "Access denied");
        let packet = error.packet(2);
        assert_eq!(header(&packet), Some((packet.len() - HEADER, 2)));
        assert_eq!(ServerError::parse(&packet[HEADER..]), Some(error.clone()));
        let early = error.packet_before_greeting();
        assert_eq!(ServerError::parse(&early[HEADER..]).unwrap().text, "Access denied");
        assert_eq!(ServerError::parse(&[0]), None);
    }

    #[test]
    fn the_status_of_an_ok_packet_is_read_behind_its_numbers() {
        assert_eq!(ok_status(&ok_packet(1, Status::AUTOCOMMIT)[HEADER..]), Some(Status::AUTOCOMMIT));
        assert_eq!(ok_status(&[0, 0xfc, 1, 1, 7, 3, 0, 0, 0]), Some(Status(3)));
        assert_eq!(ok_status(&[0, 0]), None);
    }

    #[test]
    fn lengths_are_read_as_they_were_written() {
        for value in [0, 250, 251, 65_535, 65_536, (1 << 24) - 1, 1 << 24, u64::MAX] {
            let mut out = BytesMut::new();
            put_lenenc(&mut out, value);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.lenenc(), Some(value));
            assert!(reader.is_empty());
            assert_eq!(Reader::new(&out[..out.len() - 1]).lenenc(), None);
        }
    }
}
