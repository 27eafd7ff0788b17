//! One client of a site, from its connection to its end:
//!
//! ```text
//!             writer reached
//!   Waiting ─────────────────► Joined ──► ended by either side
//!      │ 10 s, or too many        │ writer changed
//!      ▼                          ▼
//!   error packet               cut, the client reconnects
//! ```
//! Called by `listen`.

use std::io;
use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::part::{RoutedWriter, SqlPart};
use kopek_link::{Identity, Preamble, dial_stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::Following;
use crate::member::way_to_member;
use crate::packet::TurnedAway;
use crate::place::Places;
use crate::relay::{BUFFER, notice_dead_peers};

/// Connections of one site through this server. A web server's default is 150 workers; jobs and a second
/// instance have room beside them.
pub(crate) const EACH_SITE_MAX: usize = 512;
/// As many as a busy web server's workers; more would only wait to be turned away.
const WAITING_MAX: usize = 256;
/// A new writer is there in 1 to 3 s; PHP scripts may run for 30 s.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// A writer that answers does so in milliseconds; one that does not may already be replaced.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries at the same writer, for example while mariadbd restarts.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

pub(crate) type Client = Box<dyn Bytes>;
type Upstream = Box<dyn Bytes>;

/// What all sessions share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sites {
    identity: Identity,
    part: Following,
    sessions: Places,
    waiting: Places,
}

impl Sites {
    pub(crate) fn new(identity: Identity, part: Following) -> Sites {
        Sites { identity, part, sessions: Places::new(EACH_SITE_MAX), waiting: Places::new(WAITING_MAX) }
    }

    pub(crate) async fn serve(&self, mut client: Client, site: &SiteName) {
        let outcome = match (self.sessions.take(site), self.waiting.take(site)) {
            (Some(session), Some(waiting)) => match self.wait_for_writer(&mut client, site).await {
                Ok((upstream, writer)) => {
                    drop(waiting);
                    self.join(client, upstream, site, &writer).await;
                    drop(session);
                    return;
                }
                Err(why) => why,
            },
            _ => Unserved::TurnedAway(TurnedAway::TooMany),
        };
        match outcome {
            Unserved::ClientLeft => debug!(%site, "the client left before its writer was reached"),
            Unserved::TurnedAway(reason) => {
                if reason == TurnedAway::NoWriter {
                    warn!(%site, waited = ?WAIT_LIMIT, "client turned away: no writer");
                }
                turn_away(client, &reason.packet(site)).await;
            }
        }
    }

    async fn wait_for_writer(
        &self,
        client: &mut Client,
        site: &SiteName,
    ) -> Result<(Upstream, RoutedWriter), Unserved> {
        tokio::select! {
            reached = timeout(WAIT_LIMIT, self.reach_writer(site)) => {
                reached.map_err(|_| Unserved::TurnedAway(TurnedAway::NoWriter))
            }
            // The server speaks first in this protocol: a client that can be read has left, or is none.
            _ = client.read_u8() => Err(Unserved::ClientLeft),
        }
    }

    /// Tries as long as it takes, always the writer of the latest part.
    async fn reach_writer(&self, site: &SiteName) -> (Upstream, RoutedWriter) {
        let mut part = self.part.clone();
        loop {
            let Some(writer) = writer_of(&part.borrow_and_update(), site).cloned() else {
                changed(&mut part).await;
                continue;
            };
            let again_at = Instant::now() + RETRY_AFTER;
            tokio::select! {
                reached = self.connect(site, &writer) => match reached {
                    Ok(upstream) => return (upstream, writer),
                    Err(why) => debug!(%site, server = %writer.server, epoch = writer.epoch, why, "writer not reached"),
                },
                () = writer_changed(part.clone(), site, &writer) => continue,
            }
            // Another part may say why it failed: then at once.
            let _ = timeout_at(again_at, changed(&mut part)).await;
        }
    }

    async fn connect(&self, site: &SiteName, writer: &RoutedWriter) -> Result<Upstream, String> {
        let way = match &*self.part.borrow() {
            Some(part) if part.server == writer.server => Some(way_to_member(part, site, writer.epoch)?),
            _ => None,
        };
        if let Some(way) = way {
            return Ok(Box::new(way.connect().await.map_err(|error| error.to_string())?));
        }
        let want = Preamble::Sql { site: site.clone(), epoch: writer.epoch };
        let stream = dial_stream(&self.identity, writer.relay, &want, DIAL_LIMIT)
            .await
            .map_err(|error| error.to_string())?;
        notice_dead_peers(stream.get_ref().0).map_err(|error| error.to_string())?;
        Ok(Box::new(stream))
    }

    /// Bytes both ways until either side ends or the site has another writer.
    async fn join(&self, mut client: Client, mut upstream: Upstream, site: &SiteName, writer: &RoutedWriter) {
        tokio::select! {
            ended = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER) => {
                if let Err(error) = ended {
                    debug!(%site, %error, "a connection broke");
                }
            }
            () = writer_changed(self.part.clone(), site, writer) => {
                info!(%site, server = %writer.server, epoch = writer.epoch, "connection cut: the writer changed");
            }
        }
    }
}

enum Unserved {
    ClientLeft,
    TurnedAway(TurnedAway),
}

fn writer_of<'a>(part: &'a Option<SqlPart>, site: &SiteName) -> Option<&'a RoutedWriter> {
    part.as_ref()?.sites.get(site)?.writer.as_ref()
}

/// Returns when the site's writer is another one, or none.
async fn writer_changed(mut part: Following, site: &SiteName, writer: &RoutedWriter) {
    if part.wait_for(|part| writer_of(part, site) != Some(writer)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The follower lives as long as the runtime, so the channel's end needs no answer.
async fn changed(part: &mut Following) {
    if part.changed().await.is_err() {
        sleep(RETRY_AFTER).await;
    }
}

async fn turn_away(mut client: Client, packet: &[u8]) {
    let told: io::Result<()> = async {
        client.write_all(packet).await?;
        client.shutdown().await
    }
    .await;
    if let Err(error) = told {
        debug!(%error, "the client did not wait for the error");
    }
}
