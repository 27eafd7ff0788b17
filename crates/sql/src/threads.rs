//! The numbers of connections that clients know, where the member knows others: a client is greeted before it is
//! certain which backend serves it, and it may get another one later. `KILL` names the number of the greeting.
//! One for the process; called by `session`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kopek_core::SiteName;

/// Bounded by the number of sessions.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Mutex<BTreeMap<(SiteName, u32), u32>>>);

impl Threads {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(SiteName, u32), u32>> {
        // Nothing that panics is done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member's number of the connection that some client of the site knows as `given`, if that is another.
    pub(crate) fn actual(&self, site: &SiteName, given: u32) -> Option<u32> {
        self.lock().get(&(site.clone(), given)).copied()
    }
}

/// One client's number; forgotten when it is dropped.
pub(crate) struct Given {
    threads: Threads,
    site: SiteName,
    number: u32,
}

impl Given {
    pub(crate) fn new(threads: Threads, site: SiteName, number: u32) -> Given {
        Given { threads, site, number }
    }

    pub(crate) fn means(&self, actual: u32) {
        let key = (self.site.clone(), self.number);
        if actual == self.number {
            self.threads.lock().remove(&key);
        } else {
            self.threads.lock().insert(key, actual);
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.threads.lock().remove(&(self.site.clone(), self.number));
    }
}

/// `KILL … number` with another number; `None` if it ends with no number, or with one that means itself.
pub(crate) fn killing_actual(text: &[u8], actual: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
    let text = text.trim_ascii_end();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, number) = text.split_at(text.len() - digits);
    head.last().filter(|byte| byte.is_ascii_whitespace())?;
    let given = std::str::from_utf8(number).ok()?.parse().ok()?;
    Some([head, actual(given)?.to_string().as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_number_is_known_as_long_as_it_is_connected() {
        let (threads, site) = (Threads::default(), SiteName::parse("blog").unwrap());
        let given = Given::new(threads.clone(), site.clone(), 7);
        assert_eq!(threads.actual(&site, 7), None);
        given.means(70);
        assert_eq!(threads.actual(&site, 7), Some(70));
        given.means(7);
        assert_eq!(threads.actual(&site, 7), None);
        given.means(71);
        drop(given);
        assert_eq!(threads.actual(&site, 7), None);
    }

    #[test]
    fn the_number_of_a_kill_is_replaced() {
        let actual = |given| (given == 7).then_some(70);
        let killing =
            |text: &str| killing_actual(text.as_bytes(), actual).map(|out| String::from_utf8(out).unwrap());
        assert_eq!(killing("KILL 7"), Some("KILL 70".to_owned()));
        assert_eq!(killing("kill soft query 7 ; "), Some("kill soft query 70".to_owned()));
        for other in ["KILL 8", "KILL @id7", "KILL USER 'a7'", "KILL QUERY ID x7", "7", "KILL 99999999999"] {
            assert_eq!(killing(other), None, "{other}");
        }
    }
}
