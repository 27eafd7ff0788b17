//! Every site's route as the store tells it. One that cannot be read (a newer Kopek wrote it, or something
//! broke it) stays as it last could: its site goes on being served where it was. Called by `feed`.

use std::collections::{BTreeMap, BTreeSet};

use kopek_core::assignment::StoredRoute;
use kopek_core::{SiteName, keys};
use kopek_store::Entry;
use tracing::warn;

#[derive(Debug, Default)]
pub struct LastGood {
    routes: BTreeMap<SiteName, StoredRoute>,
    /// Told once each.
    unreadable: BTreeSet<SiteName>,
}

impl LastGood {
    /// `routes` were good when this server last ran.
    pub fn new(routes: BTreeMap<SiteName, StoredRoute>) -> LastGood {
        LastGood { routes, unreadable: BTreeSet::new() }
    }

    /// Takes in all that the store has now under `keys::ROUTES`.
    pub fn take(&mut self, entries: &BTreeMap<String, Entry>) -> &BTreeMap<SiteName, StoredRoute> {
        let mut before = std::mem::take(&mut self.routes);
        let mut unreadable = BTreeSet::new();
        for (key, entry) in entries {
            let Some(site) = site_of(key) else {
                warn!(key, "this is no site's route");
                continue;
            };
            let route = match serde_json::from_slice::<StoredRoute>(&entry.value) {
                Ok(stored) => Some(stored),
                Err(error) => {
                    if !self.unreadable.contains(&site) {
                        warn!(%site, %error, "its route in the store cannot be read; the last good one stays");
                    }
                    unreadable.insert(site.clone());
                    before.remove(&site)
                }
            };
            self.routes.extend(route.map(|route| (site, route)));
        }
        self.unreadable = unreadable;
        &self.routes
    }

    /// Sites that the store has a route of, with the number where it can be read.
    pub fn sites(&self) -> BTreeMap<SiteName, Option<u32>> {
        let unreadable = self.unreadable.iter().map(|site| (site.clone(), None));
        unreadable
            .chain(self.routes.iter().map(|(site, route)| (site.clone(), Some(route.route.number))))
            .collect()
    }
}

fn site_of(key: &str) -> Option<SiteName> {
    key.strip_prefix(keys::ROUTES)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"generation":1,"route":{"site":"blog","number":7,"domains":["blog.org"],"backends":{},"writer":null}}"#;

    fn stored(value: &str) -> BTreeMap<String, Entry> {
        let key = keys::route(&site());
        let entry = Entry { key: key.clone(), value: value.into(), revision: 1, lease: None };
        BTreeMap::from([(key, entry)])
    }

    fn site() -> SiteName {
        SiteName::parse("blog").unwrap()
    }

    #[test]
    fn a_route_that_cannot_be_read_stays_as_it_last_could_until_its_site_is_deleted() {
        let mut last_good = LastGood::default();
        let good = last_good.take(&stored(GOOD)).clone();
        assert_eq!(good[&site()].route.number, 7);
        for _ in 0..2 {
            assert_eq!(last_good.take(&stored("{}")), &good);
        }
        assert_eq!(last_good.sites(), BTreeMap::from([(site(), Some(7))]));
        assert!(last_good.take(&BTreeMap::new()).is_empty());
        assert!(last_good.sites().is_empty());
    }

    #[test]
    fn a_route_that_never_could_be_read_is_missing_but_its_site_is_there() {
        let mut last_good = LastGood::default();
        assert!(last_good.take(&stored("{}")).is_empty());
        assert_eq!(last_good.sites(), BTreeMap::from([(site(), None)]));
    }

    #[test]
    fn what_was_good_when_the_server_last_ran_is_good_still() {
        let good = LastGood::default().take(&stored(GOOD)).clone();
        assert_eq!(LastGood::new(good.clone()).take(&stored("[]")), &good);
    }
}
