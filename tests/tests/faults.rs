//! What happens to a running site when parts of the cell die, hang, come back or move. One rack, one step after the
//! other: each begins and ends with a whole cell.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kopek_core::api::{IssuedToken, ServerView};
use kopek_tests::following::Following;
use kopek_tests::http::{Browser, Place};
use kopek_tests::probe::{self, SITE, SLOW, STILL};
use kopek_tests::rack::Rack;
use kopek_tests::site_db;
use kopek_tests::story::Steps;
use kopek_tests::visitors::Visitors;
use kopek_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);
const PER_SECOND: u32 = 20;

#[tokio::test(flavor = "current_thread")]
async fn a_site_outlives_its_servers_and_the_cell_comes_back() {
    let rack = Rack::up(3).await.unwrap();
    let mut steps = Steps::new();
    let mut failed = Vec::new();
    // A macro, because each step is a function of its own name.
    macro_rules! step {
        ($step:ident) => {
            let told = $step(&rack).await;
            let told = match told {
                Ok(()) => rack.whole().await.context("afterwards"),
                failed => failed,
            };
            let name = stringify!($step).replace('_', " ");
            match told {
                Ok(()) => steps.done(&name),
                Err(error) => {
                    steps.done(format!("FAILED: {name}: {error:#}"));
                    rack.tell_last().await;
                    failed.push(name);
                    // The next one may find what it needs nevertheless.
                    let _ = rack.mend().await;
                }
            }
        };
    }
    step!(a_small_site_is_created);
    step!(what_it_asks_of_its_database_is_counted_and_limited);
    step!(a_killed_server_with_the_active_controller_moves_control);
    step!(a_total_power_loss_loses_no_acknowledged_row);
    step!(the_data_plane_serves_alone_and_control_comes_back);
    step!(a_killed_instance_is_restarted_and_its_visitors_are_held);
    step!(a_command_runs_inside_and_the_logs_tell_of_visits);
    step!(the_logs_of_other_servers_go_on_when_one_is_cut);
    step!(a_deploy_brings_files_and_keeps_uploads);
    step!(a_drained_server_is_left_by_its_instances);
    step!(a_draining_server_lets_its_address_go_when_nobody_is_on_it);
    step!(a_dead_edge_gives_its_address_away);
    step!(the_store_moves_while_the_site_serves);
    step!(a_frozen_server_is_replaced_and_returns);
    step!(a_cut_server_is_replaced_and_returns);
    step!(a_server_joins_while_control_restarts_and_one_that_never_spoke_can_be_removed);
    step!(a_deleted_site_is_gone_with_its_database);
    assert!(failed.is_empty(), "{} steps failed: {failed:#?}", failed.len());
}

async fn a_small_site_is_created(rack: &Rack) -> Result<()> {
    probe::create(rack, 1, 3).await
}

async fn what_it_asks_of_its_database_is_counted_and_limited(rack: &Rack) -> Result<()> {
    site_db::is_counted_and_limited(rack).await
}

