//! Announces this server's VIPs by keepalived (VRRPv3, RFC 5798) from generated configuration. A VIP of ours is
//! on the interface only while keepalived announces it. Called by the agent.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kopek_core::ServerId;
use kopek_core::assignment::AssignedVip;
use kopek_core::config::Dirs;
use kopek_core::observed::Health;
use rustix::process::Signal;
use tracing::{info, warn};

use crate::daemon::{Daemon, Program, Supervised};

const NAME: &str = "keepalived";
/// It takes its addresses off and says goodbye (priority 0): 70 ms to 1 s when measured.
const GRACE: Duration = Duration::from_secs(3);

/// Keeps keepalived in step with the assignment.
#[derive(Debug)]
pub struct Keepalived {
    dirs: Dirs,
    server: ServerId,
    interface: String,
    running: Option<Supervised>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}")]
pub struct KeepalivedError {
    path: PathBuf,
    source: io::Error,
}

impl Keepalived {
    pub fn new(dirs: &Dirs, server: &ServerId, interface: &str) -> Keepalived {
        Keepalived {
            dirs: dirs.clone(),
            server: server.clone(),
            interface: interface.to_owned(),
            running: None,
        }
    }

    /// Announces these VIPs, as one who would rather not while the edge is ill. May be called as often as
    /// one likes: without a change it does nothing. Without any VIP it runs on and says nothing.
    pub fn apply(&mut self, vips: &[AssignedVip], edge: Health) -> Result<(), KeepalivedError> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(|source| KeepalivedError { path: folder, source })?;
        let ill = match edge {
            Health::Well => "0\n",
            Health::Ill => "1\n",
        };
        write_if_other(&self.edge_file(), ill)?;
        self.remember(vips)?;
        let changed = write_if_other(&self.configuration_file(), &self.configuration(vips))?;
        match &self.running {
            Some(running) if changed => running.signal(Signal::HUP),
            Some(_) => (),
            None => {
                if let Some(earlier) = Daemon::adopt(&self.dirs, NAME) {
                    earlier.signal(Signal::HUP);
                }
                let (interface, list) = (self.interface.clone(), self.vip_file());
                let sweep = move || take_off(&interface, &known_vips(&list));
                self.running = Some(Supervised::keep(&self.dirs, self.program(), sweep));
            }
        }
        Ok(())
    }

    /// VIPs of this cell that are on the interface now.
    pub fn held(&self) -> Vec<IpAddr> {
        let ours = known_vips(&self.vip_file());
        addresses_on(&self.interface).intersection(&ours).copied().collect()
    }

    /// Stops it and takes off what a killed keepalived left. An address takes a second longer to another server
    /// than by `apply` without it.
    pub async fn silence(&mut self) -> Result<(), KeepalivedError> {
        if let Some(running) = self.running.take() {
            running.stop(GRACE).await;
        }
        if let Some(earlier) = Daemon::adopt(&self.dirs, NAME) {
            earlier.stop(GRACE).await;
        }
        let ours = known_vips(&self.vip_file());
        if !ours.is_empty() {
            take_off(&self.interface, &ours);
            write_if_other(&self.vip_file(), "")?;
            write_if_other(&self.configuration_file(), "")?;
        }
        Ok(())
    }

    fn configuration(&self, vips: &[AssignedVip]) -> String {
        let mut text = String::from("# Written by the kopek agent.\n");
        let edge = self.edge_file();
        let _ = write!(
            text,
            "global_defs {{\n    router_id {}\n    vrrp_version 3\n    \
             # At once and a second later: a switch may miss one, and asks no second time.\n    \
             vrrp_garp_master_delay 1\n    vrrp_garp_master_repeat 2\n    \
             # Before the instances: an advert that waits for a busy processor moves the address for nothing.\n    \
             vrrp_priority -20\n    vrrp_no_swap\n}}\n\
             # 1 in the file: lower than every well edge, but alone it still takes the address.\n\
             track_file edge {{\n    file \"{}\"\n    weight -253\n}}\n",
            self.server,
            edge.display(),
        );
        for vip in vips {
            let prefix = if vip.address.is_ipv4() { 32 } else { 128 };
            let _ = write!(
                text,
                "vrrp_instance vip{router} {{\n    interface {interface}\n    state BACKUP\n    \
                 virtual_router_id {router}\n    priority {priority}\n    advert_int 0.1\n    \
                 virtual_ipaddress {{\n        {address}/{prefix}\n    }}\n    \
                 track_file {{\n        edge\n    }}\n}}\n",
                router = vip.router,
                interface = self.interface,
                priority = vip.priority,
                address = vip.address,
            );
        }
        text
    }

    fn program(&self) -> Program {
        let folder = self.folder();
        let args = vec![
            "--dont-fork".into(),
            "--vrrp".into(),
            "--log-console".into(),
            "--no-syslog".into(),
            "--use-file".into(),
            self.configuration_file().into(),
            "--pid".into(),
            folder.join("parent.pid").into(),
            "--vrrp_pid".into(),
            folder.join("vrrp.pid").into(),
        ];
        Program {
            name: NAME,
            executable: "keepalived",
            package: "keepalived",
            args,
            environment: Vec::new(),
            account: None,
        }
    }

    /// The VIPs that may be on the interface because of us: those configured, and those that were.
    fn remember(&self, vips: &[AssignedVip]) -> Result<(), KeepalivedError> {
        let mut known = known_vips(&self.vip_file());
        known.extend(vips.iter().map(|vip| vip.address));
        let lines: String = known.iter().map(|address| format!("{address}\n")).collect();
        write_if_other(&self.vip_file(), &lines).map(|_| ())
    }

    fn folder(&self) -> PathBuf {
        self.dirs.run.join(NAME)
    }

    fn configuration_file(&self) -> PathBuf {
        self.folder().join("keepalived.conf")
    }

    fn edge_file(&self) -> PathBuf {
        self.folder().join("edge-ill")
    }

    fn vip_file(&self) -> PathBuf {
        self.folder().join("vips")
    }
}

fn known_vips(list: &Path) -> BTreeSet<IpAddr> {
    let text = fs::read_to_string(list).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// In place, so that keepalived's watch on the file holds. Whether it differed.
fn write_if_other(path: &Path, text: &str) -> Result<bool, KeepalivedError> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    fs::write(path, text).map_err(|source| KeepalivedError { path: path.to_owned(), source })?;
    Ok(true)
}

fn addresses_on(interface: &str) -> BTreeSet<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return BTreeSet::new();
    };
    all.filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| entry.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect()
}

/// Takes leftovers off the interface before somebody else's announcement meets two holders.
fn take_off(interface: &str, vips: &BTreeSet<IpAddr>) {
    for vip in addresses_on(interface).intersection(vips) {
        let prefix = if vip.is_ipv4() { 32 } else { 128 };
        let removed = Command::new("/sbin/ip")
            .args(["addr", "del", &format!("{vip}/{prefix}"), "dev", interface])
            .status();
        match removed {
            Ok(status) if status.success() => {
                info!(%vip, interface, "left by a killed keepalived: taken off")
            }
            other => {
                warn!(%vip, interface, ?other, "cannot take the address off; run: ip addr del")
            }
        }
    }
}
