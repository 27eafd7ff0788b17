//! Takes the writers of the sites away, one after the other: killed, or stopped so that its agent has to find out.
//! The next one goes when the pool is whole again and the editors have gone on. Called by hour.rs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::database::tables::{MEMBER_IS_WHOLE, member_says};
use crate::editors::tally::Tally;
use crate::rack::Rack;
use crate::wait::until;

const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// Longer than an edge holds a request.
const PROGRESS_LIMIT: Duration = Duration::from_secs(90);

pub struct Strikes<'a> {
    rack: &'a Rack,
    servers: Vec<String>,
    random: StdRng,
    tally: &'a Tally,
    made: usize,
}

impl Strikes<'_> {
    pub async fn new<'a>(rack: &'a Rack, random: StdRng, tally: &'a Tally) -> Result<Strikes<'a>> {
        let servers = rack.status().await?.servers.into_iter().map(|server| server.name).collect();
        Ok(Strikes { rack, servers, random, tally, made: 0 })
    }

    pub fn rack(&self) -> &Rack {
        self.rack
    }

    pub fn answers(&self) -> usize {
        self.tally.requests()
    }

    pub fn made(&self) -> usize {
        self.made
    }

    /// Every member says that all are there. Reports may be from before the last fault.
    pub async fn whole(&self) -> Result<()> {
        until("the pool to be whole", WHOLE_LIMIT, || async {
            let servers = self.rack.servers().await?;
            let ill = servers.iter().find(|server| server.state != "up" || server.pool != "synced");
            ensure!(ill.is_none(), "{ill:?}");
            for server in &self.servers {
                let said = member_says(self.rack, server, MEMBER_IS_WHOLE).await?;
                ensure!(said.trim() == "3 Synced", "the member of {server} says {said:?}");
            }
            Ok(Some(()))
        })
        .await
    }

    /// The editors have had so many answers more.
    pub async fn progress(&self, answers: usize) -> Result<()> {
        let begun = self.tally.requests();
        until("the editors to go on", PROGRESS_LIMIT, || async {
            Ok((self.tally.requests() >= begun + answers).then_some(()))
        })
        .await
    }

    /// Takes the writer of a site away at some moment of the next half second.
    pub async fn strike(&mut self, site: &str) -> Result<()> {
        let writer = self.rack.site(site).await?.writer.context("the site has no writer")?.to_string();
        let members = self.rack.processes(&writer, "mariadbd --").await?;
        ensure!(!members.is_empty(), "{writer} runs no member");
        let (signal, what) = match self.random.random_bool(0.7) {
            true => (Signal::SIGKILL, "killed"),
            false => (Signal::SIGSTOP, "stopped"),
        };
        // Not always at the begin of what editors do: anywhere in it.
        sleep(Duration::from_millis(self.random.random_range(0..500))).await;
        for member in members {
            kill(Pid::from_raw(member), signal)?;
        }
        self.made += 1;
        self.tally.struck(&format!("the writer of {site}, on {writer}, {what}"));
        Ok(())
    }
}
