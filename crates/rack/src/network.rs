//! The rack's wires: one bridge, and for each server a network namespace whose `eth0` hangs on it. The machine
//! itself has .254 on the bridge, so that the command line and the tests reach servers and VIPs.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kopek_core::ServerId;
use nix::sys::signal::Signal;

use crate::error::RackError;
use crate::names::{NETNS_DIR, Names, Subnet};

/// Routes wider than this (a VPN's 10.0.0.0/8, the default route) yield to our /24 and take nothing from us.
const WIDEST_RIVAL: u8 = 16;

/// The first of 10.74.0.0/24 to 10.74.255.0/24 that no route of this machine leads to.
pub(crate) fn free_subnet() -> Result<Subnet, RackError> {
    let routes = ip(&["-4", "route", "show", "table", "all"])?;
    let taken: Vec<(Ipv4Addr, u8)> = routes.split_whitespace().filter_map(network).collect();
    let is_free = |n: &u8| {
        let ours = Ipv4Addr::new(10, 74, *n, 0);
        !taken.iter().any(|(network, prefix)| *prefix >= WIDEST_RIVAL && overlaps(ours, *network, *prefix))
    };
    (0..=255).find(is_free).map(Subnet).ok_or(RackError::NoSubnet)
}

/// `10.1.2.0/24` or a bare address; none for the other words of a route.
fn network(word: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = word.split_once('/').unwrap_or((word, "32"));
    Some((address.parse().ok()?, prefix.parse().ok()?))
}

fn overlaps(ours: Ipv4Addr, network: Ipv4Addr, prefix: u8) -> bool {
    let shared = u32::from(prefix.min(24));
    (u32::from(ours) ^ u32::from(network)) >> (32 - shared) == 0
}

/// The bridge with the machine's own address; again after the machine itself was rebooted.
pub(crate) fn raise_bridge(names: &Names, subnet: Subnet) -> Result<(), RackError> {
    let bridge = names.bridge();
    if !exists(&bridge) {
        // No spanning tree and no delay: a healed cable carries at once. No snooping: without a querier on the
        // bridge it would lose VRRP's and discovery's multicast.
        ip(&["link", "add", "name", &bridge, "address", &names.mac(254), "type", "bridge"])?;
        let off = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
        ip(&[&["link", "set", &bridge, "type", "bridge"], &off[..]].concat())?;
    }
    ip(&["addr", "replace", &format!("{}/24", subnet.machine()), "dev", &bridge])?;
    ip(&["link", "set", &bridge, "up"])?;
    Ok(())
}

