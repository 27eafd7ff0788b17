//! Round after round: clients work, a fault strikes, the rack heals, and a judge reads the history against what the
//! database holds then. Called by `tests/database.rs` (a short run) and `make chaos-db` (a long one).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use crate::database::crew::Crew;
use crate::database::history::{Book, Call, End, History};
use crate::database::judge::{Violation, judge, judge_inserts};
use crate::database::schedule::{Fault, Kind, Victim, schedule};
use crate::database::seats::Seats;
use crate::database::session::{PASSWORD, USER};
use crate::database::stalls::{Cost, cost, table};
use crate::database::tables;
use crate::rack::Rack;
use crate::wait::until;

const SITE: &str = "chaos";
/// Clients get going before a fault strikes.
const WARM: Duration = Duration::from_millis(700);
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// A whole rack serves at once; clients that still wait for something lost give up after 30 s.
const SERVED_LIMIT: Duration = Duration::from_secs(45);
const PAGE: &str = "<?php echo 'here';\n";

pub struct Chaos {
    rack: Rack,
    seats: Arc<Seats>,
    servers: Vec<String>,
    ids: Arc<AtomicU64>,
    /// Of all rounds: no row may go later either.
    inserts: Vec<Call<u64>>,
    costs: Vec<Cost>,
    calls: usize,
    violations: Vec<Found>,
    /// Where histories with violations are written.
    out: PathBuf,
}

/// What a run has shown.
pub struct Verdict {
    pub calls: usize,
    pub violations: Vec<Found>,
    pub table: String,
}

#[derive(Debug, Clone)]
pub struct Found {
    pub violation: Violation,
    /// In which round and after what; nothing for what only showed when all was over.
    pub after: Option<(usize, Fault)>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.after {
            Some((round, fault)) => write!(f, "round {round}, {}: {}", fault.name(), self.violation),
            None => write!(f, "at the end: {}", self.violation),
        }
    }
}

/// Prints each round as it ends. Fails when the rack does not come back or clients are not served any more.
pub async fn run(rack: Rack, seed: u64, faults: usize, out: &Path) -> Result<Verdict> {
    println!("seed {seed}, {faults} faults; histories with violations go to {}", out.display());
    let mut chaos = Chaos::prepare(rack, out).await?;
    for (round, fault) in schedule(seed, faults).into_iter().enumerate() {
        let began = Instant::now();
        let told = chaos.round(round, seed, &fault).await;
        if told.is_err() {
            println!("{}", table(&chaos.costs));
            chaos.rack.tell_last().await;
        }
        let told = told.with_context(|| format!("round {round}, {}", fault.name()))?;
        println!("{:>5.1} s  {round:>3} {told}", began.elapsed().as_secs_f64());
    }
    let rows = tables::all_rows(&chaos.seats).await?;
    let last = judge_inserts(&chaos.inserts, &rows);
    chaos.violations.extend(last.into_iter().map(|violation| Found { violation, after: None }));
    let table = table(&chaos.costs);
    println!("{table}");
    println!("{} calls, {} rows, {} violations", chaos.calls, rows.len(), chaos.violations.len());
    for found in chaos.violations.iter().take(50) {
        println!("  {found}");
    }
    Ok(Verdict { calls: chaos.calls, violations: chaos.violations, table })
}

impl Chaos {
    async fn prepare(rack: Rack, out: &Path) -> Result<Chaos> {
        let folder = tempfile::tempdir()?;
        let (site, password) = (folder.path().join("site"), folder.path().join("password"));
        fs::create_dir(&site)?;
        fs::write(site.join("index.php"), PAGE)?;
        fs::write(&password, PASSWORD)?;
        let (site, password) = (site.to_string_lossy(), password.to_string_lossy());
        let mut words = vec!["site", "create", SITE, "--from", &site, "--domain", "chaos.test", "--wait"];
        words.extend(["--db-name", USER, "--db-user", USER, "--db-password-file", &password]);
        words.extend(["--min", "3", "--max", "3"]);
        rack.run(&words).await?;
        let seats = Arc::new(Seats::default());
        seats.look(&rack).await?;
        let servers = seats.servers();
        tables::create(&seats).await?;
        Ok(Chaos {
            rack,
            seats,
            servers,
            ids: Arc::new(AtomicU64::new(1)),
            inserts: Vec::new(),
            costs: Vec::new(),
            calls: 0,
            violations: Vec::new(),
            out: out.to_owned(),
        })
    }

