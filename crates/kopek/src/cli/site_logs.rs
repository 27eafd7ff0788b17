//! `kopek site logs`: every server's lines of one site, as they come. A server that cannot be read is named on
//! stderr; the others go on.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use clap::Args;
use futures::future::try_join_all;
use http_body_util::BodyExt;
use hyper::Method;
use kopek_core::SiteName;
use kopek_core::api::ServerView;
use kopek_core::config::AGENT_PORT;

use super::cell::Cell;
use super::one_line;
use super::output::{put, tell};
use super::site::find;

#[derive(Args)]
pub struct Logs {
    name: SiteName,
    /// The access log of the edges instead
    #[arg(long)]
    access: bool,
    #[arg(long)]
    follow: bool,
    /// Lines from the end
    #[arg(long, default_value_t = 50)]
    lines: usize,
}

pub async fn logs(cell: &Cell, wanted: &Logs) -> Result<()> {
    let Logs { name, access, follow, lines } = wanted;
    find(cell, name).await?;
    let servers: Vec<ServerView> = cell.get("/servers").await?;
    let path = format!("/logs/{name}?access={access}&follow={follow}&lines={lines}");
    let reading = servers.iter().filter(|server| server.state != "dead").map(|server| {
        let path = &path;
        async move {
            let ended = read(cell, server, path).await?;
            if let Ended::Broken { why } = &ended {
                tell(format_args!("kopek: no more of the log on server {}: {why}", server.name));
            }
            Ok::<_, anyhow::Error>(ended)
        }
    });
    let ended = try_join_all(reading).await?;
    if !ended.contains(&Ended::Whole) {
        bail!("no server gave its log of site {name}; see `kopek server ls`");
    }
    Ok(())
}

/// How the reading of one server's log ended.
#[derive(PartialEq, Eq)]
enum Ended {
    Whole,
    Broken { why: String },
}

/// Fails only if its lines cannot be written: then nobody's can.
async fn read(cell: &Cell, server: &ServerView, path: &str) -> Result<Ended> {
    let agent = SocketAddr::new(server.address, AGENT_PORT);
    let mut answer = match cell.ask_agent(Method::GET, agent, path, None::<&()>).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Ended::Broken { why: one_line(&error) }),
    };
    let mut partial = Vec::new();
    while let Some(frame) = answer.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return Ok(Ended::Broken { why: one_line(&error.into()) }),
        };
        partial.extend_from_slice(&data);
        while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            put(&[server.name.as_str().as_bytes(), b": ", &line].concat())?;
        }
    }
    Ok(Ended::Whole)
}
