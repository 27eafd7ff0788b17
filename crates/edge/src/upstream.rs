//! One worker's connections to instances: HTTP/1.1 through the gate of the instance's server, kept warm for a
//! moment after use. Each worker has its own; nothing here is shared between threads.
//!
//! Promise: a server that died, was cut off or froze is given up within about a second, also by requests that
//! already wait for it, without a limit on how long a slow page may take. Four things see to it: connections
//! are refused or reset by a kernel that lives; TCP_USER_TIMEOUT and keep-alive notice one that does not; a
//! gate that is silent while requests wait is asked for a sign of life; and the agent's table drops it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use kopek_core::InstanceId;
use kopek_link::{
    DialError, Identity, Preamble, PreambleError, Welcome, dial, dial_stream, read_welcome, send_preamble,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::body::Outgoing;
use crate::clock::Uptime;
use crate::limits::Limits;
use crate::table::{BackendRoute, RoutingTable, Way};

/// The connect limit is doubled at most so often: 300 ms become 2.4 s.
const PATIENCE_DOUBLINGS_MAX: u32 = 3;
/// A suspected gate is asked again after this.
const PROBE_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the gate of this server does not take connections")]
    Socket(#[source] std::io::Error),
    #[error("the gate of this server broke off")]
    Preamble(#[from] PreambleError),
    #[error("the gate of this server refuses: {0}")]
    Refused(String),
    #[error("the gate did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the instance's connection broke at once")]
    Http(#[from] hyper::Error),
}

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Any that is there, else a new one.
    Warm,
    /// A new one: the last attempt met a connection that had just been closed.
    New,
    /// A new one for a large upload, whose reader may be slow.
    Upload,
}

pub struct Upstreams {
    identity: Identity,
    gate_socket: PathBuf,
    limits: Rc<Limits>,
    by_instance: RefCell<HashMap<InstanceId, Rc<Upstream>>>,
}

impl Upstreams {
    pub fn new(identity: Identity, gate_socket: PathBuf, limits: Rc<Limits>) -> Upstreams {
        Upstreams { identity, gate_socket, limits, by_instance: RefCell::default() }
    }

    pub fn of(&self, route: &BackendRoute) -> Rc<Upstream> {
        let mut known = self.by_instance.borrow_mut();
        match known.get(&route.instance) {
            Some(upstream) if upstream.way == route.way => upstream.clone(),
            _ => {
                let upstream = Rc::new(Upstream::new(route.instance.clone(), route.way));
                if let Some(moved) = known.insert(route.instance.clone(), upstream.clone()) {
                    moved.leave(self.limits.gone_grace);
                }
                upstream
            }
        }
    }

    /// Parts with instances that left the table.
    pub fn follow(&self, table: &RoutingTable) {
        self.by_instance.borrow_mut().retain(|instance, upstream| {
            let stays = table.backend(instance).is_some_and(|route| route.way == upstream.way);
            if !stays {
                upstream.leave(self.limits.gone_grace);
            }
            stays
        });
    }

    /// Called five times a second: closes what was not used for a while, asks silent gates for a sign of life.
    pub fn tick(self: &Rc<Self>) {
        for upstream in self.by_instance.borrow().values() {
            upstream.reap();
            if let Some(address) = upstream.suspicious_gate(self.limits.suspicion) {
                spawn_local(probe(self.clone(), upstream.clone(), address));
            }
        }
    }

    /// A connection to an instance on which a request can be sent at once.
    pub async fn lease(
        &self,
        upstream: &Rc<Upstream>,
        route: &BackendRoute,
        want: Want,
    ) -> Result<Lease, OpenError> {
        if want == Want::Warm
            && let Some(sender) = upstream.warm().await
        {
            return Ok(Lease { sender, upstream: upstream.clone(), is_reused: true });
        }
        let limit = self.limits.connect * (1 << route.health.failures().min(PATIENCE_DOUBLINGS_MAX));
        let sender = timeout(limit, self.open(upstream, want, limit))
            .await
            .map_err(|_| OpenError::TimedOut(limit))??;
        Ok(Lease { sender, upstream: upstream.clone(), is_reused: false })
    }

    async fn open(
        &self,
        upstream: &Rc<Upstream>,
        want: Want,
        limit: Duration,
    ) -> Result<SendRequest<Outgoing>, OpenError> {
        let preamble = Preamble::Gate { instance: upstream.instance.clone() };
        match upstream.way {
            Way::Here => {
                let mut stream = UnixStream::connect(&self.gate_socket).await.map_err(OpenError::Socket)?;
                send_preamble(&mut stream, &preamble).await?;
                match read_welcome(&mut stream).await? {
                    Welcome::Open { .. } => upstream.adopt(TokioIo::new(stream)).await,
                    Welcome::Refused { why } => Err(OpenError::Refused(why)),
                }
            }
            Way::There(address) => {
                let stream = dial_stream(&self.identity, address, &preamble, limit).await?;
                let silence = match want {
                    Want::Upload => self.limits.peer_silence_upload,
                    Want::Warm | Want::New => self.limits.peer_silence,
                };
                watch_peer(stream.get_ref().0, silence);
                upstream.adopt(TokioIo::new(stream)).await
            }
        }
    }
}

/// Lets the kernel end a connection whose peer has acknowledged nothing for so long, whether we wait for an
/// acknowledgement (TCP_USER_TIMEOUT) or for a response (keep-alive).
fn watch_peer(tcp: &TcpStream, silence: Duration) {
    let seconds = silence.as_secs().max(1) as u32;
    let set = setsockopt(tcp, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(tcp, sockopt::TcpKeepIdle, &seconds))
        .and_then(|()| setsockopt(tcp, sockopt::TcpKeepInterval, &seconds))
        .and_then(|()| setsockopt(tcp, sockopt::TcpUserTimeout, &(silence.as_millis() as u32)));
    if let Err(error) = set {
        warn!(%error, "a dead server will be noticed late: its connections cannot be watched");
    }
}

/// A silent gate that does not even shake hands is dead or frozen: requests that may be repeated leave it.
async fn probe(upstreams: Rc<Upstreams>, upstream: Rc<Upstream>, gate: std::net::SocketAddr) {
    let limit = upstreams.limits.connect;
    if let Err(error) = dial(&upstreams.identity, gate, limit).await {
        debug!(instance = %upstream.instance, %error, "a silent gate gives no sign of life");
        upstream.idle.borrow_mut().clear();
        upstream.silent.notify_waiters();
    }
}

/// An instance as one worker sees it.
pub struct Upstream {
    pub instance: InstanceId,
    way: Way,
    idle: RefCell<Vec<Idle>>,
    drivers: RefCell<JoinSet<()>>,
    /// It left the table.
    gone: Cell<bool>,
    pub left: Notify,
    /// Its gate gave no sign of life.
    pub silent: Notify,
    waiting: Cell<u32>,
    last_sign: Cell<Instant>,
    last_probe: Cell<Option<Instant>>,
}

struct Idle {
    sender: SendRequest<Outgoing>,
    until: Instant,
}

impl Upstream {
    fn new(instance: InstanceId, way: Way) -> Upstream {
        let now = Instant::now();
        Upstream {
            instance,
            way,
            idle: RefCell::default(),
            drivers: RefCell::default(),
            gone: Cell::new(false),
            left: Notify::new(),
            silent: Notify::new(),
            waiting: Cell::new(0),
            last_sign: Cell::new(now),
            last_probe: Cell::new(None),
        }
    }

    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Runs beside the connections of this instance and ends with them.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.drivers.borrow_mut().spawn_local(task);
    }

    /// A request waits for its response until the guard is dropped.
    pub fn wait(self: &Rc<Self>) -> Waiting {
        if self.waiting.get() == 0 {
            self.last_sign.set(Instant::now());
        }
        self.waiting.set(self.waiting.get() + 1);
        Waiting(self.clone())
    }

    async fn adopt<T>(self: &Rc<Self>, io: T) -> Result<SendRequest<Outgoing>, OpenError>
    where
        T: Read + Write + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(io).await?;
        self.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "an instance's connection broke");
            }
        });
        Ok(sender)
    }

    async fn warm(&self) -> Option<SendRequest<Outgoing>> {
        loop {
            let mut sender = self.idle.borrow_mut().pop()?.sender;
            // Its response was read to the end, so this is at most one turn of its driver.
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn keep(&self, sender: SendRequest<Outgoing>, most: usize, keep: Duration) {
        let mut idle = self.idle.borrow_mut();
        if !self.gone.get() && !sender.is_closed() && idle.len() < most {
            idle.push(Idle { sender, until: Instant::now() + keep });
        }
    }

    /// For a request that its instance has perhaps not accepted: closes a connection that others use.
    pub fn make_room(&self, route: &BackendRoute) {
        debug!(instance = %self.instance, idle = self.idle.borrow().len(), "a request waits for a turn");
        // One that the instance has closed makes no room.
        self.idle.borrow_mut().retain(|idle| !idle.sender.is_closed());
        if self.idle.borrow_mut().pop().is_none() {
            route.health.want_turn();
        }
    }

    fn reap(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|idle| idle.until > now && !idle.sender.is_closed());
        while self.drivers.borrow_mut().try_join_next().is_some() {}
    }

    fn suspicious_gate(&self, suspicion: Duration) -> Option<std::net::SocketAddr> {
        let Way::There(gate) = self.way else { return None };
        let due = self.waiting.get() > 0
            && self.last_sign.get().elapsed() >= suspicion
            && self.last_probe.get().is_none_or(|last| last.elapsed() >= PROBE_EVERY);
        due.then(|| {
            self.last_probe.set(Some(Instant::now()));
            gate
        })
    }

    /// Requests that may be repeated leave at once (`left`), the others may end within `grace`.
    fn leave(self: &Rc<Self>, grace: Duration) {
        self.gone.set(true);
        self.idle.borrow_mut().clear();
        self.left.notify_waiters();
        let this = self.clone();
        spawn_local(async move {
            tokio::time::sleep(grace).await;
            this.drivers.borrow_mut().abort_all();
        });
    }
}

pub struct Waiting(Rc<Upstream>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
        self.0.last_sign.set(Instant::now());
    }
}

/// A connection in use by one request.
pub struct Lease {
    pub sender: SendRequest<Outgoing>,
    pub upstream: Rc<Upstream>,
    pub is_reused: bool,
}

impl Lease {
    /// For the next request, unless others wait for a turn. `promised`: how long the instance says that it keeps the connection.
    pub fn give_back(self, route: &BackendRoute, limits: &Limits, promised: Option<Duration>) {
        if route.health.yield_turn() {
            return;
        }
        let keep = promised.map_or(limits.idle_upstream, |promised| limits.idle_upstream.min(promised / 2));
        self.upstream.keep(self.sender, limits.idle_per_backend, keep);
    }
}

/// Avoids an instance that could not be reached or broke.
pub fn mark_failed(route: &BackendRoute, reason: &dyn std::fmt::Display) {
    if let Some(avoid) = route.health.failed(Uptime::now()) {
        warn!(instance = %route.instance, %reason, avoid_ms = avoid.as_millis() as u64, "instance avoided");
    }
}
