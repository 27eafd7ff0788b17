//! The clients of a round: on each server one of each kind of work, as PHP works. Most open a connection for one to
//! three pieces of work and close it; some keep one. What each did is written into the book. Called by chaos.rs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::database::history::{Append, Attempt, Bank, Book, Call, Count, Mark, Micros, Outcome, Transfer};
use crate::database::seats::Seats;
use crate::database::session::{Problem, Session};
use crate::database::tables::{ACCOUNTS, LISTS, numbers};

/// Between two pieces of work, in milliseconds: some hundred of them a second in all, which leaves the machine room.
const PAUSE_MS: std::ops::Range<u64> = 10..40;
/// Before a client that met a problem, or finds no instance, comes again.
const ANNOYED: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Inserts,
    Counts,
    Bank,
    Appends,
    Marks,
}

const ALL: [Work; 5] = [Work::Inserts, Work::Counts, Work::Bank, Work::Appends, Work::Marks];

pub struct Crew {
    clients: JoinSet<()>,
    leaving: watch::Sender<bool>,
}

impl Crew {
    /// `ids` are never given twice, in no round.
    pub fn begin(
        round: usize,
        seed: u64,
        seats: &Arc<Seats>,
        servers: &[String],
        book: &Arc<Book>,
        ids: &Arc<AtomicU64>,
    ) -> Crew {
        let mut crew = Crew { clients: JoinSet::new(), leaving: watch::Sender::new(false) };
        for (place, server) in servers.iter().enumerate() {
            for (kind, work) in ALL.into_iter().enumerate() {
                let number = place * ALL.len() + kind;
                let client = Client {
                    number,
                    work,
                    round,
                    server: server.clone(),
                    other: servers[(place + 1) % servers.len()].clone(),
                    // One client of each work, on servers in turn.
                    keeps: kind % servers.len() == place,
                    seats: seats.clone(),
                    book: book.clone(),
                    ids: ids.clone(),
                    random: StdRng::seed_from_u64(seed ^ ((round as u64) << 32) ^ number as u64),
                    mark: (place as u32, 0),
                };
                crew.clients.spawn(client.stay(crew.leaving.subscribe()));
            }
        }
        crew
    }

    /// Each ends what it is about.
    pub async fn leave(mut self) {
        self.leaving.send_replace(true);
        while self.clients.join_next().await.is_some() {}
    }
}

struct Client {
    number: usize,
    work: Work,
    round: usize,
    server: String,
    /// Where what this one has written is read.
    other: String,
    keeps: bool,
    seats: Arc<Seats>,
    book: Arc<Book>,
    ids: Arc<AtomicU64>,
    random: StdRng,
    /// The key that only this client writes, and the last value.
    mark: (u32, u64),
}

impl Client {
    async fn stay(mut self, leaving: watch::Receiver<bool>) {
        while !*leaving.borrow() {
            let Some(socket) = self.seats.on(&self.server) else {
                sleep(ANNOYED).await;
                continue;
            };
            let mut begun = self.book.now();
            let mut session = match Session::open(&socket).await {
                Ok(session) => session,
                Err(problem) => {
                    self.attempted(&self.server, begun, Some(problem));
                    sleep(ANNOYED).await;
                    continue;
                }
            };
            let pieces = if self.keeps { usize::MAX } else { self.random.random_range(1..=3) };
            let mut problem = None;
            for _ in 0..pieces {
                problem = self.work_once(&mut session).await.err();
                self.attempted(&self.server, begun, problem.clone());
                if problem.is_some() || *leaving.borrow() {
                    break;
                }
                if self.work == Work::Marks {
                    self.read_mark_elsewhere().await;
                }
                sleep(Duration::from_millis(self.random.random_range(PAUSE_MS))).await;
                begun = self.book.now();
            }
            session.close().await;
            if problem.is_some() {
                sleep(ANNOYED).await;
            }
        }
    }

    fn attempted(&self, server: &str, begun: Micros, problem: Option<Problem>) {
        self.book.attempted(Attempt {
            client: self.number,
            server: server.to_owned(),
            begun,
            ended: self.book.now(),
            problem: problem.map(|problem| problem.kind),
        });
    }

