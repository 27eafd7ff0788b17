//! The demo story: three servers, an unmodified WordPress, load, a dead server, recovery. Each step is one line
//! with its measured time. `make demo` shows it to people; the tests run the short one, which ends with nothing left.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kopek_core::api::SiteView;

use crate::http::Place;
use crate::rack::Rack;
use crate::traces::Traces;
use crate::visitors::{Visitors, Visits};
use crate::wait::until;
use crate::wordpress::{self, Published};

pub const SITE: &str = "demo";
const SERVERS: usize = 3;
/// Enough to keep one core busy; more would only queue.
const VISITORS: usize = 8;
/// What a step takes on the slowest machine; beyond it has failed.
const LIMIT: Duration = Duration::from_secs(90);
/// Scale-in waits for the load to fade, then takes one instance per settle time.
const SCALE_IN_LIMIT: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Story {
    /// Leaves the rack up to play with
    Full,
    /// Takes everything down and looks whether anything is left
    Short,
}

pub struct Teller {
    pub kopek: PathBuf,
    pub dir: PathBuf,
    pub listen: Option<SocketAddr>,
    pub story: Story,
}

impl Teller {
    /// Fails at the first step that does not come true, with the last events and where the logs are.
    pub async fn tell(&self) -> Result<()> {
        if self.dir.join("rack.json").exists() {
            bail!(
                "there is a rack in {} already; `{} dev down --dir {}` removes it",
                self.dir.display(),
                self.kopek.display(),
                self.dir.display()
            );
        }
        let mut rack = Rack::in_dir(&self.kopek, &self.dir);
        let told = self.acts(&mut rack).await;
        if told.is_err() && rack.status().await.is_ok() {
            rack.tell_last().await;
            rack.keep();
            let dir = self.dir.display();
            eprintln!("the rack stays for you to look at: logs are in /var/log/kopek of each server,");
            eprintln!("  {} dev exec s1 --dir {dir} -- ls /var/log/kopek", self.kopek.display());
            eprintln!("  {} dev down --dir {dir}      ends it", self.kopek.display());
        }
        told
    }

    async fn acts(&self, rack: &mut Rack) -> Result<()> {
        let mut steps = Steps::new();
        rack.bring_up(SERVERS, self.listen).await?;
        let status = rack.status().await?;
        let vips = names(&status.vips);
        steps.done(format!(
            "{SERVERS} virtual servers are a cell; etcd and MariaDB on each, public addresses {vips}"
        ));

        let site = create(rack, &status.vips).await?;
        steps.done(format!(
            "site {SITE} runs on {}: Debian's WordPress, {} files, {}",
            names(site.instances.iter().map(|instance| &instance.server)),
            site.volume.files,
            site.volume.bytes
        ));
        let place = Place::of(SocketAddr::new(self.vip_for_visitors(rack, &status.vips).await?, 80));
        wordpress::install(&place, "Kopek demo").await?;
        steps.done("installed through its own web installer");
        let published = wordpress::publish_with_picture(&place, "Hello from three servers").await?;
        published.check(&place).await?;
        steps.done("a post with an uploaded picture is published, and a visitor sees both");

        let visitors = Visitors::crowd(&place, VISITORS, |nth| format!("/?s=page{nth}"));
        let arrived = Instant::now();
        let reason = scaled_out(rack).await?;
        steps.done(format!(
            "{VISITORS} visitors at once; a second instance serves on another server: {reason}"
        ));

        rack.whole().await?;
        let victim = victim(rack, place.address.ip()).await?;
        let before = of_server(rack, &victim).await?;
        let killed = Instant::now();
        rack.dev("kill", &[&victim]).await?;
        let dead = until("the dead server to be noticed", LIMIT, || async {
            Ok((rack.server(&victim).await?.state == "dead").then_some(()))
        });
        dead.await?;
        let event = rack.newest_event(&victim, "server declared dead").await?;
        let why = event.map(|event| event.reason).unwrap_or_default();
        steps.done(format!(
            "killed {victim} with its instance {before} while visitors go on; declared dead: {why}"
        ));

        let reason = replaced(rack, &before).await?;
        steps.done(format!("what was lost is replaced: {reason}"));
        let met = visitors.so_far().since(killed);
        steps.note(format!(
            "{} requests since the kill, {} failed, the longest took {:.2} s",
            met.0.len(),
            met.failed(),
            met.longest().as_secs_f64()
        ));
        met.all_served(killed).context("visitors noticed the dead server")?;

        rack.dev("power-on", &[&victim]).await?;
        rack.whole().await?;
        steps.done(format!("{victim} was powered on, has caught up and takes part again"));

        let met = visitors.leave().await;
        self.account(&mut steps, &met, arrived)?;
        let reason = scaled_in(rack).await?;
        steps.done(format!("the visitors have left; one instance is enough again: {reason}"));
        published.check(&place).await.context("after all that")?;
        steps.done("the post and the picture are as they were");
        match self.story {
            Story::Full => self.invite(rack, &place, &published).await,
            Story::Short => self.end(rack, &mut steps).await,
        }
    }

