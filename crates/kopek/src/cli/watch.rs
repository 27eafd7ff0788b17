//! `kopek events` and `kopek top`: following a cell.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use kopek_core::SiteName;
use kopek_core::api::{EventsAfter, InstanceView, ServerView};
use kopek_core::event::{Event, KEPT};

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
    let mut followed = Followed::default();
    loop {
        let news = cell.get(&format!("/events?after={}", followed.after)).await?;
        for event in followed.unseen(news) {
            if wanted.site.as_ref().is_none_or(|site| is_about(&event, site)) {
                show(global.format(), &event)?;
            }
        }
        if !wanted.follow {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How far the events were seen.
#[derive(Default)]
struct Followed {
    after: u64,
    /// Keys of the last events, as many as the store keeps: after a move of the store all come again.
    seen: VecDeque<String>,
}

impl Followed {
    fn unseen(&mut self, news: EventsAfter) -> Vec<Event> {
        self.after = news.after;
        let mut unseen = Vec::new();
        for (key, event) in news.events {
            if self.seen.contains(&key) {
                continue;
            }
            // The store may hold a few more than it keeps, until the next event.
            if self.seen.len() == 2 * KEPT {
                self.seen.pop_front();
            }
            self.seen.push_back(key);
            unseen.push(event);
        }
        unseen
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

#[cfg(test)]
mod tests {
    use kopek_core::Moment;

    use super::*;

    fn news(keys: &[&str], after: u64) -> EventsAfter {
        let event = |key: &&str| {
            let what = key.to_string();
            (what.clone(), Event { at: Moment(1), subject: "s1".into(), what, reason: "a test".into() })
        };
        EventsAfter { events: keys.iter().map(event).collect(), after }
    }

    #[test]
    fn an_event_is_shown_once_also_when_the_store_has_moved() {
        let mut followed = Followed::default();
        let mut shown = |news: EventsAfter| -> Vec<String> {
            followed.unseen(news).into_iter().map(|event| event.what).collect()
        };
        assert_eq!(shown(news(&["b", "c"], 7)), ["b", "c"]);
        assert_eq!(shown(news(&["a"], 8)), ["a"], "it came later, whatever its key");
        assert_eq!(shown(news(&["a", "b", "c", "d"], 1 << 40)), ["d"], "moved");
        assert_eq!(followed.after, 1 << 40);
    }
}
