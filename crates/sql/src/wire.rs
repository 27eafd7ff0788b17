//! One side's connection and what has been read from it and not used yet. Every wait can be given up without
//! losing a byte. Used for clients and for members alike.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::meter::Traffic;
use crate::packet::{HEADER, header};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Read at once at most. An answer of many rows is passed on in pieces of this size.
const READ: usize = 16 * 1024;
/// An idle connection keeps no more than this: there may be thousands.
const KEPT_IDLE: usize = 512;

thread_local! {
    /// What every connection of this thread reads into: so one that waits has no room of its own.
    static LANDING: RefCell<Box<[u8; READ]>> = RefCell::new(Box::new([0; READ]));
}

pub(crate) struct Wire {
    stream: Box<dyn Stream>,
    pub(crate) input: BytesMut,
    traffic: Traffic,
}

impl Wire {
    pub(crate) fn new(stream: impl Stream + 'static) -> Wire {
        Wire { stream: Box::new(stream), input: BytesMut::new(), traffic: Traffic::default() }
    }

    /// Of nobody: what is read ends at once.
    pub(crate) fn closed() -> Wire {
        Wire::new(tokio::io::join(tokio::io::empty(), tokio::io::sink()))
    }

    /// The stream, and what was read from it and belongs to what comes next.
    pub(crate) fn into_parts(self) -> (Box<dyn Stream>, Bytes) {
        (self.stream, self.input.freeze())
    }

    /// Reads more. 0: the other side has ended.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        let Wire { stream, input, traffic } = self;
        poll_fn(|cx| {
            LANDING.with_borrow_mut(|landing| {
                let mut landed = ReadBuf::new(&mut landing[..]);
                std::task::ready!(Pin::new(&mut *stream).poll_read(cx, &mut landed))?;
                input.extend_from_slice(landed.filled());
                traffic.received += landed.filled().len() as u64;
                Poll::Ready(Ok(landed.filled().len()))
            })
        })
        .await
    }

    /// Waits for the next bytes with as little memory as can be.
    pub(crate) async fn fill_after_idling(&mut self) -> io::Result<usize> {
        if self.input.is_empty() && self.input.capacity() > KEPT_IDLE {
            self.input = BytesMut::new();
        }
        self.fill().await
    }

    /// Waits until at least `count` bytes are there.
    pub(crate) async fn fill_to(&mut self, count: usize) -> io::Result<()> {
        if self.input.len() < count {
            self.input.reserve(count - self.input.len());
        }
        while self.input.len() < count {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// One whole packet of at most `max` bytes: its sequence number and its payload.
    pub(crate) async fn packet(&mut self, max: usize) -> io::Result<(u8, BytesMut)> {
        self.fill_to(HEADER).await?;
        let (length, sequence) = header(&self.input).expect("a header is there");
        if length > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a packet of {length} bytes")));
        }
        self.fill_to(HEADER + length).await?;
        self.input.advance(HEADER);
        Ok((sequence, self.input.split_to(length)))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.traffic.sent += bytes.len() as u64;
        self.stream.flush().await
    }

    /// The same, given up after a time. Nearly always there is room at once, and no clock is asked.
    pub(crate) async fn send_within(
        &mut self,
        limit: Duration,
        bytes: &[u8],
    ) -> Result<io::Result<()>, Elapsed> {
        let mut sending = pin!(self.send(bytes));
        let at_once = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        match at_once {
            Poll::Ready(sent) => Ok(sent),
            Poll::Pending => timeout(limit, sending).await,
        }
    }

    /// What has come and gone since it was asked last.
    pub(crate) fn take_traffic(&mut self) -> Traffic {
        std::mem::take(&mut self.traffic)
    }

    /// Whether the other side has neither ended nor said anything: an idle connection as it should be.
    pub(crate) fn is_quiet(&mut self) -> bool {
        if !self.input.is_empty() {
            return false;
        }
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(std::task::Waker::noop());
        Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer).is_pending()
    }

    pub(crate) async fn end(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

/// A stream from which some bytes had been read already.
pub(crate) struct Resumed<S> {
    first: Bytes,
    stream: S,
}

impl<S> Resumed<S> {
    pub(crate) fn new(first: Bytes, stream: S) -> Resumed<S> {
        Resumed { first, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Resumed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Resumed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