    /// A VIP that leaves another server to be killed: neither its holder nor the site's writer dies in this story.
    async fn vip_for_visitors(&self, rack: &Rack, vips: &[IpAddr]) -> Result<IpAddr> {
        let writer = rack.site(SITE).await?.writer.map(|writer| writer.to_string());
        for vip in vips {
            if rack.vip_holder(*vip).await? == writer {
                return Ok(*vip);
            }
        }
        vips.first().copied().context("the rack has no VIP")
    }

    fn account(&self, steps: &mut Steps, met: &Visits, arrived: Instant) -> Result<()> {
        steps.note(format!(
            "{} requests in {:.0} s, {} failed, the longest took {:.2} s",
            met.0.len(),
            arrived.elapsed().as_secs_f64(),
            met.failed(),
            met.longest().as_secs_f64()
        ));
        met.all_served(arrived).context("visitors met errors")
    }

    async fn invite(&self, rack: &mut Rack, place: &Place, published: &Published) -> Result<()> {
        rack.keep();
        let kopek = self.kopek.display();
        let at = if self.dir.as_os_str() == DEFAULT_DIR {
            String::new()
        } else {
            format!(" --dir {}", self.dir.display())
        };
        println!("\nThe rack stays up. Open");
        println!("  http://{}/            from this machine", place.host);
        if let Some(listen) = self.listen {
            println!(
                "  http://{listen}/        the same; from your own machine: ssh -L {0}:{listen} THIS-MACHINE",
                listen.port()
            );
        }
        println!(
            "  http://{}/wp-admin/   as {} with password {}",
            place.host,
            wordpress::USER,
            wordpress::PASSWORD
        );
        println!("  http://{}{}       the post", place.host, published.post);
        if !at.is_empty() {
            println!("First: export KOPEK_CELL={}/admin", self.dir.display());
        }
        println!("Try next");
        println!(
            "  {kopek} events --follow              what is decided, and why; keep it open beside the others"
        );
        println!("  {kopek} top                          servers and instances by load");
        println!(
            "  {kopek} dev cut s2{at}               take a server off the network; `dev heal s2{at}` puts it back"
        );
        println!("  {kopek} site scale {SITE} --min 3      an instance on every server");
        println!("  {kopek} site exec {SITE} -- php -v     run a command inside");
        println!("Stop it\n  {kopek} dev down{at}");
        Ok(())
    }

    async fn end(&self, rack: &mut Rack, steps: &mut Steps) -> Result<()> {
        let traces = Traces::of(rack).await?;
        rack.down().await?;
        traces.gone()?;
        steps.done("the rack is down, and nothing is left of it");
        Ok(())
    }
}

pub const DEFAULT_DIR: &str = "/var/lib/kopek-rack";

