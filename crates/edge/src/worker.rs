//! One core's share of the edge: a single-threaded runtime with its own listeners, its own connections to
//! instances and its own copy of the table's pointer. A request never leaves the worker that accepted it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kopek_link::Identity;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use crate::access_log::Lines;
use crate::hold::Bounded;
use crate::limits::Limits;
use crate::listen::listen;
use crate::parting::{Addresses, Question};
use crate::proxy;
use crate::table::{RoutingTable, SiteRoute};
use crate::upstream::Upstreams;

/// Idle connections are closed, log lines handed over and silent gates noticed so often.
const TICK: Duration = Duration::from_millis(200);

/// A client that has just connected sends its first request within a round trip; one that has not by then is told
/// to connect again elsewhere.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// What a worker is made of; crosses into its thread.
pub struct Seed {
    pub identity: Identity,
    pub gate_socket: PathBuf,
    pub limits: Limits,
    pub lines: Lines,
    pub memory: Arc<Bounded>,
    pub port: u16,
    /// Clients at most: each costs a descriptor here and up to two towards instances.
    pub clients_max: usize,
    pub tables: watch::Receiver<Option<Arc<RoutingTable>>>,
    pub questions: mpsc::Receiver<Question>,
    pub stop: watch::Receiver<bool>,
}

/// Why a worker could not begin.
#[derive(Debug)]
pub enum WorkerError {
    Runtime(io::Error),
    Listen(SocketAddr, io::Error),
}

/// Runs until it is told to stop and its requests have ended. Calls `ready` once it listens.
pub fn work(seed: Seed, ready: impl FnOnce()) -> Result<(), WorkerError> {
    let runtime: LocalRuntime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(WorkerError::Runtime)?;
    runtime.block_on(serve(seed, ready))
}

pub struct Worker {
    pub limits: Rc<Limits>,
    pub upstreams: Rc<Upstreams>,
    pub lines: Lines,
    pub memory: Arc<Bounded>,
    /// The table is another now.
    pub changed: Notify,
    table: RefCell<Option<Arc<RoutingTable>>>,
    turn: Cell<usize>,
    clients: Arc<Semaphore>,
    addresses: Rc<Addresses>,
    /// Some connections are to end, or all: they look which.
    parting: Notify,
    stopping: Notify,
    stopped: Cell<bool>,
}

pub enum Routed {
    Site(Arc<SiteRoute>),
    Unknown,
    /// The agent has not said yet what is here.
    NothingYet,
}

impl Worker {
    pub fn site(&self, host: &str) -> Routed {
        match &*self.table.borrow() {
            None => Routed::NothingYet,
            Some(table) => table.site(host).cloned().map_or(Routed::Unknown, Routed::Site),
        }
    }

    /// Counts up: decides between equally busy instances.
    pub fn turn(&self) -> usize {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }

    fn parts_with(&self, address: IpAddr) -> bool {
        self.stopped.get() || self.addresses.is_leaving(address)
    }

    fn heard(&self, question: Question) {
        let (open, is_new) = self.addresses.ask(question.ask);
        if is_new {
            self.parting.notify_waiters();
        }
        // Whoever asked may have given up.
        let _ = question.answer.send(open);
    }

    fn follow(&self, table: Option<Arc<RoutingTable>>) {
        let parted = table.clone();
        *self.table.borrow_mut() = table;
        if let Some(table) = parted {
            self.upstreams.follow(&table);
        }
        self.changed.notify_waiters();
    }
}

async fn serve(seed: Seed, ready: impl FnOnce()) -> Result<(), WorkerError> {
    let Seed { mut tables, mut questions, mut stop, clients_max, .. } = seed;
    let listeners = listen(seed.port).map_err(|(address, error)| WorkerError::Listen(address, error))?;
    let limits = Rc::new(seed.limits);
    let worker = Rc::new(Worker {
        upstreams: Rc::new(Upstreams::new(seed.identity, seed.gate_socket, limits.clone())),
        limits,
        lines: seed.lines,
        memory: seed.memory,
        changed: Notify::new(),
        table: RefCell::new(tables.borrow_and_update().clone()),
        turn: Cell::new(0),
        clients: Arc::new(Semaphore::new(clients_max)),
        addresses: Rc::default(),
        parting: Notify::new(),
        stopping: Notify::new(),
        stopped: Cell::new(false),
    });
    for listener in listeners {
        spawn_local(accept(worker.clone(), listener));
    }
    ready();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // A worker that answered a question has the table that was published before it.
            biased;
            changed = tables.changed() => match changed {
                Ok(()) => worker.follow(tables.borrow_and_update().clone()),
                Err(_closed) => break,
            },
            _ = ticks.tick() => {
                worker.upstreams.tick();
                worker.lines.flush();
            }
            Some(question) = questions.recv() => worker.heard(question),
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    worker.stopped.set(true);
    worker.stopping.notify_waiters();
    worker.parting.notify_waiters();
    let everyone = worker.clients.acquire_many(clients_max as u32);
    if timeout(worker.limits.stop, everyone).await.is_err() {
        warn!(left = clients_max - worker.clients.available_permits(), "connections cut off at the end");
    }
    worker.lines.flush();
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener) {
    let stopping = worker.stopping.notified();
    tokio::pin!(stopping);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = admit(&worker, &listener) => accepted,
        };
        match accepted {
            Ok((permit, stream, client)) => {
                spawn_local(connection(worker.clone(), stream, client, permit));
            }
            // Out of descriptors or memory, or a client that left before it was accepted.
            Err(error) => {
                debug!(%error, "a connection was not accepted");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    // Those that the kernel has already accepted for us would be reset.
    while let Some(Ok((permit, stream, client))) = admit(&worker, &listener).now_or_never() {
        spawn_local(connection(worker.clone(), stream, client, permit));
    }
}

type Permit = tokio::sync::OwnedSemaphorePermit;

async fn admit(worker: &Worker, listener: &TcpListener) -> io::Result<(Permit, TcpStream, SocketAddr)> {
    let permit = worker.clients.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (stream, client) = listener.accept().await?;
    Ok((permit, stream, client))
}

async fn connection(worker: Rc<Worker>, stream: TcpStream, client: SocketAddr, _permit: Permit) {
    let limits = worker.limits.clone();
    // A client that reads nothing for so long is given up by the kernel.
    let stall = limits.client_stall.as_millis() as u32;
    let prepared =
        stream.set_nodelay(true).and_then(|()| Ok(setsockopt(&stream, sockopt::TcpUserTimeout, &stall)?));
    let address = match prepared.and_then(|()| stream.local_addr()) {
        Ok(address) => address.ip().to_canonical(),
        Err(error) => {
            debug!(%client, %error, "a client left at once");
            return;
        }
    };
    let _open = worker.addresses.open(address);
    let is_last = worker.parts_with(address);
    let has_asked = Cell::new(false);
    let service = service_fn(|request| {
        has_asked.set(true);
        // Boxed: hyper would move some kilobytes several times.
        let answer = Box::pin(proxy::answer(worker.clone(), client.ip(), request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.client_header)
        .max_header_size(limits.header_bytes)
        .keep_alive(!is_last)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = loop {
        let parting = worker.parting.notified();
        if !is_last && worker.parts_with(address) {
            break match has_asked.get() {
                true => Err(()),
                false => timeout(FIRST_REQUEST, &mut connection).await.map_err(drop),
            };
        }
        tokio::select! {
            biased;
            ended = &mut connection => break Ok(ended),
            () = parting => {}
        }
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(()) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%client, %error, "a client's connection broke");
    }
}
