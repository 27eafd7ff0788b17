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
use kopek_core::desired::Database;
use kopek_core::part::RoutedWriter;
use kopek_statement::Dialect;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::Following;
use crate::backend::{Backend, OpenError, Shape, Ways};
use crate::barrier::FilesBarrier;
use crate::caps::{Caps, Status};
use crate::carry::{BringError, Carry};
use crate::handshake::Login;
use crate::inbox;
use crate::login::{Arrived, LoginError, greet};
use crate::manners::Manners;
use crate::opening::{CATCH_UP, Openings};
use crate::packet::{ServerError, command, ok_packet};
use crate::place::Places;
use crate::threads::Given;
use crate::token::{Presence, Slot, Slots};
use crate::transaction::Transaction;
use crate::warm::{Left, Warm, part_with};
use crate::wire::Wire;
use crate::writer::{account_of, is_same, news, writer_of};

mod attempt;
mod execute;
mod repeat;

/// Connections of one site through this server. A web server's default is 150 workers; jobs and a second
/// instance have room beside them.
pub(crate) const EACH_SITE_MAX: usize = 512;
/// As many as a busy web server's workers; more would only wait to be turned away.
pub(crate) const WAITING_MAX: usize = 256;
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

/// What all sessions of a worker share.
pub(crate) struct Sites {
    pub(crate) ways: Ways,
    pub(crate) warm: Rc<Warm>,
    openings: Openings,
    sessions: Places,
    waiting: Places,
    slots: Rc<Slots>,
    barrier: FilesBarrier,
    manners: Manners,
}

impl Sites {
    pub(crate) fn new(
        ways: Ways,
        slots: Rc<Slots>,
        sessions: Places,
        waiting: Places,
        manners: Manners,
    ) -> Rc<Sites> {
        let warm = Warm::new(ways.clone(), manners.warm_max);
        let openings = Openings::new(ways.clone(), warm.clone());
        Rc::new(Sites { ways, warm, openings, sessions, waiting, slots, barrier: FilesBarrier, manners })
    }

    fn part(&self) -> Following {
        self.ways.part.clone()
    }

    fn writer(&self, site: &SiteName) -> Option<RoutedWriter> {
        writer_of(&self.ways.part.borrow(), site).cloned()
    }

    fn account(&self, site: &SiteName) -> Option<(u32, Database)> {
        let part = self.ways.part.borrow();
        let number = part.as_ref()?.sites.get(site)?.number;
        Some((number, account_of(&part, site)?.clone()))
    }
}

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
}

fn too_many(site: &SiteName) -> ServerError {
    ServerError::new(1040, b"08004", format!("Too many connections of site {site}"))
}

