//! How long this server's member may be believed. A member that was cut off from its group, or a whole server
//! that was frozen, goes on answering reads from what it knew, while another writer already takes commits. So
//! a member's answer is shown to a client only while the member was seen in its group a moment ago.
//!
//! Promise: no answer of this server's member reaches a client later than `LEASE` after the member last took
//! part in the group. The agents put a member out of the group after 0.8 s without its pulse at the
//! earliest (`node/fellows.rs`), so nobody can have written elsewhere by then.
//!
//! The proof is a causal read (`wsrep_sync_wait`, Galera's documentation: "Managing Cluster Consistency"): it
//! travels through the group and comes back in the order of its commits, which it cannot do in a minority.
//! Kept by worker 0 for the whole process; asked by `attempt`.

use std::ops::Bound;
use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::desired::Database;
use kopek_core::part::RoutedWriter;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::backend::{Backend, Ways};
use crate::opening::CATCH_UP;
use crate::session::first_shape;
use crate::writer::account_of;

/// Less than the 0.8 s after which the agents put a silent member out, by more than two of their pulses.
const LEASE: Duration = Duration::from_millis(500);
/// Three proofs may be late before sessions wait; one costs the member about 0.1 ms.
const RENEW_AFTER: Duration = Duration::from_millis(120);
/// A member in a minority answers no causal read; it is asked anew when it is back.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// When the member was last known to be in its group. Cheap to clone; one for the process.
#[derive(Clone, Default)]
pub(crate) struct Lease(watch::Sender<Option<Instant>>);

impl Lease {
    pub(crate) fn is_valid(&self) -> bool {
        is_valid(&self.0.borrow())
    }

    /// Returns when it is valid.
    pub(crate) async fn valid(&self) {
        // Our own sender keeps the channel open.
        let _ = self.0.subscribe().wait_for(is_valid).await;
    }

    fn renew(&self, asked: Instant) {
        self.0.send_replace(Some(asked));
    }
}

fn is_valid(asked: &Option<Instant>) -> bool {
    asked.is_some_and(|asked| asked.elapsed() < LEASE)
}

/// For ever.
pub(crate) async fn keep(ways: Ways) {
    let mut part = ways.part.clone();
    let mut last = None;
    loop {
        let Some((site, writer, account)) = own_site(&ways, last.as_ref()) else {
            crate::writer::news(&mut part).await;
            continue;
        };
        match Backend::open(&ways, &site, &writer, &account, &first_shape()).await {
            Ok(mut backend) => prove(&ways, &mut backend).await,
            Err(error) => debug!(%site, %error, "the member cannot be asked whether it is in its group"),
        }
        last = Some(site);
        sleep(TRY_AGAIN_AFTER).await;
    }
}

/// As long as the member is in its group and serves a site.
async fn prove(ways: &Ways, backend: &mut Backend) {
    loop {
        let asked = Instant::now();
        match timeout(ANSWER_LIMIT, backend.query(CATCH_UP)).await {
            Ok(Ok(said)) if said.error.is_none() => ways.lease.renew(asked),
            Ok(Ok(said)) => return debug!(error = said.error, "the member is not in its group"),
            Ok(Err(error)) => return debug!(%error, "the member broke off"),
            Err(_) => return warn!("the member does not hear its group: its answers are held back"),
        }
        if backend.is_closed() || own_site(ways, None).is_none() {
            return;
        }
        sleep(RENEW_AFTER).await;
    }
}

/// A site that this server's member serves. Any will do, but not twice the same one: a site can end what runs
/// under its account and change its password, and all others depend on the answer.
fn own_site(ways: &Ways, last: Option<&SiteName>) -> Option<(SiteName, RoutedWriter, Database)> {
    let known = ways.part.borrow();
    let part = known.as_ref()?;
    part.member?;
    let after = last.map(|last| (Bound::Excluded(last), Bound::Unbounded));
    let later = after.into_iter().flat_map(|after| part.writes_for.range::<SiteName, _>(after));
    later.chain(&part.writes_for).find_map(|(site, epoch)| {
        let writer = part.sites.get(site)?.writer.as_ref().filter(|writer| writer.epoch == *epoch)?;
        Some((site.clone(), writer.clone(), account_of(&known, site)?.clone()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_half_a_second_after_the_question_that_was_answered_and_whoever_waits_goes_on_with_the_next()
     {
        let lease = Lease::default();
        assert!(!lease.is_valid());
        lease.renew(Instant::now());
        assert!(lease.is_valid());
        sleep(LEASE).await;
        assert!(!lease.is_valid());
        let late = Instant::now() - LEASE;
        let waiting = tokio::spawn({
            let lease = lease.clone();
            async move { lease.valid().await }
        });
        lease.renew(late);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "an answer to a question of long ago proves nothing");
        lease.renew(Instant::now());
        waiting.await.unwrap();
    }
}
