//! The agent's own connection to its member, as root over the socket: how it is, and who is to leave the group.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use kopek_core::observed::Position;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Row, Value};
use serde::{Deserialize, Serialize};

/// A member that takes longer for a question about itself serves nobody well. One that is hung is known earlier
/// (pulse.rs); this is for one that is so slow that others do better.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Making accounts and databases goes through the whole pool, and waits for slow members.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);

/// A group without the evicted one is there in some 10 ms; after 3 s Galera's own limit has done it.
const REGROUP_LIMIT: Duration = Duration::from_secs(4);
const REGROUP_LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("MariaDB does not answer within {} s", .limit.as_secs())]
    Late { limit: Duration },
    #[error("MariaDB answers with columns that were not asked for")]
    Odd,
    #[error("MariaDB refuses: {0}")]
    Refused(#[from] mysql_async::Error),
}

impl ClientError {
    /// Only a whole answer, even an error, leaves a connection that can be used again.
    pub fn spoils_connection(&self) -> bool {
        !matches!(self, ClientError::Refused(mysql_async::Error::Server(_)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    #[error("cannot put {dead} out of the group: of {size} members the rest would have no quorum")]
    WouldLoseQuorum { dead: ServerId, size: usize },
    #[error(transparent)]
    Client(#[from] ClientError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    Now,
    /// It is no member as far as the group knows.
    NotThere,
}

/// What a member says of itself (`SHOW GLOBAL STATUS LIKE 'wsrep_%'`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `wsrep_local_state_comment`
    pub state: String,
    pub ready: bool,
    pub primary: bool,
    /// Takes part in the group traffic at all. Not after it was put out of the group: only a new start helps.
    pub connected: bool,
    pub group_size: usize,
    /// Number of the group's present membership (`wsrep_cluster_conf_id`).
    pub view: String,
    pub position: Option<Position>,
    /// Its own in the group, another one after each start (`wsrep_gcomm_uuid`).
    pub node: Option<NodeId>,
}

/// What Galera calls a member from its start to its end. An eviction by it can hit no later start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no id of a Galera node")]
pub struct NotNodeId(String);

impl TryFrom<String> for NodeId {
    type Error = NotNodeId;

    /// A UUID: 36 hexadecimal digits and dashes. It goes into a statement of root's.
    fn try_from(text: String) -> Result<NodeId, NotNodeId> {
        let plain = |b: u8| b.is_ascii_hexdigit() || b == b'-';
        if text.len() == 36 && text.bytes().all(plain) { Ok(NodeId(text)) } else { Err(NotNodeId(text)) }
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.0
    }
}

impl Status {
    /// A donor does: mariabackup does not stop it.
    pub fn accepts_writes(&self) -> bool {
        self.ready && self.primary && matches!(self.state.as_str(), "Synced" | "Donor/Desynced")
    }
}

pub struct Client {
    conn: Conn,
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Client, ClientError> {
        let options = OptsBuilder::default()
            .user(Some("root"))
            .socket(Some(socket.display().to_string()))
            // Given, so that the driver does not ask: a member without quorum refuses each SELECT.
            .max_allowed_packet(Some(64 << 20))
            .wait_timeout(Some(3600));
        let conn = within(ANSWER_LIMIT, Conn::new(options)).await?;
        Ok(Client { conn })
    }

    pub async fn status(&mut self) -> Result<Status, ClientError> {
        const ASK: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN ('wsrep_local_state_comment', \
             'wsrep_ready', 'wsrep_connected', 'wsrep_cluster_status', 'wsrep_cluster_size', \
             'wsrep_last_committed', 'wsrep_cluster_state_uuid', 'wsrep_cluster_conf_id', 'wsrep_gcomm_uuid')";
        let rows: Vec<(String, String)> = within(ANSWER_LIMIT, self.conn.query(ASK)).await?;
        let value = |name: &str| {
            rows.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let seqno = value("wsrep_last_committed").parse().ok();
        Ok(Status {
            state: value("wsrep_local_state_comment"),
            ready: value("wsrep_ready") == "ON",
            primary: value("wsrep_cluster_status") == "Primary",
            connected: value("wsrep_connected") == "ON",
            group_size: value("wsrep_cluster_size").parse().unwrap_or(0),
            view: value("wsrep_cluster_conf_id"),
            position: seqno.map(|seqno| Position { group: value("wsrep_cluster_state_uuid"), seqno }),
            node: NodeId::try_from(value("wsrep_gcomm_uuid")).ok(),
        })
    }

    /// The cheapest question; also one without quorum answers it.
    pub async fn ping(&mut self) -> Result<(), ClientError> {
        within(ANSWER_LIMIT, self.conn.ping()).await
    }

    /// Who is in the group, by this member's own word.
    pub async fn group(&mut self) -> Result<BTreeMap<ServerId, NodeId>, ClientError> {
        let rows = self.rows("SELECT node_uuid, node_name FROM mysql.wsrep_cluster_members", ()).await?;
        let named = rows.into_iter().filter_map(|row| {
            let (id, name): (String, String) = mysql_async::from_row_opt(row).ok()?;
            Some((ServerId::parse(&name).ok()?, NodeId::try_from(id).ok()?))
        });
        Ok(named.collect())
    }

    /// Makes the members that see each other into the group. Only for a controller that knows that no other
    /// group is left.
    pub async fn bootstrap_component(&mut self) -> Result<(), ClientError> {
        self.change("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'").await
    }

    /// `node` is the start that is meant, where that is known.
    pub async fn evict(&mut self, dead: &ServerId, node: Option<&NodeId>) -> Result<Evicted, EvictError> {
        let members = self.group().await?;
        let size = members.len();
        let Some(id) = members.get(dead).filter(|id| node.is_none_or(|node| node == *id)) else {
            // Another member did it; what it told this one about it is to be forgotten all the same.
            self.forget_evicted().await?;
            return Ok(Evicted::NotThere);
        };
        if (size - 1) * 2 <= size {
            return Err(EvictError::WouldLoseQuorum { dead: dead.clone(), size });
        }
        let order = format!("evs.evict={}", id.0);
        self.change(&format!("SET GLOBAL wsrep_provider_options = {}", quoted(&order))).await?;
        let asked = Instant::now();
        while asked.elapsed() < REGROUP_LIMIT && self.group().await?.get(dead) == Some(id) {
            tokio::time::sleep(REGROUP_LOOK).await;
        }
        self.forget_evicted().await?;
        Ok(Evicted::Now)
    }

    /// Members tell one another of evicted nodes each time that the group changes, and wait 3 s for word from
    /// them: without this everybody's writes would stall that long when the restarted member joins, and again at
    /// every later change. (Galera's `evs.evict=` without a value; `gcomm/src/evs_proto.cpp`, `set_param`.)
    async fn forget_evicted(&mut self) -> Result<(), ClientError> {
        self.change("SET GLOBAL wsrep_provider_options = 'evs.evict='").await
    }

    pub async fn rows(
        &mut self,
        ask: &str,
        parameters: impl Into<mysql_async::Params> + Send,
    ) -> Result<Vec<Row>, ClientError> {
        within(CHANGE_LIMIT, self.conn.exec(ask, parameters.into())).await
    }

    pub async fn change(&mut self, statement: &str) -> Result<(), ClientError> {
        within(CHANGE_LIMIT, self.conn.query_drop(statement)).await
    }
}

async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = mysql_async::Result<T>>,
) -> Result<T, ClientError> {
    Ok(tokio::time::timeout(limit, asked).await.map_err(|_| ClientError::Late { limit })??)
}

/// A string literal. Right under every sql_mode that the agent's own session can have.
pub fn quoted(text: &str) -> String {
    Value::from(text).as_sql(false)
}

/// An identifier (MariaDB's "Identifier Names": a backtick inside is doubled).
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_left_from_inside() {
        assert_eq!(quoted("it's \\ here"), r"'it\'s \\ here'");
        assert_eq!(identifier("a`b"), "`a``b`");
    }
}
