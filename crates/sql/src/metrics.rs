//! All sites' counts in Prometheus' text format 0.0.4. Pure; called by `status`.

use std::collections::BTreeMap;
use std::fmt::Write;

use kopek_core::meter::{Counts, Metered};
use kopek_core::{Micros, Moment, SiteName};

/// From 64 µs to 33.6 s, each four times the one before: ten buckets.
const BOUNDS: [u64; 10] =
    [1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 25];

/// A metric, what it is, its labels beside the site, and where it stands.
type Metric = (&'static str, &'static str, &'static [(&'static str, fn(&Counts) -> u64)]);

const COUNTERS: [Metric; 9] = [
    (
        "kopek_sql_statements_total",
        "Statements answered",
        &[
            ("class=\"read\"", |counts| counts.reads),
            ("class=\"write\"", |counts| counts.writes),
            ("class=\"other\"", |counts| counts.others),
        ],
    ),
    ("kopek_sql_errors_total", "Statements answered with an error", &[("", |counts| counts.errors)]),
    (
        "kopek_sql_rows_total",
        "Rows sent to clients and rows changed",
        &[("kind=\"sent\"", |counts| counts.rows_sent), ("kind=\"changed\"", |counts| counts.rows_changed)],
    ),
    (
        "kopek_sql_bytes_total",
        "Bytes from and to clients, as plain packets",
        &[("direction=\"in\"", |counts| counts.bytes_in), ("direction=\"out\"", |counts| counts.bytes_out)],
    ),
    (
        "kopek_sql_repeated_total",
        "Done again after a lost writer or a deadlock",
        &[
            ("kind=\"statement\"", |counts| counts.repeated_statements),
            ("kind=\"transaction\"", |counts| counts.repeated_transactions),
        ],
    ),
    (
        "kopek_sql_moved_sessions_total",
        "Sessions that went on at another writer",
        &[("", |c| c.moved_sessions)],
    ),
    ("kopek_sql_connections_total", "Connections that logged in", &[("", |counts| counts.connections)]),
    (
        "kopek_sql_refused_total",
        "Turned away by the site's limits",
        &[
            ("kind=\"connection\"", |counts| counts.refused_connections),
            ("kind=\"statement\"", |counts| counts.refused_statements),
        ],
    ),
    (
        "kopek_sql_interrupted_total",
        "Statements interrupted because they took too long",
        &[("", |counts| counts.interrupted_statements)],
    ),
];

pub(crate) fn text(sites: &BTreeMap<SiteName, Metered>, since: Moment) -> String {
    let mut out = String::new();
    for (name, help, series) in COUNTERS {
        head(&mut out, name, help, "counter");
        for (site, metered) in sites {
            for (label, value) in series {
                line(&mut out, name, site, label, value(&metered.counts));
            }
        }
    }
    head(&mut out, "kopek_sql_connections", "Connections of now", "gauge");
    for (site, metered) in sites {
        line(&mut out, "kopek_sql_connections", site, "", metered.counts.connected);
    }
    histogram(&mut out, sites);
    head(&mut out, "kopek_sql_start_time_seconds", "When the counting process began", "gauge");
    put(&mut out, format_args!("kopek_sql_start_time_seconds {}\n", seconds(Micros(since.0 * 1_000))));
    out
}

fn histogram(out: &mut String, sites: &BTreeMap<SiteName, Metered>) {
    let name = "kopek_sql_statement_seconds";
    head(out, name, "From a statement's arrival to the end of its answer", "histogram");
    for (site, metered) in sites {
        for bound in BOUNDS.map(Micros) {
            let label = format!("le=\"{}\"", seconds(bound));
            line(out, &format!("{name}_bucket"), site, &label, metered.latency.below(bound));
        }
        let total = metered.latency.total();
        line(out, &format!("{name}_bucket"), site, "le=\"+Inf\"", total);
        put(out, format_args!("{name}_sum{{site=\"{site}\"}} {}\n", seconds(metered.counts.time)));
        line(out, &format!("{name}_count"), site, "", total);
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    put(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

/// A site's name needs no escaping: letters, digits and hyphens.
fn line(out: &mut String, name: &str, site: &SiteName, label: &str, value: u64) {
    let comma = if label.is_empty() { "" } else { "," };
    put(out, format_args!("{name}{{site=\"{site}\"{comma}{label}}} {value}\n"));
}

fn put(out: &mut String, text: std::fmt::Arguments) {
    out.write_fmt(text).expect("a String takes everything");
}

/// Exact to the microsecond.
fn seconds(Micros(micros): Micros) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_head_and_the_histogram_is_cumulative() {
        let counts = Counts { reads: 3, connected: 2, time: Micros(1_500_100), ..Counts::default() };
        let mut metered = Metered { counts, ..Metered::default() };
        [50, 300, 1_499_750].into_iter().for_each(|micros| metered.latency.count(Micros(micros)));
        let sites = BTreeMap::from([(SiteName::parse("blog").unwrap(), metered)]);
        let text = text(&sites, Moment(1_500));
        for line in [
            "# TYPE kopek_sql_statements_total counter",
            "kopek_sql_statements_total{site=\"blog\",class=\"read\"} 3",
            "kopek_sql_connections{site=\"blog\"} 2",
            "kopek_sql_statement_seconds_bucket{site=\"blog\",le=\"0.000064\"} 1",
            "kopek_sql_statement_seconds_bucket{site=\"blog\",le=\"0.001024\"} 2",
            "kopek_sql_statement_seconds_bucket{site=\"blog\",le=\"+Inf\"} 3",
            "kopek_sql_statement_seconds_sum{site=\"blog\"} 1.5001",
            "kopek_sql_statement_seconds_count{site=\"blog\"} 3",
            "kopek_sql_start_time_seconds 1.5",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
        let named: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(named.len(), COUNTERS.len() + 3);
    }
}
