//! The embedded store seen from another process: the third way to hold a `Store`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use kopek_link::{Identity, dial};
use tokio::io::{AsyncBufReadExt, BufStream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::protocol::{ALIVE_EVERY, Answer, Request, Stream, receive, send};
use crate::store::{
    Change, Commit, Compare, Entry, LeaseId, Op, Range, Revision, Store, StoreError, check_commit,
};
use crate::watch::Watch;

const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// A commit waits for the host's disk, and for the commits before it.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// Three signs of life missed.
const SILENT: Duration = Duration::from_millis(3 * ALIVE_EVERY.as_millis() as u64);
/// Before a cut watch is opened again.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections kept for the next request; more are opened when more requests run at once.
const IDLE_MAX: usize = 4;

type Connection = BufStream<Box<dyn Stream>>;

pub struct ServedStore {
    host: Arc<Host>,
}

struct Host {
    place: Place,
    idle: Mutex<Vec<Connection>>,
}

enum Place {
    Socket(PathBuf),
    Server { address: SocketAddr, identity: Identity },
}

/// What a failure says about the request.
enum Broken {
    NotSent(String),
    Unknown(String),
}

impl ServedStore {
    /// On the server that hosts the store. Connects when first asked.
    pub fn by_socket(socket: PathBuf) -> ServedStore {
        ServedStore::at(Place::Socket(socket))
    }

    /// From another server of the cell.
    pub fn by_tls(address: SocketAddr, identity: Identity) -> ServedStore {
        ServedStore::at(Place::Server { address, identity })
    }

    fn at(place: Place) -> ServedStore {
        ServedStore { host: Arc::new(Host { place, idle: Mutex::default() }) }
    }

    /// For requests that may be done twice.
    async fn ask(&self, request: Request) -> Result<Answer, StoreError> {
        let outcome = match self.host.ask(&request).await {
            Err(Broken::Unknown(_)) => self.host.ask(&request).await,
            outcome => outcome,
        };
        match outcome {
            Ok(Answer::Failed(error)) => Err(error),
            Ok(answer) => Ok(answer),
            Err(Broken::NotSent(why) | Broken::Unknown(why)) => Err(self.host.unavailable(why)),
        }
    }

    fn senseless(&self, answer: Answer) -> StoreError {
        self.host.unavailable(format!("its answer does not fit the request: {answer:?}"))
    }
}

#[async_trait]
impl Store for ServedStore {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        match self.ask(Request::Range { prefix: prefix.to_owned() }).await? {
            Answer::Range(range) => Ok(range),
            other => Err(self.senseless(other)),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        match self.ask(Request::Get { key: key.to_owned() }).await? {
            Answer::Entry(entry) => Ok(entry),
            other => Err(self.senseless(other)),
        }
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        check_commit(&compares, &ops)?;
        match self.host.ask(&Request::Commit { compares, ops }).await {
            Ok(Answer::Commit(commit)) => Ok(commit),
            Ok(Answer::Failed(error)) => Err(error),
            Ok(other) => Err(self.senseless(other)),
            Err(Broken::NotSent(why)) => Err(self.host.unavailable(why)),
            Err(Broken::Unknown(why)) => Err(StoreError::Uncertain { store: self.host.name(), why }),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let (host, prefix) = (self.host.clone(), prefix.to_owned());
        Ok(Watch::fed_by(|batches| feed(host, prefix, from, batches)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        match self.ask(Request::Grant { ttl_ms: ttl.as_millis() as u64 }).await? {
            Answer::Lease(lease) => Ok(lease),
            other => Err(self.senseless(other)),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(Request::KeepAlive { lease }).await.map(drop)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(Request::Revoke { lease }).await.map(drop)
    }
}

impl Host {
    fn name(&self) -> String {
        match &self.place {
            Place::Socket(path) => path.display().to_string(),
            Place::Server { address, .. } => address.to_string(),
        }
    }

    fn unavailable(&self, why: String) -> StoreError {
        StoreError::Unavailable { store: self.name(), why }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, Broken> {
        let mut connection = match self.take_idle() {
            Some(connection) => connection,
            None => self.connect().await.map_err(Broken::NotSent)?,
        };
        let exchange = async {
            send(&mut connection, request).await?;
            receive(&mut connection).await
        };
        match timeout(REQUEST_LIMIT, exchange).await {
            Ok(Ok(Some(answer))) => {
                self.keep(connection);
                Ok(answer)
            }
            Ok(Ok(None)) => Err(Broken::Unknown("closed the connection".to_owned())),
            Ok(Err(error)) => Err(Broken::Unknown(error.to_string())),
            Err(_) => Err(Broken::Unknown(format!("silent for {} s", REQUEST_LIMIT.as_secs()))),
        }
    }

    /// A kept connection that the host has not closed meanwhile.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("nothing panics while it holds the lock");
        loop {
            let mut connection = idle.pop()?;
            // Between requests the host says nothing: anything to read, also the end, means it is unusable.
            if connection.fill_buf().now_or_never().is_none() {
                return Some(connection);
            }
        }
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().expect("nothing panics while it holds the lock");
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream: Box<dyn Stream> = match &self.place {
            Place::Socket(path) => match timeout(CONNECT_LIMIT, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("its socket takes no connection".to_owned()),
            },
            Place::Server { address, identity } => {
                Box::new(dial(identity, *address, CONNECT_LIMIT).await.map_err(|error| error.to_string())?)
            }
        };
        Ok(BufStream::new(stream))
    }
}

/// Feeds one watch; see `Watch::fed_by`. Changes are whole commits, so the last revision is where to resume.
async fn feed(host: Arc<Host>, prefix: String, from: Revision, batches: mpsc::Sender<Vec<Change>>) {
    let mut seen = from;
    while !batches.is_closed() {
        match follow(&host, &prefix, &mut seen, &batches).await {
            Ok(()) => return,
            Err(why) => debug!(store = host.name(), why, "watch cut off; opening it again"),
        }
        sleep(PAUSE).await;
    }
}

async fn follow(
    host: &Host,
    prefix: &str,
    seen: &mut Revision,
    batches: &mpsc::Sender<Vec<Change>>,
) -> Result<(), String> {
    let mut connection = host.connect().await?;
    let request = Request::Watch { prefix: prefix.to_owned(), from: *seen };
    send(&mut connection, &request).await.map_err(|error| error.to_string())?;
    loop {
        let line = timeout(SILENT, receive(&mut connection)).await.map_err(|_| "silent")?;
        match line.map_err(|error| error.to_string())?.ok_or("closed")? {
            Answer::Changes(changes) => {
                let last = changes.last().map(Change::revision);
                if batches.send(changes).await.is_err() {
                    return Ok(());
                }
                *seen = last.unwrap_or(*seen);
            }
            Answer::Alive => {}
            Answer::Compacted => return Ok(()),
            other => return Err(format!("unexpected on a watch: {other:?}")),
        }
    }
}
