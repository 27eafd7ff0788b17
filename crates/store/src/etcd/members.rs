//! The members of an etcd cluster as one that answers. One of them is current; when it fails or is silent,
//! the next becomes current for everybody.
//!
//! Promise: every answer is of the cluster that answered first. A move of the cell's state to etcd founds another
//! one at the same addresses (see `following`): what was read in the one would be missed in the other.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, LeaseGrantResponse,
    ResponseHeader, TlsOptions, TxnResponse,
};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::rooted;
use crate::moving::MOVED_KEY;
use crate::store::StoreError;

/// etcd answers in 1–16 ms, also while disk and cores are loaded. Longer: it is dead, frozen or cut off.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// A request that took longer than this may have been passed on to a leader that had just died.
const STALLED: Duration = Duration::from_millis(60);
/// How long members are tried in turn: longer than an election among them takes (0.3–0.6 s, twice that after a split vote).
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two rounds through all members.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest answer: a range over everything in a large cell. gRPC's own default of 4 MiB is too little.
pub(super) const ANSWER_MAX: usize = 64 << 20;
/// A silent connection is asked after this, and dropped after as long again. Not shorter than etcd's
/// `--grpc-keepalive-min-time`.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Why a member is left that answers for another cluster than before.
pub(super) const OTHER_CLUSTER: &str = "another etcd cluster has taken its place";

/// What proves who we are, and who the members are, in PEM.
pub struct Pems {
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

impl Pems {
    /// From `ca.pem`, `server.pem` and `server.key` in a server's configuration folder.
    pub fn read(etc: &Path) -> Result<Pems, StoreError> {
        let read = |name: &str| {
            let path = etc.join(name);
            std::fs::read_to_string(&path).map_err(|error| StoreError::File {
                path: path.display().to_string(),
                why: format!("{error}; `kopek server join` and `kopek cell init` write it"),
            })
        };
        Ok(Pems { ca: read("ca.pem")?, certificate: read("server.pem")?, key: read("server.key")? })
    }
}

pub(super) struct Members {
    members: Vec<(String, Client)>,
    current: AtomicUsize,
    /// etcd's own number of the cluster, once it is known.
    cluster: OnceLock<u64>,
}

/// What a member answers with, and so the cluster it is of.
pub(super) trait Answer {
    fn header(&self) -> Option<&ResponseHeader>;
}

impl Answer for GetResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header()
    }
}

impl Answer for TxnResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header()
    }
}

impl Answer for LeaseGrantResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header()
    }
}

/// About a lease that the cluster granted: another one does not know it.
impl Answer for () {
    fn header(&self) -> Option<&ResponseHeader> {
        None
    }
}

/// What a request does, and so whether it may be sent again after its answer was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read,
    /// Doing it twice does no harm.
    RepeatableWrite,
    Write,
}

/// Why a request got no good answer.
pub(super) enum Failure {
    /// etcd answered that there is no such lease.
    NotFound(String),
    Other(StoreError),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        match failure {
            Failure::NotFound(why) => StoreError::Refused { why },
            Failure::Other(error) => error,
        }
    }
}

impl Members {
    pub async fn new(endpoints: &[String], pems: &Pems) -> Result<Members, StoreError> {
        let options = ConnectOptions::new()
            .with_tls(
                TlsOptions::new()
                    .ca_certificate(Certificate::from_pem(&pems.ca))
                    .identity(Identity::from_pem(&pems.certificate, &pems.key)),
            )
            .with_connect_timeout(REQUEST_LIMIT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            // A member cut off from the others would serve watches that are never fed.
            .with_require_leader(true);
        let mut members = Vec::new();
        for endpoint in endpoints {
            let client = Client::connect([endpoint], Some(options.clone())).await;
            let client = client
                .map_err(|error| StoreError::Refused { why: format!("no client for {endpoint}: {error}") })?;
            members.push((endpoint.clone(), client));
        }
        if members.is_empty() {
            return Err(StoreError::Refused { why: "a location in etcd names no endpoint".to_owned() });
        }
        Ok(Members { members, current: AtomicUsize::new(0), cluster: OnceLock::new() })
    }

    /// The member to talk to now, for streams.
    pub fn current(&self) -> (usize, Client) {
        let index = self.current.load(Ordering::Relaxed);
        (index, self.members[index].1.clone())
    }

    /// Makes the next member current, unless another caller did so already.
    pub fn leave(&self, index: usize, why: &str) {
        let next = (index + 1) % self.members.len();
        if self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            debug!(from = %self.members[index].0, to = %self.members[next].0, why, "changed the etcd member");
        }
    }