/// A fresh network namespace for a server that boots: nothing of what ran before is left in it.
pub(crate) fn wire(
    names: &Names,
    server: &ServerId,
    address: Ipv4Addr,
    cable: Cable,
) -> Result<(), RackError> {
    unwire(names, server)?;
    let (netns, host_end) = (names.netns(server), names.cable(server));
    let mac = names.mac(address.octets()[3]);
    ip(&["netns", "add", &netns])?;
    let peer = ["peer", "name", "eth0", "address", &mac, "netns", &netns];
    ip(&[&["link", "add", &host_end, "type", "veth"], &peer[..]].concat())?;
    let inside = |words: &[&str]| ip(&[&["-n", &netns], words].concat());
    inside(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    inside(&["link", "set", "lo", "up"])?;
    inside(&["link", "set", "eth0", "up"])?;
    // Discovery's multicast needs a way out, and there is no default route: the rack is an island.
    inside(&["route", "add", "224.0.0.0/4", "dev", "eth0"])?;
    match cable {
        Cable::Plugged => plug(names, server),
        Cable::Pulled => Ok(()),
    }
}

/// Takes the namespace and the cable away, whichever of them is there.
pub(crate) fn unwire(names: &Names, server: &ServerId) -> Result<(), RackError> {
    remove_link(&names.cable(server))?;
    remove_netns(&names.netns(server))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cable {
    Plugged,
    Pulled,
}

pub(crate) fn cable(names: &Names, server: &ServerId) -> Cable {
    let host_end = names.cable(server);
    let on_bridge = Path::new("/sys/class/net").join(&host_end).join("master").exists();
    if exists(&host_end) && !on_bridge { Cable::Pulled } else { Cable::Plugged }
}

pub(crate) fn plug(names: &Names, server: &ServerId) -> Result<(), RackError> {
    ip(&["link", "set", &names.cable(server), "master", &names.bridge(), "up"]).map(|_| ())
}

/// Off the bridge, and down like a pulled cable: left up, the machine itself would still answer the server's
/// ARP requests for .254 on it.
pub(crate) fn pull(names: &Names, server: &ServerId) -> Result<(), RackError> {
    ip(&["link", "set", &names.cable(server), "nomaster", "down"]).map(|_| ())
}

/// The network of a server without power: what it had open is not even closed.
pub(crate) fn silence(names: &Names, server: &ServerId) -> Result<(), RackError> {
    ip(&["-n", &names.netns(server), "link", "set", "eth0", "down"]).map(|_| ())
}

/// What this rack has on the machine: interfaces and the files of network namespaces.
pub(crate) fn links(names: &Names) -> Vec<String> {
    let (bridge, prefix) = (names.bridge(), names.cable_prefix());
    entries("/sys/class/net")
        .into_iter()
        .filter(|link| *link == bridge || link.starts_with(&prefix))
        .collect()
}

pub(crate) fn namespaces(names: &Names) -> Vec<String> {
    let prefix = names.netns_prefix();
    entries(NETNS_DIR).into_iter().filter(|netns| netns.starts_with(&prefix)).collect()
}

pub(crate) fn netns_file(names: &Names, server: &ServerId) -> PathBuf {
    Path::new(NETNS_DIR).join(names.netns(server))
}

pub(crate) fn remove_link(link: &str) -> Result<(), RackError> {
    if !exists(link) {
        return Ok(());
    }
    match ip(&["link", "del", link]) {
        // It may go by itself, with the namespace that has its other end.
        Err(error) if exists(link) => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn remove_netns(netns: &str) -> Result<(), RackError> {
    if !Path::new(NETNS_DIR).join(netns).exists() {
        return Ok(());
    }
    ip(&["netns", "del", netns]).map(|_| ())
}

/// `ip netns add` made /run/netns a mount of its own; goes when no namespace of anybody is in it.
pub(crate) fn tidy_netns_dir() {
    if entries(NETNS_DIR).is_empty() && Path::new(NETNS_DIR).exists() {
        let _ = nix::mount::umount(NETNS_DIR);
        let _ = fs::remove_dir(NETNS_DIR);
    }
}

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

fn entries(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn ip(words: &[&str]) -> Result<String, RackError> {
    run(Command::new("ip").args(words))
}

/// Runs a short system program to its end; what it printed, or an error with what it complained of. Ends with us if
/// we are killed, so that `down` never races with what a killed `up` had begun.
pub(crate) fn run(command: &mut Command) -> Result<String, RackError> {
    let line = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    };
    let line = line();
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    match command.output() {
        Ok(out) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        Ok(out) => {
            let output = String::from_utf8_lossy(&out.stderr).trim().replace('\n', "; ");
            Err(RackError::Command { command: line, output })
        }
        Err(source) => Err(RackError::Io { what: format!("run {line}"), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_overlaps_a_route_into_it_and_one_that_contains_it() {
        let ours = Ipv4Addr::new(10, 74, 3, 0);
        let routed = |word: &str| {
            let (address, prefix) = network(word).unwrap();
            overlaps(ours, address, prefix)
        };
        assert!(routed("10.74.3.0/24") && routed("10.74.3.7") && routed("10.74.0.0/16"));
        assert!(!routed("10.74.4.0/24") && !routed("10.75.0.0/16") && !routed("192.0.2.1"));
        assert_eq!(network("default"), None);
    }
}
