//! `kopek site …`: what is left beside creation (site_create.rs) and logs (site_logs.rs).

use std::io::{IsTerminal, Read};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use hyper::Method;
use kopek_core::api::{
    DeploySite, ExecLine, ExecRequest, InstanceView, MoveWriter, ScaleSite, ServerView, SiteView, WriterMove,
};
use kopek_core::config::AGENT_PORT;
use kopek_core::desired::Policy;
use kopek_core::{Load, ServerId, SiteName};
use kopek_files::Packed;

use super::cell::{Cell, for_each_piece};
use super::instance::{INSTANCE_HEAD, instance_row};
use super::output::{names, put, put_message, say, spinner, table};
use super::site_check;
use super::site_create::{Create, create};
use super::site_db::{Db, Limit, db, limit};
use super::site_logs::{Logs, logs};
use super::site_source::SourceArgs;
use super::upload::upload;
use super::{Fault, Global, Waiting};

#[derive(Subcommand)]
pub enum SiteCommand {
    /// Bring a site to the cell
    Create(Create),
    /// List sites
    Ls,
    /// Show one site
    Show { name: SiteName },
    /// Bring a new version of a site's files; what visitors uploaded stays
    Deploy {
        name: SiteName,
        #[command(flatten)]
        source: SourceArgs,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Change how many instances a site may have, and when
    Scale(Scale),
    /// What a site asked of its database, on all servers together
    Db(Db),
    /// Change what a site may ask of its database
    Limit(Limit),
    /// Let another pool member serve the site's database; it stays there as long as it can serve
    MoveWriter {
        name: SiteName,
        /// The member's server; without it, the one that writes for the fewest sites
        #[arg(long, value_name = "SERVER")]
        to: Option<ServerId>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Run a command in an instance of a site
    Exec {
        name: SiteName,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// What the site's instances wrote
    Logs(Logs),
    /// Remove a site with its files and its database
    Delete {
        name: SiteName,
        /// The site's name once more, instead of being asked for it
        #[arg(long, value_name = "NAME")]
        confirm: Option<SiteName>,
    },
}

#[derive(Args)]
pub struct Scale {
    name: SiteName,
    #[arg(long)]
    min: Option<usize>,
    #[arg(long)]
    max: Option<usize>,
    #[arg(long, value_parser = ["load"])]
    policy: Option<String>,
    /// Load of one instance at which one is added
    #[arg(long, default_value = "2", requires = "policy")]
    up: Load,
    /// Load of an extra instance below which it goes
    #[arg(long, default_value = "1", requires = "policy")]
    down: Load,
    #[command(flatten)]
    waiting: Waiting,
}

pub async fn site(global: &Global, command: SiteCommand) -> Result<()> {
    match command {
        SiteCommand::Create(wanted) => create(global, wanted).await,
        SiteCommand::Ls => {
            let sites: Vec<SiteView> = global.cell()?.get("/sites").await?;
            global.format().list(&sites, &["name", "state", "instances", "writer", "domains"], |site| {
                vec![
                    site.name.to_string(),
                    site.state.clone(),
                    format!("{} ({} to {})", site.instances.len(), site.min, site.max),
                    site.writer.as_ref().map_or("-".to_owned(), ToString::to_string),
                    names(&site.domains),
                ]
            })
        }
        SiteCommand::Show { name } => {
            let site = find(&global.cell()?, &name).await?;
            show(global, &site)
        }
        SiteCommand::Deploy { name, source, waiting } => deploy(global, &name, &source, waiting).await,
        SiteCommand::Scale(scale) => self::scale(global, scale).await,
        SiteCommand::Db(wanted) => db(global, &wanted).await,
        SiteCommand::Limit(wanted) => limit(global, wanted).await,
        SiteCommand::MoveWriter { name, to, waiting } => move_writer(global, &name, to, waiting).await,
        SiteCommand::Exec { name, command } => exec(&global.cell()?, &name, command).await,
        SiteCommand::Logs(wanted) => logs(&global.cell()?, &wanted).await,
        SiteCommand::Delete { name, confirm } => delete(&global.cell()?, &name, confirm).await,
    }
}

async fn deploy(global: &Global, name: &SiteName, source: &SourceArgs, waiting: Waiting) -> Result<()> {
    let cell = global.cell()?;
    find(&cell, name).await?;
    let packed = source.pack()?;
    site_check::check_room(&cell, name, packed.tree.bytes, packed.size()?).await?;
    if waiting.dry_run {
        let Packed { files, bytes, .. } = packed.tree;
        return say(format_args!("would deploy {files} files, {bytes} to {name}"));
    }
    let tree = upload(&cell, packed.file.path(), &format!("site {name}")).await?;
    let mut site: SiteView = cell.post(&format!("/sites/{name}/deploy"), &DeploySite { tree }).await?;
    if let Some(limit) = waiting.limit() {
        let what = format!("every holder of {name} to have the new files");
        site = cell
            .wait_for(&format!("/sites/{name}"), limit, &what, |site: SiteView| {
                (site.volume.filling.is_empty() && !site.volume.holders.is_empty()).then_some(site)
            })
            .await?;
    }
    show(global, &site)
}

async fn scale(global: &Global, scale: Scale) -> Result<()> {
    let name = &scale.name;
    let policy = scale.policy.map(|_| Policy::Load { up: scale.up, down: scale.down });
    if let Some(policy) = policy {
        policy.check().map_err(|error| Fault::Usage(format!("site {name}: {error}")))?;
    }
    let request = ScaleSite { min: scale.min, max: scale.max, policy };
    let cell = global.cell()?;
    if scale.waiting.dry_run {
        let site = find(&cell, name).await?;
        let (min, max) = (request.min.unwrap_or(site.min), request.max.unwrap_or(site.max));
        return say(format_args!(
            "would let {name} have {min} to {max} instances instead of {} to {}",
            site.min, site.max
        ));
    }
    let mut site: SiteView = cell.post(&format!("/sites/{name}/scale"), &request).await?;
    if let Some(limit) = scale.waiting.limit() {
        let (min, max) = (site.min, site.max);
        let what = format!("site {name} to have {min} to {max} instances");
        site = cell
            .wait_for(&format!("/sites/{name}"), limit, &what, |site: SiteView| {
                let serving = site.instances.iter().filter(|instance| instance.phase == "serving").count();
                (serving >= min && site.instances.len() <= max).then_some(site)
            })
            .await?;
    }
    show(global, &site)
}

async fn move_writer(global: &Global, name: &SiteName, to: Option<ServerId>, waiting: Waiting) -> Result<()> {
    let cell = global.cell()?;
    let request = MoveWriter { to, dry_run: waiting.dry_run };
    let moved: WriterMove = cell.post(&format!("/sites/{name}/move-writer"), &request).await?;
    let from = moved.from.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    if waiting.dry_run {
        return say(format_args!("would move the writer of {name} from {from} to {}", moved.to));
    }
    if let Some(limit) = waiting.limit() {
        let what = format!("{} to serve the database of {name}", moved.to);
        cell.wait_for(&format!("/sites/{name}"), limit, &what, |site: SiteView| {
            (site.writer.as_ref() == Some(&moved.to) && site.writer_ready).then_some(())
        })
        .await?;
    }
    global.format().one(&moved, |moved| {
        vec![("site", moved.site.to_string()), ("from", from.clone()), ("writer", moved.to.to_string())]
    })
}

async fn exec(cell: &Cell, name: &SiteName, command: Vec<String>) -> Result<()> {
    let site = find(cell, name).await?;
    let Some(instance) = site.instances.iter().find(|instance| instance.phase == "serving") else {
        bail!("no instance of site {name} serves now; see `kopek instance ls --site {name}`");
    };
    let agent = agent_of(cell, instance).await?;
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().read_to_end(&mut input)?;
    }
    let request = ExecRequest { argv: command, stdin: STANDARD.encode(input) };
    let answer =
        cell.ask_agent(Method::POST, agent, &format!("/exec/{}", instance.id), Some(&request)).await?;
    let mut code = None;
    let mut partial = Vec::new();
    for_each_piece(answer, |piece| {
        partial.extend_from_slice(piece);
        while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            match serde_json::from_slice(&line)? {
                ExecLine::Out(text) => put(&STANDARD.decode(text)?)?,
                ExecLine::Err(text) => put_message(&STANDARD.decode(text)?),
                ExecLine::Exit(exit) => code = Some(exit),
            }
        }
        Ok(())
    })
    .await?;
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(Fault::Exit(code.clamp(1, 255) as u8).into()),
        None => bail!("instance {} ended before the command did", instance.id),
    }
}

