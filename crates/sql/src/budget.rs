//! Queries a second: a token bucket for each site that has such a limit, shared by the workers. Called by `meter`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kopek_core::SiteName;

/// So much may be asked at once after a pause: a page asks for 50 things in a row, and is read for a minute.
const BURST_SECONDS: f64 = 10.0;

/// Cheap to clone; clones count together.
#[derive(Clone, Default)]
pub(crate) struct Budgets(Arc<Mutex<BTreeMap<SiteName, Bucket>>>);

impl Budgets {
    /// False: there are too many. Sites without a limit never come here.
    pub(crate) fn take(&self, site: &SiteName, per_second: u32, now: Instant) -> bool {
        let mut buckets = self.0.lock().expect("nothing panics while it holds the lock");
        if let Some(bucket) = buckets.get_mut(site) {
            return bucket.take(per_second, now);
        }
        let mut bucket = Bucket { left: f64::from(per_second) * BURST_SECONDS, at: now };
        let taken = bucket.take(per_second, now);
        buckets.insert(site.clone(), bucket);
        taken
    }

    /// Of sites that are no more.
    pub(crate) fn keep(&self, is_there: impl Fn(&SiteName) -> bool) {
        self.0.lock().expect("nothing panics while it holds the lock").retain(|site, _| is_there(site));
    }
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, per_second: u32, now: Instant) -> bool {
        let rate = f64::from(per_second);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * rate).min(rate * BURST_SECONDS);
        self.at = self.at.max(now);
        let is_there = self.left >= 1.0;
        if is_there {
            self.left -= 1.0;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn after_a_burst_only_the_rate_is_left_and_each_site_has_its_own() {
        let (blog, shop) = (SiteName::parse("blog").unwrap(), SiteName::parse("shop").unwrap());
        let (budgets, start) = (Budgets::default(), Instant::now());
        let asked = |site, count, second| {
            let now = start + Duration::from_secs(second);
            (0..count).filter(|_| budgets.take(site, 5, now)).count()
        };
        assert_eq!(asked(&blog, 200, 0), 50);
        assert_eq!(asked(&blog, 200, 1), 5);
        assert_eq!(asked(&shop, 10, 1), 10);
        assert_eq!(asked(&blog, 200, 1_000), 50);
        budgets.keep(|site| *site == shop);
        assert_eq!(budgets.0.lock().unwrap().len(), 1);
    }
}
