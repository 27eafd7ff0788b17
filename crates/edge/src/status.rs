//! The edge's own socket, `<run>/edge.sock`, for the agent and for metrics. A line in, a line out:
//! `health` → `ok` or what is wrong; `counters` → JSON by site; `leave ADDRESS` → how many connections to that
//! address are open, each of which ends with the request that is under way; `stay ADDRESS` takes that back.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::clock::Uptime;
use crate::parting::{Ask, Question};
use crate::table::{RoutingTable, SiteRoute};

/// A worker that does not answer for so long does not serve either.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// For a question to arrive and its answer to be taken.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const QUESTION_MAX: u64 = 64;

pub struct Status {
    /// One per worker.
    pub workers: Vec<mpsc::Sender<Question>>,
    pub tables: watch::Receiver<Option<Arc<RoutingTable>>>,
}

/// Replaces what an edge before this one left there.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

/// Never ends.
pub async fn serve(listener: UnixListener, status: Status) {
    let status = Arc::new(status);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = status.clone();
                tokio::spawn(async move {
                    if let Err(error) = timeout(ASK_LIMIT, status.converse(stream)).await {
                        debug!(%error, "whoever asked for the edge's status was too slow");
                    }
                });
            }
            Err(error) => {
                debug!(%error, "a connection to the status socket was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Status {
    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut question = String::new();
        BufReader::new(read.take(QUESTION_MAX)).read_line(&mut question).await?;
        let (word, address) = question.trim().split_once(' ').unwrap_or((question.trim(), ""));
        let answer = match (word, address.parse()) {
            ("health", _) => self.health().await,
            ("counters", _) => self.counters().to_string(),
            ("leave", Ok(address)) => self.ask_all(Ask::Leave(address)).await,
            ("stay", Ok(address)) => self.ask_all(Ask::Stay(address)).await,
            _ => "ask for health, counters, leave ADDRESS or stay ADDRESS".to_owned(),
        };
        write.write_all(format!("{answer}\n").as_bytes()).await
    }

    async fn health(&self) -> String {
        match self.sum(Ask::Health).await {
            Ok(_) => "ok".to_owned(),
            Err(number) => format!("worker {number} does not answer"),
        }
    }

    async fn ask_all(&self, ask: Ask) -> String {
        match self.sum(ask).await {
            Ok(open) => open.to_string(),
            Err(number) => format!("worker {number} does not answer"),
        }
    }

    /// Of all workers' answers; else the number of the first that gives none.
    async fn sum(&self, ask: Ask) -> Result<usize, usize> {
        let mut sum = 0;
        for (number, worker) in self.workers.iter().enumerate() {
            sum += answer_of(worker, ask).await.ok_or(number)?;
        }
        Ok(sum)
    }

    fn counters(&self) -> Value {
        let table = self.tables.borrow().clone();
        let sites = table.iter().flat_map(|table| table.sites());
        let by_site = sites.map(|site| (site.site.to_string(), site_counters(site))).collect();
        json!({ "routed": table.is_some(), "sites": Value::Object(by_site) })
    }
}

async fn answer_of(worker: &mpsc::Sender<Question>, ask: Ask) -> Option<usize> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        worker.send(Question { ask, answer }).await.ok()?;
        answered.await.ok()
    };
    timeout(ANSWER_LIMIT, asked).await.ok().flatten()
}

fn site_counters(site: &SiteRoute) -> Value {
    let counters = &site.counters;
    let number = |counter: &AtomicU64| counter.load(Relaxed);
    let backends = site
        .backends
        .iter()
        .map(|route| {
            let facts = json!({
                "in_flight": route.health.in_flight(),
                "intake": route.intake,
                "avoided": !route.health.is_usable(Uptime::now()),
            });
            (route.instance.to_string(), facts)
        })
        .collect();
    json!({
        "requests": number(&counters.requests),
        "errors": number(&counters.errors),
        "held": number(&counters.held),
        "retried": number(&counters.retried),
        "in_flight": number(&counters.in_flight),
        "instances": Value::Object(backends),
    })
}