async fn agent_of(cell: &Cell, instance: &InstanceView) -> Result<SocketAddr> {
    let servers: Vec<ServerView> = cell.get("/servers").await?;
    let server = servers.into_iter().find(|server| server.name == instance.server);
    let server = server.with_context(|| format!("server {} is gone", instance.server))?;
    Ok(SocketAddr::new(server.address, AGENT_PORT))
}

async fn delete(cell: &Cell, name: &SiteName, confirm: Option<SiteName>) -> Result<()> {
    find(cell, name).await?;
    let confirmed = match confirm {
        Some(given) => given == *name,
        None => {
            if std::io::stdin().is_terminal() {
                let question = format!(
                    "This removes the files and the database of {name} for good. Type its name to go on: "
                );
                put_message(question.as_bytes());
            }
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            line.trim() == name.as_str()
        }
    };
    if !confirmed {
        let error = format!("site {name} was not deleted: its name was not confirmed; give --confirm {name}");
        return Err(Fault::Usage(error).into());
    }
    let spinner = spinner(format!("deleting {name}"));
    let deleted = cell.delete(&format!("/sites/{name}")).await;
    spinner.finish_and_clear();
    deleted
}

pub async fn find(cell: &Cell, name: &SiteName) -> Result<SiteView> {
    let sites: Vec<SiteView> = cell.get("/sites").await?;
    let found = sites.into_iter().find(|site| site.name == *name);
    Ok(found.ok_or_else(|| Fault::unknown("site", name))?)
}

pub fn show(global: &Global, site: &SiteView) -> Result<()> {
    global.format().one(site, |site| {
        let Policy::Load { up, down } = site.policy;
        vec![
            ("name", site.name.to_string()),
            ("state", site.state.clone()),
            ("domains", names(&site.domains)),
            ("image", site.image.to_string()),
            ("scale", format!("{} to {}, one more at load {up}, one less below {down}", site.min, site.max)),
            ("pool", site.pool.to_string()),
            (
                "writer",
                match &site.writer {
                    Some(writer) if site.writer_chosen => format!("{writer}, chosen by an admin"),
                    Some(writer) => writer.to_string(),
                    None => "-".to_owned(),
                },
            ),
            ("db limits", site.database_limits.to_string()),
            (
                "volume",
                format!(
                    "{} files, {}, on {}{}",
                    site.volume.files,
                    site.volume.bytes,
                    names(&site.volume.holders),
                    match site.volume.filling.as_slice() {
                        [] => String::new(),
                        filling => format!("; filling {}", names(filling)),
                    }
                ),
            ),
            ("instances", format!("\n{}", table(INSTANCE_HEAD, site.instances.iter().map(instance_row)))),
        ]
    })
}
