//! Turns at big tables: one change of a big table at a time in a pool. DDL stops all members for as long as it takes
//! (Galera's total order isolation), and several of them one upon the other stopped everybody for their sum.
//!
//! ```text
//!  session ── of the same server ──────────────► keeper: the sql on the first server, by name, of those that
//!     └────── mutual TLS, Preamble::SqlTurn ────►        carry writers of the site's pool; its line is in memory
//! ```
//! A turn is a connection: it is over when its holder says so or dies. The line only orders, it protects nothing:
//! when its keeper dies, the next keeper begins with an empty one, and when no keeper can be reached for
//! `UNREACHABLE_LIMIT`, one goes on without a turn. No controller, no agent and no member is needed.
//!
//! `line.rs` decides whose turn it is. The keeper tells its agent; the controller makes events of that.

use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::part::{RoutedWriter, SqlPart, SqlReport};
use kopek_link::clock::now;
use kopek_link::{Preamble, dial_stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_rustls::client::TlsStream;
use tracing::{debug, warn};

use self::line::{Full, Line, Outcome};
use crate::backend::Ways;
use crate::relay::notice_dead_peers;

mod line;

/// As an opening's: a server that lives answers in milliseconds.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
/// By then the writers of a server that died are elsewhere, and so is the keeper.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Between two reports to the agent.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// This server's line, used while it is the keeper. Cheap to clone; one for the process.
#[derive(Clone)]
pub(crate) struct Turns(watch::Sender<Line>);

impl Default for Turns {
    fn default() -> Turns {
        // No number twice, also not after a restart, unless there were more than a thousand a second.
        Turns(watch::Sender::new(Line::new(now().0 * 1_000)))
    }
}

impl Turns {
    /// Waits for the turn.
    async fn take(&self, site: SiteName, table: String) -> Result<Ticket, Full> {
        let mut number = Err(Full);
        self.0.send_modify(|line| {
            number = line.enter(site, table, now());
            line.grant(now());
        });
        let ticket = Ticket { turns: self.clone(), number: number?, outcome: None };
        let mut line = self.0.subscribe();
        loop {
            let mut rest = None;
            self.0.send_if_modified(|line| {
                let goes_on = line.grant(now());
                rest = line.rest_left(now());
                goes_on
            });
            if line.borrow_and_update().is_turn_of(ticket.number) {
                return Ok(ticket);
            }
            tokio::select! {
                _ = line.changed() => {}
                () = sleep(rest.unwrap_or_default()), if rest.is_some() => {}
            }
        }
    }

    /// A session of another server. Ends with the turn.
    pub(crate) async fn serve(
        &self,
        site: SiteName,
        table: String,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        let mut ticket = tokio::select! {
            taken = self.take(site, table) => match taken {
                Ok(ticket) => ticket,
                Err(Full) => return Ok(()),
            },
            // It says nothing before its turn: it is gone.
            _ = stream.read_u8() => return Ok(()),
        };
        stream.write_all(b"!").await?;
        stream.flush().await?;
        ticket.outcome = Some(Outcome::of(stream.read_u16_le().await?));
        Ok(())
    }
}

/// A place in the line, or the turn itself. Dropped without an outcome it counts as left.
struct Ticket {
    turns: Turns,
    number: u64,
    outcome: Option<Outcome>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::Left);
        self.turns.0.send_modify(|line| line.leave(self.number, outcome, now()));
    }
}

/// What a session holds while it changes a big table.
pub(crate) struct Turn(Way);

enum Way {
    Here(Ticket),
    There(Box<TlsStream<TcpStream>>),
    /// No keeper could be reached, or its line was full.
    None,
}

impl Turn {
    /// `error`: the member's, 0 for none.
    pub(crate) async fn end(self, error: u16) {
        match self.0 {
            Way::Here(mut ticket) => ticket.outcome = Some(Outcome::of(error)),
            Way::There(mut stream) => {
                // Its end alone would end the turn too.
                let _ = stream.write_all(&error.to_le_bytes()).await;
                let _ = stream.shutdown().await;
            }
            Way::None => {}
        }
    }
}

/// Waits for the pool's turn, for as long as it takes.
pub(crate) async fn take(ways: Ways, site: SiteName, table: String) -> Turn {
    let mut part = ways.part.clone();
    let mut reached_at = Instant::now();
    loop {
        let keeper = keeper_of(&part.borrow_and_update(), &site);
        let Some((keeper, is_here)) = keeper else { return Turn(Way::None) };
        let asking = async {
            match is_here {
                true => Ok(ways.turns.take(site.clone(), table.clone()).await.map_or(Way::None, Way::Here)),
                false => ask(&ways, &keeper, &site, &table, &mut reached_at).await,
            }
        };
        let is_other = |part: &Option<SqlPart>| {
            keeper_of(part, &site)
                .is_none_or(|(now, _)| now.server != keeper.server || now.relay != keeper.relay)
        };
        tokio::select! {
            asked = asking => match asked {
                Ok(way) => return Turn(way),
                Err(why) => debug!(%site, server = %keeper.server, why, "no word from the keeper of turns"),
            },
            Ok(_) = part.wait_for(is_other) => continue,
        }
        if reached_at.elapsed() > UNREACHABLE_LIMIT {
            warn!(%site, server = %keeper.server, "goes on without a turn: the keeper cannot be reached");
            return Turn(Way::None);
        }
        sleep(RETRY_AFTER).await;
    }
}

