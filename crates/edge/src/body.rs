//! Bodies on their way through: what clients send (`Intake`, `Outgoing`) and what they get (`Answer`).
//!
//! A small request body is read before it is sent on: so it can be sent again, and a slow client occupies no
//! process of the instance. A large one streams and is never held in memory.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::relayed::Relayed;

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the client paused for too long in a request's body")]
    Stalled,
    #[error("the connection broke in a body")]
    Broken(#[from] hyper::Error),
}

/// A request's body as the client sends it.
pub enum Intake {
    /// All of it. Can be sent any number of times.
    Whole(Bytes),
    /// The beginning, if it had to be read to see that it is large, and the rest. Can be sent once.
    Large(Stream),
}

pub struct Stream {
    beginning: Option<Bytes>,
    rest: Incoming,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Intake {
    pub async fn read(mut body: Incoming, replay: usize, stall: Duration) -> Result<Intake, BodyError> {
        if body.is_end_stream() {
            return Ok(Intake::Whole(Bytes::new()));
        }
        let large = |beginning, rest| Ok(Intake::Large(Stream { beginning, rest, stall, stalled: None }));
        if body.size_hint().lower() > replay as u64 {
            return large(None, body);
        }
        let mut whole = BytesMut::new();
        while let Some(frame) = timeout(stall, body.frame()).await.map_err(|_| BodyError::Stalled)? {
            if let Ok(bytes) = frame?.into_data() {
                whole.extend_from_slice(&bytes);
            }
            if whole.len() > replay {
                return large(Some(whole.freeze()), body);
            }
        }
        Ok(Intake::Whole(whole.freeze()))
    }
}

/// A request's body as an instance gets it.
pub enum Outgoing {
    Whole(Option<Bytes>),
    Large(Box<Stream>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Outgoing::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Large(stream) => stream.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Outgoing::Large(stream) => stream.beginning.is_none() && stream.rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            // With a beginning the client gave no length.
            Outgoing::Large(stream) if stream.beginning.is_some() => SizeHint::default(),
            Outgoing::Large(stream) => stream.rest.size_hint(),
        }
    }
}

impl Stream {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(bytes) = self.beginning.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.stall)));
        match Pin::new(&mut self.rest).poll_frame(context) {
            Poll::Ready(frame) => {
                stalled.as_mut().reset(Instant::now() + self.stall);
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Poll::Pending => stalled.as_mut().poll(context).map(|()| Some(Err(BodyError::Stalled))),
        }
    }
}

/// A response's body as the client gets it.
pub enum Answer {
    /// Ours.
    Page(Option<Bytes>),
    /// The instance's.
    Relayed(Box<Relayed>),
    /// After a change of protocol.
    Nothing,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Answer::Page(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Relayed(relayed) => relayed.poll_frame(context),
            Answer::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Page(bytes) => bytes.is_none(),
            Answer::Relayed(relayed) => relayed.is_end_stream(),
            Answer::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Page(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Answer::Relayed(relayed) => relayed.size_hint(),
            Answer::Nothing => SizeHint::with_exact(0),
        }
    }
}
