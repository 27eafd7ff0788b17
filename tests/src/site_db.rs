//! What the probe asks of its database is seen by people and Prometheus, and held to limits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kopek_core::config::AGENT_PORT;
use kopek_core::meter::Metered;
use serde::Deserialize;
use tokio::process::Command;

use crate::probe::SITE;
use crate::rack::Rack;
use crate::wait::until;

/// A limit reaches `sql` by the store and the agent.
const SOON: Duration = Duration::from_secs(20);

/// Prepares by the binary protocol, as PHP's mysqlnd does.
const ASK: &str = "$db = new mysqli('localhost', 'probe', 'probe-secret', 'probe');
    $counting = $db->prepare('SELECT COUNT(*) FROM rows_seen WHERE n > ?');
    $n = 41;
    $counting->bind_param('i', $n);
    for ($i = 0; $i < 3; $i++) { $counting->execute(); $counting->get_result(); }
    $db->query('SELECT SLEEP(1.1)');";
const COUNTING: &str = "SELECT COUNT (*) FROM rows_seen WHERE n > ?";
const SLEEPING: &str = "SELECT SLEEP (?)";

const TAKE_LONG: &str = "mysqli_report(MYSQLI_REPORT_OFF);
    $db = new mysqli('localhost', 'probe', 'probe-secret', 'probe');
    $db->query('SELECT SLEEP(5)');
    echo $db->errno;";

/// `kopek --json site db`
#[derive(Deserialize)]
struct SiteUse {
    sum: Metered,
}

pub async fn is_counted_and_limited(rack: &Rack) -> Result<()> {
    let before = asked(rack).await?.counts;
    php(rack, ASK).await?;
    let after = asked(rack).await?;
    let told = format!("{before:?}, then {:?}", after.counts);
    // Three executions and SLEEP; one was prepared.
    ensure!((after.counts.reads - before.reads, after.counts.others - before.others) == (4, 1), "{told}");
    let counting = after.top.iter().find(|one| one.text == COUNTING).context("it is not on top")?;
    ensure!((counting.count, counting.rows) == (3, 3), "{counting:?}");
    for (option, text) in [("--top", COUNTING), ("--slow", SLEEPING)] {
        let shown = rack.run(&["site", "db", SITE, option]).await?;
        ensure!(shown.contains(text), "{option}: {shown}");
    }
    scraped(rack, after.counts.reads).await?;

    let nothing = rack.refused(&["site", "limit", SITE]).await?;
    ensure!(nothing.code == 2 && nothing.message.contains("--db-connections"), "{nothing:?}");
    rack.run(&["site", "limit", SITE, "--db-longest-query", "0.3"]).await?;
    let interrupted = || async { Ok((php(rack, TAKE_LONG).await?.trim() == "1969").then_some(())) };
    until("a query that takes long to be interrupted", SOON, interrupted).await?;
    ensure!(asked(rack).await?.counts.interrupted_statements > 0, "it was not counted");
    rack.run(&["site", "limit", SITE, "--db-longest-query", "none"]).await.map(drop)
}

async fn asked(rack: &Rack) -> Result<Metered> {
    Ok(rack.ask::<SiteUse>(&["site", "db", SITE]).await?.sum)
}

async fn php(rack: &Rack, script: &str) -> Result<String> {
    rack.run(&["site", "exec", SITE, "--", "php", "-r", script]).await
}

/// All servers' agents together tell Prometheus so many reads of the site.
async fn scraped(rack: &Rack, reads: u64) -> Result<()> {
    let mut sum = 0;
    for server in rack.servers().await? {
        let admin = rack.dir().join("admin");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "10", "--cacert"]);
        curl.arg(admin.join("ca.pem")).arg("--cert").arg(admin.join("server.pem"));
        curl.arg("--key").arg(admin.join("server.key"));
        let output = curl.arg(format!("https://{}:{AGENT_PORT}/metrics", server.address)).output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let line = format!("kopek_sql_statements_total{{site=\"{SITE}\",class=\"read\"}} ");
        let told = text.lines().find_map(|told| told.strip_prefix(&line));
        sum += told.map_or(Ok(0), str::parse)?;
    }
    ensure!(sum == reads, "{sum} reads instead of {reads}");
    Ok(())
}