async fn a_killed_server_with_the_active_controller_moves_control(rack: &Rack) -> Result<()> {
    let active = rack.cell().await?.active.to_string();
    let address = rack.server(&active).await?.address;
    let place = probe::away_from(rack, &[&active]).await?;
    rack.run(&["site", "scale", SITE, "--min", "2", "--wait"]).await?;
    // As on a server whose admin's folder was made when the cell was founded: with that server only.
    let controls = rack.dir().join("admin/controls.json");
    let all: Vec<SocketAddr> = serde_json::from_str(&fs::read_to_string(&controls)?)?;
    let one = all.iter().find(|control| control.ip() == address).context("it has no such address")?;
    fs::write(&controls, serde_json::to_string(&[one])?)?;
    rack.servers().await?;
    let events = Following::begin(rack, &["--json", "events", "--follow"])?;
    until("the events so far", LIMIT, || async { Ok((!events.lines().is_empty()).then_some(())) }).await?;
    let visitors = Visitors::stream(&place, PER_SECOND, STILL);
    // Whoever follows the events has asked by then, and waits for an answer that never comes.
    signal(&rack.processes(&active, "run control").await?, Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let killed = Instant::now();
    rack.dev("kill", &[&active]).await?;
    until("another active controller", LIMIT, || async {
        Ok((rack.cell().await?.active.as_str() != active).then_some(()))
    })
    .await?;
    let moved = killed.elapsed();
    visitors_wait_for_two_elsewhere(rack, &active).await?;
    visitors.leave().await.all_served(killed)?;
    println!("control moved after {:.2} s", moved.as_secs_f64());
    returns_and_takes_nothing_away(rack, &active).await?;
    shows_each_event_once(rack, &events).await?;
    rack.run(&["site", "scale", SITE, "--min", "1", "--wait"]).await.map(drop)
}

/// Neither the address that it held nor another moves under requests that are on their way.
async fn returns_and_takes_nothing_away(rack: &Rack, server: &str) -> Result<()> {
    let vips = rack.cell().await?.vips;
    let streams: Vec<Visitors> =
        vips.iter().map(|vip| Visitors::stream(&probe::at(vip.address), PER_SECOND, SLOW)).collect();
    let began = Instant::now();
    rack.dev("power-on", &[server]).await?;
    rack.whole().await?;
    for stream in streams {
        stream.leave().await.all_served(began)?;
    }
    Ok(())
}

/// Also those from before and after control moved.
async fn shows_each_event_once(rack: &Rack, following: &Following) -> Result<()> {
    let all = rack.run(&["--json", "events"]).await?;
    let all: Vec<&str> = all.lines().collect();
    ensure!(all.iter().any(|event| event.contains("server declared dead")), "no move is told of: {all:#?}");
    until("every event to be shown", LIMIT, || async {
        let shown = following.lines();
        let missing: Vec<_> = all.iter().filter(|event| !shown.iter().any(|line| line == **event)).collect();
        ensure!(missing.is_empty(), "not shown: {missing:#?}; stderr: {:?}", following.said());
        Ok(Some(()))
    })
    .await?;
    let shown = following.lines();
    ensure!(shown[..all.len()] == all[..], "in another order, or twice: {shown:#?}");
    Ok(())
}

async fn visitors_wait_for_two_elsewhere(rack: &Rack, lost: &str) -> Result<()> {
    until("two instances on other servers", LIMIT, || async {
        let serving = rack.serving(SITE).await?;
        let elsewhere = serving.iter().filter(|instance| instance.server.as_str() != lost).count();
        Ok((elsewhere >= 2).then_some(()))
    })
    .await
}

/// First one server, so that what it has grows old; then the others at once, in the middle of commits.
async fn a_total_power_loss_loses_no_acknowledged_row(rack: &Rack) -> Result<()> {
    let place = probe::away_from(rack, &[]).await?;
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let writing = tokio::spawn(keep_rows(place, acknowledged.clone()));
    let kept = || acknowledged.lock().expect("nobody panics while counting").len();
    until("some rows", LIMIT, || async { Ok((kept() >= ROWS).then_some(())) }).await?;
    let names: Vec<String> = rack.status().await?.servers.into_iter().map(|server| server.name).collect();
    let [first, second, third] = &names[..] else { bail!("{} servers, not three", names.len()) };
    rack.dev("power-off", &[first]).await?;
    let had = kept();
    until("some rows without it", LIMIT, || async { Ok((kept() >= had + ROWS).then_some(())) }).await?;
    let power_off = async |server: &str| rack.dev("power-off", &[server]).await;
    tokio::try_join!(power_off(second), power_off(third))?;
    writing.abort();
    for name in &names {
        rack.dev("power-on", &[name]).await?;
    }
    rack.whole().await?;
    let rows = until("the site to serve its rows again", LIMIT, || async {
        let place = probe::away_from(rack, &[]).await?;
        probe::rows(&place).await.map(Some)
    })
    .await?;
    let acknowledged = acknowledged.lock().expect("nobody panics while counting");
    let lost: Vec<u32> = acknowledged.iter().copied().filter(|n| !rows.contains(n)).collect();
    ensure!(lost.is_empty(), "of {} acknowledged rows these are lost: {lost:?}", acknowledged.len());
    Ok(())
}

const ROWS: usize = 50;

/// Until it is aborted. What is refused or not answered may be kept or not.
async fn keep_rows(place: Place, acknowledged: Arc<Mutex<Vec<u32>>>) {
    for n in 0.. {
        match tokio::time::timeout(Duration::from_secs(5), probe::keep_row(&place, n)).await {
            Ok(Ok(())) => acknowledged.lock().expect("nobody panics while counting").push(n),
            // Refused at once, as long as nobody is there.
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Stopped, not killed: what hangs is worse than what is gone, and nobody restarts it.
async fn the_data_plane_serves_alone_and_control_comes_back(rack: &Rack) -> Result<()> {
    let place = probe::away_from(rack, &[]).await?;
    let mut stopped = Vec::new();
    for server in rack.status().await?.servers {
        for text in ["run control", "/etcd --name"] {
            let pids = rack.processes(&server.name, text).await?;
            ensure!(pids.len() == 1, "{} has {} processes {text:?}", server.name, pids.len());
            stopped.extend(pids);
        }
    }
    signal(&stopped, Signal::SIGSTOP)?;
    let began = Instant::now();
    let visitors = Visitors::stream(&place, PER_SECOND, "/rows.php");
    // Longer than every lease and every silence that means death.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let met = visitors.leave().await;
    signal(&stopped, Signal::SIGCONT)?;
    met.all_served(began)?;
    ensure!(met.served() >= 200, "only {} requests were made", met.served());
    Ok(())
}

fn signal(pids: &[i32], signal: Signal) -> Result<()> {
    for pid in pids {
        kill(Pid::from_raw(*pid), signal).with_context(|| format!("cannot send {signal} to {pid}"))?;
    }
    Ok(())
}

async fn a_killed_instance_is_restarted_and_its_visitors_are_held(rack: &Rack) -> Result<()> {
    let instance = rack.serving(SITE).await?.into_iter().next().context("nothing serves")?;
    let place = probe::away_from(rack, &[]).await?;
    let visitors = Visitors::stream(&place, PER_SECOND, STILL);
    until("some visits", LIMIT, || async { Ok((visitors.so_far().served() > 10).then_some(())) }).await?;
    let killed = Instant::now();
    let pid = rack.instance_init(&instance).await?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    until("the instance to be restarted", LIMIT, || async {
        let now = rack.instances(SITE).await?;
        let again = now.iter().find(|now| now.id == instance.id).context("it was replaced, not restarted")?;
        Ok((again.restarts > instance.restarts && again.phase == "serving").then_some(()))
    })
    .await?;
    let met = visitors.leave().await;
    // Requests that were inside when it was killed are lost if they cannot be repeated; these can.
    met.all_served(killed)?;
    println!("visitors were held for {:.2} s at most", met.longest().as_secs_f64());
    Ok(())
}

async fn a_command_runs_inside_and_the_logs_tell_of_visits(rack: &Rack) -> Result<()> {
    let said = rack.run(&["site", "exec", SITE, "--", "php", "-r", "echo 6 * 7;"]).await?;
    ensure!(said == "42", "exec says {said:?}");
    let refused = rack.refused(&["site", "exec", SITE, "--", "sh", "-c", "exit 7"]).await?;
    ensure!(refused.code == 7, "exec ends with {refused:?}");
    let place = probe::away_from(rack, &[]).await?;
    Browser::new(&place).page("/still.php?for=the-log").await?;
    until("the visit in the access log", LIMIT, || async {
        let log = rack.run(&["site", "logs", SITE, "--access"]).await?;
        Ok(log.contains("GET /still.php?for=the-log").then_some(()))
    })
    .await
}

async fn the_logs_of_other_servers_go_on_when_one_is_cut(rack: &Rack) -> Result<()> {
    let active = rack.cell().await?.active.to_string();
    let servers = rack.servers().await?;
    let (cut, other) =
        match &servers.iter().filter(|server| server.name.as_str() != active).collect::<Vec<_>>()[..] {
            [cut, other, ..] => (*cut, *other),
            few => bail!("only {} servers do not lead", few.len()),
        };
    let following = Following::begin(rack, &["site", "logs", SITE, "--access", "--follow"])?;
    // Also one that begins when the server is dead.
    let mut late = None;
    let told = async {
        visit_until_logged(&following, cut, "it-is-followed").await?;
        rack.dev("cut", &[cut.name.as_str()]).await?;
        following.says(&format!("the lines of server {} are missing", cut.name)).await?;
        visit_until_logged(&following, other, "those-who-go-on").await?;
        until("the server to be dead", LIMIT, || async {
            Ok((rack.server(cut.name.as_str()).await?.state == "dead").then_some(()))
        })
        .await?;
        let late = late.insert(Following::begin(rack, &["site", "logs", SITE, "--access", "--follow"])?);
        late.says(&format!("the lines of server {} are missing: it is dead", cut.name)).await
    };
    let told = told.await;
    rack.dev("heal", &[cut.name.as_str()]).await?;
    told?;
    for following in [&following, late.as_ref().context("it was begun")?] {
        following.says(&format!("the lines of server {} come again", cut.name)).await?;
    }
    visit_until_logged(&following, cut, "it-is-back").await?;
    let lines = following.lines();
    let followed = lines.iter().filter(|line| line.contains("/still.php?for=it-is-followed-0 "));
    ensure!(followed.count() == 1, "what was shown before the cut is shown again: {lines:#?}");
    Ok(())
}

/// Visits that server's edge, again and again, until one visit shows.
async fn visit_until_logged(following: &Following, server: &ServerView, what: &str) -> Result<()> {
    let place = probe::at(server.address);
    let visits = AtomicUsize::new(0);
    until(&format!("a visit of {} in the log", server.name), LIMIT, || async {
        let nth = visits.fetch_add(1, Ordering::Relaxed);
        Browser::new(&place).page(&format!("/still.php?for={what}-{nth}")).await?;
        let begin = format!("{}: ", server.name);
        let its = |line: &String| line.starts_with(&begin) && line.contains(&format!("for={what}-"));
        Ok(following.lines().iter().any(its).then_some(()))
    })
    .await
}

async fn a_deploy_brings_files_and_keeps_uploads(rack: &Rack) -> Result<()> {
    let upload = "mkdir -p uploads && echo mine > uploads/photo.txt";
    rack.run(&["site", "exec", SITE, "--", "sh", "-c", &format!("cd /var/www/html && {upload}")]).await?;
    let place = probe::away_from(rack, &[]).await?;
    ensure!(
        Browser::new(&place).page("/uploads/photo.txt").await?.trim() == "mine",
        "the upload is not there"
    );
    let folder = tempfile::tempdir()?;
    probe::write(folder.path())?;
    fs::write(folder.path().join("news.txt"), "new\n")?;
    let from = folder.path().to_string_lossy();
    rack.run(&["site", "deploy", SITE, "--from", &from, "--wait"]).await?;
    until("the new file on every holder", LIMIT, || async {
        let page = Browser::new(&place).page("/news.txt").await?;
        Ok((page.trim() == "new").then_some(()))
    })
    .await?;
    ensure!(
        Browser::new(&place).page("/uploads/photo.txt").await?.trim() == "mine",
        "the upload did not stay"
    );
    Ok(())
}

async fn a_drained_server_is_left_by_its_instances(rack: &Rack) -> Result<()> {
    let server = probe::one_that_serves(rack).await?;
    let place = probe::away_from(rack, &[]).await?;
    let visitors = Visitors::stream(&place, PER_SECOND, STILL);
    let began = Instant::now();
    rack.run(&["server", "drain", &server, "--wait"]).await?;
    visitors.leave().await.all_served(began)?;
    ensure!(rack.server(&server).await?.state == "draining", "it is not draining");
    let elsewhere = rack.serving(SITE).await?;
    ensure!(elsewhere.iter().any(|instance| instance.server.as_str() != server), "{elsewhere:?}");
    rack.run(&["server", "undrain", &server]).await.map(drop)
}

async fn a_draining_server_lets_its_address_go_when_nobody_is_on_it(rack: &Rack) -> Result<()> {
    let vip = rack.cell().await?.vips.into_iter().next().context("no VIP")?;
    let holder = vip.holder.context("nobody holds it")?.to_string();
    let visitors = Visitors::stream(&probe::at(vip.address), PER_SECOND, SLOW);
    let began = Instant::now();
    rack.run(&["server", "drain", &holder, "--wait"]).await?;
    until("another holder", LIMIT, || async {
        Ok(rack.vip_holder(vip.address).await?.filter(|now| *now != holder))
    })
    .await?;
    let took = began.elapsed();
    let met = visitors.leave().await;
    met.all_served(began)?;
    println!(
        "an address moved in {:.2} s, visitors waited {:.2} s at most",
        took.as_secs_f64(),
        met.longest().as_secs_f64()
    );
    rack.run(&["server", "undrain", &holder]).await.map(drop)
}

async fn a_dead_edge_gives_its_address_away(rack: &Rack) -> Result<()> {
    let vip = rack.cell().await?.vips.first().context("no VIP")?.address;
    let holder = rack.vip_holder(vip).await?.context("nobody holds it")?;
    let edge = rack.processes(&holder, "run edge").await?;
    signal(&edge, Signal::SIGSTOP)?;
    let hung = Instant::now();
    let moved = until("another holder that answers", LIMIT, || async {
        let mut browser = Browser::new(&probe::at(vip));
        let page = tokio::time::timeout(Duration::from_millis(500), browser.page(STILL)).await??;
        Ok((page == "here").then_some(()))
    })
    .await;
    let took = hung.elapsed();
    signal(&edge, Signal::SIGCONT)?;
    moved?;
    println!("a hung edge kept {vip} for {:.2} s", took.as_secs_f64());

    rack.whole().await?;
    let holder = rack.vip_holder(vip).await?.context("nobody holds it")?;
    signal(&rack.processes(&holder, "run edge").await?, Signal::SIGKILL)?;
    let killed = Instant::now();
    until("an answer again", LIMIT, || async { Browser::new(&probe::at(vip)).page(STILL).await.map(Some) })
        .await?;
    let took = killed.elapsed();
    println!("nobody answered on {vip} for {:.2} s", took.as_secs_f64());
    Ok(())
}

async fn the_store_moves_while_the_site_serves(rack: &Rack) -> Result<()> {
    let place = probe::away_from(rack, &[]).await?;
    let visitors = Visitors::stream(&place, PER_SECOND, "/rows.php");
    let began = Instant::now();
    for kind in ["embedded", "etcd"] {
        rack.run(&["store", "migrate", "--to", kind]).await?;
        let now = rack.cell().await?.store;
        ensure!(now == kind, "it is said to have moved to {kind}, and is in {now}");
        until("the store to have moved", LIMIT, || async {
            let cell = rack.cell().await?;
            let is_running = rack.site(SITE).await?.state == "running";
            Ok((cell.store == kind && cell.converged && is_running).then_some(()))
        })
        .await?;
    }
    visitors.leave().await.all_served(began)
}

async fn a_frozen_server_is_replaced_and_returns(rack: &Rack) -> Result<()> {
    a_silent_server_is_replaced_and_returns(rack, "freeze").await
}

async fn a_cut_server_is_replaced_and_returns(rack: &Rack) -> Result<()> {
    a_silent_server_is_replaced_and_returns(rack, "cut").await
}

async fn a_silent_server_is_replaced_and_returns(rack: &Rack, fault: &str) -> Result<()> {
    let server = probe::one_that_serves(rack).await?;
    rack.dev(fault, &[&server]).await?;
    let replaced = replaced_elsewhere(rack, &server).await;
    rack.dev("heal", &[&server]).await?;
    replaced?;
    rack.whole().await?;
    until("one instance, known to all, and nothing left of what the server ran", LIMIT, || async {
        let placed = rack.instances(SITE).await?;
        let is_there = placed.iter().any(|instance| instance.server.as_str() == server);
        let count = "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx apache2 || true";
        let running = rack.exec(&server, &["sh", "-c", count]).await?;
        Ok((placed.len() == 1 && (is_there || running.trim() == "0")).then_some(()))
    })
    .await
}

async fn replaced_elsewhere(rack: &Rack, server: &str) -> Result<()> {
    until("the server to be dead and its instance elsewhere", LIMIT, || async {
        let dead = rack.server(server).await?.state == "dead";
        let serving = rack.serving(SITE).await?;
        Ok((dead && serving.iter().any(|instance| instance.server.as_str() != server)).then_some(()))
    })
    .await?;
    let place = probe::away_from(rack, &[server]).await?;
    until("an answer", LIMIT, || async { Browser::new(&place).page(STILL).await.map(drop).map(Some) }).await
}

async fn a_server_joins_while_control_restarts_and_one_that_never_spoke_can_be_removed(
    rack: &Rack,
) -> Result<()> {
    let token: IssuedToken = rack.ask(&["server", "token"]).await?;
    let active = rack.cell().await?.active;
    let standby = rack.servers().await?.into_iter().find(|server| server.name != active);
    let standby = standby.context("every server is the active one")?;
    // Into folders of its own: the server is one already.
    let script = format!(
        "mount --bind $(mktemp -d) /etc/kopek && {} server join {} --token {} --name s9 --address 10.74.250.9 \
         --interface eth0",
        rack.kopek().display(),
        standby.address,
        token.token
    );
    signal(&rack.processes(active.as_str(), "run control").await?, Signal::SIGKILL)?;
    rack.exec("s2", &["unshare", "-m", "sh", "-c", &script]).await?;
    // Once its silence is noticed.
    until("s9 to be removed", LIMIT, || async { rack.run(&["server", "remove", "s9"]).await.map(Some) })
        .await?;
    let left = rack.servers().await?.into_iter().any(|server| server.name.as_str() == "s9");
    ensure!(!left, "it is still there");
    Ok(())
}

async fn a_deleted_site_is_gone_with_its_database(rack: &Rack) -> Result<()> {
    let place = probe::away_from(rack, &[]).await?;
    let refused = rack.refused(&["site", "delete", SITE, "--confirm", "other"]).await?;
    ensure!(refused.code == 2, "{refused:?}");
    rack.run(&["site", "delete", SITE, "--confirm", SITE]).await?;
    let refused = rack.refused(&["site", "show", SITE]).await?;
    ensure!(refused.code == 2 && refused.message.contains(SITE), "{refused:?}");
    until("every trace to be gone", LIMIT, || async {
        let status = Browser::new(&place).get(STILL).await?.status;
        let ask =
            ["mariadb", "-S", "/run/kopek/mariadb/mariadbd.sock", "-BNe", "SHOW DATABASES LIKE 'probe'"];
        let databases = rack.exec("s1", &ask).await?;
        Ok((status != 200 && databases.trim().is_empty()).then_some(()))
    })
    .await
}
