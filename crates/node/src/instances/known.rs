//! What is known of one instance of this server, and the meter of its load.

use std::time::Duration;

use kopek_core::converge::Local;
use kopek_core::observed::{Phase, SeenInstance};
use kopek_core::{Bytes, Load, Moment};
use kopek_instance::cgroup::CgroupError;
use kopek_instance::{Gauge, InstanceSpec, LoadAverage, Reading, Running};
use kopek_link::clock::now;
use tracing::warn;

/// Damping of the load average. The kernel's shortest is 60 s; a visitor should not wait that long for a
/// second instance, and five seconds let every burst start one.
const LOAD_WINDOW: Duration = Duration::from_secs(15);

pub(super) struct Known {
    pub phase: Phase,
    pub since: Moment,
    pub attempt: u64,
    /// In a row, for the delay.
    pub failures: u32,
    /// Altogether, to show.
    pub restarts: u32,
    pub spec: Option<InstanceSpec>,
    pub connected: bool,
    pub running: Option<Running>,
    pub meter: Option<Meter>,
}

pub(super) struct Meter {
    gauge: Gauge,
    average: LoadAverage,
    pub load: Load,
    pub reading: Reading,
}

impl Known {
    pub fn starting(attempt: u64, failures: u32, restarts: u32, spec: Option<InstanceSpec>) -> Known {
        Known {
            phase: Phase::Starting,
            since: now(),
            attempt,
            failures,
            restarts,
            spec,
            connected: false,
            running: None,
            meter: None,
        }
    }

    pub fn local(&self) -> Local {
        Local::Known { phase: self.phase.clone(), number: self.number() }
    }

    pub fn seen(&self, in_flight: u32) -> SeenInstance {
        let meter = self.meter.as_ref();
        SeenInstance {
            phase: self.phase.clone(),
            number: self.number(),
            since: self.since,
            load: meter.map_or(Load(0), |meter| meter.load),
            memory: meter.map_or(Bytes(0), |meter| meter.reading.memory),
            tasks: meter.map_or(0, |meter| meter.reading.tasks),
            cpu_us: meter.map_or(0, |meter| meter.reading.cpu_us),
            in_flight,
            restarts: self.restarts,
        }
    }

    /// Its site's.
    fn number(&self) -> Option<u32> {
        self.spec.as_ref().map(|spec| spec.number)
    }

    /// One that was told to stop ends what it has in hand and gets nothing new.
    pub fn takes_requests(&self) -> bool {
        self.running.is_some() && self.phase != Phase::Stopping
    }

    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = now();
    }
}

impl Meter {
    pub fn open(spec: Option<&InstanceSpec>) -> Option<Meter> {
        let gauge = Gauge::open(&spec?.cgroup)
            .inspect_err(|error| warn!(%error, "an instance's load cannot be measured"))
            .ok()?;
        let reading = gauge.read().ok()?;
        Some(Meter { gauge, average: LoadAverage::new(LOAD_WINDOW), load: Load(0), reading })
    }

    pub fn tick(&mut self, at: Moment) -> Result<(), CgroupError> {
        self.reading = self.gauge.read()?;
        self.load = self.average.tick(at, self.reading.running);
        Ok(())
    }
}
