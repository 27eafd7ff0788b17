//! What was shown of one server's log: enough to find, when its end is read once more, where the new lines begin.
//! By what the lines say, not by where they lie: logs are rotated, and some are cut short in place. Pure.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A server that writes the same few lines again and again still has a place.
const KEPT: usize = 1_000;

pub struct ShownLines {
    /// Of the log's first end that came.
    wanted: usize,
    /// Hashes of the last lines that came; none before the first end.
    last: Option<VecDeque<u64>>,
}

impl ShownLines {
    /// Of the first end, show these many lines.
    pub fn from_end(wanted: usize) -> ShownLines {
        ShownLines { wanted, last: None }
    }

    /// Whether the log's end came once.
    pub fn has_begun(&self) -> bool {
        self.last.is_some()
    }

    /// The lines of the log's end that are to be shown. If what came before is not in it, all are new.
    pub fn unseen<'a, 'b>(&mut self, tail: &'b [&'a [u8]]) -> &'b [&'a [u8]] {
        let hashes: Vec<u64> = tail.iter().map(|line| hash(line)).collect();
        let seen = match &self.last {
            None => tail.len().saturating_sub(self.wanted),
            // The log was empty.
            Some(last) if last.is_empty() => 0,
            Some(last) => (0..=tail.len()).rev().find(|seen| agree(last, &hashes[..*seen])).unwrap_or(0),
        };
        let first = if self.last.is_none() { 0 } else { seen };
        self.last.get_or_insert_default();
        tail[first..].iter().for_each(|line| self.add(line));
        &tail[seen..]
    }

    /// A line that was shown as it came.
    pub fn add(&mut self, line: &[u8]) {
        let last = self.last.get_or_insert_default();
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(hash(line));
    }
}

/// Whether both end with the same lines, as far back as both go.
fn agree(last: &VecDeque<u64>, tail: &[u64]) -> bool {
    last.iter().rev().zip(tail.iter().rev()).all(|(one, other)| one == other)
}

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unseen(shown: &mut ShownLines, tail: &str) -> String {
        let lines: Vec<&[u8]> = tail.split_inclusive(' ').map(str::as_bytes).collect();
        String::from_utf8(shown.unseen(&lines).concat()).unwrap()
    }

    #[test]
    fn a_log_goes_on_where_it_broke_off() {
        let mut shown = ShownLines::from_end(2);
        assert_eq!(unseen(&mut shown, "a b c "), "b c ");
        shown.add(b"d ");
        assert_eq!(unseen(&mut shown, "z a b c d "), "", "nothing is new");
        assert_eq!(unseen(&mut shown, "z a b c d e f "), "e f ");
        assert_eq!(unseen(&mut shown, "f g "), "g ", "the end reaches back less far than what was shown");
    }

    #[test]
    fn lines_that_say_the_same_are_told_apart_by_those_before_them() {
        let mut shown = ShownLines::from_end(50);
        assert_eq!(unseen(&mut shown, "a tick tick "), "a tick tick ");
        assert_eq!(unseen(&mut shown, "a tick tick tick b tick "), "tick b tick ");
    }

    #[test]
    fn the_end_of_another_file_is_new_from_its_beginning() {
        let mut shown = ShownLines::from_end(50);
        unseen(&mut shown, "a b ");
        assert_eq!(unseen(&mut shown, "c d "), "c d ");
        assert_eq!(unseen(&mut shown, "c d e "), "e ");
    }

    #[test]
    fn whoever_wants_no_line_from_the_end_still_has_a_place_to_go_on_from() {
        let mut shown = ShownLines::from_end(0);
        assert!(!shown.has_begun());
        assert_eq!(unseen(&mut shown, "a "), "");
        assert!(shown.has_begun());
        assert_eq!(unseen(&mut shown, "z a b "), "b ");
    }

    #[test]
    fn a_log_that_was_empty_at_first_is_shown_from_its_beginning() {
        let mut shown = ShownLines::from_end(0);
        assert_eq!(unseen(&mut shown, ""), "");
        assert_eq!(unseen(&mut shown, "a b "), "a b ");
    }
}
