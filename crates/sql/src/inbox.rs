//! A client's commands, one after the other. One of usual size is read whole, so that it can be looked into and
//! sent once more; of a larger one only the head is held, and the rest passes through. Called by `session`.

use std::io;

use bytes::{Buf, BytesMut};

use crate::packet::{FULL, HEADER, header};
use crate::wire::Wire;

/// Whole up to this; what a page stores is smaller, but for uploads into the database.
pub(crate) const WHOLE_MAX: usize = 1 << 20;
/// Held of a larger one: enough to see what statement it is.
const HEAD: usize = 64 * 1024;
/// `max_allowed_packet` of every member. More is refused by any MySQL with this setting.
pub(crate) const COMMAND_MAX: u64 = 64 << 20;

pub(crate) struct Command {
    /// Packets as they came, the first at least in part.
    pub(crate) packet: BytesMut,
    /// What still has to come.
    rest: Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// Of the current packet, and whether another one goes on with it.
    Bytes {
        left: usize,
        is_full: bool,
    },
}

impl Command {
    /// Its first byte says what it is.
    pub(crate) fn kind(&self) -> u8 {
        self.packet.get(HEADER).copied().unwrap_or(0)
    }

    /// Of its first packet: 0, as each command begins anew.
    pub(crate) fn sequence(&self) -> u8 {
        self.packet[HEADER - 1]
    }

    /// Behind the first byte, as far as it is held.
    pub(crate) fn body(&self) -> &[u8] {
        self.packet.get(HEADER + 1..).unwrap_or_default()
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.rest == Rest::Nothing
    }
}

/// Whether a command has begun to arrive, so that `take` can read it.
pub(crate) fn has_begun(client: &Wire) -> bool {
    client.input.len() >= HEADER
}

/// The command that has begun to arrive.
pub(crate) async fn take(client: &mut Wire) -> io::Result<Command> {
    client.fill_to(HEADER).await?;
    let (length, _) = header(&client.input).expect("a header is there");
    let held = if length <= WHOLE_MAX { length } else { HEAD };
    client.fill_to(HEADER + held).await?;
    let packet = match client.input.len() == HEADER + held {
        // As nearly always: nothing else has come, and the room need not be shared.
        true => std::mem::take(&mut client.input),
        false => client.input.split_to(HEADER + held),
    };
    let rest = match length - held {
        0 => Rest::Nothing,
        left => Rest::Bytes { left, is_full: length == FULL },
    };
    Ok(Command { packet, rest })
}

/// What became of the rest of a large command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    Whole,
    /// Longer than `COMMAND_MAX`.
    TooLong,
    /// The member takes no more of it.
    Refused,
}

/// Passes on what was not held. An error is the client's.
pub(crate) async fn pass_rest(
    command: &mut Command,
    client: &mut Wire,
    member: &mut Wire,
) -> io::Result<Passed> {
    let mut total = command.packet.len() as u64;
    while let Rest::Bytes { left, is_full } = command.rest {
        if left == 0 {
            if !is_full {
                command.rest = Rest::Nothing;
                break;
            }
            client.fill_to(HEADER).await?;
            let (length, _) = header(&client.input).expect("a header is there");
            if member.send(&client.input[..HEADER]).await.is_err() {
                return Ok(Passed::Refused);
            }
            client.input.advance(HEADER);
            command.rest = Rest::Bytes { left: length, is_full: length == FULL };
            continue;
        }
        if client.input.is_empty() && client.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = left.min(client.input.len());
        total += count as u64;
        if total > COMMAND_MAX {
            return Ok(Passed::TooLong);
        }
        if member.send(&client.input[..count]).await.is_err() {
            return Ok(Passed::Refused);
        }
        client.input.advance(count);
        command.rest = Rest::Bytes { left: left - count, is_full };
    }
    Ok(Passed::Whole)
}

/// Passes a client's file on (LOAD DATA LOCAL INFILE): packets up to an empty one.
pub(crate) async fn pass_file(client: &mut Wire, member: &mut Wire, asked: u8) -> io::Result<Passed> {
    let mut sequence = asked;
    loop {
        client.fill_to(HEADER).await?;
        let (length, _) = header(&client.input).expect("a header is there");
        // A compressing client counts by its frames, of which the member knows nothing.
        sequence = sequence.wrapping_add(1);
        client.input[HEADER - 1] = sequence;
        let mut left = HEADER + length;
        while left > 0 {
            if client.input.is_empty() && client.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = left.min(client.input.len());
            if member.send(&client.input[..count]).await.is_err() {
                return Ok(Passed::Refused);
            }
            client.input.advance(count);
            left -= count;
        }
        if length == 0 {
            return Ok(Passed::Whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::packet::{command, command_packet};

    #[tokio::test]
    async fn a_usual_command_is_whole_and_the_next_one_stays_for_later() {
        let (mut far, near) = duplex(1 << 16);
        let mut client = Wire::new(near);
        let packet = command_packet(command::QUERY, b"SELECT 1");
        far.write_all(&[&packet[..], &packet[..5]].concat()).await.unwrap();
        let taken = take(&mut client).await.unwrap();
        assert_eq!((&taken.packet[..], taken.kind(), taken.is_whole()), (&packet[..], command::QUERY, true));
        assert_eq!(taken.body(), b"SELECT 1");
        assert_eq!(client.input.len(), 5);
    }

    #[tokio::test]
    async fn a_large_command_passes_through_byte_for_byte_over_several_packets() {
        let (mut far, near) = duplex(1 << 16);
        let (member, mut sink) = duplex(1 << 16);
        let (mut client, mut member) = (Wire::new(near), Wire::new(member));
        let mut bytes = vec![0xff, 0xff, 0xff, 0, command::QUERY];
        bytes.resize(HEADER + FULL, b'x');
        bytes.extend([3, 0, 0, 1, b'e', b'n', b'd']);
        let sent = bytes.clone();
        tokio::spawn(async move { far.write_all(&sent).await.unwrap() });
        let mut command = take(&mut client).await.unwrap();
        assert!(!command.is_whole());
        let head = command.packet.clone();
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            sink.read_to_end(&mut all).await.unwrap();
            all
        });
        assert_eq!(pass_rest(&mut command, &mut client, &mut member).await.unwrap(), Passed::Whole);
        drop(member);
        assert!([&head[..], &reading.await.unwrap()[..]].concat() == bytes);
        assert!(command.is_whole());
    }
}
