//! An instance's response on its way to the client: counts what passes, and gives the connection back at the
//! end. Made by `proxy`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{HeaderMap, HeaderName};

use crate::health::Health;
use crate::record::Record;
use crate::table::BackendRoute;
use crate::upstream::{Lease, mark_failed};

/// Counts a request as the instance's work until its response has ended.
pub struct InFlight(Arc<Health>);

impl InFlight {
    pub fn begin(route: &BackendRoute) -> InFlight {
        route.health.begin_request();
        InFlight(route.health.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// An instance's response body on its way. At its end the connection is given back.
pub struct Relayed {
    body: Incoming,
    /// None if it is not to be used again.
    lease: Option<Lease>,
    promised: Option<Duration>,
    route: Arc<BackendRoute>,
    record: Record,
    _in_flight: InFlight,
}

impl Relayed {
    /// `headers`: as the instance sent them.
    pub fn new(
        body: Incoming,
        headers: &HeaderMap,
        lease: Option<Lease>,
        route: Arc<BackendRoute>,
        record: Record,
        in_flight: InFlight,
    ) -> Relayed {
        Relayed { body, lease, promised: promised_keep(headers), route, record, _in_flight: in_flight }
    }

    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.record.bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
            Some(Err(error)) => {
                self.lease = None;
                mark_failed(&self.route, error);
            }
            None => self.give_back(),
        }
        Poll::Ready(frame)
    }

    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back(&self.route, &self.record.worker.limits, self.promised);
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }
}

/// `Keep-Alive: timeout=5` as Apache sends it.
fn promised_keep(headers: &HeaderMap) -> Option<Duration> {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apache_says_how_long_it_keeps_a_connection() {
        let promised = |text: &'static str| {
            promised_keep(&[("keep-alive".parse().unwrap(), text.parse().unwrap())].into_iter().collect())
        };
        assert_eq!(promised("timeout=5, max=100"), Some(Duration::from_secs(5)));
        assert_eq!(promised("max=100,timeout=2"), Some(Duration::from_secs(2)));
        assert_eq!(promised("max=100"), None);
        assert_eq!(promised_keep(&HeaderMap::new()), None);
    }
}
