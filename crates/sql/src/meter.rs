//! What each site asks of its database through one worker: counted as answers end, summed when somebody asks. A
//! worker has one thread, so nothing is locked. Called by `session` and `status`.
//!
//! Promise: on the usual path nothing is allocated, and no text is kept with its literals.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kopek_core::desired::DatabaseLimits;
use kopek_core::meter::{Counts, Latency, Metered, SlowStatement};
use kopek_core::{Micros, Moment, SiteName};
use kopek_statement::{Digest, Kind};

use crate::Following;
use crate::budget::Budgets;
use crate::digests::{Digests, Execution};
use crate::slow::{SLOW, Slow};

static SINCE: LazyLock<Moment> = LazyLock::new(now);

/// When this process began to count.
pub(crate) fn since() -> Moment {
    *SINCE
}

fn now() -> Moment {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
}

/// The meters of one worker.
pub(crate) struct Meters {
    part: Following,
    budgets: Budgets,
    sites: RefCell<BTreeMap<SiteName, Rc<Meter>>>,
}

impl Meters {
    pub(crate) fn new(part: Following, budgets: Budgets) -> Rc<Meters> {
        LazyLock::force(&SINCE);
        Rc::new(Meters { part, budgets, sites: RefCell::default() })
    }

    pub(crate) fn of(&self, site: &SiteName) -> Rc<Meter> {
        if let Some(meter) = self.sites.borrow().get(site) {
            return meter.clone();
        }
        let limits = Cell::new(self.limits(site));
        let meter =
            Meter { site: site.clone(), limits, budgets: self.budgets.clone(), seen: RefCell::default() };
        let meter = Rc::new(meter);
        self.sites.borrow_mut().insert(site.clone(), meter.clone());
        meter
    }

    fn limits(&self, site: &SiteName) -> DatabaseLimits {
        let part = self.part.borrow();
        part.as_ref().and_then(|part| part.sites.get(site)).map(|site| site.limits).unwrap_or_default()
    }

    /// Keeps the limits as the agent's latest part has them, and forgets sites that it has no more. Ends with the
    /// follower.
    pub(crate) async fn follow(self: Rc<Self>) {
        let mut part = self.part.clone();
        while part.changed().await.is_ok() {
            if let Some(part) = &*part.borrow_and_update() {
                self.sites.borrow_mut().retain(|site, _| part.sites.contains_key(site));
                self.budgets.keep(|site| part.sites.contains_key(site));
            }
            for (site, meter) in self.sites.borrow().iter() {
                meter.limits.set(self.limits(site));
            }
        }
    }

    /// Of one site, or of all of them without their statements.
    pub(crate) fn told(&self, site: Option<&SiteName>) -> BTreeMap<SiteName, Metered> {
        let sites = self.sites.borrow();
        match site {
            Some(site) => sites
                .get_key_value(site)
                .map(|(site, meter)| (site.clone(), meter.told()))
                .into_iter()
                .collect(),
            None => sites.iter().map(|(site, meter)| (site.clone(), meter.counted())).collect(),
        }
    }
}

/// One site's.
pub(crate) struct Meter {
    site: SiteName,
    limits: Cell<DatabaseLimits>,
    budgets: Budgets,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    counts: Counts,
    latency: Latency,
    digests: Digests,
    slow: Slow,
}

/// How a statement is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
    Other,
}

impl Class {
    pub(crate) fn of(kind: Kind) -> Class {
        match kind {
            Kind::Select | Kind::Show => Class::Read,
            Kind::Insert
            | Kind::Replace
            | Kind::Update
            | Kind::Delete
            | Kind::LoadData
            | Kind::CreateTable
            | Kind::CreateTemporaryTable
            | Kind::DropTemporaryTable
            | Kind::AlterTable
            | Kind::OtherDdl => Class::Write,
            _ => Class::Other,
        }
    }
}