/// At the keeper on another server; waits there.
async fn ask(
    ways: &Ways,
    keeper: &RoutedWriter,
    site: &SiteName,
    table: &str,
    reached_at: &mut Instant,
) -> Result<Way, String> {
    let want = Preamble::SqlTurn { site: site.clone(), table: table.to_owned() };
    let dialed = dial_stream(&ways.identity, keeper.relay, &want, DIAL_LIMIT).await;
    let mut stream = dialed.map_err(|error| error.to_string())?;
    notice_dead_peers(stream.get_ref().0).map_err(|error| error.to_string())?;
    let turn = stream.read_u8().await;
    *reached_at = Instant::now();
    turn.map_err(|error| error.to_string())?;
    Ok(Way::There(Box::new(stream)))
}

/// The keeper for a site by this server's part, and whether this server is it. Every server sees the same writers, but
/// for the moments in which they change. No server carries members of two pools, so none keeps the line of two.
fn keeper_of(part: &Option<SqlPart>, site: &SiteName) -> Option<(RoutedWriter, bool)> {
    let part = part.as_ref()?;
    let pool = &part.sites.get(site)?.pool;
    let of_pool = part.sites.values().filter(|site| site.pool == *pool);
    let writers = of_pool.filter_map(|site| site.writer.as_ref());
    let first = writers.min_by(|one, other| one.server.cmp(&other.server))?;
    Some((first.clone(), first.server == part.server))
}

/// Tells the agent what happens in this server's line. For ever; without an agent only the last word is kept.
pub(crate) async fn tell(turns: Turns, report: mpsc::Sender<serde_json::Value>) {
    let mut line = turns.0.subscribe();
    let mut last = SqlReport::default();
    while line.changed().await.is_ok() {
        let current = SqlReport { big_changes: line.borrow_and_update().changes() };
        if current != last {
            let value = serde_json::to_value(&current).expect("a report has only text keys");
            if report.send(value).await.is_err() {
                return;
            }
            last = current;
        }
        sleep(REPORT_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use kopek_core::part::SqlSite;
    use kopek_core::{PoolName, ServerId};
    use tokio::time::timeout;

    use super::*;

    fn site(name: &str) -> SiteName {
        SiteName::parse(name).unwrap()
    }

    async fn soon<T>(waiting: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), waiting).await.expect("soon")
    }

    #[tokio::test]
    async fn a_turn_that_is_dropped_or_whose_connection_breaks_is_the_next_ones() {
        let turns = Turns::default();
        let first = soon(turns.take(site("blog"), "posts".into())).await.unwrap();
        let (mut far, mut near) = tokio::io::duplex(16);
        let second = tokio::spawn({
            let turns = turns.clone();
            async move { turns.serve(site("shop"), "orders".into(), &mut near).await }
        });
        assert!(timeout(Duration::from_millis(50), far.read_u8()).await.is_err(), "not yet");
        drop(first);
        assert_eq!(soon(far.read_u8()).await.unwrap(), b'!');
        drop(far);
        assert!(soon(second).await.unwrap().is_err(), "it did not say how it ended");
        soon(turns.take(site("blog"), "posts".into())).await.unwrap();
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_holds_up_nobody() {
        let turns = Turns::default();
        let first = soon(turns.take(site("blog"), "posts".into())).await.unwrap();
        let waiting = turns.take(site("shop"), "orders".into());
        assert!(timeout(Duration::from_millis(20), waiting).await.is_err());
        drop(first);
        soon(turns.take(site("wiki"), "page".into())).await.unwrap();
    }

    #[test]
    fn the_first_server_that_carries_a_writer_keeps_the_line_of_its_pool() {
        let server = |name: &str| ServerId::parse(name).unwrap();
        let sql_site = |pool: &str, writer: Option<&str>| SqlSite {
            number: 1,
            writer: writer.map(|name| RoutedWriter {
                server: server(name),
                relay: "10.0.0.1:7403".parse().unwrap(),
                epoch: 1,
                former: None,
            }),
            database: None,
            limits: Default::default(),
            pool: PoolName::parse(pool).unwrap(),
        };
        let sites = [
            ("blog", sql_site("first", Some("s3"))),
            ("shop", sql_site("first", Some("s2"))),
            ("wiki", sql_site("first", None)),
            ("forum", sql_site("second", Some("s1"))),
            ("empty", sql_site("third", None)),
        ];
        let mut part = SqlPart {
            server: server("s2"),
            sites: sites.map(|(name, sql_site)| (site(name), sql_site)).into(),
            listeners: Default::default(),
            member: None,
            writes_for: Default::default(),
        };
        let keeper = |part: &SqlPart, of: &str| {
            let (keeper, is_here) = keeper_of(&Some(part.clone()), &site(of))?;
            Some((keeper.server.to_string(), is_here))
        };
        for of in ["blog", "shop", "wiki"] {
            assert_eq!(keeper(&part, of), Some(("s2".into(), true)), "{of}");
        }
        assert_eq!(keeper(&part, "forum"), Some(("s1".into(), false)));
        part.server = server("s1");
        assert_eq!(keeper(&part, "blog"), Some(("s2".into(), false)));
        assert_eq!(keeper(&part, "forum"), Some(("s1".into(), true)));
        assert_eq!(keeper(&part, "empty"), None);
        assert_eq!(keeper(&part, "unknown"), None);
        assert!(keeper_of(&None, &site("blog")).is_none());
    }
}
