//! The edge's own socket, `<run>/edge.sock`, for the agent and for metrics. A line in, a line out:
//! `health` → `ok` or what is wrong; `counters` → JSON by site.

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
use crate::table::{RoutingTable, SiteRoute};

/// A worker that does not answer for so long does not serve either.
const PING_LIMIT: Duration = Duration::from_secs(1);
/// For a question to arrive and its answer to be taken.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const QUESTION_MAX: u64 = 64;

pub struct Status {
    /// One per worker.
    pub pings: Vec<mpsc::Sender<oneshot::Sender<()>>>,
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
        let answer = match question.trim() {
            "health" => self.health().await,
            "counters" => self.counters().to_string(),
            _ => "ask for health or counters".to_owned(),
        };
        write.write_all(format!("{answer}\n").as_bytes()).await
    }

    async fn health(&self) -> String {
        for (number, ping) in self.pings.iter().enumerate() {
            if !answers(ping).await {
                return format!("worker {number} does not answer");
            }
        }
        "ok".to_owned()
    }

    fn counters(&self) -> Value {
        let table = self.tables.borrow().clone();
        let sites = table.iter().flat_map(|table| table.sites());
        let by_site = sites.map(|site| (site.site.to_string(), site_counters(site))).collect();
        json!({ "routed": table.is_some(), "sites": Value::Object(by_site) })
    }
}

async fn answers(ping: &mpsc::Sender<oneshot::Sender<()>>) -> bool {
    let (pong, ponged) = oneshot::channel();
    let asked = async { ping.send(pong).await.is_ok() && ponged.await.is_ok() };
    timeout(PING_LIMIT, asked).await.unwrap_or(false)
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
