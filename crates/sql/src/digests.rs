//! The statements on which a site spends most of its time, in bounded memory: "space-saving" (Metwally, Agrawal,
//! El Abbadi 2005), weighted by time. One that is new takes the place, and inherits the weight, of the one with the
//! least, so nothing expensive stays out for long. Pure; called by `meter`.
//!
//! Promise: what is told of a statement is what it took since it got its place: never too much. A statement whose
//! digest is known costs one look-up; only one that gets a place has its text made.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use kopek_core::Micros;
use kopek_core::meter::{TOP_MAX, TopStatement};
use kopek_statement::Digest;

/// Of an example's text.
pub(crate) const TEXT_MAX: usize = 512;
/// Digests seen once, one for each remainder: a site that makes its texts anew each time (names of temporary
/// tables, say) does not push the others out.
const DOORSTEP: usize = 256;

pub(crate) struct Digests {
    places: HashMap<u64, usize, BuildHasherDefault<AsItIs>>,
    /// Apart from the entries: they are all looked through for the least.
    weights: Vec<u64>,
    entries: Vec<Entry>,
    doorstep: Box<[u64; DOORSTEP]>,
}

struct Entry {
    digest: u64,
    count: u64,
    errors: u64,
    time: u64,
    rows: u64,
    text: String,
}

/// One execution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Execution {
    pub(crate) took: Micros,
    pub(crate) rows: u64,
    pub(crate) failed: bool,
}

impl Default for Digests {
    fn default() -> Self {
        let doorstep = Box::new([0; DOORSTEP]);
        Digests { places: HashMap::default(), weights: Vec::new(), entries: Vec::new(), doorstep }
    }
}

impl Digests {
    pub(crate) fn take(
        &mut self,
        Digest(digest): Digest,
        execution: Execution,
        text: impl FnOnce() -> String,
    ) {
        if let Some(&at) = self.places.get(&digest) {
            self.weights[at] += execution.took.0;
            return self.entries[at].add(execution);
        }
        let at = match self.entries.len() < TOP_MAX {
            true => {
                self.weights.push(0);
                self.entries.push(Entry::new(digest, text()));
                self.entries.len() - 1
            }
            false => {
                let Some((at, least)) = self.least_for(digest, execution.took) else { return };
                self.places.remove(&self.entries[at].digest);
                self.weights[at] = least;
                self.entries[at] = Entry::new(digest, text());
                at
            }
        };
        self.places.insert(digest, at);
        self.weights[at] += execution.took.0;
        self.entries[at].add(execution);
    }

    /// The place that a new one gets, if it gets one: it came before, or is expensive at once.
    fn least_for(&mut self, digest: u64, took: Micros) -> Option<(usize, u64)> {
        let (at, least) = self.weights.iter().copied().enumerate().min_by_key(|(_, weight)| *weight)?;
        let step = &mut self.doorstep[digest as usize % DOORSTEP];
        let came_before = std::mem::replace(step, digest) == digest;
        (came_before || took.0 > least).then_some((at, least))
    }

    /// The most expensive first.
    pub(crate) fn top(&self) -> Vec<TopStatement> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.time));
        entries.into_iter().map(Entry::told).collect()
    }
}

impl Entry {
    fn new(digest: u64, text: String) -> Entry {
        Entry { digest, count: 0, errors: 0, time: 0, rows: 0, text }
    }

    fn add(&mut self, execution: Execution) {
        self.count += 1;
        self.errors += u64::from(execution.failed);
        self.time += execution.took.0;
        self.rows += execution.rows;
    }

    fn told(&self) -> TopStatement {
        TopStatement {
            digest: Digest(self.digest).to_string(),
            count: self.count,
            errors: self.errors,
            time: Micros(self.time),
            rows: self.rows,
            text: self.text.clone(),
        }
    }
}

/// A digest is mixed well already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(digests: &mut Digests, digest: u64, micros: u64) {
        let execution = Execution { took: Micros(micros), rows: 2, failed: false };
        digests.take(Digest(digest), execution, || format!("SELECT {digest}"));
    }

    #[test]
    fn the_expensive_ones_are_found_among_any_number_of_cheap_ones() {
        let mut digests = Digests::default();
        for round in 0..5_000u64 {
            taken(&mut digests, 1, 900);
            taken(&mut digests, 2, 800);
            // Each of these comes twice and never again.
            taken(&mut digests, 1_000 + round / 2, 10);
        }
        let top = digests.top();
        assert_eq!(top.len(), TOP_MAX);
        let seen: Vec<_> =
            top[..2].iter().map(|one| (&one.text[..], one.count, one.time.0, one.rows)).collect();
        assert_eq!(seen, [("SELECT 1", 5_000, 4_500_000, 10_000), ("SELECT 2", 5_000, 4_000_000, 10_000)]);
    }

    #[test]
    fn a_text_is_made_once_for_one_that_is_known_and_never_for_one_that_stays_out() {
        let mut digests = Digests::default();
        let execution = Execution { took: Micros(50), rows: 0, failed: true };
        let mut made = 0;
        let mut take = |digest| {
            digests.take(Digest(digest), execution, || {
                made += 1;
                String::new()
            })
        };
        for digest in (1..=TOP_MAX as u64).chain(1..=TOP_MAX as u64) {
            take(digest);
        }
        (1_000..1_200).for_each(&mut take);
        assert_eq!(made, TOP_MAX);
        assert!(digests.top().iter().all(|one| (one.count, one.errors) == (2, 2)));
    }

    #[test]
    fn one_that_is_expensive_at_once_gets_a_place_at_once() {
        let mut digests = Digests::default();
        (0..TOP_MAX as u64).for_each(|digest| taken(&mut digests, digest, 10));
        taken(&mut digests, 5_000, 1_000_000);
        assert_eq!(digests.top()[0].text, "SELECT 5000");
    }
}
