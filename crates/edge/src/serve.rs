//! What runs in `kopek edge`, on one screen: a worker thread per core, the access log's thread, and this one,
//! which follows the agent's part and answers on the status socket.
//!
//! ```text
//! agent ──part──► this thread ──table──► worker 0..n ──lines──► access log
//!                      ▲                     ▲
//!                 edge.sock             http_port, each its own listener
//! ```

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use kopek_core::config::{Dirs, ServerConfig};
use kopek_core::part::EdgePart;
use kopek_link::{Identity, follow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::access_log::Writer;
use crate::hold::Bounded;
use crate::limits::Limits;
use crate::status::{self, Status};
use crate::table::RoutingTable;
use crate::worker::{self, Seed, WorkerError};

/// Descriptors for all that is not a client's: logs, sockets, the runtime.
const DESCRIPTORS_KEPT: usize = 512;
/// A client's own, and one or two towards instances.
const DESCRIPTORS_PER_CLIENT: usize = 3;
/// More would be more memory than an edge should take (about 10 KiB each).
const CLIENTS_MAX: usize = 20_000;

#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    #[error(
        "cannot listen on {address}: is another web server running? Stop it or set http_port in kopek.toml"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot make the socket {path}")]
    Status { path: PathBuf, source: io::Error },
    #[error("cannot write access logs to {folder}")]
    AccessLog { folder: PathBuf, source: io::Error },
    #[error("cannot start a thread of the edge")]
    Thread(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signal(#[source] io::Error),
    #[error("worker {0} of the edge ended by itself")]
    WorkerEnded(usize),
}

/// Serves until SIGTERM or SIGINT, then lets requests finish.
pub fn run(dirs: Dirs, config: ServerConfig, identity: Identity) -> Result<(), EdgeError> {
    run_until(dirs, config, identity, Limits::default(), terminated())
}

async fn terminated() -> Result<(), EdgeError> {
    let mut term = signal(SignalKind::terminate()).map_err(EdgeError::Signal)?;
    let mut int = signal(SignalKind::interrupt()).map_err(EdgeError::Signal)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// Serves until `stop` ends.
pub fn run_until(
    dirs: Dirs,
    config: ServerConfig,
    identity: Identity,
    limits: Limits,
    stop: impl Future<Output = Result<(), EdgeError>>,
) -> Result<(), EdgeError> {
    let folder = dirs.log.join("access");
    let writer = Writer::start(folder.clone()).map_err(|source| EdgeError::AccessLog { folder, source })?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(EdgeError::Thread)?;
    let outcome = runtime.block_on(control(&dirs, &config, &identity, &limits, &writer, stop));
    writer.finish();
    outcome
}

async fn control(
    dirs: &Dirs,
    config: &ServerConfig,
    identity: &Identity,
    limits: &Limits,
    writer: &Writer,
    stop: impl Future<Output = Result<(), EdgeError>>,
) -> Result<(), EdgeError> {
    let socket = dirs.edge_socket();
    let listener = status::bind(&socket).map_err(|source| EdgeError::Status { path: socket, source })?;
    let mut parts = follow::<EdgePart>(dirs).part;
    let (tables, table) = watch::channel(None);
    let (stop_workers, stopped) = watch::channel(false);
    let (ended, mut endings) = mpsc::channel(limits.workers);
    let memory = Arc::new(Bounded::new(limits.held_bytes));
    let clients_max = clients_max(limits.workers);
    publish(&tables, parts.borrow_and_update().as_ref(), limits);

    let mut questions = Vec::new();
    let mut workers = Vec::new();
    for number in 0..limits.workers {
        let (to_worker, asked) = mpsc::channel(1);
        questions.push(to_worker);
        let seed = Seed {
            identity: identity.clone(),
            gate_socket: dirs.gate_socket(),
            limits: limits.clone(),
            lines: writer.lines(),
            memory: memory.clone(),
            port: config.http_port,
            clients_max,
            tables: table.clone(),
            questions: asked,
            stop: stopped.clone(),
        };
        workers.push(start_worker(number, seed, Ended(number, ended.clone())).await?);
    }
    info!(port = config.http_port, workers = limits.workers, "edge serves");
    let status = status::serve(listener, Status { workers: questions, tables: table });
    tokio::pin!(status, stop);
    let outcome = loop {
        tokio::select! {
            changed = parts.changed() => match changed {
                Ok(()) => publish(&tables, parts.borrow_and_update().as_ref(), limits),
                Err(_closed) => unreachable!("following the agent never ends"),
            },
            Some(number) = endings.recv() => break Err(EdgeError::WorkerEnded(number)),
            outcome = &mut stop => break outcome,
            () = &mut status => unreachable!("the status socket is served for ever"),
        }
    };
    stop_workers.send_replace(true);
    for worker in workers {
        // A worker that panicked has been reported as ended.
        let _ = tokio::task::spawn_blocking(move || worker.join()).await;
    }
    outcome
}

fn publish(tables: &watch::Sender<Option<Arc<RoutingTable>>>, part: Option<&EdgePart>, limits: &Limits) {
    let Some(part) = part else { return };
    tables.send_modify(|table| {
        let next = RoutingTable::build(part, table.as_deref(), limits.held_per_site);
        *table = Some(Arc::new(next));
    });
}

/// Tells that a worker's thread ended, also by a panic.
struct Ended(usize, mpsc::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        // There is room for each worker's one message.
        let _ = self.1.try_send(self.0);
    }
}

/// Waits until it listens.
async fn start_worker(number: usize, seed: Seed, ended: Ended) -> Result<JoinHandle<()>, EdgeError> {
    let (began, begun) = oneshot::channel();
    let thread = move || {
        let _ended = ended;
        let began = std::cell::Cell::new(Some(began));
        let tell = |outcome| {
            if let Some(began) = began.take() {
                // Nobody waits any more if the process is ending.
                let _ = began.send(outcome);
            }
        };
        if let Err(error) = worker::work(seed, || tell(Ok(()))) {
            tell(Err(error));
        }
    };
    let handle = std::thread::Builder::new()
        .name(format!("edge-{number}"))
        .spawn(thread)
        .map_err(EdgeError::Thread)?;
    match begun.await {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(WorkerError::Listen(address, source))) => Err(EdgeError::Listen { address, source }),
        Ok(Err(WorkerError::Runtime(source))) => Err(EdgeError::Thread(source)),
        Err(_panicked) => Err(EdgeError::WorkerEnded(number)),
    }
}

/// Each worker's share of the descriptors that this process may have.
fn clients_max(workers: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files stays low");
    }
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |number| number as usize);
    let clients = descriptors.saturating_sub(DESCRIPTORS_KEPT) / DESCRIPTORS_PER_CLIENT / workers;
    clients.clamp(64, CLIENTS_MAX)
}
