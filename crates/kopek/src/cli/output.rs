//! Results on stdout, tables for people or JSON for programs; messages and progress on stderr. Nothing else
//! in the command line writes to either: the macros of the standard library panic when nobody reads any more.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kopek_core::Moment;
use serde::Serialize;

use super::Fault;

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
            Format::Json => say(serde_json::to_string_pretty(items)?),
            Format::Table => say(table(head, items.iter().map(row))),
        }
    }

    pub fn one<T: Serialize>(
        self,
        item: &T,
        fields: impl FnOnce(&T) -> Vec<(&'static str, String)>,
    ) -> Result<()> {
        match self {
            Format::Json => say(serde_json::to_string_pretty(item)?)?,
            Format::Table => {
                for (name, value) in fields(item) {
                    say(format_args!("{name:<12} {value}"))?;
                }
            }
        }
        Ok(())
    }
}

/// A line of data.
pub fn say(line: impl Display) -> Result<()> {
    put(format!("{line}\n").as_bytes())
}

/// Data as it is. Whoever reads may have had enough (`kopek events | head`): that ends the command.
pub fn put(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Fault::ReaderLeft.into()),
        written => written.context("cannot write to stdout"),
    }
}

/// A message. That nobody reads it is no reason to leave something half done.
pub fn tell(message: impl Display) {
    put_message(format!("{message}\n").as_bytes());
}

pub fn put_message(bytes: &[u8]) {
    let mut err = stderr().lock();
    let _ = err.write_all(bytes).and_then(|()| err.flush());
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
