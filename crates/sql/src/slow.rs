//! A site's last slow statements. Pure; called by `meter`.

use std::collections::VecDeque;

use kopek_core::Micros;
use kopek_core::meter::{SLOW_MAX, SlowStatement};

/// A page that waits for such a statement is slow. MariaDB's `long_query_time` is 10 s, which finds only those
/// that have hurt for long.
pub(crate) const SLOW: Micros = Micros(1_000_000);

#[derive(Default)]
pub(crate) struct Slow(VecDeque<SlowStatement>);

impl Slow {
    pub(crate) fn push(&mut self, statement: SlowStatement) {
        if self.0.len() == SLOW_MAX {
            self.0.pop_front();
        }
        self.0.push_back(statement);
    }

    /// The last first.
    pub(crate) fn told(&self) -> Vec<SlowStatement> {
        self.0.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use kopek_core::Moment;

    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        let mut slow = Slow::default();
        for number in 1..=SLOW_MAX as u64 + 3 {
            let text = "SELECT SLEEP(?)".to_owned();
            slow.push(SlowStatement { at: Moment(number), took: SLOW, rows: 1, error: None, text });
        }
        let told = slow.told();
        assert_eq!((told[0].at.0, told[SLOW_MAX - 1].at.0, told.len()), (SLOW_MAX as u64 + 3, 4, SLOW_MAX));
    }
}
