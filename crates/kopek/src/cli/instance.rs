//! `kopek instance …`, `kopek pool …`, `kopek vip …`: looking at what runs.

use anyhow::Result;
use clap::Subcommand;
use kopek_core::api::{CellView, InstanceView, PoolView};
use kopek_core::{ServerId, SiteName};

use super::output::{ago, names, table};
use super::{Fault, Global};

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
pub enum PoolCommand {
    /// List pools
    Ls,
    /// Show one pool
    Show { pool: String },
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

pub async fn pool(global: &Global, command: PoolCommand) -> Result<()> {
    let pools: Vec<PoolView> = global.cell()?.get("/pools").await?;
    match command {
        PoolCommand::Ls => {
            global.format().list(&pools, &["name", "state", "members", "sites", "disk"], |pool| {
                let members: Vec<String> =
                    pool.members.iter().map(|member| format!("{} {}", member.server, member.state)).collect();
                let sites: usize = pool.writers.values().map(Vec::len).sum();
                // Each member has everything.
                let disk = pool.members.iter().map(|member| member.disk).max().unwrap_or_default();
                let (name, state) = (pool.name.clone(), pool.state.clone());
                vec![name, state, names(&members), sites.to_string(), disk.to_string()]
            })
        }
        PoolCommand::Show { pool } => {
            let found = pools.into_iter().find(|view| view.name == pool);
            let view = found.ok_or_else(|| Fault::unknown("pool", &pool))?;
            global.format().one(&view, |pool| {
                let rows = pool.members.iter().map(|member| {
                    let position = member.seqno.map_or("-".to_owned(), |seqno| seqno.to_string());
                    let sites = pool.writers.get(&member.server).map_or(0, Vec::len);
                    vec![
                        member.server.to_string(),
                        member.state.clone(),
                        member.since.map_or("-".to_owned(), ago),
                        position,
                        member.group_size.to_string(),
                        sites.to_string(),
                        member.disk.to_string(),
                        member.why.clone().unwrap_or_default(),
                    ]
                });
                let head = ["member", "state", "since", "position", "group", "writes for", "disk", "why"];
                vec![
                    ("name", pool.name.clone()),
                    ("state", pool.state.clone()),
                    ("members", format!("\n{}", table(&head, rows))),
                ]
            })
        }
    }
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
