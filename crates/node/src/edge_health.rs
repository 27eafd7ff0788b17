//! Whether this server's edge answers, asked over its own socket. keepalived gives up the VIPs of a server
//! whose edge does not.

use std::path::PathBuf;
use std::time::Duration;

use kopek_core::observed::Health;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::edge_status;

/// A dead edge is noticed by the socket that refuses, within one look.
const EVERY: Duration = Duration::from_millis(100);
/// One look can miss while an edge is being replaced; an address should not move for that.
const MISSES: u32 = 2;

/// Nothing before the first answer, or the first second without one.
pub fn watch_edge(socket: PathBuf) -> watch::Receiver<Option<Health>> {
    let (to, health) = watch::channel(None);
    tokio::spawn(async move {
        let mut misses = 0;
        while !to.is_closed() {
            // It says so when all its workers serve.
            let now = match edge_status::ask(&socket, "health").await {
                Ok(answer) if answer == "ok" => Health::Well,
                _ => Health::Ill,
            };
            misses = if now == Health::Ill { misses + 1 } else { 0 };
            if misses == 0 || misses >= MISSES {
                to.send_if_modified(|health| health.replace(now) != Some(now));
            }
            sleep(EVERY).await;
        }
    });
    health
}
