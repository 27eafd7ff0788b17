//! `kopek dev …`: the virtual rack and its faults.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use kopek_core::{ImageName, ServerId};
use kopek_rack::{DEFAULT_DIR, Rack, RackStatus, Removed};
use serde_json::json;

use super::dev_up;
use super::output::{Format, names, say, table, tell};
use super::{Fault, Global, require_root};

#[derive(Subcommand)]
pub enum DevCommand {
    /// Start a rack of virtual servers that form a cell
    Up(Up),
    /// Show the rack
    Status(Where),
    /// End the rack and leave nothing behind
    Down(Where),
    /// SIGKILL every process of a server; its network stays up
    Kill(On),
    /// Take a server off the network
    Cut(On),
    /// Undo cut and freeze
    Heal(On),
    /// Stop every process of a server without ending it
    Freeze(On),
    /// Kill a server with its file system shut down in mid-write
    PowerOff(On),
    /// Boot a killed or powered-off server
    PowerOn(On),
    /// Run a command in a virtual server
    Exec {
        #[command(flatten)]
        on: On,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
pub struct Where {
    /// The rack's folder
    #[arg(long, default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct On {
    server: ServerId,
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub struct Up {
    #[arg(long, default_value_t = 3)]
    pub servers: usize,
    #[command(flatten)]
    pub place: Where,
    /// Instances that one server takes
    #[arg(long, default_value_t = 4)]
    pub slots: usize,
    /// Where this machine's own browser reaches the first VIP; port 0 for none
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// An image to bring to the servers; may be given several times
    #[arg(long = "image", default_value = "php8.2-apache")]
    pub images: Vec<ImageName>,
}

pub async fn dev(global: &Global, command: DevCommand) -> Result<()> {
    require_root("kopek dev")?;
    match command {
        DevCommand::Up(up) => {
            let rack = dev_up::up(&up).await?;
            status(global.format(), &rack)
        }
        DevCommand::Status(place) => status(global.format(), &Rack::open(&place.dir)?),
        DevCommand::Down(place) => {
            let removed = Rack::down(&place.dir)?;
            dev_up::forget_cell(&place.dir)?;
            match removed {
                Removed::Rack => tell(format_args!("the rack in {} is gone", place.dir.display())),
                Removed::Nothing => tell(format_args!("there is no rack in {}", place.dir.display())),
            }
            Ok(())
        }
        DevCommand::Kill(on) => Ok(on.rack()?.kill(&on.server)?),
        DevCommand::Cut(on) => Ok(on.rack()?.cut(&on.server)?),
        DevCommand::Heal(on) => Ok(on.rack()?.heal(&on.server)?),
        DevCommand::Freeze(on) => Ok(on.rack()?.freeze(&on.server)?),
        DevCommand::PowerOff(on) => Ok(on.rack()?.power_off(&on.server)?),
        DevCommand::PowerOn(on) => Ok(on.rack()?.power_on(&on.server)?),
        DevCommand::Exec { on, command } => match on.rack()?.exec(&on.server, &command)? {
            0 => Ok(()),
            code => Err(Fault::Exit(code.clamp(1, 255) as u8).into()),
        },
    }
}

impl On {
    fn rack(&self) -> Result<Rack> {
        Ok(Rack::open(&self.place.dir)?)
    }
}

fn status(format: Format, rack: &Rack) -> Result<()> {
    let status: RackStatus = rack.status()?;
    let api = status
        .servers
        .first()
        .map(|server| format!("https://{}:{}", server.address, kopek_core::config::CONTROL_PORT));
    match format {
        Format::Json => {
            let servers: Vec<_> = status
                .servers
                .iter()
                .map(|server| {
                    json!({
                        "name": server.name,
                        "address": server.address,
                        "state": server.state.to_string(),
                        "pid": server.init,
                    })
                })
                .collect();
            let forwards: Vec<_> = status.forwards.iter().filter(|f| f.running).map(|f| f.listen).collect();
            let document = json!({
                "servers": servers,
                "vips": status.vips,
                "api": api,
                "forwards": forwards,
                "dir": status.dir,
                "subnet": status.subnet,
            });
            say(serde_json::to_string_pretty(&document)?)?;
        }
        Format::Table => {
            let rows = status.servers.iter().map(|server| {
                vec![server.name.to_string(), server.address.to_string(), server.state.to_string()]
            });
            say(table(&["server", "address", "state"], rows))?;
            say(format_args!("\nVIPs      {}", names(&status.vips)))?;
            say(format_args!("API       {}", api.unwrap_or_default()))?;
            for forward in status.forwards.iter().filter(|forward| forward.running) {
                say(format_args!("open      http://{} leads to {}", forward.listen, forward.to))?;
            }
        }
    }
    Ok(())
}
