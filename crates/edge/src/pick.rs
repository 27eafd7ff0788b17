//! Picks one instance per request. The visitor's own if it takes requests, else the one with the least work in
//! flight; never a draining one unless there is no other. Pure; called by `proxy`.

use kopek_core::InstanceId;
use kopek_core::part::Intake;

/// The cookie that keeps a visitor on one instance. Its value is the instance's id.
pub const COOKIE: &str = "kopek_i";

#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub instance: &'a InstanceId,
    pub intake: Intake,
    pub in_flight: u32,
    /// False while it is avoided after a failure.
    pub usable: bool,
    /// This request failed on it before.
    pub tried: bool,
}

/// The index of the one to use. `turn` decides between equals.
pub fn pick(candidates: &[Candidate<'_>], sticky: Option<&str>, turn: usize) -> Option<usize> {
    let usable = || candidates.iter().enumerate().filter(|(_, c)| c.usable);
    let best = usable().map(|(_, c)| rank(c)).min()?;
    let equals = || usable().filter(|(_, c)| rank(c) == best);
    if let Some((index, _)) = equals().find(|(_, c)| sticky == Some(c.instance.as_str())) {
        return Some(index);
    }
    let least = equals().map(|(_, c)| c.in_flight).min()?;
    let idlest = || equals().filter(|(_, c)| c.in_flight == least);
    idlest().nth(turn % idlest().count()).map(|(index, _)| index)
}

/// Open before draining, and among those untried before tried.
fn rank(candidate: &Candidate<'_>) -> (bool, bool) {
    (candidate.intake == Intake::Draining, candidate.tried)
}

/// The instance that the visitor's cookies name.
pub fn sticky_of<'a>(cookies: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<InstanceId> {
        (1..=3).map(|n| InstanceId::parse(&format!("blog.{n}")).unwrap()).collect()
    }

    fn candidates<'a>(ids: &'a [InstanceId], in_flight: &[u32]) -> Vec<Candidate<'a>> {
        ids.iter()
            .zip(in_flight)
            .map(|(instance, &in_flight)| Candidate {
                instance,
                intake: Intake::Open,
                in_flight,
                usable: true,
                tried: false,
            })
            .collect()
    }

    #[test]
    fn the_least_work_in_flight_wins_and_equals_take_turns() {
        let ids = ids();
        assert_eq!(pick(&candidates(&ids, &[3, 1, 2]), None, 0), Some(1));
        let equal = candidates(&ids, &[1, 1, 2]);
        assert_eq!(
            [pick(&equal, None, 0), pick(&equal, None, 1), pick(&equal, None, 2)],
            [Some(0), Some(1), Some(0)]
        );
        assert_eq!(pick(&[], None, 0), None);
    }

    #[test]
    fn a_visitor_stays_while_its_instance_takes_requests() {
        let ids = ids();
        let mut all = candidates(&ids, &[9, 0, 0]);
        assert_eq!(pick(&all, Some("blog.1"), 0), Some(0));
        all[0].intake = Intake::Draining;
        assert_ne!(pick(&all, Some("blog.1"), 0), Some(0));
        all[0].intake = Intake::Open;
        all[0].usable = false;
        assert_ne!(pick(&all, Some("blog.1"), 0), Some(0));
        assert_eq!(pick(&all, Some("other.1"), 0), Some(1));
    }

    #[test]
    fn a_draining_one_is_taken_only_when_there_is_no_other() {
        let ids = ids();
        let mut all = candidates(&ids, &[0, 5, 5]);
        all[0].intake = Intake::Draining;
        assert_eq!(pick(&all, None, 0), Some(1));
        (all[1].usable, all[2].usable) = (false, false);
        assert_eq!(pick(&all, None, 0), Some(0));
        all[0].usable = false;
        assert_eq!(pick(&all, None, 0), None);
    }

    #[test]
    fn one_that_failed_this_request_is_the_last_choice() {
        let ids = ids();
        let mut all = candidates(&ids, &[0, 5, 6]);
        all[0].tried = true;
        assert_eq!(pick(&all, Some("blog.1"), 0), Some(1));
        (all[1].usable, all[2].usable) = (false, false);
        assert_eq!(pick(&all, None, 0), Some(0));
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        assert_eq!(sticky_of(["a=1; kopek_i=blog.7; b=2"].into_iter()), Some("blog.7"));
        assert_eq!(sticky_of(["a=1", "kopek_i=blog.7"].into_iter()), Some("blog.7"));
        assert_eq!(sticky_of(["xkopek_i=blog.7; kopek_ix=1; kopek_i"].into_iter()), None);
    }
}