/// A command that has ended: the client has its answer, or gets no more of it.
pub(crate) struct Answered {
    /// None: it is no statement (COM_PING, COM_STMT_FETCH, …).
    pub(crate) class: Option<Class>,
    pub(crate) digest: Option<Digest>,
    pub(crate) took: Micros,
    pub(crate) rows: u64,
    pub(crate) changed: u64,
    pub(crate) error: Option<u16>,
    pub(crate) bytes: Traffic,
}

/// Bytes from and to a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Meter {
    pub(crate) fn limits(&self) -> DatabaseLimits {
        self.limits.get()
    }

    /// Whether one more statement is within the site's queries a second.
    pub(crate) fn admits_statement(&self) -> bool {
        let Some(per_second) = self.limits().queries_per_second else { return true };
        let admits = self.budgets.take(&self.site, per_second, Instant::now());
        if !admits {
            let counts = &mut self.seen.borrow_mut().counts;
            counts.refused_statements += 1;
            counts.errors += 1;
        }
        admits
    }

    /// `text` is only made when it is kept: without literals.
    pub(crate) fn answered(&self, answered: &Answered, text: impl Fn() -> String) {
        let Seen { counts, latency, digests, slow } = &mut *self.seen.borrow_mut();
        counts.bytes_in += answered.bytes.received;
        counts.bytes_out += answered.bytes.sent;
        counts.rows_sent += answered.rows;
        counts.rows_changed = counts.rows_changed.saturating_add(answered.changed);
        counts.errors += u64::from(answered.error.is_some());
        match answered.class {
            Some(Class::Read) => counts.reads += 1,
            Some(Class::Write) => counts.writes += 1,
            Some(Class::Other) => counts.others += 1,
            None => return,
        }
        counts.time.0 += answered.took.0;
        latency.count(answered.took);
        let rows = answered.rows + answered.changed;
        if let Some(digest) = answered.digest {
            let execution = Execution { took: answered.took, rows, failed: answered.error.is_some() };
            digests.take(digest, execution, &text);
        }
        if answered.took >= SLOW {
            let (at, took, error) = (now(), answered.took, answered.error);
            slow.push(SlowStatement { at, took, rows, error, text: text() });
        }
    }

    /// Beside what was answered: of commands without an answer, and of what was said last.
    pub(crate) fn passed(&self, bytes: Traffic) {
        let counts = &mut self.seen.borrow_mut().counts;
        counts.bytes_in += bytes.received;
        counts.bytes_out += bytes.sent;
    }

    pub(crate) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.seen.borrow_mut().counts);
    }

    fn told(&self) -> Metered {
        let top = self.seen.borrow().digests.top();
        let slow = self.seen.borrow().slow.told();
        Metered { top, slow, ..self.counted() }
    }

    fn counted(&self) -> Metered {
        let seen = self.seen.borrow();
        Metered { counts: seen.counts.clone(), latency: seen.latency.clone(), ..Metered::default() }
    }
}

/// A client that has logged in, until it is dropped.
pub(crate) struct Client {
    pub(crate) meter: Rc<Meter>,
    /// Of the writer that answered it last.
    epoch: Option<u64>,
}

impl Client {
    pub(crate) fn new(meter: Rc<Meter>) -> Client {
        meter.count(|counts| {
            counts.connections += 1;
            counts.connected += 1;
        });
        Client { meter, epoch: None }
    }

    pub(crate) fn was_answered_in(&mut self, epoch: u64) {
        if self.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            self.meter.count(|counts| counts.moved_sessions += 1);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.meter.count(|counts| counts.connected -= 1);
    }
}

#[cfg(test)]
mod tests {
    use kopek_core::PoolName;
    use kopek_core::part::{SqlPart, SqlSite};
    use tokio::sync::watch;

    use super::*;

    fn site() -> SiteName {
        SiteName::parse("blog").unwrap()
    }

