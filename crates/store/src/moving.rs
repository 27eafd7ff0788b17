//! The marker key `/moved`: a store that has it is not, or not just now, the home of the cell's state.
//! Written only by `migrate`; kept by every store in `commit`; followed by `FollowingStore`, which also opens
//! the target that it was pointed to.
//!
//! ```text
//!  source:  (absent) ──freeze──▶ Frozen ──▶ Moved ──later refilled──▶ Filling ──▶ (absent)
//!               ▲                  │ its lease expires: the mover died
//!               └──────────────────┘
//!  target:  (empty) ──▶ Filling ──opened once the source is Moved──▶ (absent)
//! ```

use serde::{Deserialize, Serialize};

use crate::location::Location;
use crate::store::{Compare, Entry, StoreError};

pub(crate) const MOVED_KEY: &str = "/moved";
/// How often the cell's state was moved, as decimal text; absent: never.
pub(crate) const EPOCH_KEY: &str = "/epoch";
/// In the source: the name of the migration under way, or of the last one. Tells whether a half-filled target
/// is this source's own leftover.
pub(crate) const MIGRATION_KEY: &str = "/migration";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Moving {
    /// The last changes are being copied. Held by a lease of the mover.
    Frozen,
    /// The state lives elsewhere, for good.
    Moved { to: Location, migration: String },
    /// Being written by a migration; never opened yet. `was` tells where the state went when this store was
    /// the home earlier.
    /// `claim` is made up for each attempt: it tells this store from any other that is filled at the same address.
    Filling { migration: String, claim: String, was: Option<Location> },
}

impl Moving {
    pub(crate) fn parse(value: &[u8]) -> Result<Moving, StoreError> {
        serde_json::from_slice(value).map_err(|error| StoreError::Refused {
            why: format!("the key {MOVED_KEY} holds no marker ({error}); delete it if no migration runs"),
        })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a marker has only text keys")
    }
}

pub(crate) fn epoch_in(entry: Option<&Entry>) -> u64 {
    let text = entry.and_then(|entry| std::str::from_utf8(&entry.value).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The rule of every store: while the marker is there, only commits that compare it are done.
pub(crate) fn is_about_the_marker(compares: &[Compare]) -> bool {
    compares.iter().any(|compare| compare.key() == MOVED_KEY)
}

/// What a commit that does not compare the marker gets to hear.
pub(crate) fn refusal(marker: &Entry) -> StoreError {
    match Moving::parse(&marker.value) {
        Ok(Moving::Moved { to, .. } | Moving::Filling { was: Some(to), .. }) => StoreError::Moved(to),
        Ok(Moving::Frozen | Moving::Filling { was: None, .. }) => StoreError::Moving,
        Err(error) => error,
    }
}
