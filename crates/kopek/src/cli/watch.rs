//! `kopek events` and `kopek top`: following a cell.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use kopek_core::SiteName;
use kopek_core::api::{InstanceView, ServerView};
use kopek_core::event::Event;

use super::Global;
use super::instance::{INSTANCE_HEAD, instance_row};
use super::output::{Format, local_time, put, say, table};

const LOOK_EVERY: Duration = Duration::from_millis(300);
const REFRESH_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Events {
    /// Go on with new ones as they come
    #[arg(long)]
    follow: bool,
    /// Only those about this site and its instances
    #[arg(long)]
    site: Option<SiteName>,
}

#[derive(Args)]
pub struct Top {
    /// Print once and end
    #[arg(long)]
    once: bool,
}

pub async fn events(global: &Global, wanted: Events) -> Result<()> {
    let cell = global.cell()?;
    let mut after = String::new();
    loop {
        let events: Vec<(String, Event)> = cell.get(&format!("/events?after={after}")).await?;
        for (key, event) in events {
            if wanted.site.as_ref().is_none_or(|site| is_about(&event, site)) {
                show(global.format(), &event)?;
            }
            after = key;
        }
        if !wanted.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_about(event: &Event, site: &SiteName) -> bool {
    let instance = event.subject.strip_prefix(site.as_str());
    instance.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// One line an event, also as JSON, so that a program can read them as they come.
fn show(format: Format, event: &Event) -> Result<()> {
    match format {
        Format::Json => say(serde_json::to_string(event)?),
        Format::Table => {
            let at = local_time(event.at);
            say(format_args!("{at}  {:<14} {} ({})", event.subject, event.what, event.reason))
        }
    }
}

pub async fn top(global: &Global, wanted: Top) -> Result<()> {
    let cell = global.cell()?;
    loop {
        let servers: Vec<ServerView> = cell.get("/servers").await?;
        let mut instances: Vec<InstanceView> = cell.get("/instances").await?;
        instances.sort_by_key(|instance| std::cmp::Reverse(instance.load));
        match global.format() {
            Format::Json => say(serde_json::json!({ "servers": servers, "instances": instances }))?,
            Format::Table => {
                if !wanted.once {
                    // Clear and home: ECMA-48 ED, CUP.
                    put(b"\x1b[2J\x1b[H")?;
                }
                let rows = servers.iter().map(|server| {
                    vec![
                        server.name.to_string(),
                        server.state.clone(),
                        server.load.to_string(),
                        format!("{}/{}", server.instances, server.slots),
                        server.memory_free.to_string(),
                        server.disk_free.to_string(),
                    ]
                });
                let head = ["server", "state", "load", "slots", "memory free", "disk free"];
                say(format_args!("{}\n", table(&head, rows)))?;
                say(table(INSTANCE_HEAD, instances.iter().map(instance_row)))?;
            }
        }
        if wanted.once {
            return Ok(());
        }
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}
