//! The compressed protocol on a client's connection: frames of three bytes of compressed length, a sequence
//! number, three bytes of plain length (0: not compressed), and what they hold. Packets lie in frames as they
//! come, across their borders too. A packet that begins a frame and ends in it has the frame's number, the others
//! go on from there: a member numbers so after each flush, and drivers count on it between two results (mysql_async)
//! or do not look (the C library, mysqlnd). Source: MariaDB's "Protocol: Compression" page, MySQL's "Compressed
//! Packet".
//!
//! Promise: no more is unpacked than a frame may hold, whatever it says.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use flate2::Compression;
use flate2::read::{ZlibDecoder, ZlibEncoder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::packet::{HEADER, header};

const FRAME_HEADER: usize = 7;
/// MySQL's MIN_COMPRESS_LENGTH: what is shorter only grows.
const WORTH_IT: usize = 50;
/// Plain bytes in a frame of ours: larger ones would only wait.
const FRAME: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Zlib,
    Zstd { level: i32 },
}

impl Method {
    fn pack(self, plain: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Method::Zlib => {
                let mut packed = Vec::new();
                ZlibEncoder::new(plain, Compression::new(6)).read_to_end(&mut packed)?;
                Ok(packed)
            }
            Method::Zstd { level } => zstd::bulk::compress(plain, level.clamp(1, 22)),
        }
    }

    fn unpack(self, packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
        match self {
            Method::Zlib => {
                let mut plain = Vec::with_capacity(length);
                ZlibDecoder::new(packed).take(length as u64 + 1).read_to_end(&mut plain)?;
                Ok(plain)
            }
            Method::Zstd { .. } => zstd::bulk::decompress(packed, length),
        }
    }
}

pub(crate) struct Compressed<S> {
    stream: S,
    method: Method,
    sequence: u8,
    packed: BytesMut,
    plain: BytesMut,
    /// A frame on its way out.
    out: BytesMut,
    numbering: Numbering,
}

/// Where in the packets the bytes that go out are.
#[derive(Default)]
struct Numbering {
    /// The header of the packet that is being written, as far as it went out.
    header: [u8; HEADER],
    header_seen: usize,
    body_left: usize,
    next: u8,
}

impl Numbering {
    /// Renumbers the packets that begin in a frame.
    fn renumber(&mut self, frame: u8, plain: &mut [u8]) {
        let is_at_border = self.header_seen == 0 && self.body_left == 0;
        if is_at_border && header(plain).is_some_and(|(length, _)| HEADER + length <= plain.len()) {
            self.next = frame;
        }
        let mut at = 0;
        while at < plain.len() {
            if self.body_left > 0 {
                let passing = self.body_left.min(plain.len() - at);
                self.body_left -= passing;
                at += passing;
                continue;
            }
            if self.header_seen == HEADER - 1 {
                plain[at] = self.next;
                self.next = self.next.wrapping_add(1);
            }
            self.header[self.header_seen] = plain[at];
            self.header_seen += 1;
            at += 1;
            if self.header_seen == HEADER {
                let (length, _) = header(&self.header).expect("a header is whole");
                (self.header_seen, self.body_left) = (0, length);
            }
        }
    }
}

impl<S> Compressed<S> {
    pub(crate) fn new(stream: S, method: Method) -> Compressed<S> {
        let empty = BytesMut::new;
        Compressed {
            stream,
            method,
            sequence: 0,
            packed: empty(),
            plain: empty(),
            out: empty(),
            numbering: Numbering::default(),
        }
    }

