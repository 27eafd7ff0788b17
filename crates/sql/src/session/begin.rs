//! A client's login to its session: greeted in the name of its member, proved, and given a backend. Called by
//! `session`.

use std::io;
use std::rc::Rc;

use kopek_core::SiteName;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{End, REFUSED_LIMIT, RETRY_AFTER, Session, Sites, WAIT_LIMIT, attempt, find_backend};
use crate::backend::{Backend, OpenError, Shape};
use crate::caps::Caps;
use crate::carry::Carry;
use crate::handshake::Login;
use crate::login::{Arrived, LoginError, greet};
use crate::meter::Client;
use crate::packet::{ServerError, command, ok_packet};
use crate::threads::Given;
use crate::transaction::Transaction;
use crate::warm::Left;
use crate::wire::Wire;

impl Session {
    /// `nth` of the site's connections.
    pub(super) async fn begin(
        sites: Rc<Sites>,
        mut client: Wire,
        site: SiteName,
        nth: usize,
    ) -> Result<Session, LoginError> {
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
        let meter = sites.meters.of(&site);
        if meter.limits().connections.is_some_and(|most| nth > most as usize) {
            likely.map(give_back);
            meter.count(|counts| counts.refused_connections += 1);
            arrived.refuse(&too_many_of(&arrived.login)).await?;
            return Err(LoginError::TooMany);
        }
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
            lock_prefix: lock_prefix(number, account.as_ref().map_or("", |(_, own)| &own.password)),
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
            metered: Client::new(meter),
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
        // A login is no traffic of the site's statements.
        session.client.take_traffic();
        Ok(session)
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
}

/// MySQL's words for an account with `max_user_connections`, after its login as there.
fn too_many_of(login: &Login) -> ServerError {
    let user = String::from_utf8_lossy(&login.user);
    let text = format!("User {user} already has more than 'max_user_connections' active connections");
    ServerError::new(1203, b"42000", text)
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
        let Some(_place) = sites.bounds.waiting.take(site) else {
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

/// What the names of a site's locks begin with. Nobody else can say it: locks are one set for the whole member, and
/// a text that is put together in a procedure is not adapted.
fn lock_prefix(number: u32, password: &str) -> String {
    let secret = blake3::derive_key("kopek sql names of locks", password.as_bytes());
    let word = u64::from_le_bytes(secret[..8].try_into().expect("8 of 32 bytes"));
    format!("k{number}.{word:x}.")
}
