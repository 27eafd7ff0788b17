//! `kopek server …`, `kopek cell init`, `kopek store migrate`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use kopek_control::founding;
use kopek_core::ServerId;
use kopek_core::api::{IssuedToken, MigrateStore, ServerView};
use kopek_core::config::{CONTROL_PORT, Dirs, ServerConfig};
use kopek_core::desired::Cell as CellSettings;

use super::cell::Cell;
use super::output::{local_time, names, say, spinner, tell};
use super::{Fault, Global, Waiting};

#[derive(Subcommand)]
pub enum ServerCommand {
    /// List the servers of the cell
    Ls,
    /// Show one server
    Show { server: ServerId },
    /// Move its instances to other servers and give it no new ones
    Drain {
        server: ServerId,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Let it take instances again
    Undrain { server: ServerId },
    /// Print a join token, good for one server and one hour
    Token,
    /// Make this machine a server of a cell
    Join(Join),
    /// Forget a server that is drained or dead
    Remove { server: ServerId },
}

/// What a machine says of itself when it becomes a server.
#[derive(Args)]
pub struct Machine {
    /// This server's name
    #[arg(long)]
    name: ServerId,
    /// Where the other servers reach it
    #[arg(long)]
    address: IpAddr,
    /// The network interface with that address
    #[arg(long)]
    interface: String,
    /// Servers of one rack can fail together
    #[arg(long, default_value = "rack1")]
    rack: String,
    /// Instances at most; one per core unless given
    #[arg(long)]
    slots: Option<usize>,
    /// The control group below which instances get theirs
    #[arg(long, default_value = "/kopek", env = kopek_rack::CGROUP_VARIABLE, hide = true)]
    cgroup: PathBuf,
    /// The configuration file to write
    #[arg(long, default_value = "/etc/kopek/kopek.toml")]
    config: PathBuf,
}

impl Machine {
    fn config(&self) -> ServerConfig {
        ServerConfig {
            name: self.name.clone(),
            address: self.address,
            interface: self.interface.clone(),
            rack: self.rack.clone(),
            slots: self.slots,
            http_port: 80,
            cgroup: self.cgroup.clone(),
            dirs: Dirs::default(),
        }
    }

    fn make_folders(&self) -> Result<()> {
        let Dirs { etc, state, log, .. } = self.config().dirs;
        for folder in [&etc, &state, &log] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(())
    }
}

#[derive(Args)]
pub struct Join {
    /// A controller of the cell, ADDRESS or ADDRESS:PORT; without it the cell is looked for on the network
    url: Option<String>,
    /// What `kopek server token` printed
    #[arg(long)]
    token: String,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Subcommand)]
pub enum CellCommand {
    /// Make this machine the first server of a new cell
    Init {
        /// The cell's name
        #[arg(long, default_value = "cell")]
        cell_name: String,
        /// A public address that moves between servers; may be given several times
        #[arg(long = "vip")]
        vips: Vec<IpAddr>,
        #[command(flatten)]
        machine: Box<Machine>,
    },
    /// Show the cell
    Show,
}

