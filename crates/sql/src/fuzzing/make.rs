//! What the fuzzed bytes are made into: answers and commands as the protocol has them, and streams that come in
//! pieces. Called by `fuzzing`.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::answer::{Expected, Said};
use crate::caps::Caps;
use crate::inbox::WHOLE_MAX;
use crate::packet::{FULL, HEADER, header};

pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    pub(super) expected: Expected,
    pub(super) said: Said,
}

pub(super) fn make_answer(choices: &mut Choices, caps: Caps) -> Made {
    let ends_with_ok = caps.has(Caps::DEPRECATE_EOF);
    let mut out = Packets::default();
    let mut said = Said::default();
    let column = b"\x03def\x01x";
    let end = |out: &mut Packets, status: u8| match ends_with_ok {
        true => out.put(&[0xfe, 0, 0, status, 0, 0, 0]),
        false => out.put(&[0xfe, 0, 0, status, 0]),
    };
    if choices.next().is_multiple_of(4) {
        let (columns, parameters) = (choices.next() % 3, choices.next() % 3);
        out.put(&[0, 9, 0, 0, 0, columns, 0, parameters, 0, 0, 0, 0]);
        for count in [parameters, columns] {
            (0..count).for_each(|_| out.put(column));
            if count > 0 && !ends_with_ok {
                out.put(&[0xfe, 0, 0, 2, 0]);
            }
        }
        said.prepared = Some((9, u16::from(parameters)));
        return Made { bytes: out.bytes, expected: Expected::Prepared, said };
    }
    let results = 1 + choices.next() % 3;
    for number in 1..=results {
        let status = if number < results { 0x0a } else { 2 };
        match choices.next() % 4 {
            0 => {
                out.put(b"\xff\x28\x04#42000no");
                said.error = Some(1064);
                break;
            }
            1 => out.put(&[0, choices.next() % 0xfb, 0, status, 0, 0, 0]),
            _ => {
                let columns = 1 + choices.next() % 3;
                out.put(&[columns]);
                (0..columns).for_each(|_| out.put(column));
                if !ends_with_ok {
                    out.put(&[0xfe, 0, 0, 2, 0]);
                }
                for _ in 0..choices.next() % 4 {
                    out.put(&choices.row());
                    said.rows += 1;
                }
                end(&mut out, status);
            }
        }
        said.results += 1;
    }
    Made { bytes: out.bytes, expected: Expected::Results, said }
}

/// Numbered packets, longer ones in several.
#[derive(Default)]
struct Packets {
    bytes: Vec<u8>,
    sequence: u8,
}

impl Packets {
    fn put(&mut self, payload: &[u8]) {
        let mut rest = payload;
        loop {
            let (now, later) = rest.split_at(rest.len().min(FULL));
            self.sequence = self.sequence.wrapping_add(1);
            self.bytes.extend(&(now.len() as u32).to_le_bytes()[..3]);
            self.bytes.push(self.sequence);
            self.bytes.extend(now);
            rest = later;
            if now.len() < FULL {
                return;
            }
        }
    }
}

/// A client's bytes: packets of lengths around every limit that there is, perhaps cut off.
pub(super) fn make_stream(choices: &mut Choices) -> Vec<u8> {
    let mut out = Vec::new();
    for number in 0..=choices.next() % 8 {
        let kind = choices.next();
        let length = match kind % 16 {
            0 if kind < 32 => FULL,
            1 if kind < 32 => FULL - 1,
            2 => WHOLE_MAX,
            3 => WHOLE_MAX + 1,
            4 => 64 << 10,
            5 => 0,
            _ => usize::from(choices.next()),
        };
        out.extend(&(length as u32).to_le_bytes()[..3]);
        out.push(number);
        let from = out.len();
        out.resize(from + length, kind);
        // Not the same everywhere, so that bytes that are lost or doubled are noticed.
        out[from..].iter_mut().step_by(61).enumerate().for_each(|(at, byte)| *byte = at as u8);
    }
    let cut = usize::from(choices.next()) * usize::from(choices.next());
    out.truncate(out.len().saturating_sub(cut / 16));
    out
}

/// Where each whole command ends that is not too long.
pub(super) fn ends_of_commands(stream: &[u8]) -> Vec<usize> {
    let (mut at, mut ends) = (0, Vec::new());
    while let Some((length, _)) = header(&stream[at..]) {
        at += HEADER + length;
        if at > stream.len() {
            break;
        }
        if length < FULL {
            ends.push(at);
        }
    }
    ends
}

/// The input's first bytes decide what is made of the rest; 0 when there are no more.
pub(super) struct Choices<'a>(pub(super) &'a [u8]);

impl Choices<'_> {
    pub(super) fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn caps(&mut self) -> Caps {
        if self.next().is_multiple_of(2) { Caps(0) } else { Caps::DEPRECATE_EOF }
    }

    pub(super) fn expected(&mut self) -> Expected {
        match self.next() % 6 {
            0 => Expected::Single,
            1 => Expected::ResultsOrCursor,
            2 => Expected::Prepared,
            3 => Expected::Rest,
            4 => Expected::Nothing,
            _ => Expected::Results,
        }
    }

    pub(super) fn pieces(&mut self) -> Vec<usize> {
        let size = |byte: u8| match byte {
            0..=239 => usize::from(byte) + 1,
            large => 1 << (large - 230),
        };
        (0..3).map(|_| size(self.next())).collect()
    }

    /// As a row may begin; rarely of more than one packet.
    fn row(&mut self) -> Vec<u8> {
        let first = self.next();
        match first {
            // A length of 8 bytes is written only for what is that long.
            0xfe | 0xff if self.next() == 7 => vec![0xfe; FULL + usize::from(self.next()) * 2],
            0xfe | 0xff => vec![0xfb],
            _ => [first].into_iter().chain((0..self.next() % 40).map(|at| at ^ first)).collect(),
        }
    }
}

/// Of what never waits.
pub(super) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing here waits"),
    }
}

/// Comes in pieces of these sizes, and then ends.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    sizes: Vec<usize>,
    turn: usize,
}

impl Pieces {
    pub(super) fn new(bytes: Vec<u8>, sizes: Vec<usize>) -> Pieces {
        Pieces { bytes, at: 0, sizes, turn: 0 }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.sizes[self.turn % self.sizes.len()];
        let count = size.min(buf.remaining()).min(self.bytes.len() - self.at);
        buf.put_slice(&self.bytes[self.at..self.at + count]);
        (self.at, self.turn) = (self.at + count, self.turn + 1);
        Poll::Ready(Ok(()))
    }
}

/// Nobody writes to a client here.
impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Keeps what is written to it.
#[derive(Clone, Default)]
pub(super) struct Sink(pub(super) Arc<Mutex<Vec<u8>>>);

impl AsyncRead for Sink {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().expect("nobody panics with it").extend(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
