//! An instance's network: its own namespace with a name in the file system, joined to the server by a
//! point-to-point veth pair, and the rules that keep it from everybody but the gate and the internet.
//!
//! ```text
//!  instance's namespace                         server's namespace
//!  eth0  10.201.0.7/32                          kpi0ac90007  169.254.74.1/32
//!  default via 169.254.74.1                     10.201.0.7/32 dev kpi0ac90007
//! ```
//! Every pair has the same server side address, so an instance needs to know nothing about its server. There
//! is no bridge: what goes from one instance to another has to pass the server's `forward` chain, which
//! refuses it. The namespace belongs to the initial user namespace: root inside can change nothing in it.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kopek_core::desired::Internet;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::InstanceSpec;

/// The server's side of every pair, and so the address from which the gate's connections come: images trust
/// X-Forwarded-For from it. Link-local (RFC 3927), so never routed.
pub const SERVER_SIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 74, 1);

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot make the network namespace {path}; it needs root")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("cannot run {program}; install {package}")]
    NoProgram { program: &'static str, package: &'static str, source: io::Error },
    #[error("{program} refused: {message}")]
    Refused { program: &'static str, message: String },
    #[error("cannot let this server forward packets (/proc/sys/net/ipv4/ip_forward)")]
    Forwarding { source: io::Error },
}

/// Gives the instance its namespace and its way to the server. The namespace appears under its name when it
/// is complete, so a name that is there needs no more work.
pub fn connect(spec: &InstanceSpec) -> Result<(), NetworkError> {
    if is_namespace(&spec.netns) && has_interface(spec) {
        return Ok(());
    }
    disconnect(spec)?;
    // A thread of its own: the namespace that `unshare` makes is this thread's alone and ends with it, unless
    // it got its name.
    std::thread::scope(|scope| scope.spawn(|| make_namespace(spec)).join()).unwrap_or_else(|_| {
        Err(namespace_error(&spec.netns)(io::Error::other("the thread that makes it panicked")))
    })
}

fn make_namespace(spec: &InstanceSpec) -> Result<(), NetworkError> {
    let failed = |source: io::Error| namespace_error(&spec.netns)(source);
    if let Some(folder) = spec.netns.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    File::create(&spec.netns).map_err(failed)?;

    let server = File::open("/proc/thread-self/ns/net").map_err(failed)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(failed)?;
    // The web server binds port 80 although its user namespace does not own this network namespace.
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").map_err(failed)?;
    ip(&inner_side(spec, &server))?;
    setns(server.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
    ip(&server_side(spec))?;

    let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount(Some(path.as_str()), &spec.netns, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed(errno.into()))
}

fn inner_side(spec: &InstanceSpec, server: &File) -> String {
    let (address, name) = (spec.address, interface(spec));
    // The descriptor of the server's namespace is not inherited by `ip`, but its path through us is open to it.
    let server = format!("/proc/{}/fd/{}", std::process::id(), server.as_raw_fd());
    format!(
        "link set lo up\n\
         link add eth0 type veth peer name {name} netns {server}\n\
         link set eth0 addrgenmode none\n\
         addr add {address}/32 dev eth0\n\
         link set eth0 up\n\
         route add {SERVER_SIDE} dev eth0 scope link\n\
         route add default via {SERVER_SIDE} dev eth0\n"
    )
}

fn server_side(spec: &InstanceSpec) -> String {
    let (address, name) = (spec.address, interface(spec));
    format!(
        "link set {name} addrgenmode none\n\
         addr add {SERVER_SIDE}/32 dev {name}\n\
         link set {name} up\n\
         route replace {address}/32 dev {name} src {SERVER_SIDE}\n"
    )
}

/// The server side's name says whether the instance may reach the internet, so that the firewall need not
/// change when an instance comes or goes: `kpi` and `kpc` (closed), then the address in hexadecimal.
fn interface(spec: &InstanceSpec) -> String {
    let kind = match spec.limits.internet {
        Internet::Reachable => 'i',
        Internet::Closed => 'c',
    };
    format!("kp{kind}{:08x}", u32::from(spec.address))
}

fn has_interface(spec: &InstanceSpec) -> bool {
    nix::net::if_::if_nametoindex(interface(spec).as_str()).is_ok()
}

/// Takes it all away again. Nothing to do is fine.
pub(crate) fn disconnect(spec: &InstanceSpec) -> Result<(), NetworkError> {
    if has_interface(spec) {
        // Removed here and now; with the namespace it would go some time later, and its address could not be
        // given to the next instance. It may be going already.
        match ip(&format!("link del {}\n", interface(spec))) {
            Err(NetworkError::Refused { message, .. }) if message.contains("Cannot find device") => {}
            other => other?,
        }
    }
    while is_namespace(&spec.netns) {
        umount2(&spec.netns, MntFlags::MNT_DETACH)
            .map_err(|errno| namespace_error(&spec.netns)(errno.into()))?;
    }
    match std::fs::remove_file(&spec.netns) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(namespace_error(&spec.netns)(error)),
        _ => Ok(()),
    }
}

