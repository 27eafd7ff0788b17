//! Quantities with their unit in the type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// Milliseconds since `earlier`; 0 if that lies in the future.
    pub fn millis_since(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub fn plus_millis(self, millis: u64) -> Moment {
        Moment(self.0 + millis)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n << 20)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

/// A time span in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Micros(pub u64);

impl From<std::time::Duration> for Micros {
    fn from(span: std::time::Duration) -> Self {
        Micros(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000 => write!(f, "{} µs", self.0),
            1_000..1_000_000 => write!(f, "{:.1} ms", self.0 as f64 / 1e3),
            _ => write!(f, "{:.1} s", self.0 as f64 / 1e6),
        }
    }
}

/// A share of processors: 1,000 is one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct MilliCores(pub u32);

/// A load average in thousandths: 2,000 is two tasks that run or wait for disk, damped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Load(pub u32);

/// Not a load: a text that is no number from 0 to 4,294,967.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a load; use a number like 2 or 1.5")]
pub struct NotALoad(String);

impl FromStr for Load {
    type Err = NotALoad;

    fn from_str(text: &str) -> Result<Load, NotALoad> {
        let milli = text.parse::<f64>().ok().map(|load| (load * 1000.0).round());
        let fitting = milli.filter(|milli| (0.0..=f64::from(u32::MAX)).contains(milli));
        fitting.map(|milli| Load(milli as u32)).ok_or_else(|| NotALoad(text.to_owned()))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_a_number_that_is_not_negative() {
        assert_eq!(
            ["2", "1.5", "0.0006", "0.0004"].map(str::parse),
            [2_000, 1_500, 1, 0].map(|n| Ok(Load(n)))
        );
        for text in ["", "x", "-1", "NaN", "inf", "1e12"] {
            assert_eq!(text.parse::<Load>(), Err(NotALoad(text.to_owned())));
        }
    }

    #[test]
    fn no_time_has_passed_since_a_moment_that_is_still_to_come() {
        assert_eq!(Moment(5).millis_since(Moment(3)), 2);
        assert_eq!(Moment(3).millis_since(Moment(5)), 0);
    }

    #[test]
    fn bytes_are_told_in_the_largest_unit_of_which_there_is_one() {
        let told = [0, 1_023, 1_024, 1_536, 1 << 20, 5 << 40].map(|n| Bytes(n).to_string());
        assert_eq!(told, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 TiB"]);
    }
}
