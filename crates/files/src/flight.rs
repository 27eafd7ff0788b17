//! Requests in flight at the gate, by instance. The gate relays bytes and does not read HTTP, and edges keep
//! idle connections open, so open connections say nothing about work. A connection counts from the first
//! request byte until response bytes have come and then nothing moved either way for 50 ms. So a request
//! counts 50 ms longer than it lasts, and a response that pauses counts as done in its pause; requests that
//! HTTP/1.1 pipelines on one connection count as one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kopek_core::InstanceId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// A PHP page is written in one go or in pieces a few milliseconds apart.
const SILENCE: Duration = Duration::from_millis(50);

/// The counts of all instances that have connections.
#[derive(Default)]
pub(crate) struct Flights {
    by_instance: Mutex<BTreeMap<InstanceId, Arc<AtomicU32>>>,
}

impl Flights {
    /// For one connection.
    pub fn board(&self, instance: &InstanceId) -> Flight {
        let mut by_instance = self.by_instance.lock().expect("nothing panics while it holds the lock");
        let count = by_instance.entry(instance.clone()).or_default().clone();
        Flight { count, state: Mutex::new(State::Idle), answered: Notify::new() }
    }

    /// Requests in flight for each instance that has open connections.
    pub fn counts(&self) -> BTreeMap<InstanceId, u32> {
        let mut by_instance = self.by_instance.lock().expect("nothing panics while it holds the lock");
        by_instance.retain(|_, count| Arc::strong_count(count) > 1);
        by_instance
            .iter()
            .map(|(instance, count)| (instance.clone(), count.load(Ordering::Relaxed)))
            .collect()
    }
}

/// ```text
///        request bytes            response bytes             silence
///  Idle ──────────────► Asked ◄──────────────────► Answered ─────────► Idle
///                           request bytes
/// ```
#[derive(Debug, Clone, Copy)]
enum State {
    Idle,
    Asked,
    Answered { last: Instant },
}

/// One connection's share.
pub(crate) struct Flight {
    count: Arc<AtomicU32>,
    state: Mutex<State>,
    answered: Notify,
}

impl Flight {
    pub fn request_bytes(&self) {
        let mut state = self.state.lock().expect("nothing panics while it holds the lock");
        if let State::Idle = *state {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        *state = State::Asked;
    }

    pub fn response_bytes(&self) {
        let mut state = self.state.lock().expect("nothing panics while it holds the lock");
        match *state {
            // The server speaks unasked, as when it closes an idle connection: no request.
            State::Idle => return,
            State::Asked => self.answered.notify_one(),
            State::Answered { .. } => {}
        }
        *state = State::Answered { last: Instant::now() };
    }

    /// Ends flights that fell silent. Runs as long as the connection.
    pub async fn watch(&self) {
        loop {
            while let Some(until) = self.silent_at() {
                sleep_until(until).await;
            }
            self.answered.notified().await;
        }
    }

    /// When the flight will have been silent long enough; `None` if it is over or asked again.
    fn silent_at(&self) -> Option<Instant> {
        let mut state = self.state.lock().expect("nothing panics while it holds the lock");
        let State::Answered { last } = *state else { return None };
        let until = last + SILENCE;
        if until > Instant::now() {
            return Some(until);
        }
        *state = State::Idle;
        self.count.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !matches!(self.state.get_mut(), Ok(State::Idle)) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_request_is_in_flight_until_it_is_answered_and_silent() {
        let flights = Flights::default();
        let instance = InstanceId::parse("blog.1").unwrap();
        let flight = Arc::new(flights.board(&instance));
        let watched = flight.clone();
        let watching = tokio::spawn(async move { watched.watch().await });
        let count = || flights.counts()[&instance];
        assert_eq!(count(), 0);
        // It speaks unasked.
        flight.response_bytes();

        flight.request_bytes();
        advance(SILENCE * 100).await;
        assert_eq!(count(), 1, "a slow request stays in flight");
        flight.response_bytes();
        tokio::task::yield_now().await;
        advance(SILENCE / 2).await;
        flight.response_bytes();
        advance(SILENCE / 2).await;
        tokio::task::yield_now().await;
        assert_eq!(count(), 1, "it still speaks");
        tokio::time::sleep(SILENCE).await;
        assert_eq!(count(), 0);

        flight.request_bytes();
        flight.response_bytes();
        flight.request_bytes();
        tokio::time::sleep(SILENCE * 2).await;
        assert_eq!(count(), 1, "the next request on the same connection is not over");
        let other = flights.board(&instance);
        other.request_bytes();
        assert_eq!(count(), 2);
        drop(other);
        assert_eq!(count(), 1, "its connection was closed");
        watching.abort();
        drop(watching.await);
        drop(flight);
        assert!(flights.counts().is_empty(), "a closed connection counts for nothing");
    }
}
