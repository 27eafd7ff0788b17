//! The compressed protocol on a client's connection: frames of three bytes of compressed length, a sequence
//! number, three bytes of plain length (0: not compressed), and what they hold. Packets lie in frames as they
//! come, across their borders too. A packet that begins a frame and ends in it has the frame's number, the others
//! go on from there: a member numbers so after each flush, and drivers count on it between two results (mysql_async)
//! or do not look (the C library, mysqlnd). Source: MariaDB's "Protocol: Compression" page, MySQL's "Compressed
//! Packet".
//!
//! Promise: whatever a frame says of its lengths, no more of it is held than what was asked for and the window
//! of its compression. Frames are unpacked as they arrive and are read.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use flate2::read::ZlibEncoder;
use flate2::{Compression, Decompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::packet::{HEADER, header};

const FRAME_HEADER: usize = 7;
/// MySQL's MIN_COMPRESS_LENGTH: what is shorter only grows.
const WORTH_IT: usize = 50;
/// Plain bytes in a frame of ours: larger ones would only wait.
const FRAME: usize = 64 * 1024;
/// Packed bytes that are read ahead.
const AHEAD: usize = 4096;
/// Of zstd, as the power of two that is its memory: 4 MiB. Frames up to that size need no more, and longer ones
/// only at levels above 15, where MySQL's clients use 3.
const WINDOW_LOG_MAX: u32 = 22;

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

    fn opener(self) -> io::Result<Opener> {
        Ok(match self {
            Method::Zlib => Opener::Zlib(Decompress::new(true)),
            Method::Zstd { .. } => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Opener::Zstd(decoder)
            }
        })
    }
}

/// Unpacks one frame.
enum Opener {
    Zlib(Decompress),
    Zstd(Decoder<'static>),
}

/// One step of it.
struct Opened {
    taken: usize,
    given: usize,
    is_over: bool,
}

impl Opener {
    fn open(&mut self, packed: &[u8], plain: &mut [u8]) -> io::Result<Opened> {
        match self {
            Opener::Zlib(zlib) => {
                let (before_in, before_out) = (zlib.total_in(), zlib.total_out());
                let status = zlib.decompress(packed, plain, FlushDecompress::None)?;
                Ok(Opened {
                    taken: (zlib.total_in() - before_in) as usize,
                    given: (zlib.total_out() - before_out) as usize,
                    is_over: status == Status::StreamEnd,
                })
            }
            Opener::Zstd(zstd) => {
                let (mut packed, mut plain) = (InBuffer::around(packed), OutBuffer::around(plain));
                let left = zstd.run(&mut packed, &mut plain)?;
                Ok(Opened { taken: packed.pos(), given: plain.pos(), is_over: left == 0 })
            }
        }
    }
}

/// The frame that is being read.
struct Frame {
    /// Of what it holds, not yet read from the stream.
    packed: usize,
    /// Of what comes out of it, not yet given.
    plain: usize,
    /// None: it is not compressed.
    opener: Option<Opener>,
    is_odd: bool,
}

impl Frame {
    /// Moves bytes to `out`, which has room. 0: it needs more of its bytes, or is at its end.
    fn give(&mut self, packed: &mut BytesMut, out: &mut ReadBuf<'_>) -> io::Result<usize> {
        if self.is_odd {
            return Err(odd());
        }
        let there = &packed[..packed.len().min(self.packed)];
        let Some(opener) = &mut self.opener else {
            let count = there.len().min(out.remaining());
            out.put_slice(&there[..count]);
            packed.advance(count);
            self.packed -= count;
            return Ok(count);
        };
        let limit = out.remaining().min(self.plain).min(FRAME);
        let opened = opener.open(there, out.initialize_unfilled_to(limit))?;
        // What comes with an error has not been read.
        self.heed(&opened, there.is_empty())?;
        out.advance(opened.given);
        packed.advance(opened.taken);
        // Nothing more comes out of it: what it needed to be unpacked is not kept while the client is idle. Where it
        // goes on all the same, the next read says so.
        if self.plain == 0
            && let Some(opener) = &mut self.opener
        {
            let there = &packed[..packed.len().min(self.packed)];
            let closing = opener.open(there, &mut [0]);
            match closing.and_then(|closing| self.heed(&closing, there.is_empty()).map(|()| closing.taken)) {
                Ok(taken) => packed.advance(taken),
                Err(_) => self.is_odd = true,
            }
        }
        Ok(opened.given)
    }

