//! `kopek dev up`: from nothing to a cell that serves. The same steps that an admin takes on real servers:
//! `cell init` on the first, a token and `server join` on the others, `store migrate` once there are three.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kopek_core::api::{CellView, ImageView, IssuedToken, MigrateStore, PoolView, ServerView};
use kopek_core::config::CONTROL_PORT;
use kopek_rack::{Rack, RackOptions, RackStatus, ServerStatus, Service, ServiceOrder, preflight};

use super::cell::Cell;
use super::dev::Up;
use super::doctor;
use super::image::{self, CACHE};
use super::output::tell;

const SERVICES: [&str; 5] = ["agent", "files", "sql", "edge", "control"];
/// A step that takes longer than this on the slowest machine has failed.
const STEP_LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Below this the cell's state stays in one file.
const SERVERS_FOR_ETCD: usize = 3;

pub async fn up(up: &Up) -> Result<Rack> {
    let dir = &up.place.dir;
    let listen = (up.listen.port() != 0).then_some(up.listen);
    preflight(dir, up.servers, listen)?;
    doctor::require_programs()?;
    let mut steps = Steps::new();
    let mut images = Vec::new();
    for name in &up.images {
        images.push(image::build(name, Path::new(CACHE))?);
    }
    steps.done("images are built");

    let mut options = RackOptions::new(up.servers);
    options.services = SERVICES.map(|name| Service::of_program(name, &["run", name])).to_vec();
    let rack = Rack::create(dir, options)?;
    match furnish(up, &rack, &images, listen, &mut steps).await {
        Ok(()) => Ok(rack),
        Err(error) => {
            tell(format_args!(
                "the rack stays for you to look at; `kopek dev down --dir {}` removes it",
                dir.display()
            ));
            Err(error)
        }
    }
}

async fn furnish(
    up: &Up,
    rack: &Rack,
    images: &[kopek_instance::BuiltImage],
    listen: Option<SocketAddr>,
    steps: &mut Steps,
) -> Result<()> {
    let status = rack.status()?;
    let (first, others) = status.servers.split_first().context("a rack has at least one server")?;
    steps.done(&format!("{} virtual servers run", status.servers.len()));

    found(up, rack, &status, first)?;
    start(rack, first)?;
    let cell = open_cell(rack, first)?;
    let one: Vec<ServerView> = cell.get("/servers").await?;
    assert_eq!(one.len(), 1, "a new cell has one server");
    for server in others {
        let token: IssuedToken = cell.post("/tokens", &()).await?;
        join(up, rack, server, &token.token)?;
        start(rack, server)?;
    }
    let controls = status.servers.iter().map(|server| SocketAddr::new(server.address.into(), CONTROL_PORT));
    cell.know_controls(controls.collect())?;
    steps.done("they form a cell");

    if up.servers >= SERVERS_FOR_ETCD {
        let _: () = cell.post("/store/migrate", &MigrateStore { to: "etcd".to_owned() }).await?;
        steps.done("its state is in etcd on three of them");
    }
    for built in images {
        image::bring(&cell, built).await?;
    }
    until(&cell, "/images", "every server to have the images", |images: Vec<ImageView>| {
        images.iter().all(|image| image.servers.len() == status.servers.len())
    })
    .await?;
    steps.done("every server has the images");
    until(&cell, "/pools", "the database pool", |pools: Vec<PoolView>| {
        let whole = if up.servers < 3 { 1 } else { 3 };
        let is_whole = |pool: &PoolView| {
            pool.members.len() >= whole && pool.members.iter().all(|member| member.state == "synced")
        };
        !pools.is_empty() && pools.iter().all(is_whole)
    })
    .await?;
    steps.done("the database pool is in service");
    until(&cell, "/cell", "the VIPs", |cell: CellView| cell.vips.iter().all(|vip| vip.holder.is_some()))
        .await?;
    if let (Some(listen), Some(vip)) = (listen, status.vips.first()) {
        rack.forward(listen, SocketAddr::new(IpAddr::V4(*vip), 80))?;
    }
    steps.done("the VIPs answer");
    Ok(())
}

fn found(up: &Up, rack: &Rack, status: &RackStatus, first: &ServerStatus) -> Result<()> {
    let mut words = vec!["cell".to_owned(), "init".to_owned()];
    words.extend(["--cell-name".to_owned(), format!("rack-{}", status.id)]);
    for vip in &status.vips {
        words.extend(["--vip".to_owned(), vip.to_string()]);
    }
    words.extend(machine(up, first));
    run(rack, first, words)
}

fn join(up: &Up, rack: &Rack, server: &ServerStatus, token: &str) -> Result<()> {
    // Without an address: it finds the cell by multicast, as a newcomer's server would.
    let mut words: Vec<String> = ["server", "join", "--token", token].map(str::to_owned).to_vec();
    words.extend(machine(up, server));
    run(rack, server, words)
}

fn machine(up: &Up, server: &ServerStatus) -> Vec<String> {
    let (address, slots) = (server.address.to_string(), up.slots.to_string());
    let pairs = [
        ("--name", server.name.as_str()),
        ("--address", &address),
        ("--interface", "eth0"),
        ("--slots", &slots),
    ];
    pairs.iter().flat_map(|(option, value)| [(*option).to_owned(), (*value).to_owned()]).collect()
}

/// Runs our own binary in a server.
fn run(rack: &Rack, server: &ServerStatus, words: Vec<String>) -> Result<()> {
    let program = std::env::current_exe().context("cannot find our own binary")?;
    let argv: Vec<String> = std::iter::once(program.to_string_lossy().into_owned()).chain(words).collect();
    let output = rack.output(&server.name, &argv)?;
    if !output.status.success() {
        bail!("{}: {}", server.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn start(rack: &Rack, server: &ServerStatus) -> Result<()> {
    for service in SERVICES {
        rack.service(&server.name, service, ServiceOrder::Start)?;
    }
    Ok(())
}

/// The admin's certificate of the rack's cell, in the rack's folder.
pub fn admin_folder(dir: &Path) -> PathBuf {
    dir.join("admin")
}

/// Removes what `up` put beside the rack's own files, and the folder if it is empty then.
pub fn forget_cell(dir: &Path) -> Result<()> {
    let admin = admin_folder(dir);
    if admin.join("controls.json").exists() {
        std::fs::remove_dir_all(&admin).with_context(|| format!("cannot remove {}", admin.display()))?;
        // Something of somebody else's may lie in it.
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// Takes the admin's certificate from the first server to the rack's folder.
fn open_cell(rack: &Rack, first: &ServerStatus) -> Result<Cell> {
    let init = first.init.context("the first server does not run")?;
    let from = format!("/proc/{init}/root/etc/kopek/admin");
    let to = admin_folder(rack.dir());
    std::fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in std::fs::read_dir(&from).with_context(|| format!("cannot read {from}"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Cell::open(Some(&to))
}

async fn until<R: serde::de::DeserializeOwned>(
    cell: &Cell,
    path: &str,
    what: &str,
    holds: impl Fn(R) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + STEP_LIMIT;
    while !holds(cell.get(path).await?) {
        if Instant::now() > deadline {
            bail!(
                "waited {} s for {what}; see `kopek events`, and logs in `kopek dev exec SERVER -- ls /var/log/kopek`",
                STEP_LIMIT.as_secs()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Announces each step with its time.
struct Steps {
    last: Instant,
}

impl Steps {
    fn new() -> Steps {
        Steps { last: Instant::now() }
    }

    fn done(&mut self, what: &str) {
        tell(format_args!("{:>6.1} s  {what}", self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}
