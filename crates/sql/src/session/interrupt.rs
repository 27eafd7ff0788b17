//! The site's longest query: a statement that takes longer is interrupted at its member, by a KILL QUERY over
//! another of the site's backends, and its client hears what MariaDB says of `max_statement_time`. Called by
//! `attempt`.
//!
//! Promise: no other statement is interrupted: the session sends nothing before its KILL has been answered, and
//! MariaDB ignores one that finds its connection idle.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use kopek_core::SiteName;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::until;
use crate::backend::{Backend, Shape};
use crate::packet::{HEADER, ServerError, header};
use crate::warm::{Left, Warm};
use kopek_core::part::RoutedWriter;

/// A member that lives answers a KILL in milliseconds.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// ER_QUERY_INTERRUPTED, as the member says it after a KILL.
const KILLED: u16 = 1317;
/// ER_STATEMENT_TIMEOUT.
pub(super) const TOO_LONG: u16 = 1969;

/// Of one statement.
pub(super) struct Interrupt {
    at: Option<Instant>,
    target: Option<Target>,
    killing: Option<JoinHandle<()>>,
}

struct Target {
    writer: RoutedWriter,
    shape: Shape,
    thread: u32,
}

impl Interrupt {
    pub(super) fn new(longest: Option<Duration>, backend: &Backend) -> Interrupt {
        let target = longest.map(|_| Target {
            writer: backend.writer.clone(),
            shape: backend.shape.clone(),
            thread: backend.thread,
        });
        Interrupt { at: longest.map(|longest| Instant::now() + longest), target, killing: None }
    }

    /// It may still become due.
    pub(super) fn waits(&self) -> bool {
        self.target.is_some()
    }

    pub(super) fn was_sent(&self) -> bool {
        self.killing.is_some()
    }

    pub(super) async fn due(&self) {
        until(self.at).await;
    }

    pub(super) fn send(&mut self, warm: &Rc<Warm>, site: &SiteName) {
        let Some(target) = self.target.take() else { return };
        let (warm, site) = (warm.clone(), site.clone());
        self.killing = Some(spawn_local(async move {
            info!(%site, thread = target.thread, reason = "it takes too long", "statement interrupted");
            match timeout(KILL_LIMIT, kill(&warm, &site, &target)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%site, %error, "a statement that takes too long goes on"),
                Err(_) => warn!(%site, "a statement that takes too long goes on: no answer to its KILL"),
            }
        }));
    }

    /// Before anything else is sent to the same backend.
    pub(super) async fn settled(&mut self) {
        if let Some(killing) = &mut self.killing {
            // It does not panic, and is never aborted.
            let _ = killing.await;
        }
    }
}

async fn kill(warm: &Rc<Warm>, site: &SiteName, target: &Target) -> io::Result<()> {
    let other = warm.take(site, &target.writer, &target.shape).await;
    let mut other = other.map_err(io::Error::other)?;
    other.query(&format!("KILL QUERY {}", target.thread)).await?;
    warm.give_back(site, other, Left::Usual);
    Ok(())
}

/// Puts the word for a statement that took too long in place of the member's word for a KILL. `begins` is where the
/// first packet does. False: the answer ends otherwise.
pub(super) fn tell_too_long(answer: &mut BytesMut, begins: usize) -> bool {
    let (mut at, mut last) = (begins, None);
    while let Some((length, sequence)) = answer.get(at..).and_then(header) {
        last = Some((at, sequence));
        at += HEADER + length;
    }
    let Some((from, sequence)) = last else { return false };
    let is_killed =
        answer.get(from + HEADER..).and_then(ServerError::parse).is_some_and(|error| error.code == KILLED);
    if is_killed {
        let text = "Query execution was interrupted (max_statement_time exceeded)";
        answer.truncate(from);
        answer.extend_from_slice(&ServerError::new(TOO_LONG, b"70100", text).packet(sequence));
    }
    is_killed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::put_packet;

    #[test]
    fn only_the_word_for_a_kill_is_replaced_and_what_came_before_stays() {
        let mut answer = BytesMut::from(&b"the rest of a row"[..]);
        let begins = answer.len();
        put_packet(&mut answer, 7, &[b"\x03row"]);
        let rows = answer.clone();
        answer.extend_from_slice(
            &ServerError::new(KILLED, b"70100", "Query execution was interrupted").packet(8),
        );
        assert!(tell_too_long(&mut answer, begins));
        assert_eq!(answer[..rows.len()], rows[..]);
        assert_eq!(header(&answer[rows.len()..]).unwrap().1, 8);
        let error = ServerError::parse(&answer[rows.len() + HEADER..]).unwrap();
        assert_eq!((error.code, &error.state), (1969, b"70100"));

        let mut other = ServerError::new(1064, b"42000", "no").packet(1);
        let before = other.clone();
        assert!(!tell_too_long(&mut other, 0));
        assert_eq!(other, before);
        assert!(!tell_too_long(&mut BytesMut::new(), 0));
    }
}
