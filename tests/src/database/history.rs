//! What clients did and saw, with times of one clock. Recorded by crew.rs, read by the judge.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Since the round began. All clients are tasks of one process, so that times can be compared.
pub type Micros = u64;

/// What is known of whether a call took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Outcome {
    Acknowledged,
    /// The database said, by an error of its own, that it was not done.
    Refused,
    /// The connection was lost, or the error leaves it open.
    Unknown,
}

/// One call: `what`, invoked at `begun`, answered at `ended`. A read is recorded only if it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call<W> {
    pub begun: Micros,
    pub ended: Micros,
    pub outcome: Outcome,
    pub what: W,
}

impl<W> Call<W> {
    pub fn is_acknowledged(&self) -> bool {
        self.outcome == Outcome::Acknowledged
    }

    /// Before this began, `other` was acknowledged: this must see it.
    pub fn must_see<V>(&self, other: &Call<V>) -> bool {
        other.is_acknowledged() && other.ended < self.begun
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Count {
    Add,
    Read(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Transfer {
    pub id: u64,
    pub from: u32,
    pub to: u32,
    pub amount: i64,
}

pub type Balances = BTreeMap<u32, i64>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Bank {
    Transfer(Transfer),
    /// Every account, in one statement.
    Read(Balances),
}

pub type Lists = BTreeMap<u32, Vec<u64>>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Append {
    /// To the lists of all these keys, in one transaction.
    Append { id: u64, keys: Vec<u32> },
    /// Several lists, in one statement.
    Read(Lists),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Mark {
    /// Each key has one client that writes it, with rising values.
    Write {
        key: u32,
        value: u64,
    },
    Read {
        key: u32,
        value: u64,
    },
}

/// Everything of one round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct History {
    pub inserts: Vec<Call<u64>>,
    pub counts: Vec<Call<Count>>,
    pub bank: Vec<Call<Bank>>,
    pub appends: Vec<Call<Append>>,
    pub marks: Vec<Call<Mark>>,
}

/// What the database held when the round was over.
#[derive(Debug, Clone, Default, Serialize)]
pub struct End {
    pub rows: Vec<u64>,
    pub count: u64,
    pub balances: Balances,
    pub ledger: Vec<Transfer>,
    pub lists: Lists,
}

/// How one attempt of a client went, connecting included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    pub client: usize,
    pub server: String,
    pub begun: Micros,
    pub ended: Micros,
    pub problem: Option<String>,
}

/// Where all clients of a round write.
pub struct Book {
    began: Instant,
    pub history: Mutex<History>,
    attempts: Mutex<Vec<Attempt>>,
}

impl Book {
    #[expect(clippy::new_without_default, reason = "the clock starts here; a default would hide that")]
    pub fn new() -> Book {
        Book { began: Instant::now(), history: Mutex::default(), attempts: Mutex::default() }
    }

    pub fn now(&self) -> Micros {
        self.began.elapsed().as_micros() as Micros
    }

    pub fn record(&self, write: impl FnOnce(&mut History)) {
        write(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn attempted(&self, attempt: Attempt) {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
    }

    pub fn attempts(&self) -> Vec<Attempt> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