    /// Moves a frame that is there as a whole from `packed` to `plain`.
    fn open_frame(&mut self) -> io::Result<bool> {
        let Some(head) = self.packed.get(..FRAME_HEADER) else { return Ok(false) };
        let number = |at: usize| {
            usize::from(head[at]) | usize::from(head[at + 1]) << 8 | usize::from(head[at + 2]) << 16
        };
        let (packed, plain, sequence) = (number(0), number(4), head[3]);
        if self.packed.len() < FRAME_HEADER + packed {
            return Ok(false);
        }
        self.packed.advance(FRAME_HEADER);
        let body = self.packed.split_to(packed);
        // A client begins each command anew; our answer goes on from its number.
        self.sequence = sequence.wrapping_add(1);
        self.numbering.next = self.sequence;
        if plain == 0 {
            self.plain.extend_from_slice(&body);
        } else {
            let unpacked = self.method.unpack(&body, plain)?;
            if unpacked.len() != plain {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is not as long as it says"));
            }
            self.plain.extend_from_slice(&unpacked);
        }
        Ok(true)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Compressed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.plain.is_empty() {
                let count = self.plain.len().min(buf.remaining());
                buf.put_slice(&self.plain.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if self.open_frame()? {
                continue;
            }
            let this = &mut *self;
            this.packed.reserve(4096);
            let filled = {
                let spare = this.packed.spare_capacity_mut();
                let mut more = ReadBuf::uninit(spare);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut more))?;
                more.filled().len()
            };
            if filled == 0 {
                return Poll::Ready(Ok(()));
            }
            // SAFETY: poll_read has just filled so many bytes of the spare capacity.
            unsafe { this.packed.advance_mut(filled) };
        }
    }
}

impl<S: AsyncWrite + Unpin> Compressed<S> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Compressed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        let mut plain = buf[..buf.len().min(FRAME)].to_vec();
        let sequence = self.sequence;
        self.numbering.renumber(sequence, &mut plain);
        let packed = if plain.len() < WORTH_IT { None } else { Some(self.method.pack(&plain)?) };
        let (body, length) = match &packed {
            Some(packed) if packed.len() < plain.len() => (&packed[..], plain.len()),
            _ => (&plain[..], 0),
        };
        self.out.put_uint_le(body.len() as u64, 3);
        self.out.put_u8(sequence);
        self.out.put_uint_le(length as u64, 3);
        self.out.put_slice(body);
        self.sequence = sequence.wrapping_add(1);
        // What cannot be written now is before the next write or flush.
        match self.poll_out(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(plain.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_one_side_packs_the_other_unpacks() {
        for method in [Method::Zlib, Method::Zstd { level: 3 }] {
            let (near, far) = duplex(1 << 12);
            let (mut near, mut far) = (Compressed::new(near, method), Compressed::new(far, method));
            let body: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
            // One packet each, so that no number but the first one's changes.
            let bytes = [&(body.len() as u32).to_le_bytes()[..], &body].concat();
            let sent = bytes.clone();
            let sending = tokio::spawn(async move {
                near.write_all(b"\x01\0\0\0s").await.unwrap();
                near.write_all(&sent).await.unwrap();
                near.flush().await.unwrap();
                near.shutdown().await.unwrap();
            });
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            sending.await.unwrap();
            let mut expected = [b"\x01\0\0\0s", &bytes[..]].concat();
            // It follows, for it does not end in the second frame.
            expected[5 + 3] = 1;
            assert!(read == expected);
        }
    }

    #[test]
    fn a_packet_that_begins_and_ends_in_a_frame_has_its_number() {
        let packets = |numbers: [u8; 3]| {
            numbers.iter().flat_map(|number| [2, 0, 0, *number, b'x', b'x']).collect::<Vec<u8>>()
        };
        for cut in 1..18 {
            let mut numbering = Numbering { next: 3, ..Numbering::default() };
            let mut frame = packets([7, 8, 9]);
            let (one, other) = frame.split_at_mut(cut);
            numbering.renumber(3, one);
            numbering.renumber(4, other);
            // Cut between the second and the third: that one begins the second frame.
            let expected = if cut == 12 { packets([3, 4, 4]) } else { packets([3, 4, 5]) };
            assert_eq!(frame, expected, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_frame_that_lies_about_its_length_is_refused() {
        for method in [Method::Zlib, Method::Zstd { level: 3 }] {
            let packed = method.pack(&[b'x'; 1 << 20]).unwrap();
            let (near, mut far) = duplex(1 << 16);
            let mut near = Compressed::new(near, method);
            let mut frame = BytesMut::new();
            frame.put_uint_le(packed.len() as u64, 3);
            frame.put_u8(0);
            frame.put_uint_le(100, 3);
            frame.put_slice(&packed);
            far.write_all(&frame).await.unwrap();
            near.read_u8().await.unwrap_err();
        }
    }
}
