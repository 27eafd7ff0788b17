//! Who may change a big table now, and who comes next. Pure; times come in as arguments.
//!
//! Promise: one at a time. The next is the one that waits longest of another site than the last one's, if there is
//! one. Between two the pool rests for as long as the last change took, so that the writes that it stopped get
//! through and no two changes feel like one long stop.

use std::collections::VecDeque;
use std::time::Duration;

use kopek_core::big_change::{BigChange, Phase};
use kopek_core::{Moment, SiteName};

/// Connections that wait; a site alone may have 512.
const WAITING_MAX: usize = 1_024;
/// Writes that had to wait are through well within this.
const REST_MAX: u64 = 2_000;
/// Told to the agent, of those that wait and of those that have ended. An agent hears within a second.
const TOLD_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Line {
    next: u64,
    holder: Option<BigChange>,
    waiting: VecDeque<BigChange>,
    /// The newest last.
    ended: VecDeque<BigChange>,
    rest: Option<Rest>,
    last_site: Option<SiteName>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    from: Moment,
    millis: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING_MAX} connections wait for their turn at big tables")]
pub(super) struct Full;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed(u16),
    Left,
}

impl Outcome {
    pub(super) fn of(error: u16) -> Outcome {
        if error == 0 { Outcome::Done } else { Outcome::Failed(error) }
    }
}

impl Line {
    /// `first`: the number of the first one.
    pub(super) fn new(first: u64) -> Line {
        Line {
            next: first,
            holder: None,
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            rest: None,
            last_site: None,
        }
    }

    pub(super) fn enter(&mut self, site: SiteName, table: String, now: Moment) -> Result<u64, Full> {
        if self.waiting.len() == WAITING_MAX {
            return Err(Full);
        }
        let number = self.next;
        self.next += 1;
        let ahead = self.waiting.back().or(self.holder.as_ref()).map(|ahead| ahead.site.clone());
        let behind = ahead.or(self.last_site.clone()).unwrap_or_else(|| site.clone());
        self.waiting.push_back(BigChange {
            number,
            site,
            table,
            asked: now,
            phase: Phase::Waiting { behind },
        });
        Ok(number)
    }

    /// Gives the turn to the next, if it is time. False: nothing changed.
    pub(super) fn grant(&mut self, now: Moment) -> bool {
        if self.holder.is_some() || self.rest_left(now).is_some() {
            return false;
        }
        let other = self.waiting.iter().position(|change| Some(&change.site) != self.last_site.as_ref());
        let Some(mut change) = self.waiting.remove(other.unwrap_or(0)) else { return false };
        change.phase = Phase::Running { since: now };
        self.last_site = Some(change.site.clone());
        self.holder = Some(change);
        true
    }