fn namespace_error(path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    |source| NetworkError::Namespace { path, source }
}

fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Who instances may reach. Replies to the gate are always let through; what is not named here and is not
/// the internet is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Firewall {
    /// Networks of the servers, as address and prefix length: closed to instances.
    pub cell: Vec<(IpAddr, u8)>,
    /// Public addresses of the cell: open to instances on ports 80 and 443, as they are to anybody, for sites
    /// that call themselves.
    pub public: Vec<IpAddr>,
    /// Addresses of this server that nobody may connect to anew, from anywhere: it is about to give them up.
    pub closed: Vec<IpAddr>,
    /// Name servers: open on port 53, also when they stand in a network of the cell.
    pub resolvers: Vec<IpAddr>,
}

/// Sets this server's rules, all at once in place of those before, and lets it forward packets.
pub fn firewall(rules: &Firewall) -> Result<(), NetworkError> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .map_err(|source| NetworkError::Forwarding { source })?;
    feed("nft", "nftables", &["-f", "-"], &rules.to_nft())
}

impl Firewall {
    fn to_nft(&self) -> String {
        let hosts = |addresses: &[IpAddr]| -> Vec<(IpAddr, u8)> {
            addresses.iter().map(|address| (*address, if address.is_ipv4() { 32 } else { 128 })).collect()
        };
        let cell = set("cell", &self.cell);
        let public = set("public", &hosts(&self.public));
        let closed = set("closed", &hosts(&self.closed));
        let resolvers = set("resolvers", &hosts(&self.resolvers));
        // The first two lines make the replacement one step: an absent table is made, then deleted. What has no
        // route is refused here: the kernel's own ICMP answer is rate-limited, and a site would wait for it.
        format!(
            r#"
table inet kopek
delete table inet kopek
table inet kopek {{
    {cell}{public}{closed}{resolvers}
    chain unroutable {{
        type filter hook prerouting priority raw; policy accept;
        iifname "kp*" fib saddr . iif oif missing drop
        iifname "kp*" fib daddr type != local fib daddr oif missing meta l4proto tcp reject with tcp reset
        iifname "kp*" fib daddr type != local fib daddr oif missing reject with icmpx no-route
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        ip daddr @closed4 tcp flags & (fin | syn | rst | ack) == syn drop
        ip6 daddr @closed6 tcp flags & (fin | syn | rst | ack) == syn drop
        iifname != "kp*" accept
        ct state established,related accept
        ip daddr @public4 tcp dport {{ 80, 443 }} accept
        reject with icmpx admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "kp*" jump leaving
        oifname != "kp*" accept
        ct state established,related accept
        reject with icmpx admin-prohibited
    }}
    chain leaving {{
        oifname "kp*" reject with icmpx admin-prohibited
        ct state established,related accept
        ip daddr @public4 tcp dport {{ 80, 443 }} accept
        iifname "kpc*" reject with icmpx admin-prohibited
        ip daddr @resolvers4 meta l4proto {{ tcp, udp }} th dport 53 accept
        ip daddr @cell4 reject with icmpx admin-prohibited
        ip6 daddr @cell6 reject with icmpx admin-prohibited
        # Link-local: where clouds answer with a machine's credentials.
        ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
        accept
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        iifname "kp*" oifname != "kp*" masquerade
    }}
}}
"#
        )
    }
}

/// One set for each address family; sets may be empty.
fn set(name: &str, networks: &[(IpAddr, u8)]) -> String {
    let one = |suffix: &str, kind: &str, networks: Vec<String>| {
        let elements = match networks.is_empty() {
            true => String::new(),
            false => format!("elements = {{ {} }}", networks.join(", ")),
        };
        format!("set {name}{suffix} {{ type {kind}; flags interval; auto-merge; {elements} }}\n    ")
    };
    let (v4, v6): (Vec<_>, Vec<_>) = networks.iter().partition(|(address, _)| address.is_ipv4());
    let text = |networks: Vec<&(IpAddr, u8)>| {
        networks.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect()
    };
    one("4", "ipv4_addr", text(v4)) + &one("6", "ipv6_addr", text(v6))
}

/// Runs a batch of `ip` commands in the calling thread's network namespace.
fn ip(batch: &str) -> Result<(), NetworkError> {
    feed("ip", "iproute2", &["-batch", "-"], batch)
}

fn feed(
    program: &'static str,
    package: &'static str,
    arguments: &[&str],
    text: &str,
) -> Result<(), NetworkError> {
    let missing = |source| NetworkError::NoProgram { program, package, source };
    let mut child = Command::new(program)
        .args(arguments)
        // Where Debian keeps them; a service's path may lack it.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    let mut stdin = child.stdin.take().expect("stdin is piped above");
    // A program that stopped reading says why on stderr.
    let _ = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(NetworkError::Refused { program, message })
}
