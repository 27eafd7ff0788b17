//! The compressed protocol on a client's connection: frames of three bytes of compressed length, a sequence
//! number, three bytes of plain length (0: not compressed), and what they hold. Packets lie in frames as they
//! come, across their borders too. Source: MariaDB's "Protocol: Compression" page, MySQL's "Compressed Packet".
//!
//! Promise: no more is unpacked than a frame may hold, whatever it says.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use flate2::Compression;
use flate2::read::{ZlibDecoder, ZlibEncoder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
}

impl<S> Compressed<S> {
    pub(crate) fn new(stream: S, method: Method) -> Compressed<S> {
        let empty = BytesMut::new;
        Compressed { stream, method, sequence: 0, packed: empty(), plain: empty(), out: empty() }
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
        let plain = &buf[..buf.len().min(FRAME)];
        let packed = if plain.len() < WORTH_IT { None } else { Some(self.method.pack(plain)?) };
        let (body, length) = match &packed {
            Some(packed) if packed.len() < plain.len() => (&packed[..], plain.len()),
            _ => (plain, 0),
        };
        let sequence = self.sequence;
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
            let bytes: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
            let sent = bytes.clone();
            let sending = tokio::spawn(async move {
                near.write_all(b"short").await.unwrap();
                near.write_all(&sent).await.unwrap();
                near.flush().await.unwrap();
                near.shutdown().await.unwrap();
            });
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            sending.await.unwrap();
            assert!(read == [b"short", &bytes[..]].concat());
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
