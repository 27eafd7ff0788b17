//! `kopek instance …`, `kopek vip …`: looking at what runs.

use anyhow::Result;
use clap::Subcommand;
use kopek_core::api::{CellView, InstanceView};
use kopek_core::{ServerId, SiteName};

use super::Global;
use super::output::ago;

#[derive(Subcommand)]
pub enum InstanceCommand {
    /// List instances
    Ls {
        /// Only of this site
        #[arg(long)]
        site: Option<SiteName>,
    },
}

#[derive(Subcommand)]
pub enum VipCommand {
    /// List public addresses and who holds them
    Ls,
}

pub async fn instance(global: &Global, command: InstanceCommand) -> Result<()> {
    let InstanceCommand::Ls { site } = command;
    let cell = global.cell()?;
    let mut instances: Vec<InstanceView> = cell.get("/instances").await?;
    if let Some(site) = site {
        super::site::find(&cell, &site).await?;
        instances.retain(|instance| instance.site == site);
    }
    global.format().list(&instances, INSTANCE_HEAD, instance_row)
}

pub const INSTANCE_HEAD: &[&str] =
    &["id", "server", "phase", "load", "memory", "tasks", "in flight", "restarts", "since"];

pub fn instance_row(instance: &InstanceView) -> Vec<String> {
    let phase = match &instance.why {
        Some(why) => format!("{} ({why})", instance.phase),
        None => instance.phase.clone(),
    };
    vec![
        instance.id.to_string(),
        instance.server.to_string(),
        phase,
        instance.load.to_string(),
        instance.memory.to_string(),
        instance.tasks.to_string(),
        instance.in_flight.to_string(),
        instance.restarts.to_string(),
        ago(instance.since),
    ]
}

pub async fn vip(global: &Global, command: VipCommand) -> Result<()> {
    let VipCommand::Ls = command;
    let cell: CellView = global.cell()?.get("/cell").await?;
    global.format().list(&cell.vips, &["address", "holder", "moves to"], |vip| {
        let name = |server: Option<&ServerId>| server.map_or("-".to_owned(), ToString::to_string);
        let moves_to = vip.wanted.as_ref().filter(|wanted| vip.holder.as_ref() != Some(*wanted));
        vec![vip.address.to_string(), name(vip.holder.as_ref()), name(moves_to)]
    })
}
