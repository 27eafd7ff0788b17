//! What `kopek files` tells the agent: what is complete or in trouble at once, written by `pour`; how busy
//! instances are at most 5 times a second, taken from the gate's counts.

use std::sync::Arc;
use std::time::Duration;

use kopek_core::part::FilesReport;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::flight::Flights;

/// Counts change with every request. 5 reports a second are enough to scale by.
const COUNTS_EVERY: Duration = Duration::from_millis(200);

/// The report as it grows. Cheap to clone.
pub(crate) type Report = watch::Sender<FilesReport>;

/// Sends each change. Runs for ever.
pub(crate) async fn send(report: Report, out: mpsc::Sender<Value>) {
    let mut latest = report.subscribe();
    latest.mark_changed();
    while latest.changed().await.is_ok() {
        let value = serde_json::to_value(&*latest.borrow_and_update()).expect("a report has only text keys");
        if out.send(value).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Copies the counts into the report. Runs for ever.
pub(crate) async fn count(flights: Arc<Flights>, report: Report) {
    let mut ticks = tokio::time::interval(COUNTS_EVERY);
    loop {
        ticks.tick().await;
        let in_flight = flights.counts();
        report.send_if_modified(|report| {
            let is_new = report.in_flight != in_flight;
            report.in_flight = in_flight;
            is_new
        });
    }
}
