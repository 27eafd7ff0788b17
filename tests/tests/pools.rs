//! A cell with more than one database pool: each on its own servers, with its own sites.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kopek_core::api::PoolView;
use kopek_tests::http::{Browser, Place};
use kopek_tests::probe;
use kopek_tests::rack::Rack;
use kopek_tests::story::Steps;
use kopek_tests::wait::until;

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "current_thread")]
async fn a_second_pool_carries_sites_of_its_own() {
    let rack = Rack::up(4).await.unwrap();
    let ended = second_pool(&rack, &mut Steps::new()).await;
    told(&rack, ended).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_member_whose_server_is_lost_for_good_is_replaced_by_a_free_one() {
    let rack = Rack::up(4).await.unwrap();
    let ended = replaced(&rack, &mut Steps::new()).await;
    told(&rack, ended).await.unwrap();
}

async fn told(rack: &Rack, ended: Result<()>) -> Result<()> {
    if ended.is_err() {
        rack.tell_last().await;
    }
    ended
}

async fn second_pool(rack: &Rack, steps: &mut Steps) -> Result<()> {
    let second = &free_server(rack).await?;
    let first = members(&pool(rack, "pool1").await?);
    let says = |said: kopek_tests::rack::Refused, words: &str| {
        ensure!(said.message.contains(words), "{said:?} does not say {words:?}");
        Ok(())
    };
    let create = ["pool", "create", "pool2", "--servers"];
    let on = |servers: &str| [&create[..], &[servers]].concat().join(" ");
    for (servers, words) in [
        (first[0].clone(), format!("server {} carries a member of pool1", first[0])),
        (first[..2].join(","), "1, 3 or 5 members, not 2".to_owned()),
        ("s9".to_owned(), "there is no server s9".to_owned()),
    ] {
        let command = on(&servers);
        says(rack.refused(&command.split(' ').collect::<Vec<_>>()).await?, &words)?;
    }
    let dry = rack.run(&[&create[..], &[second, "--dry-run"]].concat()).await?;
    ensure!(dry.contains(&format!("would make pool pool2 on {second}")), "{dry}");
    rack.run(&[&create[..], &[second, "--wait"]].concat()).await?;
    says(rack.refused(&["pool", "create", "pool2"]).await?, "there is a pool pool2 already")?;
    ensure!(members(&pool(rack, "pool2").await?) == std::slice::from_ref(second));
    steps.done(format!("a second pool is in service on {second}"));

    // Two sites whose databases have the same name, each on a pool of its own.
    site(rack, "probe", &["--pool", "pool2"]).await?;
    site(rack, "twin", &[]).await?;
    let (probe, twin) = (rack.site("probe").await?, rack.site("twin").await?);
    ensure!((probe.pool.as_str(), twin.pool.as_str()) == ("pool2", "pool1"), "{probe:?} {twin:?}");
    ensure!(probe.writer.as_ref().is_some_and(|writer| writer.as_str() == second), "{probe:?}");
    ensure!(twin.writer.as_ref().is_some_and(|writer| first.contains(&writer.to_string())), "{twin:?}");
    for (name, n) in [("probe", "1"), ("twin", "2")] {
        let mut browser = browser(rack, name).await?;
        browser.page("/rows.php?new").await?;
        browser.post_form("/rows.php", &[("n", n)]).await?;
        ensure!(browser.page("/rows.php").await?.contains(&format!("{n} ")), "{name} has its row");
    }
    steps.done("a site on each, both with a database of the same name, keep what they are given");

    Ok(())
}

async fn replaced(rack: &Rack, steps: &mut Steps) -> Result<()> {
    let spare = &free_server(rack).await?;
    site(rack, "probe", &[]).await?;
    let mut visitor = browser(rack, "probe").await?;
    visitor.page("/rows.php?new").await?;
    visitor.post_form("/rows.php", &[("n", "1")]).await?;
    // The controller stays where it is: it has to move the cell's store off that server.
    let (active, first) = (rack.cell().await?.active.to_string(), members(&pool(rack, "pool1").await?));
    let lost = first.iter().find(|server| **server != active).context("three members")?.clone();
    rack.dev("kill", &[&lost]).await?;
    until("the server to be dead", LIMIT, || async {
        Ok((rack.server(&lost).await?.state == "dead").then_some(()))
    })
    .await?;
    rack.run(&["store", "migrate", "--to", "embedded"]).await?;
    until("the server to be removed", LIMIT, || async {
        Ok(rack.run(&["server", "remove", &lost]).await.ok())
    })
    .await?;
    until("the free server to take its place", LIMIT, || async {
        let pool = pool(rack, "pool1").await?;
        let is_whole = pool.members.len() == 3 && pool.members.iter().all(|m| m.state == "synced");
        Ok((is_whole && members(&pool).contains(spare)).then_some(()))
    })
    .await?;
    let page = browser(rack, "probe").await?.page("/rows.php").await?;
    ensure!(page.contains("1 "), "it shows {page:?}");
    steps.done(format!("{spare} took the place of {lost} in the first pool"));
    Ok(())
}

async fn site(rack: &Rack, name: &str, more: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    probe::write(&folder.path().join("site"))?;
    let (site, password) = (folder.path().join("site"), folder.path().join("password"));
    std::fs::write(&password, "probe-secret\n")?;
    let (site, password) = (site.to_string_lossy(), password.to_string_lossy());
    let domain = format!("{name}.test");
    let mut words = vec!["site", "create", name, "--from", &*site, "--domain", &domain, "--wait"];
    words.extend(["--db-name", "probe", "--db-user", "probe", "--db-password-file", &*password]);
    words.extend(more);
    rack.run(&words).await.map(drop)
}

async fn browser(rack: &Rack, name: &str) -> Result<Browser> {
    let place = probe::away_from(rack, &[]).await?;
    Ok(Browser::new(&Place::named(place.address, &format!("{name}.test"))))
}

async fn pool(rack: &Rack, name: &str) -> Result<PoolView> {
    let found = rack.pools().await?.into_iter().find(|pool| pool.name == name);
    found.with_context(|| format!("there is no {name}"))
}

fn members(pool: &PoolView) -> Vec<String> {
    pool.members.iter().map(|member| member.server.to_string()).collect()
}

/// The one that carries no member.
async fn free_server(rack: &Rack) -> Result<String> {
    let taken = members(&pool(rack, "pool1").await?);
    let mut servers = rack.servers().await?.into_iter().map(|server| server.name.to_string());
    servers.find(|server| !taken.contains(server)).context("every server carries a member")
}