    async fn round(&mut self, round: usize, seed: u64, fault: &Fault) -> Result<String> {
        self.whole().await?;
        tables::begin(&self.seats, round).await?;
        let book = Arc::new(Book::new());
        let crew = Crew::begin(round, seed, &self.seats, &self.servers, &book, &self.ids);
        sleep(WARM).await;
        let at = book.now();
        let victims = self.strike(fault).await?;
        self.seats.look(&self.rack).await?;
        sleep(fault.holds).await;
        self.heal(fault, &victims).await?;
        let healing = Instant::now();
        self.whole().await?;
        let healed = healing.elapsed();
        let served = self.served(&book).await;
        let over = book.now();
        crew.leave().await;
        served?;
        tables::quiet(&self.seats).await?;
        let end = tables::end(&self.seats, round).await?;
        let history = std::mem::take(&mut *book.history.lock().expect("no client has panicked"));
        let mut violations = judge(&history, &end, tables::OPENING);
        let differing = tables::differing(&self.rack, &self.servers).await?;
        violations.extend(differing.map(Violation::Broken));
        let struck = if fault.takes_clients() { victims.iter().cloned().collect() } else { BTreeSet::new() };
        let cost = cost(&fault.name(), &book.attempts(), &struck, at, over);
        let told = self.account(round, fault, &victims, &history, &cost, &violations);
        let told = told.replacen("calls,", &format!("calls, whole after {:.1} s,", healed.as_secs_f64()), 1);
        if !violations.is_empty() {
            self.keep(round, fault, &victims, &history, &end, &violations, at)?;
        }
        self.inserts.extend(history.inserts);
        self.costs.push(cost);
        let after = Some((round, *fault));
        self.violations.extend(violations.into_iter().map(|violation| Found { violation, after }));
        Ok(told)
    }

    fn account(
        &mut self,
        round: usize,
        fault: &Fault,
        victims: &[String],
        history: &History,
        cost: &Cost,
        violations: &[Violation],
    ) -> String {
        let History { inserts, counts, bank, appends, marks } = history;
        let calls = inserts.len() + counts.len() + bank.len() + appends.len() + marks.len();
        self.calls += calls;
        let stall =
            cost.longest_stall.map_or("–".to_owned(), |stall| format!("{:.2} s", stall.as_secs_f64()));
        let errors: usize = cost.errors.values().sum();
        let mut told = format!(
            "{} ({}, {} ms): {calls} calls, longest stall {stall}, {errors} errors",
            fault.name(),
            victims.join(" "),
            fault.holds.as_millis()
        );
        for violation in violations.iter().take(5) {
            told += &format!("\n    VIOLATION in round {round}: {violation}");
        }
        told
    }