#[derive(Subcommand)]
pub enum StoreCommand {
    /// Move the cell's state to the other kind of store
    Migrate {
        #[arg(long)]
        to: StoreKind,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum StoreKind {
    /// A file on one server
    Embedded,
    /// Three servers, any of which may die
    Etcd,
}

pub async fn server(global: &Global, command: ServerCommand) -> Result<()> {
    match command {
        ServerCommand::Ls => {
            let cell = global.cell()?;
            let servers: Vec<ServerView> = cell.get("/servers").await?;
            global.format().list(
                &servers,
                &["name", "address", "rack", "state", "instances", "slots", "load", "pool", "vips"],
                |s| {
                    vec![
                        s.name.to_string(),
                        s.address.to_string(),
                        s.rack.clone(),
                        format!("{}{}", s.state, if s.active_controller { " *" } else { "" }),
                        s.instances.to_string(),
                        s.slots.to_string(),
                        s.load.to_string(),
                        s.pool.clone(),
                        names(&s.vips),
                    ]
                },
            )
        }
        ServerCommand::Show { server } => {
            let view = find(&global.cell()?, &server).await?;
            global.format().one(&view, |s| {
                vec![
                    ("name", s.name.to_string()),
                    ("address", s.address.to_string()),
                    ("rack", s.rack.clone()),
                    ("state", s.state.clone()),
                    ("instances", format!("{} of {}", s.instances, s.slots)),
                    ("load", s.load.to_string()),
                    ("pool member", s.pool.clone()),
                    ("VIPs", names(&s.vips)),
                    ("controller", if s.active_controller { "active" } else { "standby" }.to_owned()),
                    ("disk free", s.disk_free.to_string()),
                    ("memory free", s.memory_free.to_string()),
                ]
            })
        }
        ServerCommand::Drain { server, waiting } => {
            let cell = global.cell()?;
            if waiting.dry_run {
                let view = find(&cell, &server).await?;
                return say(format_args!("would move {} instances away from {server}", view.instances));
            }
            let _: () = cell.post(&format!("/servers/{server}/drain"), &()).await?;
            let Some(limit) = waiting.limit() else { return Ok(()) };
            let what = format!("server {server} to be empty");
            cell.wait_for("/servers", limit, &what, |servers: Vec<ServerView>| {
                servers.into_iter().find(|view| view.name == server && view.instances == 0)
            })
            .await?;
            Ok(())
        }
        ServerCommand::Undrain { server } => {
            global.cell()?.post(&format!("/servers/{server}/undrain"), &()).await
        }
        ServerCommand::Token => {
            let token: IssuedToken = global.cell()?.post("/tokens", &()).await?;
            global.format().one(&token, |token| {
                vec![("token", token.token.clone()), ("good until", local_time(token.expires))]
            })
        }
        ServerCommand::Join(join) => {
            super::require_root("kopek server join")?;
            super::doctor::require_programs()?;
            let address = join.url.as_deref().map(control_address).transpose()?;
            join.machine.make_folders()?;
            let config = join.machine.config();
            founding::join(&config, &join.machine.config, address, &join.token).await?;
            tell(format_args!("{} belongs to the cell now; start its services", config.name));
            Ok(())
        }
        ServerCommand::Remove { server } => global.cell()?.delete(&format!("/servers/{server}")).await,
    }
}

async fn find(cell: &Cell, server: &ServerId) -> Result<ServerView> {
    let servers: Vec<ServerView> = cell.get("/servers").await?;
    let found = servers.into_iter().find(|view| view.name == *server);
    Ok(found.ok_or_else(|| Fault::unknown("server", server))?)
}

/// `https://10.0.0.1:7400`, `10.0.0.1:7400` or `10.0.0.1`.
fn control_address(text: &str) -> Result<SocketAddr, Fault> {
    let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    bare.parse()
        .or_else(|_| bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, CONTROL_PORT)))
        .map_err(|_| {
            Fault::Usage(format!("{text:?} is not the address of a controller; give ADDRESS[:PORT]"))
        })
}

pub async fn cell(global: &Global, command: CellCommand) -> Result<()> {
    match command {
        CellCommand::Init { cell_name, vips, machine } => {
            super::require_root("kopek cell init")?;
            super::doctor::require_programs()?;
            machine.make_folders()?;
            let settings =
                CellSettings { name: cell_name, vips: vips.into_iter().collect(), ..CellSettings::default() };
            founding::found(&machine.config(), &machine.config, settings).await?;
            tell(format_args!("{} is the first server of a new cell; start its services", machine.name));
            Ok(())
        }
        CellCommand::Show => {
            let view: kopek_core::api::CellView = global.cell()?.get("/cell").await?;
            global.format().one(&view, |cell| {
                vec![
                    ("name", cell.name.clone()),
                    ("controller", cell.active.to_string()),
                    ("store", cell.store.clone()),
                    ("converged", if cell.converged { "yes" } else { "no" }.to_owned()),
                    ("blocked", names(&cell.blocked)),
                ]
            })
        }
    }
}

pub async fn store(global: &Global, command: StoreCommand) -> Result<()> {
    let StoreCommand::Migrate { to } = command;
    let to = match to {
        StoreKind::Embedded => "embedded",
        StoreKind::Etcd => "etcd",
    };
    let spinner = spinner(format!("moving the cell's state to {to}"));
    let moved: Result<()> = global.cell()?.post("/store/migrate", &MigrateStore { to: to.to_owned() }).await;
    spinner.finish_and_clear();
    moved
}