    pub(super) fn is_turn_of(&self, number: u64) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.number == number)
    }

    /// How long nobody gets the turn yet. A clock that was set back does not prolong it.
    pub(super) fn rest_left(&self, now: Moment) -> Option<Duration> {
        let rest = self.rest.filter(|rest| now >= rest.from)?;
        let left = rest.millis.saturating_sub(now.millis_since(rest.from));
        (left > 0).then(|| Duration::from_millis(left))
    }

    /// The holder has ended, or one that waits goes away.
    pub(super) fn leave(&mut self, number: u64, outcome: Outcome, now: Moment) {
        let until = now;
        if let Some(mut change) = self.holder.take_if(|holder| holder.number == number) {
            let since = change.since();
            change.phase = match outcome {
                Outcome::Done => Phase::Done { since, until },
                Outcome::Failed(code) => Phase::Failed { since, until, code },
                Outcome::Left => Phase::Left { since, until },
            };
            self.rest = Some(Rest { from: now, millis: now.millis_since(since).min(REST_MAX) });
            self.remember(change);
        } else if let Some(at) = self.waiting.iter().position(|change| change.number == number)
            && let Some(mut change) = self.waiting.remove(at)
        {
            change.phase = Phase::GivenUp { until };
            self.remember(change);
        }
    }

    fn remember(&mut self, change: BigChange) {
        if self.ended.len() == TOLD_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(change);
    }

    /// For people: who has ended lately, who runs, who waits. One whose turn comes at once is not shown to wait.
    pub(super) fn changes(&self) -> Vec<BigChange> {
        self.ended.iter().chain(&self.holder).chain(self.waiting.iter().take(TOLD_MAX)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn site(name: &str) -> SiteName {
        SiteName::parse(name).unwrap()
    }

    fn enter(line: &mut Line, name: &str, now: u64) -> u64 {
        line.enter(site(name), "t".to_owned(), Moment(now)).unwrap()
    }

    #[test]
    fn sites_take_turns_however_many_one_of_them_asks_for() {
        let mut line = Line::new(1);
        let first = enter(&mut line, "blog", 0);
        assert!(line.grant(Moment(0)));
        let (second, other) = (enter(&mut line, "blog", 1), enter(&mut line, "shop", 2));
        assert!(!line.grant(Moment(3)), "one at a time");
        line.leave(first, Outcome::Done, Moment(3));
        assert!(line.grant(Moment(6)) && line.is_turn_of(other));
        line.leave(other, Outcome::Done, Moment(6));
        assert!(line.grant(Moment(6)) && line.is_turn_of(second));
    }

    #[test]
    fn the_pool_rests_for_as_long_as_the_change_took_and_not_for_ever() {
        for (took, rest) in [(0, 0), (300, 300), (60_000, 2_000)] {
            let mut line = Line::new(1);
            let first = enter(&mut line, "blog", 0);
            assert!(line.grant(Moment(0)));
            enter(&mut line, "shop", 1);
            line.leave(first, Outcome::Failed(1062), Moment(took));
            assert!(rest == 0 || !line.grant(Moment(took + rest - 1)), "{took}");
            assert_eq!(line.rest_left(Moment(took)).map_or(0, |left| left.as_millis()), u128::from(rest));
            assert!(line.grant(Moment(took + rest)), "{took}");
        }
    }

    #[test]
    fn what_happens_is_told_in_its_order_and_with_who_is_ahead() {
        let mut line = Line::new(7);
        let first = enter(&mut line, "blog", 10);
        line.grant(Moment(10));
        let second = enter(&mut line, "shop", 20);
        enter(&mut line, "wiki", 30);
        line.leave(second, Outcome::Left, Moment(40));
        line.leave(first, Outcome::Done, Moment(50));
        let told: Vec<_> = line.changes().into_iter().map(|change| (change.number, change.phase)).collect();
        let expected = [
            (8, Phase::GivenUp { until: Moment(40) }),
            (7, Phase::Done { since: Moment(10), until: Moment(50) }),
            (9, Phase::Waiting { behind: site("shop") }),
        ];
        assert_eq!(told, expected);
    }

    proptest! {
        #[test]
        fn in_whatever_order_they_come_and_go_one_has_the_turn_and_all_get_it(
            steps in prop::collection::vec((0..3_usize, 0..4_usize, 0..3_000_u64), 0..60),
        ) {
            let (mut line, mut now, mut present) = (Line::new(0), Moment(0), Vec::new());
            for (step, which, wait) in steps {
                now = now.plus_millis(wait);
                match step {
                    0 => present.push(enter(&mut line, ["a1", "b1", "c1", "d1"][which], now.0)),
                    1 if !present.is_empty() => {
                        let gone = present.remove(which % present.len());
                        line.leave(gone, Outcome::Left, now);
                    }
                    _ => drop(line.grant(now)),
                }
                prop_assert!(present.iter().filter(|number| line.is_turn_of(**number)).count() <= 1);
            }
            while !present.is_empty() {
                now = now.plus_millis(REST_MAX);
                line.grant(now);
                let turn = present.iter().position(|number| line.is_turn_of(*number));
                let gone = present.remove(turn.expect("somebody has the turn"));
                line.leave(gone, Outcome::Done, now);
            }
            prop_assert!(!line.grant(now.plus_millis(REST_MAX)));
        }
    }
}
