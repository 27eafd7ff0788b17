//! Pushes this server's reports straight to the active controller: every second, and at once on a change.
//! Nothing of it goes through the store, so that a report costs nobody else anything.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::Method;
use kopek_core::observed::Report;
use kopek_link::http::Api;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

const EVERY: Duration = Duration::from_secs(1);
/// A change is sent at once, but a server that changes all the time sends no more than this often.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(200);

/// Runs for ever. `leader` is the active controller's address, when one is known.
pub async fn push(
    api: Api,
    mut report: watch::Receiver<Option<Report>>,
    mut leader: watch::Receiver<Option<SocketAddr>>,
) {
    loop {
        let next = Instant::now() + EVERY;
        let current = report.borrow_and_update().clone();
        let address = *leader.borrow_and_update();
        if let (Some(current), Some(address)) = (current, address) {
            let sent: Result<(), _> = api.call(Method::POST, address, "/report", Some(&current), LIMIT).await;
            if let Err(error) = sent {
                debug!(%error, controller = %address, "report not taken");
                sleep(RETRY).await;
                continue;
            }
        }
        sleep(AT_MOST_EVERY).await;
        tokio::select! {
            changed = report.changed() => if changed.is_err() { return },
            changed = leader.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
    }
}
