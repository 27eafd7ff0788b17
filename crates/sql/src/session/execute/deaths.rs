//! The members that broke off while they executed one command: it may be what ends them. Called by `execute`.

use std::time::{Duration, Instant};

use kopek_core::ServerId;

use crate::session::repeat::Former;

/// A member that dies closes its connections one after the other, and one that is killed starts anew in 1 s at the
/// earliest: what breaks on the same server meanwhile is the same death.
const SAME_DEATH: Duration = Duration::from_secs(1);
/// A second member is enough of a hint; MySQL too would end only once. A member that stands alone may have been killed
/// twice by others in the time of one statement.
const OF_ANOTHER: u32 = 2;
const OF_THE_SAME: u32 = 1;
const BORNE: u32 = 3;

#[derive(Default)]
pub(super) struct Deaths {
    last: Option<(ServerId, Instant)>,
    weight: u32,
}

impl Deaths {
    pub(super) fn add(&mut self, former: Option<&Former>, now: Instant) {
        let Some(server) = former.map(|former| &former.writer.server) else { return };
        self.weight += match &self.last {
            Some((last, at)) if last == server && now - *at < SAME_DEATH => return,
            Some((last, _)) if last == server => OF_THE_SAME,
            _ => OF_ANOTHER,
        };
        self.last = Some((server.clone(), now));
    }

    /// Whether another member would have to be risked.
    pub(super) fn are_too_many(&self) -> bool {
        self.weight > BORNE
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use kopek_core::part::RoutedWriter;

    use super::*;

    fn member(server: &str) -> Former {
        let server = ServerId::parse(server).unwrap();
        let relay = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Former { writer: RoutedWriter { server, relay, epoch: 1, former: None }, thread: 1 }
    }

    #[test]
    fn connections_of_one_dying_member_are_one_death_and_the_next_member_is_another() {
        let (mut deaths, begin) = (Deaths::default(), Instant::now());
        for millis in [0, 1, 30] {
            deaths.add(Some(&member("s1")), begin + Duration::from_millis(millis));
        }
        assert!(!deaths.are_too_many());
        deaths.add(Some(&member("s2")), begin + Duration::from_millis(300));
        assert!(deaths.are_too_many());
    }

    #[test]
    fn a_member_that_dies_again_after_its_start_is_asked_a_third_time_and_not_a_fourth() {
        let (mut deaths, begin) = (Deaths::default(), Instant::now());
        deaths.add(Some(&member("s1")), begin);
        deaths.add(Some(&member("s1")), begin + Duration::from_secs(2));
        assert!(!deaths.are_too_many());
        deaths.add(Some(&member("s1")), begin + Duration::from_secs(4));
        assert!(deaths.are_too_many());
    }
}