async fn create(rack: &Rack, vips: &[IpAddr]) -> Result<SiteView> {
    let folder = tempfile::tempdir()?;
    let tree = wordpress::prepare(folder.path())?;
    let tree = tree.to_string_lossy();
    let mut domains: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    domains.extend(["127.0.0.1", "localhost", "demo.test"].map(str::to_owned));
    let mut words = vec!["site", "create", SITE, "--from", &*tree, "--max", "3", "--wait"];
    for domain in &domains {
        words.extend(["--domain", domain]);
    }
    rack.ask(&words).await
}

/// Waits until two instances serve on two servers; gives the reason.
async fn scaled_out(rack: &Rack) -> Result<String> {
    let two = until("a second instance on another server", LIMIT, || async {
        let serving = rack.serving(SITE).await?;
        let servers: BTreeSet<_> = serving.iter().map(|instance| &instance.server).collect();
        Ok((servers.len() > 1).then_some(()))
    });
    two.await?;
    reason(rack, "scaled out").await
}

/// A server that runs an instance and is neither the visitors' edge nor the site's writer.
async fn victim(rack: &Rack, vip: IpAddr) -> Result<String> {
    let found = until("an instance away from the visitors' edge and the site's writer", LIMIT, || async {
        let (holder, writer) = (rack.vip_holder(vip).await?, rack.site(SITE).await?.writer);
        let serving = rack.serving(SITE).await?;
        let servers = serving.iter().map(|instance| &instance.server);
        let mut fit = servers
            .filter(|server| holder.as_deref() != Some(server.as_str()) && writer.as_ref() != Some(server));
        Ok(fit.next().map(ToString::to_string))
    });
    found.await
}

async fn of_server(rack: &Rack, server: &str) -> Result<String> {
    let serving = rack.serving(SITE).await?;
    let found = serving.iter().find(|instance| instance.server.as_str() == server);
    Ok(found.with_context(|| format!("{server} runs no instance any more"))?.id.to_string())
}

/// Waits until the lost instance is gone and two others serve.
async fn replaced(rack: &Rack, lost: &str) -> Result<String> {
    let again = until("another instance in the place of the lost one", LIMIT, || async {
        let instances = rack.instances(SITE).await?;
        let gone = instances.iter().all(|instance| instance.id.to_string() != lost);
        let serving = instances.iter().filter(|instance| instance.phase == "serving").count();
        Ok((gone && serving >= 2).then_some(()))
    });
    again.await?;
    let placed = rack.newest_event(SITE, "instance placed").await?;
    let scaled = rack.newest_event(SITE, "scaled out").await?;
    let newest = placed.into_iter().chain(scaled).max_by_key(|event| event.at);
    Ok(newest.map(|event| format!("{} ({})", event.what, event.reason)).unwrap_or_default())
}

async fn scaled_in(rack: &Rack) -> Result<String> {
    let one = until("one instance to be left", SCALE_IN_LIMIT, || async {
        Ok((rack.instances(SITE).await?.len() == 1).then_some(()))
    });
    one.await?;
    reason(rack, "scaled in").await
}

async fn reason(rack: &Rack, what: &str) -> Result<String> {
    let event = rack.newest_event(SITE, what).await?;
    Ok(event.map(|event| event.reason).unwrap_or_else(|| format!("no event says {what:?}")))
}

fn names<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// One line a step, with the seconds since the step before.
pub struct Steps {
    last: Instant,
}

impl Steps {
    #[expect(clippy::new_without_default, reason = "the clock starts here; a default would hide that")]
    pub fn new() -> Steps {
        Steps { last: Instant::now() }
    }

    pub fn done(&mut self, what: impl AsRef<str>) {
        println!("{:>6.1} s  {}", self.last.elapsed().as_secs_f64(), what.as_ref());
        self.last = Instant::now();
    }

    /// What was seen meanwhile.
    pub fn note(&self, what: impl AsRef<str>) {
        println!("          {}", what.as_ref());
    }
}
