//! Who may touch a site's database from here: one at a time fills or drops it. Taken by site_dump.rs, site_removal.rs
//! and sites.rs.

use std::time::Duration;

use kopek_core::SiteName;

use super::Refused;
use crate::active::Active;

/// For an import whose sender has gone to end: it waits for the database first.
const TURN_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// To fill a site's database or to drop it: one at a time. Ends with its drop, also when the one who sends a dump
/// goes away.
pub struct Turn<'a> {
    active: &'a Active,
    site: SiteName,
}

impl<'a> Turn<'a> {
    pub async fn wait_for(active: &'a Active, site: &SiteName) -> Result<Turn<'a>, Refused> {
        let deadline = tokio::time::Instant::now() + TURN_LIMIT;
        while !active.turns_taken().insert(site.clone()) {
            if tokio::time::Instant::now() > deadline {
                let error =
                    format!("site {site}: its dump is being read, or its database dropped; wait for that");
                return Err(Refused::conflict(error));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Turn { active, site: site.clone() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.active.turns_taken().remove(&self.site);
    }
}