    async fn work_once(&mut self, session: &mut Session) -> Result<(), Problem> {
        match self.work {
            Work::Inserts => self.insert(session).await,
            Work::Counts if self.random.random_bool(0.3) => self.read_count(session).await,
            Work::Counts => self.count(session).await,
            Work::Bank if self.random.random_bool(0.3) => self.read_bank(session).await,
            Work::Bank => self.transfer(session).await,
            Work::Appends if self.random.random_bool(0.4) => self.read_lists(session).await,
            Work::Appends => self.append(session).await,
            Work::Marks => self.write_mark(session).await,
        }
    }

    fn call<W>(&self, begun: Micros, what: W, outcome: Outcome) -> Call<W> {
        Call { begun, ended: self.book.now(), outcome, what }
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    async fn insert(&self, session: &mut Session) -> Result<(), Problem> {
        let (id, begun) = (self.id(), self.book.now());
        let insert = format!("INSERT INTO rows_kept (round, id) VALUES ({}, {id})", self.round);
        let done = changed(session, &insert).await;
        let call = self.call(begun, id, outcome(&done));
        self.book.record(|history| history.inserts.push(call));
        done
    }

    async fn count(&self, session: &mut Session) -> Result<(), Problem> {
        let begun = self.book.now();
        let done =
            changed(session, &format!("UPDATE counts SET v = v + 1 WHERE round = {}", self.round)).await;
        let call = self.call(begun, Count::Add, outcome(&done));
        self.book.record(|history| history.counts.push(call));
        done
    }

    async fn read_count(&self, session: &mut Session) -> Result<(), Problem> {
        let begun = self.book.now();
        let read: Vec<u64> =
            session.rows(&format!("SELECT v FROM counts WHERE round = {}", self.round)).await?;
        let call = self.call(begun, Count::Read(one(read)?), Outcome::Acknowledged);
        self.book.record(|history| history.counts.push(call));
        Ok(())
    }

    async fn transfer(&mut self, session: &mut Session) -> Result<(), Problem> {
        let from = self.random.random_range(0..ACCOUNTS);
        let to = (from + self.random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let transfer = Transfer { id: self.id(), from, to, amount: self.random.random_range(1..=10) };
        let begun = self.book.now();
        let prepared = self.prepare(session, &transfer).await;
        let done = match prepared {
            Ok(true) => session.change("COMMIT").await.map(drop),
            // Not enough money: nothing was asked for.
            Ok(false) => return session.change("ROLLBACK").await.map(drop),
            Err(problem) => Err(never_committed(problem)),
        };
        let call = self.call(begun, Bank::Transfer(transfer), outcome(&done));
        self.book.record(|history| history.bank.push(call));
        done
    }

    /// All of it but the COMMIT. Reads and writes apart, so that an update that is lost shows.
    async fn prepare(&self, session: &mut Session, transfer: &Transfer) -> Result<bool, Problem> {
        let (round, Transfer { id, from, to, amount }) = (self.round, *transfer);
        session.change("START TRANSACTION").await?;
        let read: Vec<(u32, i64)> = session
            .rows(&format!(
                "SELECT n, balance FROM accounts WHERE round = {round} AND n IN ({from}, {to}) ORDER BY n FOR UPDATE"
            ))
            .await?;
        let balance =
            |account: u32| read.iter().find(|(n, _)| *n == account).map_or(0, |(_, balance)| *balance);
        if balance(from) < amount {
            return Ok(false);
        }
        for (account, balance) in [(from, balance(from) - amount), (to, balance(to) + amount)] {
            changed(
                session,
                &format!("UPDATE accounts SET balance = {balance} WHERE round = {round} AND n = {account}"),
            )
            .await?;
        }
        let line = format!(
            "INSERT INTO ledger (round, id, source, target, amount) VALUES ({round}, {id}, {from}, {to}, {amount})"
        );
        changed(session, &line).await.map(|()| true)
    }

    async fn read_bank(&self, session: &mut Session) -> Result<(), Problem> {
        let begun = self.book.now();
        let read: Vec<(u32, i64)> =
            session.rows(&format!("SELECT n, balance FROM accounts WHERE round = {}", self.round)).await?;
        let call = self.call(begun, Bank::Read(read.into_iter().collect()), Outcome::Acknowledged);
        self.book.record(|history| history.bank.push(call));
        Ok(())
    }

    /// In the order of keys, so that appends never wait for each other in a circle.
    fn some_lists(&mut self, number: usize) -> Vec<u32> {
        let mut keys = rand::seq::index::sample(&mut self.random, LISTS as usize, number).into_vec();
        keys.sort_unstable();
        keys.into_iter().map(|key| key as u32).collect()
    }

    async fn append(&mut self, session: &mut Session) -> Result<(), Problem> {
        let (id, keys, begun) = (self.id(), self.some_lists(2), self.book.now());
        let appended = async {
            session.change("START TRANSACTION").await?;
            for key in &keys {
                let round = self.round;
                let one =
                    format!("UPDATE lists SET v = CONCAT(v, ' {id}') WHERE round = {round} AND k = {key}");
                changed(session, &one).await?;
            }
            Ok(())
        };
        let done = match appended.await {
            Ok(()) => session.change("COMMIT").await.map(drop),
            Err(problem) => Err(never_committed(problem)),
        };
        let call = self.call(begun, Append::Append { id, keys }, outcome(&done));
        self.book.record(|history| history.appends.push(call));
        done
    }

    async fn read_lists(&mut self, session: &mut Session) -> Result<(), Problem> {
        let keys: Vec<String> = self.some_lists(3).iter().map(u32::to_string).collect();
        let begun = self.book.now();
        let (round, keys) = (self.round, keys.join(", "));
        let read: Vec<(u32, String)> =
            session.rows(&format!("SELECT k, v FROM lists WHERE round = {round} AND k IN ({keys})")).await?;
        let lists = read.into_iter().map(|(key, text)| (key, numbers(&text))).collect();
        let call = self.call(begun, Append::Read(lists), Outcome::Acknowledged);
        self.book.record(|history| history.appends.push(call));
        Ok(())
    }

    async fn write_mark(&mut self, session: &mut Session) -> Result<(), Problem> {
        self.mark.1 += 1;
        let (key, value) = self.mark;
        let begun = self.book.now();
        let write = format!("UPDATE marks SET v = {value} WHERE round = {} AND k = {key}", self.round);
        let done = changed(session, &write).await;
        let call = self.call(begun, Mark::Write { key, value }, outcome(&done));
        self.book.record(|history| history.marks.push(call));
        done
    }

    /// Through an instance on another server, on a new connection: the visitor's next page.
    async fn read_mark_elsewhere(&self) {
        let Some(socket) = self.seats.on(&self.other) else { return };
        let (begun, key) = (self.book.now(), self.mark.0);
        let read = async {
            let mut session = Session::open(&socket).await?;
            let begun = self.book.now();
            let ask = format!("SELECT v FROM marks WHERE round = {} AND k = {key}", self.round);
            let read: Vec<u64> = session.rows(&ask).await?;
            let call = self.call(begun, Mark::Read { key, value: one(read)? }, Outcome::Acknowledged);
            session.close().await;
            self.book.record(|history| history.marks.push(call));
            Ok(())
        };
        let read = read.await;
        self.attempted(&self.other, begun, read.err());
    }
}

/// One row, or something is very wrong.
async fn changed(session: &mut Session, statement: &str) -> Result<(), Problem> {
    match session.change(statement).await? {
        1 => Ok(()),
        rows => Err(Problem { kind: format!("{rows} rows changed instead of 1"), fate: Outcome::Unknown }),
    }
}

fn one<T: Copy>(read: Vec<T>) -> Result<T, Problem> {
    let odd = || Problem { kind: format!("{} rows read instead of 1", read.len()), fate: Outcome::Unknown };
    read.first().copied().ok_or_else(odd)
}

/// Whatever it was, the COMMIT was not sent.
fn never_committed(problem: Problem) -> Problem {
    Problem { fate: Outcome::Refused, ..problem }
}

fn outcome(done: &Result<(), Problem>) -> Outcome {
    done.as_ref().map_or_else(|problem| problem.fate, |()| Outcome::Acknowledged)
}
