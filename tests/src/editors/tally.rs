//! What the editors of a run met: requests, edits, error pages, and what was not as it had been saved. Filled by
//! reader.rs, blogger.rs and wikian.rs; read by hour.rs and strikes.rs.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub struct Tally {
    begun: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub waits: Vec<Duration>,
    pub longest: Option<(Duration, String)>,
    /// What was saved and acknowledged.
    pub edits: usize,
    pub error_pages: Vec<String>,
    /// What was read back otherwise than it was saved.
    pub untrue: Vec<String>,
    /// Of the sites' own logs: those that no page showed are among them.
    pub unseen: Vec<String>,
    pub faults: Vec<String>,
    /// Requests that are under way.
    pub open: usize,
}

impl Tally {
    #[expect(clippy::new_without_default, reason = "the clock starts here; a default would hide that")]
    pub fn new() -> Tally {
        Tally { begun: Instant::now(), seen: Mutex::default() }
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    pub fn requests(&self) -> usize {
        self.lock().waits.len()
    }

    pub fn asks(&self) {
        self.lock().open += 1;
    }

    pub fn asked(&self, what: &str, wait: Duration) {
        let mut seen = self.lock();
        seen.open -= 1;
        seen.waits.push(wait);
        if seen.longest.as_ref().is_none_or(|(longest, _)| *longest < wait) {
            seen.longest = Some((wait, format!("{what}, begun {}", self.clock(wait))));
        }
    }

    pub fn edited(&self) {
        self.lock().edits += 1;
    }

    pub fn error_page(&self, what: &str, wait: Duration) {
        let told = format!("{what}, begun {}, after {:.2} s", self.clock(wait), wait.as_secs_f64());
        println!("  ERROR PAGE {told}");
        self.lock().error_pages.push(told);
    }

    pub fn untrue(&self, what: &str) {
        let told = format!("{}: {what}", self.clock(Duration::ZERO));
        println!("  UNTRUE {told}");
        self.lock().untrue.push(told);
    }

    pub fn unseen_error(&self, what: &str) {
        println!("  LOGGED {what}");
        self.lock().unseen.push(what.to_owned());
    }

    pub fn struck(&self, what: &str) {
        let told = format!("{}: {what}", self.clock(Duration::ZERO));
        self.lock().faults.push(told);
    }

    /// Since the run began, so long ago.
    fn clock(&self, ago: Duration) -> String {
        format!("at {:.2} s", self.begun.elapsed().saturating_sub(ago).as_secs_f64())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let percentile = |percent: usize| {
            let wait = waits.get(waits.len().saturating_sub(1) * percent / 100);
            wait.copied().unwrap_or_default().as_secs_f64()
        };
        writeln!(
            f,
            "{} requests, {} edits, {} faults, {} error pages, {} not as saved, {} errors in the sites' logs",
            self.waits.len(),
            self.edits,
            self.faults.len(),
            self.error_pages.len(),
            self.untrue.len(),
            self.unseen.len()
        )?;
        let (longest, what) = self.longest.clone().unwrap_or_default();
        write!(
            f,
            "a request took {:.2} s (p50), {:.2} s (p99), {:.2} s the longest ({what})",
            percentile(50),
            percentile(99),
            longest.as_secs_f64()
        )?;
        for told in self.error_pages.iter().chain(&self.untrue) {
            write!(f, "\n  {told}")?;
        }
        Ok(())
    }
}