    #[expect(clippy::too_many_arguments, reason = "everything that is known of a round goes into one file")]
    fn keep(
        &self,
        round: usize,
        fault: &Fault,
        victims: &[String],
        history: &History,
        end: &End,
        violations: &[Violation],
        at: u64,
    ) -> Result<()> {
        fs::create_dir_all(&self.out)?;
        let told: Vec<String> = violations.iter().map(Violation::to_string).collect();
        let all = serde_json::json!({
            "fault": fault.name(), "victims": victims, "at": at, "violations": told, "history": history, "end": end,
        });
        let path = self.out.join(format!("round-{round}.json"));
        fs::write(&path, all.to_string()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives the servers that were struck.
    async fn strike(&self, fault: &Fault) -> Result<Vec<String>> {
        let writer = self.rack.site(SITE).await?.writer.context("the site has no writer")?.to_string();
        let other = self.servers.iter().find(|server| **server != writer).context("there is one server")?;
        let victims = match fault.victim {
            Victim::Writer => vec![writer],
            Victim::Other => vec![other.clone()],
            Victim::All => self.servers.clone(),
        };
        match fault.kind {
            Kind::MemberKilled | Kind::MemberFrozen | Kind::AllMembersKilled => {
                let signal = if fault.kind == Kind::MemberFrozen { Signal::SIGSTOP } else { Signal::SIGKILL };
                let mut members = Vec::new();
                for victim in &victims {
                    members.extend(self.rack.processes(victim, "mariadbd --").await?);
                }
                ensure!(members.len() >= victims.len(), "{victims:?} run {} members", members.len());
                for member in members {
                    kill(Pid::from_raw(member), signal)?;
                }
            }
            Kind::WriterMoved => {
                self.rack.run(&["site", "move-writer", SITE, "--wait"]).await?;
            }
            Kind::ServerKilled => self.each(&victims, "kill").await?,
            Kind::ServerFrozen => self.each(&victims, "freeze").await?,
            Kind::ServerCut => self.each(&victims, "cut").await?,
            Kind::PowerOff | Kind::TotalPowerOff => self.each(&victims, "power-off").await?,
        }
        Ok(victims)
    }

    async fn heal(&self, fault: &Fault, victims: &[String]) -> Result<()> {
        match fault.kind {
            // The agent kills what it finds frozen, and starts it anew.
            Kind::MemberKilled | Kind::MemberFrozen | Kind::WriterMoved | Kind::AllMembersKilled => {}
            Kind::ServerFrozen | Kind::ServerCut => self.each(victims, "heal").await?,
            Kind::ServerKilled | Kind::PowerOff | Kind::TotalPowerOff => {
                self.each(victims, "power-on").await?
            }
        }
        self.seats.look(&self.rack).await
    }

    /// All of them at once, as a fault of a rack's power is.
    async fn each(&self, victims: &[String], verb: &str) -> Result<()> {
        let deeds = victims.iter().map(|victim| {
            let dir = self.rack.dir().to_string_lossy().into_owned();
            let mut command = self.rack.command(&["dev", verb, "--dir", &dir, victim]);
            command.stdout(std::process::Stdio::null()).spawn()
        });
        for deed in deeds.collect::<Vec<_>>() {
            let status = deed?.wait().await?;
            ensure!(status.success(), "kopek dev {verb} fails on one of {victims:?}");
        }
        Ok(())
    }

    /// Every server up, every member in the pool, a writer, and an instance on each server.
    async fn whole(&self) -> Result<()> {
        until("the rack to be whole", WHOLE_LIMIT, || async {
            let servers = self.rack.servers().await?;
            let ill = servers.iter().find(|server| server.state != "up" || server.pool != "synced");
            if let Some(ill) = ill {
                anyhow::bail!("{} is {}, its member {}", ill.name, ill.state, ill.pool);
            }
            let site = self.rack.site(SITE).await?;
            let serves = |server: &String| {
                let mut its = site.instances.iter().filter(|instance| instance.server.as_str() == server);
                its.any(|instance| instance.phase == "serving") && self.seats.on(server).is_some()
            };
            let empty = self.servers.iter().find(|server| !serves(server));
            if let Some(empty) = empty {
                anyhow::bail!("no instance serves on {empty}: {:?}", site.instances);
            }
            // Reports may be from before the fault: the members themselves know.
            for server in &self.servers {
                let said = tables::member_says(&self.rack, server, tables::MEMBER_IS_WHOLE).await?;
                ensure!(said.trim() == "3 Synced", "the member of {server} says {said:?}");
            }
            Ok(site.writer.is_some().then_some(()))
        })
        .await
    }

    /// From now on, one attempt on each server succeeds.
    async fn served(&self, book: &Book) -> Result<()> {
        let now = book.now();
        until("clients on every server to be served", SERVED_LIMIT, || async {
            let served: BTreeSet<String> = book
                .attempts()
                .into_iter()
                .filter(|attempt| attempt.begun >= now && attempt.problem.is_none())
                .map(|attempt| attempt.server)
                .collect();
            Ok((served.len() == self.servers.len()).then_some(()))
        })
        .await
    }
}