    /// Whether an answer is of the cluster that answered first.
    pub fn are_of(&self, header: Option<&ResponseHeader>) -> bool {
        header.is_none_or(|header| *self.cluster.get_or_init(|| header.cluster_id()) == header.cluster_id())
    }

    /// Sends a request until a member answers it.
    pub async fn call<T, F>(&self, kind: Request, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        T: Answer,
        F: Future<Output = Result<T, Error>>,
    {
        let patience = Instant::now() + PATIENCE;
        let mut tried = 0;
        loop {
            let (index, client) = self.current();
            let answered = async {
                tokio::select! {
                    biased;
                    answer = timeout(REQUEST_LIMIT, request(client.clone())) => Some(answer),
                    () = leader_lost(client), if kind != Request::Read => None,
                }
            };
            let (outcome, why) = match answered.await {
                Some(Ok(Ok(answer))) if self.are_of(answer.header()) => return Ok(answer),
                Some(Ok(Ok(_))) => (Outcome::NotDone, OTHER_CLUSTER.to_owned()),
                Some(Ok(Err(error))) => judge(error),
                Some(Err(_)) => (Outcome::Unknown, format!("silent for {} ms", REQUEST_LIMIT.as_millis())),
                None => (Outcome::Unknown, "the members changed their leader meanwhile".to_owned()),
            };
            match outcome {
                Outcome::NotFound => return Err(Failure::NotFound(why)),
                Outcome::Refused => return Err(Failure::Other(StoreError::Refused { why })),
                Outcome::NotDone | Outcome::Unknown => self.leave(index, &why),
            }
            let store = || self.members[index].0.clone();
            if outcome == Outcome::Unknown && kind == Request::Write {
                return Err(Failure::Other(StoreError::Uncertain { store: store(), why }));
            }
            if Instant::now() >= patience {
                return Err(Failure::Other(StoreError::Unavailable { store: store(), why }));
            }
            tried += 1;
            if tried % self.members.len() == 0 {
                sleep(PAUSE).await;
            }
        }
    }
}

/// Resolves when the leader changed while a member keeps a write waiting. A member that does not know yet that
/// its leader is dead passes writes on to nobody, and tells no one that they are lost. A read that waits for
/// the leader it does end, once there is another.
async fn leader_lost(client: Client) {
    let before = term(&client, GetOptions::new().with_serializable()).await;
    sleep(STALLED).await;
    let now = term(&client, GetOptions::new()).await;
    if now.is_some() && now == before {
        // Only slow.
        std::future::pending::<()>().await;
    }
}

/// Raft's, which grows with every election.
async fn term(client: &Client, options: GetOptions) -> Option<u64> {
    let answer = client.kv_client().get(rooted(MOVED_KEY), Some(options.with_keys_only())).await.ok()?;
    Some(answer.header()?.raft_term())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// etcd understood and refuses: asking elsewhere gives the same.
    Refused,
    NotFound,
    /// It provably did not reach the cluster. What it did in another one there, `following` keeps harmless.
    NotDone,
    Unknown,
}

/// By gRPC status code number: the codes' type is not exported by etcd-client.
fn judge(error: Error) -> (Outcome, String) {
    let Error::GRpcStatus(status) = &error else {
        return match error {
            // etcd-client's word for a keep-alive answered with a time of 0.
            Error::LeaseKeepAliveError(why) => (Outcome::NotFound, why),
            other => (Outcome::Unknown, other.to_string()),
        };
    };
    let why = status.message().to_owned();
    let outcome = match i32::from(status.code()) {
        // NOT_FOUND
        5 => Outcome::NotFound,
        // INVALID_ARGUMENT, ALREADY_EXISTS, PERMISSION_DENIED, RESOURCE_EXHAUSTED (the database is full),
        // FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, UNAUTHENTICATED
        3 | 6 | 7 | 8 | 9 | 11 | 12 | 16 => Outcome::Refused,
        // UNAVAILABLE: said before anything was proposed.
        14 if why == "etcdserver: no leader" => Outcome::NotDone,
        _ if never_connected(status) => Outcome::NotDone,
        _ => Outcome::Unknown,
    };
    (outcome, why)
}

fn never_connected(status: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(status);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable
            );
        }
        cause = error.source();
    }
    false
}
