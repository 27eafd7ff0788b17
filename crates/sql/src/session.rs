//! One client of a site, from its connection to its end.
//!
//! ```text
//!             greeted, proved             first command           between two commands:
//!   Connected ──────────────► Logged in ────────────────► Attached ──────────────► detached, when the
//!       │                         ▲                          │  ▲                  writer changed
//!       ▼ wrong password          └──────────────────────────┘  │                       │
//!     refused                       COM_CHANGE_USER             └───────────────────────┘
//!                                                     next command: attached anew, settings brought,
//!                                                     the open transaction repeated
//! ```
//! Promise: a client's statements reach one member at a time, in its own order, each executed once as far as
//! the client can see; what cannot be repeated after the loss of a writer ends in the error that MySQL would
//! give. Called by `listen`.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use kopek_core::SiteName;
use kopek_core::part::RoutedWriter;
use kopek_statement::Dialect;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::Following;
use crate::backend::{Backend, OpenError, Shape};
use crate::caps::{Caps, Status};
use crate::carry::{BringError, Carry};
use crate::handshake::Login;
use crate::inbox;
use crate::login::LoginError;
use crate::meter::Client;
use crate::opening::CATCH_UP;
use crate::packet::ServerError;
use crate::threads::Given;
use crate::token::{Presence, Slot};
use crate::transaction::Transaction;
use crate::warm::part_with;
use crate::wire::Wire;
use crate::writer::{is_same, news, writer_of};

mod attempt;
mod begin;
mod change;
mod change_user;
mod execute;
mod interrupt;
mod repeat;
#[cfg(any(test, fuzzing))]
pub(crate) use repeat::without_status;
mod sites;

pub(crate) use begin::first_shape;
pub(crate) use sites::{Bounds, EACH_SITE_MAX, Sites};

/// A new writer is there in 1 to 3 s; PHP scripts may run for 30 s.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries at the same writer, for example while mariadbd restarts.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// A member that refuses a site's own account may only not have heard of it yet: accounts take a moment to be made.
const REFUSED_LIMIT: Duration = Duration::from_secs(2);
/// A planned move of a writer lets transactions end for so long; then they are repeated on the new one.
const GRACE: Duration = Duration::from_millis(50);
/// A member that lives answers in milliseconds, under load in some tens; one that died refuses at once.
const LIFE_SIGN_LIMIT: Duration = Duration::from_millis(300);
/// Like MariaDB's `net_write_timeout`: a client that reads nothing for so long is given up.
const CLIENT_STALL: Duration = Duration::from_secs(60);

