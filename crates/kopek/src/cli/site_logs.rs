//! `kopek site logs`: every server's lines of one site, as they come. A server whose lines are missing is named on
//! stderr; the others go on. With --follow it is asked again until it answers, and goes on where it broke off.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use kopek_core::api::{LOG_TAIL_HEADER, ServerView};
use kopek_core::config::AGENT_PORT;
use kopek_core::{ServerId, SiteName};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cell::Cell;
use super::one_line;
use super::output::{put, tell};
use super::shown_lines::ShownLines;
use super::site::find;

/// For an agent to begin its answer: it reads 4 MB at most. Without a limit, a server that is cut off between the
/// handshake and the request is not noticed: the kernel does not probe a peer that owes it an acknowledgement.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);
/// Before a server whose lines are missing is asked again, and the cell for its servers.
const AGAIN: Duration = Duration::from_secs(1);
/// Asked for when a log goes on: what was written meanwhile and what was shown before, to find the place.
const LINES_AGAIN: usize = 10_000;

#[derive(Args)]
pub struct Logs {
    name: SiteName,
    /// The access log of the edges instead
    #[arg(long)]
    access: bool,
    /// Go on with new lines as they come
    #[arg(long)]
    follow: bool,
    /// Lines from the end
    #[arg(long, default_value_t = 50)]
    lines: usize,
}

impl Logs {
    fn path(&self, lines: usize) -> String {
        let Logs { name, access, follow, .. } = self;
        format!("/logs/{name}?access={access}&follow={follow}&lines={lines}")
    }
}

pub async fn logs(cell: &Cell, wanted: &Logs) -> Result<()> {
    find(cell, &wanted.name).await?;
    let servers: Vec<ServerView> = cell.get("/servers").await?;
    if wanted.follow {
        match follow(cell, wanted, servers).await? {}
    }
    print(cell, wanted, &servers).await
}

/// What is there now. Fails if no server gave its log.
async fn print(cell: &Cell, wanted: &Logs, servers: &[ServerView]) -> Result<()> {
    let reading = servers.iter().map(|server| async move {
        let mut shown = ShownLines::from_end(wanted.lines);
        let ended = match is_dead(server) {
            true => Ended::Broken { why: DEAD.to_owned() },
            false => match ask(cell, server, &wanted.path(wanted.lines)).await {
                Ok(answer) => pass_on(server, answer, &mut shown).await?,
                Err(error) => Ended::Broken { why: one_line(&error) },
            },
        };
        if let Ended::Broken { why } = &ended {
            tell_missing(server, why);
        }
        Ok::<_, anyhow::Error>(ended)
    });
    let ended = try_join_all(reading).await?;
    if !ended.contains(&Ended::Whole) {
        bail!("no server gave its log of site {}; see `kopek server ls`", wanted.name);
    }
    Ok(())
}

/// Ends only when its lines cannot be written.
async fn follow(cell: &Cell, wanted: &Logs, servers: Vec<ServerView>) -> Result<Infallible> {
    let known = watch::Sender::new(servers);
    tokio::select! {
        never = look_for_servers(cell, &known) => match never {},
        failed = follow_known(cell, wanted, &known) => failed,
    }
}

async fn look_for_servers(cell: &Cell, known: &watch::Sender<Vec<ServerView>>) -> Infallible {
    loop {
        sleep(AGAIN).await;
        // While no controller answers, the servers are those known last.
        if let Ok(servers) = cell.get("/servers").await {
            known.send_replace(servers);
        }
    }
}

async fn follow_known(
    cell: &Cell,
    wanted: &Logs,
    known: &watch::Sender<Vec<ServerView>>,
) -> Result<Infallible> {
    let mut news = known.subscribe();
    let mut followed = BTreeSet::new();
    let mut following = FuturesUnordered::new();
    loop {
        for server in news.borrow_and_update().iter() {
            if followed.insert(server.name.clone()) {
                following.push(follow_one(cell, wanted, server.clone(), known));
            }
        }
        tokio::select! {
            Some(left) = following.next() => drop(followed.remove(&left?)),
            _ = news.changed() => {}
        }
    }
}

