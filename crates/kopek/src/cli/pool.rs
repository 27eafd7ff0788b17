//! `kopek pool …`: the groups of database servers, and making one more.

use anyhow::Result;
use clap::{Args, Subcommand};
use kopek_core::api::{CreatePool, PoolFounding, PoolView};
use kopek_core::{PoolName, ServerId};

use super::cell::Cell;
use super::output::{ago, names, say, spinner, table};
use super::{Fault, Global, Waiting};

#[derive(Subcommand)]
pub enum PoolCommand {
    /// List pools
    Ls,
    /// Show one pool
    Show { pool: String },
    /// Make one more pool, on servers that carry no member of another one
    Create(Create),
}

#[derive(Args)]
pub struct Create {
    name: PoolName,
    /// 1, 3 or 5 servers, separated by commas; without it, three that are free, over the racks, or else one
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    servers: Vec<ServerId>,
    #[command(flatten)]
    waiting: Waiting,
}

pub async fn pool(global: &Global, command: PoolCommand) -> Result<()> {
    match command {
        PoolCommand::Ls => ls(global).await,
        PoolCommand::Show { pool } => show(global, &find(&global.cell()?, &pool).await?),
        PoolCommand::Create(wanted) => create(global, wanted).await,
    }
}

async fn ls(global: &Global) -> Result<()> {
    let pools: Vec<PoolView> = global.cell()?.get("/pools").await?;
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

async fn find(cell: &Cell, name: &str) -> Result<PoolView> {
    let pools: Vec<PoolView> = cell.get("/pools").await?;
    let found = pools.into_iter().find(|view| view.name == name);
    Ok(found.ok_or_else(|| Fault::unknown("pool", name))?)
}

fn show(global: &Global, view: &PoolView) -> Result<()> {
    global.format().one(view, |pool| {
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

async fn create(global: &Global, create: Create) -> Result<()> {
    let cell = global.cell()?;
    let Create { name, servers, waiting } = create;
    let request =
        CreatePool { name: name.clone(), servers: servers.into_iter().collect(), dry_run: waiting.dry_run };
    let founding: PoolFounding = cell.post("/pools", &request).await?;
    if waiting.dry_run {
        let servers: Vec<&ServerId> = founding.servers.iter().collect();
        return say(format_args!("would make pool {name} on {}", names(&servers)));
    }
    if let Some(limit) = waiting.limit() {
        let spinner = spinner(format!("pool {name}: waiting for its members"));
        let what = format!("every member of pool {name} to be in service");
        let whole = |pools: Vec<PoolView>| {
            let pool = pools.into_iter().find(|pool| pool.name == name.as_str())?;
            let synced = pool.members.iter().filter(|member| member.state == "synced").count();
            (synced >= founding.servers.len()).then_some(())
        };
        let waited = cell.wait_for("/pools", limit, &what, whole).await;
        spinner.finish_and_clear();
        waited?;
    }
    show(global, &find(&cell, name.as_str()).await?)
}
