//! A bounded number of places for each site: none can take what the others need. Called by `session` and
//! `relay`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kopek_core::SiteName;

/// Cheap to clone; clones count together.
#[derive(Clone)]
pub(crate) struct Places {
    each_site: usize,
    taken: Arc<Mutex<BTreeMap<SiteName, usize>>>,
}

impl Places {
    pub(crate) fn new(each_site: usize) -> Places {
        Places { each_site, taken: Arc::default() }
    }

    /// Nothing if the site has all of its places. The place is free again when dropped.
    pub(crate) fn take(&self, site: &SiteName) -> Option<Place> {
        let mut taken = self.taken.lock().expect("nothing panics while it holds the lock");
        let count = taken.entry(site.clone()).or_insert(0);
        if *count == self.each_site {
            return None;
        }
        *count += 1;
        Some(Place { site: site.clone(), nth: *count, taken: self.taken.clone() })
    }
}

pub(crate) struct Place {
    site: SiteName,
    /// How many the site had taken with this one, when it was taken.
    pub(crate) nth: usize,
    taken: Arc<Mutex<BTreeMap<SiteName, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().expect("nothing panics while it holds the lock");
        let count = taken.get_mut(&self.site).expect("a place was counted when it was taken");
        *count -= 1;
        if *count == 0 {
            taken.remove(&self.site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_site_leaves_the_others_their_places_and_gets_its_own_back() {
        let (blog, shop) = (SiteName::parse("blog").unwrap(), SiteName::parse("shop").unwrap());
        let places = Places::new(2);
        let (first, _second) = (places.take(&blog).unwrap(), places.take(&blog).unwrap());
        assert!(places.take(&blog).is_none());
        assert!(places.take(&shop).is_some());
        drop(first);
        assert!(places.take(&blog).is_some());
    }

    #[test]
    fn a_site_without_connections_is_forgotten() {
        let places = Places::new(2);
        drop(places.take(&SiteName::parse("blog").unwrap()));
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
