//! What `sql` has counted for a site: the documents that its status socket, the agent and the command line pass
//! on, and how those of several workers and servers are summed. Pure.
//!
//! Promise: counts only grow while a process lives. A process that begins anew begins at 0 and says when it
//! began, so that whoever keeps accounts can tell a new beginning from a difference.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ServerId, SiteName};
use crate::units::{Micros, Moment};

/// Statements that are kept apart for each site. A site has some hundred different ones; the most expensive
/// hundred hold nearly all of its time.
pub const TOP_MAX: usize = 100;
/// The last slow ones that are kept for each site.
pub const SLOW_MAX: usize = 50;

/// What one `sql` process knows of one site. Answer of an agent's `GET /databases/SITE/meter` (to people), and as a
/// list, without statements, of its `GET /meters` (to servers).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteMeter {
    pub site: SiteName,
    pub server: ServerId,
    /// When the process began to count.
    pub since: Moment,
    #[serde(flatten)]
    pub metered: Metered,
}

/// Counts that can be summed over workers and servers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Metered {
    pub counts: Counts,
    pub latency: Latency,
    /// The most expensive first.
    pub top: Vec<TopStatement>,
    /// The last first.
    pub slow: Vec<SlowStatement>,
}

impl Metered {
    pub fn add(&mut self, other: Metered) {
        self.counts.add(&other.counts);
        self.latency.add(&other.latency);
        self.top = summed_top(self.top.drain(..).chain(other.top));
        self.slow.extend(other.slow);
        self.slow.sort_by_key(|slow| std::cmp::Reverse(slow.at));
        self.slow.truncate(SLOW_MAX);
    }
}

/// All of them grow only, but for `connected`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Statements that read, change data or tables, or do something else (SET, COMMIT, PREPARE, …); of several
    /// in one text the first counts. An execution of a prepared statement is one.
    pub reads: u64,
    pub writes: u64,
    pub others: u64,
    /// Answered with an error, also one of ours, and those that ended their connection.
    pub errors: u64,
    pub rows_sent: u64,
    pub rows_changed: u64,
    /// From and to clients after their login, as plain packets: before compression and TLS.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// From a command's arrival to the end of its answer, summed.
    pub time: Micros,
    /// Sent once more, after a lost writer or a deadlock.
    pub repeated_statements: u64,
    pub repeated_transactions: u64,
    /// Sessions that went on at another writer.
    pub moved_sessions: u64,
    /// Connections that logged in.
    pub connections: u64,
    /// Connections of now.
    pub connected: u64,
    /// By the site's limits: connections that were turned away, statements that were refused and interrupted.
    pub refused_connections: u64,
    pub refused_statements: u64,
    pub interrupted_statements: u64,
}

impl Counts {
    pub fn statements(&self) -> u64 {
        self.reads + self.writes + self.others
    }

    pub fn add(&mut self, other: &Counts) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.others += other.others;
        self.errors += other.errors;
        self.rows_sent += other.rows_sent;
        self.rows_changed += other.rows_changed;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.time.0 += other.time.0;
        self.repeated_statements += other.repeated_statements;
        self.repeated_transactions += other.repeated_transactions;
        self.moved_sessions += other.moved_sessions;
        self.connections += other.connections;
        self.connected += other.connected;
        self.refused_connections += other.refused_connections;
        self.refused_statements += other.refused_statements;
        self.interrupted_statements += other.interrupted_statements;
    }
}

/// How many statements took how long: four buckets for each doubling, so that a quantile is at most a quarter
/// too high. The last one also holds what took longer than 17 minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Latency(Box<[u64; BUCKETS]>);

const BUCKETS: usize = 116;

impl Default for Latency {
    fn default() -> Self {
        Latency(Box::new([0; BUCKETS]))
    }
}

impl Latency {
    pub fn count(&mut self, took: Micros) {
        self.0[bucket(took)] += 1;
    }

