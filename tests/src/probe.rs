//! A small site that tells on itself: which instance answers, which rows and files it sees.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::http::{Browser, Place};
use crate::rack::Rack;

pub const SITE: &str = "probe";
/// A page that needs no database.
pub const STILL: &str = "/still.php";

const STILL_PHP: &str = "<?php\nheader('X-Instance: ' . gethostname());\necho 'here';\n";
const ROWS_PHP: &str = "<?php
header('X-Instance: ' . gethostname());
$db = new mysqli('localhost', 'probe', 'probe-secret', 'probe');
if (isset($_GET['new'])) {
    $db->query('CREATE TABLE rows_seen (n INT PRIMARY KEY)');
} elseif ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $db->query('INSERT INTO rows_seen VALUES (' . (int) $_POST['n'] . ')');
    echo 'kept';
} else {
    foreach ($db->query('SELECT n FROM rows_seen ORDER BY n') as $row) {
        echo $row['n'], ' ';
    }
}
";

/// Answers after so many milliseconds.
pub const SLOW: &str = "/slow.php?ms=400";

const SLOW_PHP: &str = "<?php\nusleep(1000 * (int) $_GET['ms']);\necho 'late';\n";

/// Creates the site with its table and waits until it runs.
pub async fn create(rack: &Rack, min: usize, max: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    write(&folder.path().join("site"))?;
    let password = folder.path().join("password");
    fs::write(&password, "probe-secret\n")?;
    let (min, max) = (min.to_string(), max.to_string());
    let (site, password) = (folder.path().join("site"), password.to_string_lossy().into_owned());
    let site = site.to_string_lossy();
    let mut words = vec!["site", "create", SITE, "--from", &*site, "--domain", "probe.test", "--wait"];
    words.extend(["--db-name", "probe", "--db-user", "probe", "--db-password-file", &password]);
    words.extend(["--min", &min, "--max", &max]);
    rack.run(&words).await?;
    Browser::new(&away_from(rack, &[]).await?).page("/rows.php?new").await.map(drop)
}

/// The site's files.
pub fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("still.php"), STILL_PHP)?;
    fs::write(folder.join("rows.php"), ROWS_PHP)?;
    fs::write(folder.join("slow.php"), SLOW_PHP)?;
    Ok(())
}

pub fn at(vip: IpAddr) -> Place {
    Place::named((vip, 80).into(), "probe.test")
}

/// Where visitors reach the site without the help of these servers.
pub async fn away_from(rack: &Rack, servers: &[&str]) -> Result<Place> {
    for view in rack.cell().await?.vips {
        if view.holder.is_some_and(|holder| !servers.contains(&holder.as_str())) {
            return Ok(at(view.address));
        }
    }
    bail!("each VIP is held by one of {servers:?}")
}

/// A server that runs an instance and holds not every VIP.
pub async fn one_that_serves(rack: &Rack) -> Result<String> {
    let serving = rack.serving(SITE).await?;
    Ok(serving.first().with_context(|| format!("no instance of {SITE} serves"))?.server.to_string())
}

/// Succeeds only if the row was acknowledged.
pub async fn keep_row(place: &Place, n: u32) -> Result<()> {
    let answer = Browser::new(place).post_form("/rows.php", &[("n", &n.to_string())]).await?;
    if answer.status != 200 || answer.text() != "kept" {
        bail!("row {n} was not kept: status {} {}", answer.status, answer.text());
    }
    Ok(())
}

pub async fn rows(place: &Place) -> Result<Vec<u32>> {
    let text = Browser::new(place).page("/rows.php").await?;
    text.split_whitespace().map(|n| n.parse().with_context(|| format!("{n:?} is no row"))).collect()
}
