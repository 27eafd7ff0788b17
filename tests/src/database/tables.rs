//! The tables that clients of a round work on, and what they hold when it is over. Called by chaos.rs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::database::history::{End, Transfer};
use crate::database::seats::Seats;
use crate::database::session::{Problem, Session, USER};
use crate::rack::Rack;
use crate::wait::until;

pub const ACCOUNTS: u32 = 6;
/// What each account has when a round begins.
pub const OPENING: i64 = 100;
pub const LISTS: u32 = 6;
/// One for each client that writes marks.
pub const MARKS: u32 = 8;
/// A member of a whole pool of three says "3 Synced".
pub const MEMBER_IS_WHOLE: &str = "SELECT GROUP_CONCAT(variable_value ORDER BY variable_name SEPARATOR ' ')
    FROM information_schema.global_status
    WHERE variable_name IN ('WSREP_CLUSTER_SIZE', 'WSREP_LOCAL_STATE_COMMENT')";
/// A cell that has come back answers long before that.
const LIMIT: Duration = Duration::from_secs(60);

const TABLES: [&str; 6] = [
    "rows_kept (n BIGINT AUTO_INCREMENT PRIMARY KEY, round INT, id BIGINT, KEY (round))",
    "counts (round INT PRIMARY KEY, v BIGINT)",
    "accounts (round INT, n INT, balance BIGINT, PRIMARY KEY (round, n))",
    "ledger (n BIGINT AUTO_INCREMENT PRIMARY KEY, round INT, id BIGINT, source INT, target INT, amount BIGINT, \
     KEY (round))",
    "lists (round INT, k INT, v MEDIUMTEXT, PRIMARY KEY (round, k))",
    "marks (round INT, k INT, v BIGINT, PRIMARY KEY (round, k))",
];

pub async fn create(seats: &Seats) -> Result<()> {
    let statements = TABLES.map(|table| format!("CREATE TABLE IF NOT EXISTS {table} ENGINE=InnoDB"));
    insist(seats, &statements).await
}

/// Repeated until it is done, so each statement may be done twice.
pub async fn begin(seats: &Seats, round: usize) -> Result<()> {
    let values = |number: u32, of: &str| {
        let each = (0..number).map(|n| format!("({round}, {n}, {of})"));
        each.collect::<Vec<_>>().join(", ")
    };
    let statements = [
        format!("REPLACE INTO counts VALUES ({round}, 0)"),
        format!("REPLACE INTO accounts VALUES {}", values(ACCOUNTS, &OPENING.to_string())),
        format!("REPLACE INTO lists VALUES {}", values(LISTS, "''")),
        format!("REPLACE INTO marks VALUES {}", values(MARKS, "0")),
    ];
    insist(seats, &statements).await
}

/// Once nobody works on them any more.
pub async fn end(seats: &Seats, round: usize) -> Result<End> {
    until("the end of a round to be read", LIMIT, || async {
        let mut session = anyone(seats).await?;
        let read = read(&mut session, round).await.map_err(failed)?;
        session.close().await;
        Ok(Some(read))
    })
    .await
}

async fn read(session: &mut Session, round: usize) -> Result<End, Problem> {
    let of = |what: &str, table: &str| format!("SELECT {what} FROM {table} WHERE round = {round}");
    let ledger: Vec<(u64, u32, u32, i64)> = session.rows(&of("id, source, target, amount", "ledger")).await?;
    let lists: Vec<(u32, String)> = session.rows(&of("k, v", "lists")).await?;
    Ok(End {
        rows: session.rows(&of("id", "rows_kept")).await?,
        count: session.rows::<u64>(&of("v", "counts")).await?.into_iter().sum(),
        balances: session.rows::<(u32, i64)>(&of("n, balance", "accounts")).await?.into_iter().collect(),
        ledger: ledger.into_iter().map(|(id, from, to, amount)| Transfer { id, from, to, amount }).collect(),
        lists: lists.into_iter().map(|(key, text)| (key, numbers(&text))).collect(),
    })
}

/// The rows of all rounds.
pub async fn all_rows(seats: &Seats) -> Result<Vec<u64>> {
    until("all rows to be read", LIMIT, || async {
        let mut session = anyone(seats).await?;
        session.rows("SELECT id FROM rows_kept").await.map(Some).map_err(failed)
    })
    .await
}

pub fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// Until what was begun through connections that are gone has ended, one way or the other. A statement that still
/// waits for a lock would be done after the end was read.
pub async fn quiet(seats: &Seats) -> Result<()> {
    let ask = format!(
        "SELECT COUNT(*) FROM information_schema.processlist
         WHERE user = '{USER}' AND id <> CONNECTION_ID() AND command <> 'Sleep'"
    );
    until("what was begun to end", LIMIT, || async {
        let mut session = anyone(seats).await?;
        let others: Vec<u64> = session.rows(&ask).await.map_err(failed)?;
        session.close().await;
        Ok((others == [0]).then_some(()))
    })
    .await
}

/// What one member of the pool says by itself, not through `sql`. Fails while it does not answer.
pub async fn member_says(rack: &Rack, server: &str, ask: &str) -> Result<String> {
    rack.exec(server, &["mariadb", "-S", "/run/kopek/mariadb/mariadbd.sock", "-BN", "-e", ask]).await
}

/// How the members of a pool that is whole differ, if they do.
pub async fn differing(rack: &Rack, servers: &[String]) -> Result<Option<String>> {
    let names = TABLES.map(|table| table.split(' ').next().unwrap_or_default());
    let ask = format!("USE {USER}; SET SESSION wsrep_sync_wait = 1; CHECKSUM TABLE {}", names.join(", "));
    let mut sums = BTreeMap::new();
    for server in servers {
        let sum = until("the members of the pool to answer", LIMIT, || async {
            member_says(rack, server, &ask).await.map(Some)
        });
        sums.insert(server, sum.await?);
    }
    let mut each = sums.values();
    let first = each.next();
    Ok((!each.all(|sum| Some(sum) == first)).then(|| format!("the members of the pool differ: {sums:?}")))
}

async fn insist(seats: &Seats, statements: &[String]) -> Result<()> {
    until("the tables to be made ready", LIMIT, || async {
        let mut session = anyone(seats).await?;
        for statement in statements {
            session.change(statement).await.map_err(failed)?;
        }
        session.close().await;
        Ok(Some(()))
    })
    .await
}

async fn anyone(seats: &Seats) -> Result<Session> {
    for server in seats.servers() {
        if let Some(socket) = seats.on(&server)
            && let Ok(session) = Session::open(&socket).await
        {
            return Ok(session);
        }
    }
    bail!("no instance has a database")
}

fn failed(problem: Problem) -> anyhow::Error {
    anyhow::anyhow!(problem.kind)
}