    fn heed(&mut self, opened: &Opened, nothing_there: bool) -> io::Result<()> {
        let Opened { taken, given, is_over } = *opened;
        let left = self.plain.checked_sub(given);
        let (packed, plain) = (self.packed - taken, left.ok_or_else(odd)?);
        let is_odd = if is_over {
            (packed, plain) != (0, 0)
        } else {
            given == 0 && (packed == 0 || (taken == 0 && !nothing_there))
        };
        if is_odd {
            return Err(odd());
        }
        (self.packed, self.plain) = (packed, plain);
        if is_over {
            self.opener = None;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.packed == 0 && self.opener.is_none()
    }
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame is not as long as it says")
}

pub(crate) struct Compressed<S> {
    stream: S,
    method: Method,
    sequence: u8,
    /// Read from the stream and not unpacked yet.
    packed: BytesMut,
    frame: Option<Frame>,
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
            frame: None,
            out: empty(),
            numbering: Numbering::default(),
        }
    }

    /// Begins the next frame, if the one before is over and the header is there.
    fn next_frame(&mut self) -> io::Result<()> {
        if self.frame.as_ref().is_some_and(Frame::is_over) {
            self.frame = None;
        }
        if self.frame.is_none() {
            let Some(head) = self.packed.get(..FRAME_HEADER) else { return Ok(()) };
            let number = |at: usize| {
                usize::from(head[at]) | usize::from(head[at + 1]) << 8 | usize::from(head[at + 2]) << 16
            };
            let (packed, plain) = (number(0), number(4));
            // A client begins each command anew; our answer goes on from its number.
            self.sequence = head[3].wrapping_add(1);
            self.numbering.next = self.sequence;
            self.packed.advance(FRAME_HEADER);
            let opener = if plain == 0 { None } else { Some(self.method.opener()?) };
            self.frame = Some(Frame { packed, plain, opener, is_odd: false });
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Compressed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            this.next_frame()?;
            if let Some(frame) = &mut this.frame {
                let had = this.packed.len();
                if frame.give(&mut this.packed, buf)? > 0 {
                    return Poll::Ready(Ok(()));
                }
                if frame.is_over() || this.packed.len() < had {
                    continue;
                }
            }
            this.packed.reserve(AHEAD);
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
            let packed = method.pack(&[b'x'; 1000]).unwrap();
            for (said, is_true) in [(999, false), (1000, true), (1001, false), (1 << 20, false)] {
                let (near, mut far) = duplex(1 << 16);
                let mut near = Compressed::new(near, method);
                far.write_all(&frame(&packed, said)).await.unwrap();
                drop(far);
                let mut read = Vec::new();
                assert_eq!(near.read_to_end(&mut read).await.is_ok(), is_true, "{method:?} {said}");
                assert!(read.len() <= 1000);
            }
        }
    }

    fn frame(packed: &[u8], plain: usize) -> BytesMut {
        let mut frame = BytesMut::new();
        frame.put_uint_le(packed.len() as u64, 3);
        frame.put_u8(0);
        frame.put_uint_le(plain as u64, 3);
        frame.put_slice(packed);
        frame
    }

    /// 16 KiB can hold 16 MiB, and a client may have hundreds of connections.
    #[tokio::test]
    async fn of_a_frame_only_what_is_read_is_unpacked() {
        for method in [Method::Zlib, Method::Zstd { level: 3 }] {
            let plain = (1 << 24) - 1;
            let packed = method.pack(&vec![b'x'; plain]).unwrap();
            let (near, mut far) = duplex(1 << 16);
            let mut near = Compressed::new(near, method);
            far.write_all(&frame(&packed, plain)).await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), b'x');
            assert!(near.packed.capacity() <= 4 * AHEAD, "{} bytes", near.packed.capacity());
            assert_eq!(near.frame.as_ref().unwrap().plain, plain - 1);
        }
        let wide = zstd::bulk::Compressor::new(19)
            .and_then(|mut packing| {
                packing.set_parameter(zstd::zstd_safe::CParameter::WindowLog(WINDOW_LOG_MAX + 1))?;
                packing.compress(&vec![b'x'; (1 << 24) - 1])
            })
            .unwrap();
        let (near, mut far) = duplex(1 << 16);
        let mut near = Compressed::new(near, Method::Zstd { level: 3 });
        far.write_all(&frame(&wide, (1 << 24) - 1)).await.unwrap();
        near.read_u8().await.unwrap_err();
    }
}
