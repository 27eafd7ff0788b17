//! The socket of `sql` for its agent, `<run>/sql.sock`. A line in, an answer out, to its end: `site NAME` → what was
//! counted for that site, as JSON; `sites` → the same of all sites, without their statements; `metrics` → all sites, as
//! Prometheus reads it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use kopek_core::meter::{Metered, SiteMeter};
use kopek_core::{ServerId, SiteName};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::meter::since;
use crate::metrics;

/// A worker that does not answer for so long does not serve either.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// For a question to arrive and its answer to be taken.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const QUESTION_MAX: u64 = 128;
/// Answered at once: the agent alone asks, once for each who asks it.
const ASKERS_MAX: usize = 16;

/// What the status socket asks of a worker.
pub(crate) struct Question {
    /// None: all sites, without their statements.
    pub(crate) site: Option<SiteName>,
    pub(crate) answer: oneshot::Sender<BTreeMap<SiteName, Metered>>,
}

pub(crate) struct Status {
    pub(crate) server: ServerId,
    pub(crate) workers: Vec<mpsc::Sender<Question>>,
}

/// Replaces what a process before this one left there. For root alone: texts of statements are a site's own.
pub(crate) fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Never ends.
pub(crate) async fn serve(listener: UnixListener, status: Status) {
    let status = std::sync::Arc::new(status);
    let askers = std::sync::Arc::new(Semaphore::new(ASKERS_MAX));
    loop {
        let place = askers.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = status.clone();
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = timeout(ASK_LIMIT, status.converse(stream)).await {
                        debug!(%error, "whoever asked for the status was too slow");
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
        let (word, name) = question.trim().split_once(' ').unwrap_or((question.trim(), ""));
        let answer = match (word, SiteName::parse(name)) {
            ("site", Ok(site)) => self.site(site).await,
            ("sites", _) => self.sites().await,
            ("metrics", _) => self.sum(None).await.map(|sites| metrics::text(&sites, since())),
            _ => Ok("ask for site NAME, sites or metrics\n".to_owned()),
        };
        // Nothing rather than half of it: whoever reads knows that something is wrong.
        let answer =
            answer.inspect_err(|number| debug!(number, "a worker does not answer")).unwrap_or_default();
        write.write_all(answer.as_bytes()).await
    }

    async fn site(&self, site: SiteName) -> Result<String, usize> {
        let metered = self.sum(Some(&site)).await?.remove(&site).unwrap_or_default();
        Ok(json(&self.meter(site, metered)))
    }

    async fn sites(&self) -> Result<String, usize> {
        let sum = self.sum(None).await?;
        let meters: Vec<SiteMeter> =
            sum.into_iter().map(|(site, metered)| self.meter(site, metered)).collect();
        Ok(json(&meters))
    }

    fn meter(&self, site: SiteName, metered: Metered) -> SiteMeter {
        SiteMeter { site, server: self.server.clone(), since: since(), metered }
    }

    /// Of all workers' answers; else the number of the first that gives none.
    async fn sum(&self, site: Option<&SiteName>) -> Result<BTreeMap<SiteName, Metered>, usize> {
        let mut sum: BTreeMap<SiteName, Metered> = BTreeMap::new();
        for (number, worker) in self.workers.iter().enumerate() {
            for (site, metered) in answer_of(worker, site).await.ok_or(number)? {
                sum.entry(site).or_default().add(metered);
            }
        }
        Ok(sum)
    }
}

fn json(told: &impl serde::Serialize) -> String {
    serde_json::to_string(told).expect("a meter is plain JSON")
}

async fn answer_of(
    worker: &mpsc::Sender<Question>,
    site: Option<&SiteName>,
) -> Option<BTreeMap<SiteName, Metered>> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        worker.send(Question { site: site.cloned(), answer }).await.ok()?;
        answered.await.ok()
    };
    timeout(ANSWER_LIMIT, asked).await.ok().flatten()
}
