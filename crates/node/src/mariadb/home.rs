//! Where a member keeps its things, and the configuration file that says so to mariadbd. Debian's own
//! /etc/mysql is never read.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kopek_core::PoolName;
use kopek_core::config::{Dirs, POOL_PORT};

use super::{CLIENT_PORT, MemberConfig};
use crate::daemon::{Account, DaemonError};

/// Whole state transfers; incremental ones use the port after the group's.
const TRANSFER_PORT: u16 = 4444;
pub const PACKAGE: &str = "mariadb-server";
pub const PROVIDER: &str = "/usr/lib/galera/libgalera_smm.so";
/// Time for a clean stop: InnoDB writes back what is dirty.
pub const GRACE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Home {
    pub dirs: Dirs,
    pub config: MemberConfig,
}

impl Home {
    pub fn new(dirs: &Dirs, config: MemberConfig) -> Home {
        Home { dirs: dirs.clone(), config }
    }

    /// mariadbd's and its state transfers' account. They fail in various ways as root.
    pub fn account() -> Result<Account, DaemonError> {
        Account::named("mysql", PACKAGE)
    }

    pub fn state(&self) -> PathBuf {
        self.dirs.state.join("mariadb")
    }

    /// Complete once it exists.
    pub fn data(&self) -> PathBuf {
        self.state().join("data")
    }

    /// Where data are kept of a pool that this server has no member of any more.
    pub fn data_of(&self, pool: &PoolName) -> PathBuf {
        self.state().join(format!("data.of-{pool}"))
    }

    /// The name of the pool whose data these are (belonging.rs).
    pub fn belonging(&self) -> PathBuf {
        self.state().join("pool")
    }

    pub fn tls(&self) -> PathBuf {
        self.state().join("tls")
    }

    pub fn temporary(&self) -> PathBuf {
        self.state().join("tmp")
    }

    pub fn configuration_file(&self) -> PathBuf {
        self.state().join("member.cnf")
    }

    /// Exists while a bootstrap order is spent: the group has had a second member, so starting another one
    /// would split it.
    pub fn spent_bootstrap(&self) -> PathBuf {
        self.state().join("bootstrap-spent")
    }

    /// There while the data come from another member and may not be on disk yet (position.rs).
    pub fn copy_mark(&self) -> PathBuf {
        self.state().join("copy-unsaved")
    }

    pub fn run(&self) -> PathBuf {
        self.dirs.run.join("mariadb")
    }

    pub fn socket(&self) -> PathBuf {
        self.run().join("mariadbd.sock")
    }