/// Why a session ended, other than by its client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client left")]
    Client(#[from] io::Error),
    #[error("the client read nothing for {} s", CLIENT_STALL.as_secs())]
    Stalled,
    #[error("the writer was lost, and {why}")]
    Lost { why: String },
    #[error("the transaction was rolled back and went another way when it was repeated")]
    RolledBack,
    #[error("the member closed the connection")]
    ClosedByMember,
    #[error("no writer within {} s", WAIT_LIMIT.as_secs())]
    NoWriter,
    #[error("{site} has too many connections that wait for its writer")]
    TooMany { site: SiteName },
    #[error("refused: {}", .0.text)]
    Refused(ServerError),
    #[error(transparent)]
    Login(#[from] LoginError),
}

impl End {
    /// What the client is told before it is closed, if nothing of an answer has gone to it.
    fn error(&self, site: &SiteName) -> Option<ServerError> {
        match self {
            End::NoWriter => Some(ServerError::new(
                // "WSREP has not yet prepared node for application use": what a pool says without a majority.
                1047,
                b"08S01",
                format!("There is no database writer for site {site} now"),
            )),
            End::TooMany { .. } => Some(too_many(site)),
            End::Refused(error) => Some(error.clone()),
            _ => None,
        }
    }

    /// The number of the error that the client sees: its library's own where the connection just ends. None: it was
    /// the client that ended.
    fn number(&self) -> Option<u16> {
        match self {
            End::Client(_) | End::Stalled => None,
            End::NoWriter => Some(1047),
            End::TooMany { .. } => Some(1040),
            End::Refused(error) => Some(error.code),
            End::RolledBack => Some(1213),
            // CR_SERVER_LOST.
            End::Lost { .. } | End::ClosedByMember | End::Login(_) => Some(2013),
        }
    }
}

fn out_of_order() -> ServerError {
    ServerError::new(1156, b"08S01", "Got packets out of order")
}

fn too_many(site: &SiteName) -> ServerError {
    ServerError::new(1040, b"08004", format!("Too many connections of site {site}"))
}

/// From accepting to closing.
pub(crate) async fn serve(sites: Rc<Sites>, client: Wire, site: SiteName) {
    let mut client = client;
    let Some(place) = sites.bounds.sessions.take(&site) else {
        sites.meters.of(&site).count(|counts| counts.refused_connections += 1);
        debug!(%site, "client turned away: too many connections");
        let _ = client.send(&too_many(&site).packet_before_greeting()).await;
        let _ = client.end().await;
        return;
    };
    // In a box of its own, as all that is rare: an idle session's future takes 6.9 KB instead of 12.
    let beginning = Box::pin(Session::begin(sites, client, site.clone(), place.nth));
    let mut session = match beginning.await {
        Ok(session) => session,
        Err(LoginError::Broken(error)) => return debug!(%site, %error, "a client left in its login"),
        // The meter counts them; there may be thousands.
        Err(LoginError::TooMany) => return debug!(%site, "a client was turned away by the site's limit"),
        Err(error) => return info!(%site, %error, "login failed"),
    };
    let ended = session.run().await;
    if ended.is_err() {
        // In the middle of something: nobody else can use it, and to the member it ends as the client did.
        session.backend = None;
    }
    match ended {
        Ok(()) => {}
        Err(End::Client(error)) => debug!(%site, %error, "a client left"),
        Err(End::ClosedByMember) => debug!(%site, "the member closed a connection"),
        Err(end) => warn!(%site, %end, "a client's connection ended"),
    }
    session.finish().await;
}

pub(crate) struct Session {
    sites: Rc<Sites>,
    site: SiteName,
    number: u32,
    /// Before the names of its locks: other sites of the pool have locks of the same names.
    lock_prefix: String,
    client: Wire,
    login: Login,
    /// What a backend has to be like for this client.
    shape: Shape,
    /// The site's own account can be brought to any member; another one's connection is what it is.
    is_foreign: bool,
    nonce: [u8; crate::handshake::NONCE],
    /// The number in its greeting.
    given: Given,
    backend: Option<Backend>,
    /// As the last answer left it.
    status: Status,
    carry: Carry,
    transaction: Transaction,
    slot: Option<Slot>,
    tokens: Presence,
    /// Warnings of a statement that a commit of ours has made the member forget: the answer to SHOW WARNINGS.
    warnings: Option<Bytes>,
    /// ROW_COUNT() of such a statement.
    row_count: Option<i64>,
    metered: Client,
}

impl Session {
    async fn run(&mut self) -> Result<(), End> {
        while let Some(command) = self.next_command().await? {
            let answered = match self.is_in_order(&command) {
                true => self.answer(command).await,
                false => Err(End::Refused(out_of_order())),
            };
            match answered {
                Ok(Flow::On) => {}
                Ok(Flow::Over) => return Ok(()),
                Err(End::RolledBack) => self.roll_back().await?,
                Err(end) => {
                    // It may be in the middle of an answer, which the next client would get.
                    self.backend = None;
                    if let Some(error) = end.error(&self.site) {
                        self.tell(&error.packet(1)).await?;
                    }
                    return Err(end);
                }
            }
        }
        Ok(())
    }

    /// Within compressed frames the number means nothing to MariaDB either.
    fn is_in_order(&self, command: &inbox::Command) -> bool {
        command.sequence() == 0 || self.login.caps.has(Caps::COMPRESS) || self.login.caps.has(Caps::ZSTD)
    }

    /// The client's connection ends, its backend goes back to the others.
    async fn finish(mut self) {
        self.metered.meter.passed(self.client.take_traffic());
        if let Err(error) = self.client.end().await {
            debug!(site = %self.site, %error, "the client did not wait for the end");
        }
        match self.backend.take() {
            Some(backend) if self.is_foreign => part_with(backend),
            Some(backend) => self.sites.warm.give_back(&self.site, backend, self.carry.left()),
            None => {}
        }
    }

    /// `None`: the client has ended. Meanwhile a backend whose writer is relieved is left.
    async fn next_command(&mut self) -> Result<Option<inbox::Command>, End> {
        let mut leave_at = None;
        loop {
            if inbox::has_begun(&self.client) {
                return Ok(Some(inbox::take(&mut self.client).await?));
            }
            let Some(backend) = &mut self.backend else {
                if self.client.fill_after_idling().await? == 0 {
                    return Ok(None);
                }
                continue;
            };
            let (member, relieved) = backend.split(self.sites.part(), &self.site);
            let event = tokio::select! {
                biased;
                count = self.client.fill_after_idling() => Event::Client(count?),
                count = member.fill_after_idling() => Event::Member(count.unwrap_or(0)),
                () = relieved, if leave_at.is_none() => Event::Relieved,
                () = until(leave_at), if leave_at.is_some() => Event::Late,
            };
            match event {
                Event::Client(0) => return Ok(None),
                Event::Client(_) => {}
                Event::Member(0) => self.member_ended().await?,
                Event::Member(_) => self.member_spoke().await?,
                Event::Relieved if self.transaction.is_open || self.carry.stuck().is_some() => {
                    leave_at = Some(Instant::now() + GRACE);
                }
                Event::Relieved | Event::Late => self.leave_writer()?,
            }
        }
    }

    /// Between two commands: the writer is another one.
    fn leave_writer(&mut self) -> Result<(), End> {
        self.backend = None;
        match self.why_bound() {
            None => Ok(()),
            Some(why) => Err(End::Lost { why: format!("the session has {why}") }),
        }
    }

    /// Why the session cannot go on with another backend.
    fn why_bound(&self) -> Option<&'static str> {
        if self.is_foreign {
            return Some("an account that is not the site's own");
        }
        self.carry.stuck().or(self.transaction.spoiled().filter(|_| self.transaction.is_open))
    }

    /// The member closed the connection between two commands.
    async fn member_ended(&mut self) -> Result<(), End> {
        let Some(old) = self.backend.take() else { return Ok(()) };
        if self.why_bound().is_some() || self.lives_on_without(&old).await {
            return Err(End::ClosedByMember);
        }
        Ok(())
    }

    /// Whether the member wanted this connection to end (KILL, `wait_timeout`), and did not die: it serves another
    /// connection, was up before this one began, and is still in its group.
    async fn lives_on_without(&self, old: &Backend) -> bool {
        let is_current = self.sites.writer(&self.site).is_some_and(|writer| is_same(&writer, &old.writer));
        let Some((_, account)) = self.sites.account(&self.site).filter(|_| is_current) else { return false };
        let ways = &self.sites.ways;
        let asking = async {
            let mut newer = Backend::open(ways, &self.site, &old.writer, &account, &old.shape).await?;
            let caught_up = newer.query(CATCH_UP).await?.error.is_none();
            // In whole seconds: one that was started less than a second before this connection counts as dead.
            let was_up = newer
                .query(&format!(
                    "SELECT 1 FROM information_schema.global_status
                     WHERE variable_name = 'UPTIME' AND variable_value > {}",
                    old.greeted_at.elapsed().as_secs()
                ))
                .await?;
            Ok::<bool, OpenError>(caught_up && newer.thread > old.thread && was_up.rows == 1)
        };
        matches!(timeout(LIFE_SIGN_LIMIT, asking).await, Ok(Ok(true)))
    }

    /// A member says something unasked only before it closes a connection.
    async fn member_spoke(&mut self) -> Result<(), End> {
        let Some(mut backend) = self.backend.take() else { return Ok(()) };
        let said = timeout(GRACE, backend.wire.packet(crate::backend::HANDSHAKE_MAX)).await;
        let error = said.ok().and_then(Result::ok).and_then(|(_, payload)| ServerError::parse(&payload));
        match error {
            Some(error) if !attempt::is_leaving(error.code) || self.why_bound().is_some() => {
                self.tell(&error.packet(0)).await?;
                Err(End::ClosedByMember)
            }
            _ => Ok(()),
        }
    }

    /// Makes sure of a backend that is as the client expects it, the open transaction included.
    async fn ready(&mut self) -> Result<(), End> {
        if let Some(backend) = &self.backend {
            let is_current = self.is_foreign
                || writer_of(&self.sites.ways.part.borrow(), &self.site)
                    .is_some_and(|writer| is_same(writer, &backend.writer));
            // A transaction may end where it began.
            if is_current || self.transaction.is_open || self.carry.stuck().is_some() {
                return Ok(());
            }
            self.backend = None;
        }
        if let Some(why) = self.why_bound() {
            return Err(End::Lost { why: format!("the session has {why}") });
        }
        let deadline = Instant::now() + WAIT_LIMIT;
        let attaching = Box::pin(self.attach());
        timeout_at(deadline, attaching).await.unwrap_or(Err(End::NoWriter))
    }

    async fn attach(&mut self) -> Result<(), End> {
        loop {
            let mut backend = match self.sites.writer(&self.site) {
                Some(writer) if self.sites.openings.is_open(&self.site, &writer) => {
                    match self.sites.warm.take(&self.site, &writer, &self.shape).await {
                        Ok(backend) => backend,
                        Err(_) => self.find().await?,
                    }
                }
                _ => self.find().await?,
            };
            let writer = backend.writer.clone();
            let relieved = relieved_for_good(self.sites.part(), &self.site, &writer);
            let brought = tokio::select! {
                brought = self.carry.bring(&mut backend) => brought,
                () = relieved => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
            match brought {
                Ok(()) => {}
                Err(BringError::Refused(code)) if !attempt::is_leaving(code) => {
                    return Err(End::Lost { why: BringError::Refused(code).to_string() });
                }
                Err(error) => {
                    debug!(site = %self.site, %error, "a new backend failed; trying on");
                    sleep(RETRY_AFTER).await;
                    continue;
                }
            }
            let site = self.site.clone();
            let relieved = relieved_for_good(self.sites.part(), &site, &writer);
            self.backend = Some(backend);
            self.note_thread();
            if !self.transaction.is_open {
                return Ok(());
            }
            let is_repeated = tokio::select! {
                repeated = self.repeat_transaction() => repeated?,
                () = relieved => false,
            };
            if is_repeated {
                return Ok(());
            }
            self.backend = None;
        }
    }

    /// The client may kill its connection by the number that it was greeted with.
    fn note_thread(&self) {
        if let Some(backend) = &self.backend {
            self.given.means(backend.thread);
        }
    }

    async fn find(&self) -> Result<Backend, End> {
        let site = self.site.clone();
        let Some(_place) = self.sites.bounds.waiting.take(&site) else { return Err(End::TooMany { site }) };
        find_backend(&self.sites, &self.site, &self.shape).await
    }

    async fn tell(&mut self, bytes: &[u8]) -> Result<(), End> {
        self.client.send_within(CLIENT_STALL, bytes).await.map_err(|_| End::Stalled)??;
        Ok(())
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            ansi_quotes: self.status.has(Status::ANSI_QUOTES),
            no_backslash_escapes: self.status.has(Status::NO_BACKSLASH_ESCAPES),
        }
    }

    fn is_in_transaction(&self) -> bool {
        self.transaction.is_open || !self.status.has(Status::AUTOCOMMIT)
    }
}

