//! How long clients were kept waiting by each fault, and what errors they met: the table that `make chaos-db` writes.
//! Pure; called by chaos.rs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use crate::database::history::{Attempt, Micros};

/// What a fault cost those clients whose own server was not struck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    pub fault: String,
    /// Nothing if every client's server was struck.
    pub longest_stall: Option<Duration>,
    pub errors: BTreeMap<String, usize>,
}

/// `struck`: the servers whose clients went down with them. `ended`: when the round was over.
pub fn cost(fault: &str, attempts: &[Attempt], struck: &BTreeSet<String>, at: Micros, ended: Micros) -> Cost {
    let mut errors: BTreeMap<String, usize> = BTreeMap::new();
    let mut by_client: BTreeMap<(usize, &str), Vec<&Attempt>> = BTreeMap::new();
    for attempt in attempts.iter().filter(|attempt| attempt.ended >= at && !struck.contains(&attempt.server))
    {
        by_client.entry((attempt.client, &attempt.server)).or_default().push(attempt);
        if let Some(problem) = &attempt.problem {
            *errors.entry(problem.clone()).or_default() += 1;
        }
    }
    let longest = by_client.values().map(|attempts| longest_stall(attempts, ended)).max();
    Cost { fault: fault.to_owned(), longest_stall: longest.map(Duration::from_micros), errors }
}

/// From the first attempt that did not succeed, or that one itself, to the end of the next that did.
fn longest_stall(attempts: &[&Attempt], ended: Micros) -> Micros {
    let (mut longest, mut since) = (0, None);
    for attempt in attempts {
        let begun = *since.get_or_insert(attempt.begun);
        if attempt.problem.is_none() {
            longest = longest.max(attempt.ended - begun);
            since = None;
        }
    }
    longest.max(since.map_or(0, |since| ended.saturating_sub(since)))
}

/// In Markdown.
pub fn table(costs: &[Cost]) -> String {
    let mut by_fault: BTreeMap<&str, Vec<&Cost>> = BTreeMap::new();
    for cost in costs {
        by_fault.entry(&cost.fault).or_default().push(cost);
    }
    let mut text =
        "| fault | count | longest stall p50 | p99 | client errors |\n|---|---|---|---|---|\n".to_owned();
    for (fault, costs) in by_fault {
        let mut stalls: Vec<Duration> = costs.iter().filter_map(|cost| cost.longest_stall).collect();
        stalls.sort_unstable();
        let shown = |share: f64| {
            percentile(&stalls, share)
                .map_or("–".to_owned(), |stall| format!("{:.2} s", stall.as_secs_f64()))
        };
        let errors: usize = costs.iter().flat_map(|cost| cost.errors.values()).sum();
        let _ = writeln!(text, "| {fault} | {} | {} | {} | {errors} |", costs.len(), shown(0.5), shown(0.99));
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (kind, times) in costs.iter().flat_map(|cost| &cost.errors) {
        *kinds.entry(kind).or_default() += times;
    }
    if !kinds.is_empty() {
        text += "\n| client error | times |\n|---|---|\n";
        for (kind, times) in kinds {
            let _ = writeln!(text, "| {} | {times} |", kind.replace('|', "/"));
        }
    }
    text
}

/// Nearest rank.
fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(server: &str, begun: Micros, ended: Micros, problem: Option<&str>) -> Attempt {
        Attempt { client: 1, server: server.to_owned(), begun, ended, problem: problem.map(str::to_owned) }
    }

    #[test]
    fn a_stall_lasts_from_the_first_failure_to_the_next_success() {
        let attempts = [
            attempt("a", 0, 5, None),
            attempt("a", 10, 12, Some("lost")),
            attempt("a", 13, 14, Some("lost")),
            attempt("a", 15, 40, None),
            attempt("a", 41, 45, None),
        ];
        let cost = cost("kill", &attempts, &BTreeSet::new(), 6, 50);
        assert_eq!(cost.longest_stall, Some(Duration::from_micros(30)));
        assert_eq!(cost.errors, [("lost".to_owned(), 2)].into());
    }

    #[test]
    fn who_is_never_served_again_stalls_to_the_end_and_who_was_struck_does_not_count() {
        let attempts = [attempt("a", 10, 12, Some("lost")), attempt("b", 11, 12, Some("lost"))];
        let struck = BTreeSet::from(["b".to_owned()]);
        let one = cost("kill", &attempts, &struck, 6, 50);
        assert_eq!(one.longest_stall, Some(Duration::from_micros(40)));
        assert_eq!(one.errors.values().sum::<usize>(), 1);
        assert_eq!(cost("all", &attempts[1..], &struck, 6, 50).longest_stall, None);
    }

    #[test]
    fn the_table_counts_by_fault_and_by_error() {
        let of = |ms: u64| Cost {
            fault: "kill".to_owned(),
            longest_stall: Some(Duration::from_millis(ms)),
            errors: [("lost".to_owned(), 2)].into(),
        };
        let text = table(&[of(100), of(300), of(200)]);
        assert!(text.contains("| kill | 3 | 0.20 s | 0.30 s | 6 |"), "{text}");
        assert!(text.contains("| lost | 6 |"), "{text}");
    }
}
