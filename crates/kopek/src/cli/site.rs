//! `kopek site …`.

use std::io::{IsTerminal, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use hyper::Method;
use kopek_core::api::{
    CreateSite, DeploySite, ExecLine, ExecRequest, InstanceView, ScaleSite, ServerView, SiteView,
};
use kopek_core::config::AGENT_PORT;
use kopek_core::desired::{Database, Internet, Limits, Policy};
use kopek_core::{Bytes, Domain, ImageName, Load, MilliCores, SiteName};
use kopek_files::{PackOptions, Packed, Symlinks, pack_source};

use super::cell::{Cell, for_each_piece};
use super::instance::{INSTANCE_HEAD, instance_row};
use super::output::{bytes_bar, names, put, put_message, say, spinner, table};
use super::site_logs::{Logs, logs};
use super::upload::{send_dump, upload};
use super::{Fault, Global, Waiting};
use super::{site_check, site_config};

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
pub struct SourceArgs {
    /// A folder, or a .zip, .tar, .tar.gz or .tar.zst archive
    #[arg(long, value_name = "DIR|ARCHIVE")]
    from: PathBuf,
    /// Take what symbolic links in the folder point to
    #[arg(long)]
    follow_links: bool,
}

#[derive(Args)]
pub struct Create {
    name: SiteName,
    /// A host name that leads to the site; may be given several times
    #[arg(long = "domain", required = true)]
    domains: Vec<Domain>,
    #[command(flatten)]
    source: SourceArgs,
    #[arg(long, default_value = "php8.2-apache")]
    image: ImageName,
    /// An SQL dump to fill the database with
    #[arg(long, value_name = "FILE")]
    db_dump: Option<PathBuf>,
    /// The database as the site's configuration names it; read from wp-config.php or LocalSettings.php unless
    /// given
    #[arg(long)]
    db_name: Option<String>,
    #[arg(long)]
    db_user: Option<String>,
    #[arg(long, value_name = "FILE")]
    db_password_file: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    min: usize,
    #[arg(long, default_value_t = 4)]
    max: usize,
    /// Processor of one instance, in thousandths of a core
    #[arg(long, default_value_t = 1_000)]
    cpu: u32,
    /// Memory of one instance, in MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Instances cannot reach the internet
    #[arg(long)]
    no_internet: bool,
    #[command(flatten)]
    waiting: Waiting,
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
        SiteCommand::Create(create) => self::create(global, create).await,
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
        SiteCommand::Exec { name, command } => exec(&global.cell()?, &name, command).await,
        SiteCommand::Logs(wanted) => logs(&global.cell()?, &wanted).await,
        SiteCommand::Delete { name, confirm } => delete(&global.cell()?, &name, confirm).await,
    }
}

async fn create(global: &Global, create: Create) -> Result<()> {
    let cell = global.cell()?;
    site_check::check_names(&cell, &create.name, &create.domains, &create.image).await?;
    let packed = pack(&create.source)?;
    site_check::check_room(&cell, &create.name, packed.tree.bytes, packed.size()?).await?;
    let found = site_config::database_in(packed.file.path())?;
    let database = database(&create, found)?;
    if let Some(database) = &database {
        database.check().map_err(|error| Fault::Usage(format!("site {}: {error}", create.name)))?;
    }
    if create.db_dump.is_some() && database.is_none() {
        return Err(Fault::Usage("--db-dump needs the site's database; give --db-user".to_owned()).into());
    }
    // Refused before anything moves.
    let dump = create.db_dump.as_deref().map(check_readable).transpose()?;
    if create.waiting.dry_run {
        let database = database.map_or("no database".to_owned(), |db| format!("database {}", db.name));
        return say(format_args!(
            "would create {} with {} files, {}, {database}",
            create.name, packed.tree.files, packed.tree.bytes
        ));
    }
    let tree = upload(&cell, packed.file.path(), &format!("site {}", create.name)).await?;
    let request = CreateSite {
        name: create.name.clone(),
        domains: create.domains,
        image: create.image,
        tree,
        database,
        min: create.min,
        max: create.max,
        policy: Policy::default(),
        limits: Limits {
            cpu: MilliCores(create.cpu),
            memory: Bytes::mib(create.memory),
            internet: if create.no_internet { Internet::Closed } else { Internet::Reachable },
            ..Limits::default()
        },
        has_dump: dump.is_some(),
    };
    let mut site: SiteView = cell.post("/sites", &request).await?;
    // One that was created before, with its dump, is not filled again.
    if let Some(dump) = dump.filter(|_| site.state == "preparing") {
        send_dump(&cell, &create.name, &dump).await?;
        site = find(&cell, &create.name).await?;
    }
    if let Some(limit) = create.waiting.limit() {
        let spinner = spinner(format!("site {}: waiting for its first instance", create.name));
        let path = format!("/sites/{}", create.name);
        let what = format!("site {} to run", create.name);
        let running =
            cell.wait_for(&path, limit, &what, |site: SiteView| (site.state == "running").then_some(site));
        let running = running.await;
        spinner.finish_and_clear();
        site = running?;
    }
    show(global, &site)
}

