//! Awaits conditions instead of sleeping: what a fact takes is measured, and one that never comes is told.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until `look` gives a value. A failed look counts as not yet: control moves, servers boot.
pub async fn until<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        let seen = look().await;
        if let Ok(Some(value)) = seen {
            return Ok(value);
        }
        if begun.elapsed() > limit {
            let why = seen.err().map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!("waited {} s for {what}{why}", limit.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