/// From accepting to closing.
pub(crate) async fn serve(sites: Rc<Sites>, client: Wire, site: SiteName) {
    let mut client = client;
    let Some(_place) = sites.sessions.take(&site) else {
        debug!(%site, "client turned away: too many connections");
        let _ = client.send(&too_many(&site).packet_before_greeting()).await;
        let _ = client.end().await;
        return;
    };
    let mut session = match Session::begin(sites, client, site.clone()).await {
        Ok(session) => session,
        Err(LoginError::Broken(error)) => return debug!(%site, %error, "a client left in its login"),
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
}

impl Session {
    async fn begin(sites: Rc<Sites>, mut client: Wire, site: SiteName) -> Result<Session, LoginError> {
        let facts = match sites.warm.facts(&site) {
            Some(facts) => facts,
            None => first_facts(&sites, &mut client, &site).await?,
        };
        // Usually the next client is as the last one: then it gets its backend's own number in the greeting.
        let likely = sites.writer(&site).and_then(|writer| sites.warm.take_likely(&site, &writer));
        let thread =
            likely.as_ref().map_or_else(|| rand::random::<u32>() | 1 << 31, |backend| backend.thread);
        let arrived = greet(client, &facts, thread, &sites.ways.tls).await;
        let give_back = |backend| sites.warm.keep(&site, backend);
        let mut arrived = match arrived {
            Ok(arrived) => arrived,
            Err(error) => {
                likely.map(give_back);
                return Err(error);
            }
        };
        let account = sites.account(&site);
        let number = account.as_ref().map_or(0, |(number, _)| *number);
        let mut backend = None;
        // Who cannot prove to know the password that we know may know a newer one: the member judges.
        let mut is_own = match &account {
            Some((_, own)) if own.user.as_bytes() == arrived.login.user => arrived.is_proved(own).await?,
            _ => false,
        };
        let mut shape = Shape::of(&arrived.login);
        let own_schema = account.as_ref().map(|(_, own)| own.name.as_bytes());
        let asked_schema = shape.schema.clone().filter(|asked| Some(&asked[..]) != own_schema);
        if asked_schema.is_some() && is_own {
            // Another schema than the site's: the member says whether there is one.
            shape.schema = None;
        }
        match likely {
            Some(likely) if is_own && likely.shape == shape => backend = Some(likely),
            likely => {
                likely.map(give_back);
            }
        }
        if is_own && backend.is_none() {
            match open_now(&sites, &site, &shape).await {
                Ok(opened) => backend = opened,
                // The account is not any more what the agent knows: the member says in its words what is wrong.
                Err(refused) if attempt::is_of_account(refused.code) => is_own = false,
                Err(refused) => return Err(arrived.turned_away(&refused).await?),
            }
        }
        if !is_own {
            backend = Some(log_in_foreign(&sites, &site, &mut arrived).await?);
        }
        let tokens = sites.manners.tokens.presence();
        let status = backend.as_ref().map_or(facts.status, |backend| backend.status);
        let mut session = Session {
            nonce: arrived.nonce,
            given: Given::new(sites.ways.threads.clone(), site.clone(), thread),
            login: arrived.login.clone(),
            client: Wire::closed(),
            sites,
            site,
            number,
            shape,
            is_foreign: !is_own,
            backend,
            status,
            carry: Carry::default(),
            transaction: Transaction::default(),
            slot: None,
            tokens,
            warnings: None,
            row_count: None,
        };
        session.note_thread();
        if is_own {
            if let Some(schema) = asked_schema
                && let Err(error) = session.use_schema(&schema).await
            {
                arrived.refuse(&error).await?;
                return Err(LoginError::Denied {
                    user: String::from_utf8_lossy(&session.login.user).into_owned(),
                });
            }
            arrived.wire.send(&ok_packet(arrived.sequence, status)).await?;
        }
        let (client, login) = arrived.compressed();
        (session.client, session.login) = (client, login);
        Ok(session)
    }

    async fn run(&mut self) -> Result<(), End> {
        while let Some(command) = self.next_command().await? {
            match self.answer(command).await {
                Ok(Flow::On) => {}
                Ok(Flow::Over) => return Ok(()),
                Err(End::RolledBack) => self.roll_back().await?,
                Err(end) => {
                    if let Some(error) = end.error(&self.site) {
                        self.tell(&error.packet(1)).await?;
                    }
                    return Err(end);
                }
            }
        }
        Ok(())
    }

    /// The client's connection ends, its backend goes back to the others.
    async fn finish(mut self) {
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
    /// connection with a higher number, and is still in its group.
    async fn lives_on_without(&self, old: &Backend) -> bool {
        let is_current = self.sites.writer(&self.site).is_some_and(|writer| is_same(&writer, &old.writer));
        let Some((_, account)) = self.sites.account(&self.site).filter(|_| is_current) else { return false };
        let ways = &self.sites.ways;
        let asking = async {
            let mut newer = Backend::open(ways, &self.site, &old.writer, &account, &old.shape).await?;
            let said = newer.query(CATCH_UP).await?;
            Ok::<bool, OpenError>(newer.thread > old.thread && said.error.is_none())
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
        let attaching = self.attach();
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
        let Some(_place) = self.sites.waiting.take(&site) else { return Err(End::TooMany { site }) };
        find_backend(&self.sites, &self.site, &self.shape).await
    }

    /// The schema that the client named in its login.
    async fn use_schema(&mut self, schema: &[u8]) -> Result<(), ServerError> {
        let lost = || ServerError::new(1053, b"08S01", "Kopek: the database cannot be reached at the moment");
        self.ready().await.map_err(|_| lost())?;
        let Some(backend) = &mut self.backend else { return Err(lost()) };
        let packet = crate::packet::command_packet(command::INIT_DB, schema);
        backend.wire.send(&packet).await.map_err(|_| lost())?;
        let answer = backend.read_whole(crate::answer::Expected::Single, crate::backend::HANDSHAKE_MAX).await;
        let (answer, said) = answer.map_err(|_| lost())?;
        if said.error.is_some() {
            return Err(ServerError::parse(&answer[crate::packet::HEADER..]).unwrap_or_else(lost));
        }
        self.carry.keep(crate::effect::Stays::Schema, &packet);
        Ok(())
    }

    async fn tell(&mut self, bytes: &[u8]) -> Result<(), End> {
        timeout(CLIENT_STALL, self.client.send(bytes)).await.map_err(|_| End::Stalled)??;
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

/// Of PHP's mysqlnd, for the first connection of all.
pub(crate) fn first_shape() -> Shape {
    let caps = Caps::LONG_FLAG
        | Caps::PROTOCOL_41
        | Caps::TRANSACTIONS
        | Caps::MULTI_RESULTS
        | Caps::PS_MULTI_RESULTS
        | Caps::LOCAL_FILES;
    Shape { caps, collation: 45, schema: None }
}

/// What to greet with, before any member of the site was ever reached: only a member can say.
async fn first_facts(
    sites: &Rc<Sites>,
    client: &mut Wire,
    site: &SiteName,
) -> Result<Rc<crate::handshake::Facts>, LoginError> {
    let shape = first_shape();
    let found = async {
        let Some(_place) = sites.waiting.take(site) else {
            return Err(End::TooMany { site: site.clone() });
        };
        timeout(WAIT_LIMIT, find_backend(sites, site, &shape)).await.unwrap_or(Err(End::NoWriter))
    };
    let found = tokio::select! {
        found = found => found,
        // The server speaks first in this protocol: a client that can be read has left, or is none.
        _ = client.fill() => return Err(LoginError::Odd),
    };
    match found {
        Ok(backend) => {
            let facts = backend.facts.clone();
            sites.warm.give_back(site, backend, Left::Usual);
            Ok(facts)
        }
        Err(end) => {
            warn!(%site, %end, "client turned away");
            if let Some(error) = end.error(site) {
                client.send(&error.packet_before_greeting()).await?;
            }
            client.end().await?;
            Err(io::Error::from(io::ErrorKind::ConnectionAborted).into())
        }
    }
}

/// A backend for a client that logs in, if that does not mean to wait for a writer. An error: the member refuses,
/// and if it is for the account, it did so for longer than it takes to make one.
async fn open_now(sites: &Rc<Sites>, site: &SiteName, shape: &Shape) -> Result<Option<Backend>, ServerError> {
    let Some(writer) = sites.writer(site) else { return Ok(None) };
    if !sites.openings.is_open(site, &writer) {
        return Ok(None);
    }
    let opening = async {
        match sites.warm.take(site, &writer, shape).await {
            Err(OpenError::Refused(error)) if attempt::is_of_account(error.code) => {
                match find_backend(sites, site, shape).await {
                    Err(End::Refused(error)) => Err(error),
                    found => Ok(found.ok()),
                }
            }
            Err(OpenError::Refused(error)) if !attempt::is_leaving(error.code) => Err(error),
            taken => Ok(taken.ok()),
        }
    };
    timeout(WAIT_LIMIT, opening).await.unwrap_or(Ok(None))
}

/// An account that is not the site's own: the member judges, over a connection of its own.
async fn log_in_foreign(
    sites: &Rc<Sites>,
    site: &SiteName,
    arrived: &mut Arrived,
) -> Result<Backend, LoginError> {
    let opening = async {
        loop {
            if let Some(writer) = sites.writer(site) {
                match Backend::greeted(&sites.ways, site, &writer).await {
                    Ok(backend) => return Ok(backend),
                    Err(OpenError::Refused(error)) if !attempt::is_leaving(error.code) => return Err(error),
                    Err(_) => {}
                }
            }
            sleep(RETRY_AFTER).await;
        }
    };
    match timeout(REFUSED_LIMIT, opening).await.map_err(|_| LoginError::Late)? {
        Ok(mut backend) => {
            arrived.relay_to(&mut backend).await?;
            Ok(backend)
        }
        Err(refused) => Err(arrived.turned_away(&refused).await?),
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