/// A packed tree in a temporary file.
struct PackedFile {
    file: tempfile::NamedTempFile,
    tree: Packed,
}

impl PackedFile {
    fn size(&self) -> Result<Bytes> {
        Ok(Bytes(self.file.as_file().metadata()?.len()))
    }
}

fn pack(source: &SourceArgs) -> Result<PackedFile> {
    let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let free = rustix::fs::statvfs(file.path()).map(|stat| stat.f_bavail * stat.f_frsize).unwrap_or(u64::MAX);
    let symlinks = if source.follow_links { Symlinks::Follow } else { Symlinks::Within };
    let options = PackOptions::site(symlinks, Bytes(free));
    let bar = bytes_bar(0, "packing");
    let packed = pack_source(&source.from, file.as_file_mut(), &options, &mut |progress| {
        bar.set_length(progress.total.0);
        bar.set_position(progress.done.0);
    });
    bar.finish_and_clear();
    Ok(PackedFile { tree: packed?, file })
}

/// From the options, else from the site's own configuration.
fn database(create: &Create, found: Option<Database>) -> Result<Option<Database>> {
    let password = match &create.db_password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the password in {}", path.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => None,
    };
    match (&create.db_user, found) {
        (None, None) if create.db_name.is_none() => Ok(None),
        (None, None) => {
            Err(Fault::Usage("--db-name needs --db-user and --db-password-file".to_owned()).into())
        }
        (None, Some(found)) => Ok(Some(Database {
            name: create.db_name.clone().unwrap_or(found.name),
            user: found.user,
            password: password.unwrap_or(found.password),
        })),
        (Some(user), found) => {
            let Some(password) = password.or_else(|| found.as_ref().map(|found| found.password.clone()))
            else {
                return Err(Fault::Usage("--db-user needs --db-password-file".to_owned()).into());
            };
            let name = create.db_name.clone().or_else(|| found.map(|found| found.name));
            Ok(Some(Database { name: name.unwrap_or_else(|| user.clone()), user: user.clone(), password }))
        }
    }
}

fn check_readable(path: &Path) -> Result<PathBuf> {
    std::fs::File::open(path).with_context(|| format!("cannot read the SQL dump {}", path.display()))?;
    Ok(path.to_owned())
}

async fn deploy(global: &Global, name: &SiteName, source: &SourceArgs, waiting: Waiting) -> Result<()> {
    let cell = global.cell()?;
    find(&cell, name).await?;
    let packed = pack(source)?;
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

fn show(global: &Global, site: &SiteView) -> Result<()> {
    global.format().one(site, |site| {
        let Policy::Load { up, down } = site.policy;
        vec![
            ("name", site.name.to_string()),
            ("state", site.state.clone()),
            ("domains", names(&site.domains)),
            ("image", site.image.to_string()),
            ("scale", format!("{} to {}, one more at load {up}, one less below {down}", site.min, site.max)),
            ("writer", site.writer.as_ref().map_or("-".to_owned(), ToString::to_string)),
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