    /// `gcomm://10.0.0.1,10.0.0.2`
    pub fn group_url<'a>(group: impl Iterator<Item = &'a IpAddr>) -> String {
        let members: Vec<String> =
            group.map(|address| SocketAddr::new(*address, POOL_PORT).to_string()).collect();
        format!("gcomm://{}", members.join(","))
    }

    pub fn configuration(&self, pool: &PoolName) -> String {
        let MemberConfig { server, address, buffer_pool } = &self.config;
        let file = |name: &str| self.tls().join(name).display().to_string();
        let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
        let provider = [
            format!("gmcast.listen_addr=ssl://{}", SocketAddr::new(*address, POOL_PORT)),
            format!("socket.ssl_ca={ca};socket.ssl_cert={cert};socket.ssl_key={key}"),
            // The agents evict a member whose server is dead; this is for when they cannot. At 1 s two members
            // that joined at once on a loaded machine suspected the healthy ones, and the pool fell apart.
            "evs.keepalive_period=PT0.25S;evs.inactive_check_period=PT0.25S".to_owned(),
            "evs.suspect_timeout=PT3S;evs.inactive_timeout=PT6S;evs.install_timeout=PT6S".to_owned(),
            // Agents clear the list of evicted nodes (client.rs); this is for one that died in between.
            "evs.view_forget_timeout=PT10S".to_owned(),
            // When two members put a third out at once, or one joins, a first word may be missed: it was repeated
            // after 1 s, and every other eviction took that long. This is the least that Galera allows.
            "evs.join_retrans_period=PT0.1S".to_owned(),
            // The controller alone decides who starts a group. By itself Galera would, from a saved view.
            "pc.recovery=FALSE".to_owned(),
            // How far behind a member may be and still catch up without copying everything.
            "gcache.size=64M".to_owned(),
        ]
        .join(";");
        // No binary log: nothing reads it yet, and each commit would be written twice.
        format!(
            "# Written by the kopek agent.\n\
             [mysqld]\n\
             datadir={data}\n\
             tmpdir={tmp}\n\
             socket={socket}\n\
             pid-file={pid}\n\
             bind-address=127.0.0.1\n\
             port={CLIENT_PORT}\n\
             skip_name_resolve=ON\n\
             # The client's file, which the client alone decides to send; the member's own stay closed.
             local_infile=ON\n\
             secure_file_priv={tmp}\n\
             max_connections=1000\n\
             max_allowed_packet=64M\n\
             character_set_server=utf8mb4\n\
             collation_server=utf8mb4_general_ci\n\
             performance_schema=OFF\n\
             default_storage_engine=InnoDB\n\
             innodb_buffer_pool_size={buffer}\n\
             innodb_log_file_size=64M\n\
             # With 0, acknowledged commits were lost when all members died at once.\n\
             innodb_flush_log_at_trx_commit=1\n\
             innodb_autoinc_lock_mode=2\n\
             binlog_format=ROW\n\
             # Sites may make triggers and functions, as on any hosting; Galera would ask for SUPER.\n\
             log_bin_trust_function_creators=ON\n\
             wsrep_on=ON\n\
             wsrep_provider={PROVIDER}\n\
             wsrep_provider_options=\"{provider}\"\n\
             wsrep_cluster_name={cluster}\n\
             wsrep_node_name={server}\n\
             wsrep_node_address={address}\n\
             # Sites have one writer each, and applications expect ids without gaps of the cluster's size.\n\
             wsrep_auto_increment_control=OFF\n\
             # A net below what sql adapts, for what it cannot see (procedures, texts in variables): rows of such\n\
             # tables would silently stay on one member. Not STRICT_REPLICATION, REQUIRED_PRIMARY_KEY,\n\
             # enforce_storage_engine or innodb_force_primary_key: they refuse sites' temporary tables too.\n\
             wsrep_mode=REPLICATE_MYISAM,REPLICATE_ARIA\n\
             # Unlike rsync it leaves the donor writable, and needs no name for its peer.\n\
             wsrep_sst_method=mariabackup\n\
             wsrep_sst_auth=mysql:\n\
             wsrep_sst_receive_address={receive}\n\
             [sst]\n\
             # 4: both sides show a certificate of the cell's authority.\n\
             encrypt=4\n\
             tca={ca}\n\
             tcert={cert}\n\
             tkey={key}\n",
            cluster = cluster_name(pool),
            data = self.data().display(),
            tmp = self.temporary().display(),
            socket = self.socket().display(),
            pid = self.run().join("mariadbd.pid").display(),
            buffer = buffer_pool.0,
            receive = SocketAddr::new(*address, TRANSFER_PORT),
        )
    }

    /// The first argument of every program that reads the configuration; it must come first.
    pub fn defaults_argument(&self) -> String {
        format!("--defaults-file={}", self.configuration_file().display())
    }
}

/// Galera lets nobody into a group of another name: a member that follows an old list of addresses may call at a
/// server that carries another pool by now.
fn cluster_name(pool: &PoolName) -> String {
    if *pool == PoolName::first() { "kopek".to_owned() } else { format!("kopek-{pool}") }
}

/// The group's id, the same on every server of a pool and another one for each: from the cell's authority.
pub fn group_id(ca_pem: &[u8], pool: &PoolName) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ca_pem);
    if *pool != PoolName::first() {
        hasher.update(pool.as_str().as_bytes());
    }
    let hex = hasher.finalize().to_hex();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

pub fn grastate(data: &Path) -> PathBuf {
    data.join("grastate.dat")
}