    pub fn add(&mut self, other: &Latency) {
        for (mine, others) in self.0.iter_mut().zip(other.0.iter()) {
            *mine += others;
        }
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many took less than this; exact at powers of two from 4 µs on.
    pub fn below(&self, limit: Micros) -> u64 {
        self.0.iter().enumerate().filter(|(at, _)| end_of(*at) <= limit).map(|(_, count)| count).sum()
    }

    /// The time within which this many thousandths of the statements ended; none if there were none.
    pub fn quantile(&self, thousandths: u64) -> Option<Micros> {
        let wanted = (self.total() * thousandths).div_ceil(1_000).max(1);
        let mut seen = 0;
        self.0.iter().enumerate().find_map(|(at, count)| {
            seen += count;
            (seen >= wanted).then(|| end_of(at))
        })
    }
}

/// 0 to 3 µs have a bucket each, then four for each doubling.
fn bucket(took: Micros) -> usize {
    if took.0 < 4 {
        return took.0 as usize;
    }
    let doublings = took.0.ilog2();
    let quarter = (took.0 >> (doublings - 2)) & 3;
    (4 * (doublings as usize - 1) + quarter as usize).min(BUCKETS - 1)
}

/// The first time that is too long for a bucket.
fn end_of(bucket: usize) -> Micros {
    if bucket < 4 {
        return Micros(bucket as u64 + 1);
    }
    let (doublings, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    Micros((quarter + 5) << (doublings - 2))
}

impl From<Vec<u64>> for Latency {
    fn from(counts: Vec<u64>) -> Self {
        let mut latency = Latency::default();
        for (mine, told) in latency.0.iter_mut().zip(counts) {
            *mine = told;
        }
        latency
    }
}

impl From<Latency> for Vec<u64> {
    /// Without the empty ones at the end.
    fn from(latency: Latency) -> Self {
        let used = latency.0.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        latency.0[..used].to_vec()
    }
}

/// Statements that differ only in their literals. Counted since it came among the most expensive ones, so the
/// figures are never too high.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopStatement {
    /// 16 hexadecimal digits.
    pub digest: String,
    pub count: u64,
    pub errors: u64,
    pub time: Micros,
    pub rows: u64,
    /// `?` in place of literals: they may be secrets.
    pub text: String,
}

/// One statement that took longer than a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowStatement {
    /// When it had ended.
    pub at: Moment,
    pub took: Micros,
    pub rows: u64,
    /// The number of the error that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<u16>,
    /// `?` in place of literals.
    pub text: String,
}

/// Of several workers' or servers' lists.
fn summed_top(all: impl Iterator<Item = TopStatement>) -> Vec<TopStatement> {
    let mut by_digest: BTreeMap<String, TopStatement> = BTreeMap::new();
    for one in all {
        match by_digest.get_mut(&one.digest) {
            Some(sum) => {
                sum.count += one.count;
                sum.errors += one.errors;
                sum.time.0 += one.time.0;
                sum.rows += one.rows;
            }
            None => drop(by_digest.insert(one.digest.clone(), one)),
        }
    }
    let mut top: Vec<TopStatement> = by_digest.into_values().collect();
    top.sort_by_key(|statement| std::cmp::Reverse(statement.time));
    top.truncate(TOP_MAX);
    top
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_at_most_a_quarter_too_high() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile(500), None);
        (1..=1_000).for_each(|millis| latency.count(Micros(millis * 1_000)));
        for (thousandths, exact) in [(1, 1_000), (500, 500_000), (990, 990_000), (1_000, 1_000_000)] {
            let Micros(said) = latency.quantile(thousandths).unwrap();
            assert!((exact..=exact * 5 / 4).contains(&said), "{thousandths}: {said}");
        }
        assert_eq!(latency.total(), 1_000);
        assert_eq!(latency.below(Micros(1 << 19)), 524);
    }

    #[test]
    fn latencies_are_told_and_read_without_their_empty_end() {
        let mut latency = Latency::default();
        latency.count(Micros(2));
        assert_eq!(serde_json::to_string(&latency).unwrap(), "[0,0,1]");
        latency.count(Micros(u64::MAX));
        let told = serde_json::to_string(&latency).unwrap();
        assert_eq!(serde_json::from_str::<Latency>(&told).unwrap(), latency);
    }

    fn top(digest: &str, time: u64) -> TopStatement {
        let text = format!("SELECT {digest}");
        TopStatement { digest: digest.to_owned(), count: 2, errors: 1, time: Micros(time), rows: 3, text }
    }

    #[test]
    fn the_same_statement_of_two_servers_is_one() {
        let mut sum = Metered { top: vec![top("a", 5), top("b", 4)], ..Metered::default() };
        sum.add(Metered { top: vec![top("b", 3)], ..Metered::default() });
        let seen: Vec<_> =
            sum.top.iter().map(|one| (&one.digest[..], one.time.0, one.count, one.rows)).collect();
        assert_eq!(seen, [("b", 7, 4, 6), ("a", 5, 2, 3)]);
    }

    proptest! {
        #[test]
        fn every_time_lies_in_its_bucket(micros in 0u64..1 << 30) {
            let at = bucket(Micros(micros));
            prop_assert!(end_of(at) > Micros(micros));
            prop_assert!(at == 0 || end_of(at - 1) <= Micros(micros));
        }
    }
}
