//! The load average of one instance, as a whole machine has it: tasks that run, are ready to run, or wait
//! for disk, damped. Pure; the agent ticks it once a second with what `Gauge` counted.

use std::time::Duration;

use kopek_core::{Load, Moment};

/// `load ← load × e^(−dt/window) + running × (1 − e^(−dt/window))`: the formula of the kernel's own load
/// averages (kernel/sched/loadavg.c), whose windows are 1, 5 and 15 minutes sampled every 5 s. Here the time
/// between ticks may vary.
#[derive(Debug, Clone)]
pub struct LoadAverage {
    window: Duration,
    value: f64,
    last: Option<Moment>,
}

impl LoadAverage {
    /// Starts at zero. After `window` of constant load it shows 63 % of it, after three windows 95 %.
    pub fn new(window: Duration) -> Self {
        assert!(!window.is_zero(), "a load average needs a window");
        LoadAverage { window, value: 0.0, last: None }
    }

    /// `running` is the number of tasks in state R or D at `now`. A clock that went back counts as no time.
    pub fn tick(&mut self, now: Moment, running: u32) -> Load {
        let elapsed = self.last.map_or(0, |last| now.millis_since(last));
        self.last = Some(now);
        let keep = (-(elapsed as f64) / self.window.as_millis() as f64).exp();
        self.value = self.value * keep + f64::from(running) * (1.0 - keep);
        Load((self.value * 1000.0).round() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64, running: u32) -> Load {
        let mut average = LoadAverage::new(Duration::from_secs(10));
        (0..=seconds).map(|second| average.tick(Moment(second * 1000), running)).last().unwrap()
    }

    #[test]
    fn a_constant_load_is_63_percent_there_after_one_window_and_95_after_three() {
        assert_eq!(after(10, 4), Load(2528));
        assert_eq!(after(30, 4), Load(3801));
    }

    #[test]
    fn it_falls_as_it_rose() {
        let mut average = LoadAverage::new(Duration::from_secs(10));
        average.tick(Moment(0), 3);
        assert_eq!(average.tick(Moment(1_000_000), 3), Load(3000));
        assert_eq!(average.tick(Moment(1_010_000), 0), Load(1104));
    }

    #[test]
    fn how_often_it_is_ticked_does_not_matter() {
        let mut often = LoadAverage::new(Duration::from_secs(10));
        let often = (0..=100).map(|tenth| often.tick(Moment(tenth * 100), 2)).last().unwrap();
        assert!(often.0.abs_diff(after(10, 2).0) <= 1);
    }

    #[test]
    fn a_clock_that_goes_back_changes_nothing() {
        let mut average = LoadAverage::new(Duration::from_secs(10));
        average.tick(Moment(10_000), 0);
        let before = average.tick(Moment(20_000), 5);
        assert_eq!(average.tick(Moment(5_000), 5), before);
    }
}
