//! Results on stdout, tables for people or JSON for programs; messages and progress on stderr.

use std::io::{Write, stdout};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kopek_core::Moment;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Table,
    Json,
}

impl Format {
    /// `rows` gives one row an item.
    pub fn list<T: Serialize>(
        self,
        items: &[T],
        head: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        match self {
            Format::Json => writeln!(stdout(), "{}", serde_json::to_string_pretty(items)?)?,
            Format::Table => writeln!(stdout(), "{}", table(head, items.iter().map(row)))?,
        }
        Ok(())
    }

    pub fn one<T: Serialize>(
        self,
        item: &T,
        fields: impl FnOnce(&T) -> Vec<(&'static str, String)>,
    ) -> Result<()> {
        match self {
            Format::Json => writeln!(stdout(), "{}", serde_json::to_string_pretty(item)?)?,
            Format::Table => {
                for (name, value) in fields(item) {
                    writeln!(stdout(), "{name:<12} {value}")?;
                }
            }
        }
        Ok(())
    }
}

pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|title| title.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table
}

/// Hidden where stderr is no terminal.
pub fn bytes_bar(length: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .expect("the template is fixed");
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar
}

pub fn spinner(what: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_message(what.into());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

/// `2026-11-22 20:01:02` in local time.
pub fn local_time(moment: Moment) -> String {
    match jiff::Timestamp::from_millisecond(moment.0 as i64) {
        Ok(at) => at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => "-".to_owned(),
    }
}

pub fn ago(since: Moment) -> String {
    let now = jiff::Timestamp::now().as_millisecond().max(0) as u64;
    let seconds = now.saturating_sub(since.0) / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub fn names<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