enum Event {
    Client(usize),
    Member(usize),
    Relieved,
    Late,
}

/// Whether the session goes on after a command.
enum Flow {
    On,
    Over,
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Returns when the site has had another writer for long enough that the former one can be given up.
async fn relieved_for_good(part: Following, site: &SiteName, writer: &RoutedWriter) {
    crate::writer::changed_from(part, site, writer).await;
    sleep(GRACE).await;
}

/// Tries as long as it takes, always the writer of the latest part.
async fn find_backend(sites: &Rc<Sites>, site: &SiteName, shape: &Shape) -> Result<Backend, End> {
    let mut part = sites.part();
    let mut refused_since = None;
    loop {
        let Some(writer) = writer_of(&part.borrow_and_update(), site).cloned() else {
            news(&mut part).await;
            continue;
        };
        let again_at = Instant::now() + RETRY_AFTER;
        let reaching = async {
            sites.openings.open(site, &writer, shape).await.map_err(OpenError::Unreachable)?;
            sites.warm.take(site, &writer, shape).await
        };
        let reached = tokio::select! {
            reached = reaching => reached,
            () = crate::writer::changed_from(part.clone(), site, &writer) => continue,
        };
        match reached {
            Ok(backend) => return Ok(backend),
            Err(OpenError::Refused(error)) if !attempt::is_leaving(error.code) => {
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= REFUSED_LIMIT {
                    return Err(End::Refused(error));
                }
            }
            Err(why) => {
                debug!(%site, server = %writer.server, epoch = writer.epoch, %why, "writer not reached");
            }
        }
        // Another part may say why it failed: then at once.
        let _ = timeout_at(again_at, news(&mut part)).await;
    }
}
