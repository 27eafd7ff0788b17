//! A server's own configuration file, `<etc>/kopek.toml`: the few things that only this machine knows.
//! Everything else lives in the store. A key that does not exist is refused with its line and the nearest
//! key that does.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::ServerId;

/// The API of `kopek control`.
pub const CONTROL_PORT: u16 = 7400;
/// The agent's own port, for the active controller: execute in an instance, read logs.
pub const AGENT_PORT: u16 = 7401;
/// The gate and tree port of `kopek files`.
pub const GATE_PORT: u16 = 7402;
/// The relay of `kopek sql`.
pub const SQL_PORT: u16 = 7403;
/// UDP multicast on which a server without an address asks for the cell (group 239.192.74.0, RFC 2365
/// organisation-local scope).
pub const DISCOVERY_PORT: u16 = 7404;
/// The embedded store, served to the cell's servers by the agent that hosts it.
pub const STORE_PORT: u16 = 7405;
/// Of the pool's group: Galera's own.
pub const POOL_PORT: u16 = 4567;

/// The folders of one server. On a virtual server the same paths lie in its own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dirs {
    /// Configuration, keys and certificates.
    pub etc: PathBuf,
    /// Images, volumes, databases: what must survive a reboot.
    pub state: PathBuf,
    /// Sockets and what may be lost at a reboot.
    pub run: PathBuf,
    pub log: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Dirs {
            etc: "/etc/kopek".into(),
            state: "/var/lib/kopek".into(),
            run: "/run/kopek".into(),
            log: "/var/log/kopek".into(),
        }
    }
}

impl Dirs {
    /// Where the agent hands out parts.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// Where the edge of the same server reaches the gate.
    pub fn gate_socket(&self) -> PathBuf {
        self.run.join("gate.sock")
    }

    /// Where the edge says whether it serves, and what it counted.
    pub fn edge_socket(&self) -> PathBuf {
        self.run.join("edge.sock")
    }

    /// Where sql says what it counted.
    pub fn sql_socket(&self) -> PathBuf {
        self.run.join("sql.sock")
    }

    /// An image's root file system, complete once this path exists.
    pub fn image_root(&self, digest: &crate::Digest) -> PathBuf {
        self.state.join("images").join(digest.as_str()).join("root")
    }

    /// A site's file tree on a holder.
    pub fn volume_tree(&self, site: &crate::SiteName) -> PathBuf {
        self.state.join("volumes").join(site.as_str()).join("tree")
    }

    /// Packed trees (tar.zst) by digest, as they travel between servers.
    pub fn packed_tree(&self, digest: &crate::Digest) -> PathBuf {
        self.state.join("trees").join(format!("{digest}.tar.zst"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    pub name: ServerId,
    /// Where the other servers reach this one.
    pub address: IpAddr,
    /// The network interface that carries `address` and the VIPs.
    pub interface: String,
    #[serde(default = "default_rack")]
    pub rack: String,
    /// Instances at most; unset: one per core.
    #[serde(default)]
    pub slots: Option<usize>,
    /// The edge's plain HTTP port.
    #[serde(default = "default_http_port")]
    pub http_port: u16,
    /// The control group below which instances get theirs, from the root of each hierarchy.
    #[serde(default = "default_cgroup")]
    pub cgroup: PathBuf,
    #[serde(default)]
    pub dirs: Dirs,
}

fn default_cgroup() -> PathBuf {
    "/kopek".into()
}

fn default_rack() -> String {
    "rack1".to_owned()
}

fn default_http_port() -> u16 {
    80
}

/// A configuration file that cannot be used. Display is one line with file, line and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; `kopek server join` and `kopek cell init` write it")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} line {line}: unknown key {key:?}; {}", nearest_hint(.nearest))]
    UnknownKey { path: PathBuf, line: usize, key: String, nearest: Option<String> },
    #[error("{path} line {line}: {message}")]
    Invalid { path: PathBuf, line: usize, message: String },
}

fn nearest_hint(nearest: &Option<String>) -> String {
    match nearest {
        Some(key) => format!("did you mean {key:?}?"),
        None => "remove it".to_owned(),
    }
}

impl ServerConfig {
    pub fn read(path: &Path) -> Result<ServerConfig, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        ServerConfig::parse(&text, path)
    }

    /// `path` is only named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<ServerConfig, ConfigError> {
        toml::from_str(text).map_err(|error| explain(text, path, &error))
    }

    /// Instances it takes at most.
    pub fn slots(&self) -> usize {
        self.slots.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get()))
    }

    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a ServerConfig has only tables with text keys")
    }
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a line number and the nearest key.
fn explain(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let key = quoted.next().unwrap_or_default().to_owned();
        let nearest = quoted
            .map(|known| (strsim::damerau_levenshtein(&key, known), known))
            .filter(|(distance, known)| *distance <= known.len().max(key.len()) / 2)
            .min()
            .map(|(_, known)| known.to_owned());
        return ConfigError::UnknownKey { path: path.to_owned(), line, key, nearest };
    }
    ConfigError::Invalid { path: path.to_owned(), line, message: message.replace('\n', " ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"s1\"\naddress = \"10.0.0.1\"\ninterface = \"eth0\"\n";

    fn error(text: &str) -> String {
        ServerConfig::parse(text, Path::new("kopek.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_written_configuration_reads_back_the_same() {
        let config = ServerConfig::parse(GOOD, Path::new("x")).unwrap();
        assert_eq!(ServerConfig::parse(&config.to_toml(), Path::new("x")).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_key() {
        assert_eq!(
            error(&format!("{GOOD}slotz = 2\n")),
            "kopek.toml line 4: unknown key \"slotz\"; did you mean \"slots\"?"
        );
        assert_eq!(
            error(&format!("{GOOD}[dirs]\nsttae = \"/x\"\n")),
            "kopek.toml line 5: unknown key \"sttae\"; did you mean \"state\"?"
        );
        assert_eq!(
            error(&format!("{GOOD}zzzzzzzzzz = 2\n")),
            "kopek.toml line 4: unknown key \"zzzzzzzzzz\"; remove it"
        );
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_line() {
        let message = error(&GOOD.replace("10.0.0.1", "ten"));
        assert!(message.starts_with("kopek.toml line 2: "), "{message}");
    }
}