    fn part(limits: DatabaseLimits) -> Option<SqlPart> {
        let blog = SqlSite { number: 5, writer: None, database: None, limits, pool: PoolName::first() };
        Some(SqlPart {
            server: kopek_core::ServerId::parse("s1").unwrap(),
            sites: BTreeMap::from([(site(), blog)]),
            listeners: BTreeMap::new(),
            member: None,
            writes_for: BTreeMap::new(),
        })
    }

    fn read(took: Micros) -> Answered {
        Answered {
            class: Some(Class::Read),
            digest: Some(Digest(7)),
            took,
            rows: 3,
            changed: 0,
            error: None,
            bytes: Traffic { received: 10, sent: 100 },
        }
    }

    #[test]
    fn what_was_answered_is_told_and_only_the_slow_is_kept() {
        let meters = Meters::new(watch::channel(None).1, Budgets::default());
        let meter = meters.of(&site());
        let text = || "SELECT ?".to_owned();
        meter.answered(&read(Micros(200)), text);
        meter.answered(&Answered { error: Some(1317), rows: 0, ..read(SLOW) }, text);
        meter.answered(&Answered { class: None, digest: None, ..read(Micros(5)) }, text);
        let told = meters.told(Some(&site())).remove(&site()).unwrap();
        let Counts { reads, errors, rows_sent, bytes_in, bytes_out, .. } = told.counts;
        assert_eq!([reads, errors, rows_sent, bytes_in, bytes_out], [2, 1, 6, 30, 300]);
        assert_eq!((told.latency.total(), told.top[0].count, told.top[0].errors), (2, 2, 1));
        assert_eq!((told.slow.len(), told.slow[0].error), (1, Some(1317)));
        assert!(meters.told(None).remove(&site()).unwrap().top.is_empty());
    }

    #[test]
    fn connections_are_counted_while_they_last_and_moves_by_the_epoch() {
        let meters = Meters::new(watch::channel(None).1, Budgets::default());
        let mut client = Client::new(meters.of(&site()));
        [4, 4, 5, 5].into_iter().for_each(|epoch| client.was_answered_in(epoch));
        drop(Client::new(meters.of(&site())));
        let counts = || meters.told(None).remove(&site()).unwrap().counts;
        assert_eq!((counts().connections, counts().connected, counts().moved_sessions), (2, 1, 1));
        drop(client);
        assert_eq!(counts().connected, 0);
    }

    #[tokio::test]
    async fn limits_follow_the_part_and_a_site_that_leaves_is_forgotten() {
        let (agent, following) = watch::channel(part(DatabaseLimits::default()));
        let meters = Meters::new(following, Budgets::default());
        let meter = meters.of(&site());
        let following = meters.clone().follow();
        let trial = async {
            let settled = || tokio::task::yield_now();
            assert!((0..1_000).all(|_| meter.admits_statement()));
            agent.send_replace(part(DatabaseLimits { queries_per_second: Some(1), ..Default::default() }));
            settled().await;
            assert_eq!((0..1_000).filter(|_| meter.admits_statement()).count(), 10);
            assert_eq!(meters.told(None).remove(&site()).unwrap().counts.refused_statements, 990);
            agent.send_modify(|part| part.as_mut().unwrap().sites.clear());
            settled().await;
            assert!(meters.told(None).is_empty());
        };
        tokio::select! {
            biased;
            () = trial => {}
            () = following => unreachable!("the agent is there"),
        }
    }

    /// `cargo test --release -p kopek-sql -- --ignored --nocapture what_a_query_pays`
    #[test]
    #[ignore = "a measurement"]
    fn what_a_query_pays() {
        let meters = Meters::new(watch::channel(None).1, Budgets::default());
        let meter = meters.of(&site());
        let count = 5_000_000;
        let start = Instant::now();
        for number in 0..count {
            let at = Instant::now();
            let answered = Answered { digest: Some(Digest(number % 60)), ..read(at.elapsed().into()) };
            meter.answered(std::hint::black_box(&answered), || "SELECT ?".to_owned());
        }
        println!("{} ns for each", start.elapsed().as_nanos() as u64 / count);
    }
}
