//! `kopek site db`: what a site asked of its database, summed over every server's `sql`. A server that does not
//! answer is named on stderr; the sum is then of the others. And `kopek site limit`: what it may ask.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgGroup, Args};
use futures::future::join_all;
use http_body_util::BodyExt;
use hyper::Method;
use kopek_core::api::{Bound, LimitSite, ServerView, SiteView};
use kopek_core::config::AGENT_PORT;
use kopek_core::meter::{Metered, SiteMeter, SlowStatement, TopStatement};
use kopek_core::{Bytes, Micros, SiteName};
use serde::Serialize;
use tokio::time::timeout;

use super::cell::Cell;
use super::output::{local_time, say, table, tell};
use super::site::{find, show};
use super::{Global, one_line};

/// An agent asks its `sql` for 6 s at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct Db {
    name: SiteName,
    /// The statements that took the most time
    #[arg(long)]
    top: bool,
    /// The last statements that took longer than a second
    #[arg(long)]
    slow: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct SiteUse {
    site: SiteName,
    /// Of all that answered.
    sum: Metered,
    /// Each with the time when its process began: one that began anew counts from 0.
    servers: Vec<SiteMeter>,
}

pub async fn db(global: &Global, wanted: &Db) -> Result<()> {
    let cell = global.cell()?;
    find(&cell, &wanted.name).await?;
    let servers: Vec<ServerView> = cell.get("/servers").await?;
    let asked = join_all(servers.iter().map(|server| ask(&cell, server, &wanted.name))).await;
    let mut meters = Vec::new();
    for (server, answer) in servers.iter().zip(asked) {
        match answer {
            Ok(meter) => meters.push(meter),
            Err(error) => {
                tell(format_args!(
                    "kopek: the counts of server {} are missing: {}",
                    server.name,
                    one_line(&error)
                ));
            }
        }
    }
    if meters.is_empty() {
        bail!("no server gave its counts of site {}; see `kopek server ls`", wanted.name);
    }
    let mut sum = Metered::default();
    meters.iter().for_each(|meter| sum.add(meter.metered.clone()));
    if global.json {
        let answer = SiteUse { site: wanted.name.clone(), sum, servers: meters };
        return say(serde_json::to_string_pretty(&answer)?);
    }
    if !wanted.top && !wanted.slow {
        return show_counts(&sum);
    }
    if wanted.top {
        say(table(&["time", "count", "mean", "errors", "rows", "statement"], sum.top.iter().map(top_row)))?;
    }
    if wanted.slow {
        say(table(&["ended", "took", "rows", "error", "statement"], sum.slow.iter().map(slow_row)))?;
    }
    Ok(())
}

async fn ask(cell: &Cell, server: &ServerView, site: &SiteName) -> Result<SiteMeter> {
    if server.state == "dead" {
        bail!("it is dead");
    }
    let agent = SocketAddr::new(server.address, AGENT_PORT);
    let path = format!("/databases/{site}/meter");
    let asking = async {
        let answer = cell.ask_agent(Method::GET, agent, &path, None::<&()>).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    };
    match timeout(ANSWER_LIMIT, asking).await {
        Ok(answer) => answer,
        Err(_) => bail!("{agent} did not answer within {} s", ANSWER_LIMIT.as_secs()),
    }
}

fn show_counts(sum: &Metered) -> Result<()> {
    let counts = &sum.counts;
    let quantile =
        |thousandths| sum.latency.quantile(thousandths).map_or("-".to_owned(), |took| took.to_string());
    for (name, value) in [
        ("statements", counts.statements().to_string()),
        ("", format!("{} reads, {} writes, {} others", counts.reads, counts.writes, counts.others)),
        ("errors", counts.errors.to_string()),
        ("latency", format!("half within {}, 99 % within {}", quantile(500), quantile(990))),
        ("rows", format!("{} sent, {} changed", counts.rows_sent, counts.rows_changed)),
        ("bytes", format!("{} in, {} out", Bytes(counts.bytes_in), Bytes(counts.bytes_out))),
        ("connections", format!("{} now, {} in all", counts.connected, counts.connections)),
        (
            "repeated",
            format!(
                "{} statements, {} transactions",
                counts.repeated_statements, counts.repeated_transactions
            ),
        ),
        ("moved", format!("{} sessions to another writer", counts.moved_sessions)),
        (
            "limited",
            format!(
                "{} connections and {} statements refused, {} interrupted",
                counts.refused_connections, counts.refused_statements, counts.interrupted_statements
            ),
        ),
    ] {
        say(format_args!("{name:<12} {value}"))?;
    }
    Ok(())
}

fn top_row(one: &TopStatement) -> Vec<String> {
    let mean = Micros(one.time.0 / one.count.max(1));
    vec![
        one.time.to_string(),
        one.count.to_string(),
        mean.to_string(),
        one.errors.to_string(),
        one.rows.to_string(),
        one.text.clone(),
    ]
}

fn slow_row(one: &SlowStatement) -> Vec<String> {
    let error = one.error.map_or("-".to_owned(), |error| error.to_string());
    vec![local_time(one.at), one.took.to_string(), one.rows.to_string(), error, one.text.clone()]
}

const BOUNDS: [&str; 3] = ["db_connections", "db_queries_per_second", "db_longest_query"];

/// Only what is given changes; `none` takes a limit away.
#[derive(Args)]
#[command(group = ArgGroup::new("bounds").required(true).multiple(true).args(BOUNDS))]
pub struct Limit {
    name: SiteName,
    /// Connections to the database through each server
    #[arg(long, value_name = "N|none", value_parser = whole)]
    db_connections: Option<Bound<u32>>,
    /// Queries a second through each server, on the average of ten seconds
    #[arg(long, value_name = "N|none", value_parser = whole)]
    db_queries_per_second: Option<Bound<u32>>,
    /// Seconds after which a query is interrupted
    #[arg(long, value_name = "SECONDS|none", value_parser = millis)]
    db_longest_query: Option<Bound<u64>>,
}

pub async fn limit(global: &Global, wanted: Limit) -> Result<()> {
    let request = LimitSite {
        connections: wanted.db_connections,
        queries_per_second: wanted.db_queries_per_second,
        longest_query_ms: wanted.db_longest_query,
    };
    let site: SiteView = global.cell()?.post(&format!("/sites/{}/limit", wanted.name), &request).await?;
    show(global, &site)
}

fn whole(text: &str) -> Result<Bound<u32>, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Bound::None),
        (_, Ok(most @ 1..)) => Ok(Bound::AtMost(most)),
        _ => Err("use a whole number from 1 on, or `none`".to_owned()),
    }
}

fn millis(text: &str) -> Result<Bound<u64>, String> {
    match (text, text.parse::<f64>()) {
        ("none", _) => Ok(Bound::None),
        // A day: what takes longer is not limited in earnest.
        (_, Ok(seconds)) if (0.001..=86_400.0).contains(&seconds) => {
            Ok(Bound::AtMost((seconds * 1e3) as u64))
        }
        _ => Err("use seconds from 0.001 to 86400, or `none`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_from_one_on_or_none() {
        assert_eq!(whole("20"), Ok(Bound::AtMost(20)));
        assert_eq!((whole("none"), millis("none")), (Ok(Bound::None), Ok(Bound::None)));
        assert_eq!(millis("2.5"), Ok(Bound::AtMost(2_500)));
        for wrong in ["0", "-1", "x", ""] {
            assert!(whole(wrong).is_err() && millis(wrong).is_err(), "{wrong}");
        }
    }
}