/// Until the server is removed from the cell. Fails only if its lines cannot be written: then nobody's can.
async fn follow_one(
    cell: &Cell,
    wanted: &Logs,
    mut server: ServerView,
    known: &watch::Sender<Vec<ServerView>>,
) -> Result<ServerId> {
    let mut shown = ShownLines::from_end(wanted.lines);
    let mut is_missing = is_dead(&server);
    if is_missing {
        tell_missing(&server, DEAD);
    }
    loop {
        // At least one: the place where to go on.
        let lines = if shown.has_begun() { LINES_AGAIN } else { wanted.lines.max(1) };
        let why = match ask(cell, &server, &wanted.path(lines)).await {
            Ok(answer) => {
                if is_missing {
                    tell(format_args!("kopek: the lines of server {} come again", server.name));
                }
                is_missing = false;
                match pass_on(&server, answer, &mut shown).await? {
                    Ended::Whole => "its agent ended".to_owned(),
                    Ended::Broken { why } => why,
                }
            }
            Err(error) => one_line(&error),
        };
        if !is_missing {
            tell_missing(&server, &why);
        }
        is_missing = true;
        sleep(AGAIN).await;
        let now = known.borrow().iter().find(|now| now.name == server.name).cloned();
        match now {
            Some(now) => server = now,
            None => return Ok(server.name),
        }
    }
}

const DEAD: &str = "it is dead";

fn is_dead(server: &ServerView) -> bool {
    server.state == "dead"
}

fn tell_missing(server: &ServerView, why: &str) {
    tell(format_args!("kopek: the lines of server {} are missing: {why}", server.name));
}

async fn ask(cell: &Cell, server: &ServerView, path: &str) -> Result<Response<Incoming>> {
    let agent = SocketAddr::new(server.address, AGENT_PORT);
    match timeout(BEGIN_LIMIT, cell.ask_agent(Method::GET, agent, path, None::<&()>)).await {
        Ok(answer) => answer,
        Err(_) => bail!("{agent} did not answer within {} s", BEGIN_LIMIT.as_secs()),
    }
}

/// How the reading of one server's log ended.
#[derive(PartialEq, Eq)]
enum Ended {
    Whole,
    Broken { why: String },
}

/// Fails only if its lines cannot be written.
async fn pass_on(
    server: &ServerView,
    mut answer: Response<Incoming>,
    shown: &mut ShownLines,
) -> Result<Ended> {
    let tail = answer.headers().get(LOG_TAIL_HEADER).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut tail: Option<usize> = Some(tail.unwrap_or(0));
    let mut text = Vec::new();
    loop {
        if let Some(length) = tail.filter(|length| text.len() >= *length) {
            let lines = whole_lines(&mut text, length);
            let lines: Vec<&[u8]> = lines.split_inclusive(is_end).collect();
            for line in shown.unseen(&lines) {
                show(server, line)?;
            }
            tail = None;
        }
        if tail.is_none() {
            let length = text.len();
            for line in whole_lines(&mut text, length).split_inclusive(is_end) {
                shown.add(line);
                show(server, line)?;
            }
        }
        match answer.frame().await {
            None => return Ok(Ended::Whole),
            Some(Ok(frame)) => text.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => return Ok(Ended::Broken { why: one_line(&error.into()) }),
        }
    }
}

/// Takes those that end within the first `length` bytes.
fn whole_lines(text: &mut Vec<u8>, length: usize) -> Vec<u8> {
    let end = text[..length].iter().rposition(is_end).map_or(0, |end| end + 1);
    text.drain(..end).collect()
}

fn is_end(byte: &u8) -> bool {
    *byte == b'\n'
}

fn show(server: &ServerView, line: &[u8]) -> Result<()> {
    put(&[server.name.as_str().as_bytes(), b": ", line].concat())
}
