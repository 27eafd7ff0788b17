//! Visitors of a site. A crowd: a number of people, each asks again as soon as served, on a connection that is
//! kept alive. A stream: people come at a fixed rate whether earlier ones were served or not, each on a connection
//! of its own, so that a stall meets as many of them as it would in life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::http::{Answer, Connection, PATIENCE, Place};

/// After a failure a visitor does not hammer.
const ANNOYED: Duration = Duration::from_millis(100);
/// More waiting visitors than this say no more than these.
const STREAM_MAX: usize = 2_000;

#[derive(Debug, Clone)]
pub struct Visit {
    pub begun: Instant,
    pub wait: Duration,
    /// `None`: the page came as it should.
    pub fault: Option<String>,
    /// What the page said of who served it (`X-Instance`).
    pub instance: Option<String>,
}

type Paths = Arc<dyn Fn(usize) -> String + Send + Sync>;
type Log = Arc<Mutex<Vec<Visit>>>;

/// Visitors who are there until they are asked to leave.
pub struct Visitors {
    log: Log,
    tasks: JoinSet<()>,
    leaving: tokio::sync::watch::Sender<bool>,
}

/// What they met.
#[derive(Debug, Clone, Default)]
pub struct Visits(pub Vec<Visit>);

impl Visitors {
    /// `paths` gives the address of the n-th page of a visitor.
    pub fn crowd(
        place: &Place,
        number: usize,
        paths: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Visitors {
        let mut visitors = Visitors::none();
        let paths: Paths = Arc::new(paths);
        for person in 0..number {
            let leaving = visitors.leaving.subscribe();
            visitors.tasks.spawn(stay(
                place.clone(),
                person * 1_000_000,
                paths.clone(),
                visitors.log.clone(),
                leaving,
            ));
        }
        visitors
    }

    pub fn stream(place: &Place, per_second: u32, path: &str) -> Visitors {
        let mut visitors = Visitors::none();
        let leaving = visitors.leaving.subscribe();
        visitors.tasks.spawn(flow(place.clone(), per_second, path.to_owned(), visitors.log.clone(), leaving));
        visitors
    }

    fn none() -> Visitors {
        Visitors { log: Log::default(), tasks: JoinSet::new(), leaving: tokio::sync::watch::channel(false).0 }
    }

    pub fn so_far(&self) -> Visits {
        Visits(self.log.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Nobody else comes; those who are there are waited for.
    pub async fn leave(mut self) -> Visits {
        self.leaving.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        self.so_far()
    }
}

impl Visits {
    pub fn since(&self, moment: Instant) -> Visits {
        Visits(self.0.iter().filter(|visit| visit.begun + visit.wait >= moment).cloned().collect())
    }

    pub fn served(&self) -> usize {
        self.0.len() - self.failed()
    }

    pub fn failed(&self) -> usize {
        self.0.iter().filter(|visit| visit.fault.is_some()).count()
    }

    pub fn longest(&self) -> Duration {
        self.0.iter().map(|visit| visit.wait).max().unwrap_or_default()
    }

    /// Each fault with how often it was met.
    pub fn faults(&self) -> BTreeMap<&str, usize> {
        let mut faults = BTreeMap::new();
        for fault in self.0.iter().filter_map(|visit| visit.fault.as_deref()) {
            *faults.entry(fault).or_default() += 1;
        }
        faults
    }

    pub fn instances(&self) -> BTreeMap<&str, usize> {
        let mut instances = BTreeMap::new();
        for instance in self.0.iter().filter_map(|visit| visit.instance.as_deref()) {
            *instances.entry(instance).or_default() += 1;
        }
        instances
    }

    /// Says of the visits when a failure came, in seconds from `moment`.
    pub fn all_served(&self, moment: Instant) -> Result<()> {
        let Some(first) = self.0.iter().find(|visit| visit.fault.is_some()) else {
            return Ok(());
        };
        let after = (first.begun + first.wait).saturating_duration_since(moment).as_secs_f64();
        bail!(
            "{} of {} requests failed, the first after {after:.2} s: {:?}",
            self.failed(),
            self.0.len(),
            self.faults()
        )
    }
}

async fn stay(
    place: Place,
    first: usize,
    paths: Paths,
    log: Log,
    mut leaving: tokio::sync::watch::Receiver<bool>,
) {
    let mut kept = None;
    for nth in first.. {
        if *leaving.borrow() {
            return;
        }
        let is_served = visit(&place, &paths(nth), &mut kept, &log).await;
        if !is_served {
            let _ = timeout(ANNOYED, leaving.changed()).await;
        }
    }
}

async fn flow(
    place: Place,
    per_second: u32,
    path: String,
    log: Log,
    leaving: tokio::sync::watch::Receiver<bool>,
) {
    let pause = Duration::from_secs(1) / per_second;
    let mut next = tokio::time::Instant::now();
    let mut people = JoinSet::new();
    while !*leaving.borrow() {
        while people.try_join_next().is_some() {}
        if people.len() < STREAM_MAX {
            let (place, path, log) = (place.clone(), path.clone(), log.clone());
            people.spawn(async move { visit(&place, &path, &mut None, &log).await });
        }
        next += pause;
        sleep(next.saturating_duration_since(tokio::time::Instant::now())).await;
    }
    while people.join_next().await.is_some() {}
}

/// Asks for one page and notes how it went.
async fn visit(place: &Place, path: &str, kept: &mut Option<Connection>, log: &Log) -> bool {
    let begun = Instant::now();
    let asked = async {
        let mut connection = match kept.take() {
            Some(open) if !open.is_closed() => open,
            _ => Connection::open(place).await?,
        };
        let answer = connection.get(path).await?;
        *kept = Some(connection);
        anyhow::Ok(answer)
    };
    let (fault, instance) = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) if answer.status == 200 => (None, answer.header("x-instance").map(str::to_owned)),
        Ok(Ok(answer)) => (Some(refusal(&answer)), None),
        Ok(Err(error)) => (Some(format!("{error:#}")), None),
        Err(_) => (Some(format!("no answer in {} s", PATIENCE.as_secs())), None),
    };
    let is_served = fault.is_none();
    let visit = Visit { begun, wait: begun.elapsed(), fault, instance };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(visit);
    is_served
}

fn refusal(answer: &Answer) -> String {
    let text = answer.text();
    let said = text.split_once("<title>").and_then(|(_, rest)| rest.split_once('<')).map(|(title, _)| title);
    format!("status {}{}", answer.status, said.map(|title| format!(" ({title})")).unwrap_or_default())
}
