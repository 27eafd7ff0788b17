//! Which faults come, in which order and for how long: from a seed, so that a run can be repeated. Called by chaos.rs.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of a mariadbd
    MemberKilled,
    /// SIGSTOP of a mariadbd, for ever
    MemberFrozen,
    /// No fault: `kopek site move-writer`
    WriterMoved,
    /// kill -9 of every mariadbd at once
    AllMembersKilled,
    /// Every process of a server at once
    ServerKilled,
    ServerFrozen,
    ServerCut,
    /// Killed with its file system shut down in mid-write
    PowerOff,
    TotalPowerOff,
}

/// The server that is the site's writer at that moment, or another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Writer,
    Other,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    pub victim: Victim,
    /// Until what was frozen or cut is healed, what was killed is started again.
    pub holds: Duration,
}

/// So many faults hold each kind once.
pub const ALL_COUNT: usize = 10;

/// Every fault that there is; the writer's more often, because it is its loss that clients can notice.
const ALL: [(Kind, Victim); ALL_COUNT] = [
    (Kind::MemberKilled, Victim::Writer),
    (Kind::MemberFrozen, Victim::Writer),
    (Kind::WriterMoved, Victim::Writer),
    (Kind::ServerKilled, Victim::Writer),
    (Kind::ServerFrozen, Victim::Writer),
    (Kind::ServerCut, Victim::Writer),
    (Kind::PowerOff, Victim::Writer),
    (Kind::AllMembersKilled, Victim::All),
    (Kind::TotalPowerOff, Victim::All),
    (Kind::MemberKilled, Victim::Other),
];
const OTHERS: [Kind; 5] =
    [Kind::MemberKilled, Kind::ServerKilled, Kind::ServerFrozen, Kind::ServerCut, Kind::PowerOff];

/// In every ten faults each of `ALL` is there, in a new order; the last one strikes another victim in another way
/// each time.
pub fn schedule(seed: u64, faults: usize) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut scheduled = Vec::new();
    while scheduled.len() < faults {
        let mut next = ALL;
        next[ALL.len() - 1].0 = OTHERS[random.random_range(0..OTHERS.len())];
        next.shuffle(&mut random);
        for (kind, victim) in next {
            // Shorter and longer than the 2.5 s of silence after which a server is declared dead.
            let holds = Duration::from_millis(random.random_range(500..5_000));
            scheduled.push(Fault { kind, victim, holds });
        }
    }
    scheduled.truncate(faults);
    scheduled
}

impl Fault {
    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::MemberKilled => "member killed",
            Kind::MemberFrozen => "member frozen",
            Kind::WriterMoved => return "writer moved".to_owned(),
            Kind::AllMembersKilled => return "all members killed".to_owned(),
            Kind::ServerKilled => "server killed",
            Kind::ServerFrozen => "server frozen",
            Kind::ServerCut => "server cut",
            Kind::PowerOff => "power off",
            Kind::TotalPowerOff => return "total power off".to_owned(),
        };
        let victim = if self.victim == Victim::Writer { "writer" } else { "other" };
        format!("{kind}, {victim}")
    }

    /// Whether the clients of the victim go down with it, as PHP does with its server.
    pub fn takes_clients(&self) -> bool {
        !matches!(
            self.kind,
            Kind::MemberKilled | Kind::MemberFrozen | Kind::WriterMoved | Kind::AllMembersKilled
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_another_seed_others() {
        assert_eq!(schedule(7, 40), schedule(7, 40));
        assert_ne!(schedule(7, 40), schedule(8, 40));
    }

    #[test]
    fn every_ten_faults_hold_every_fault_of_a_writer_and_those_of_all() {
        for seed in 0..20 {
            let second = &schedule(seed, 2 * ALL_COUNT)[ALL_COUNT..];
            let mut ten: Vec<_> = second.iter().map(|fault| (fault.kind, fault.victim)).collect();
            ten.retain(|(_, victim)| *victim != Victim::Other);
            ten.sort();
            let mut all = ALL[..ALL_COUNT - 1].to_vec();
            all.sort();
            assert_eq!(ten, all);
        }
    }
}
