//! A site's writer as the agent's latest part names it, and waiting for another one. Called by `session`,
//! `opening` and `warm`.

use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::desired::Database;
use kopek_core::part::{RoutedWriter, SqlPart};
use tokio::time::sleep;

use crate::Following;

pub(crate) fn writer_of<'a>(part: &'a Option<SqlPart>, site: &SiteName) -> Option<&'a RoutedWriter> {
    part.as_ref()?.sites.get(site)?.writer.as_ref()
}

pub(crate) fn account_of<'a>(part: &'a Option<SqlPart>, site: &SiteName) -> Option<&'a Database> {
    part.as_ref()?.sites.get(site)?.database.as_ref()
}

/// Whether two writers are the same one in the same epoch.
pub(crate) fn is_same(one: &RoutedWriter, other: &RoutedWriter) -> bool {
    (&one.server, one.epoch) == (&other.server, other.epoch)
}

/// Returns when the site's writer is another one, or none.
pub(crate) async fn changed_from(mut part: Following, site: &SiteName, writer: &RoutedWriter) {
    let other = |part: &Option<SqlPart>| !writer_of(part, site).is_some_and(|now| is_same(now, writer));
    if part.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns at the next news of the agent.
pub(crate) async fn news(part: &mut Following) {
    // The follower lives as long as the process, so the channel's end needs no answer.
    if part.changed().await.is_err() {
        sleep(Duration::from_millis(100)).await;
    }
}
