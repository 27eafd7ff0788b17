//! The whole run: two sites are made, installed and edited while their writers are struck. Called by
//! `tests/editors.rs` (a short run) and `make chaos-editors` (an hour, or as long as you like).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::editors::blogger::Blogger;
use crate::editors::reader::Reader;
use crate::editors::strikes::Strikes;
use crate::editors::tally::{Seen, Tally};
use crate::editors::wikian::Wikian;
use crate::http::Place;
use crate::mediawiki::{self, Database};
use crate::rack::Rack;
use crate::wait::until;
use crate::wordpress;

const BLOG: &str = "blog";
const WIKI: &str = "wiki";
const WIKI_DATABASE: Database<'static> = Database { name: "wiki", user: "wiki", password: "wiki-secret-1" };
const SERVED_LIMIT: Duration = Duration::from_secs(60);
/// Answers that editors get between two strikes, once the pool is whole.
const ANSWERS_MAX: usize = 40;

#[derive(Debug, Clone, Copy)]
pub enum Length {
    /// After the installers
    Faults(usize),
    Minutes(u64),
}

/// `editors`: of each site, at most 2. Prints what it does as it goes. Fails when the rack does not come back or the editors are not served any more;
/// error pages are in what it gives back.
pub async fn run(rack: &Rack, seed: u64, editors: usize, length: Length) -> Result<Seen> {
    println!("seed {seed}");
    let tally = Arc::new(Tally::new());
    let mut random = StdRng::seed_from_u64(seed);
    let mut strikes = Strikes::new(rack, StdRng::seed_from_u64(random.random()), &tally).await?;
    let began = Instant::now();
    let told = |what: &str| println!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    strikes.whole().await?;
    let wiki_tree = tempfile::tempdir()?;
    let (blog, wiki) = tokio::try_join!(create_blog(rack), create_wiki(rack, wiki_tree.path()))?;
    told("two sites are there, their installers wait");
    install_blog(&mut strikes, &blog, &tally).await?;
    told("WordPress is installed, by its web installer");
    install_wiki(&mut strikes, &wiki, &tally, wiki_tree.path()).await?;
    told("MediaWiki is installed, by its web installer");

    let people = People::gather(editors, &blog, &wiki, &tally, &mut random).await?;
    let leaving = Arc::new(AtomicBool::new(false));
    let working = people.work(&leaving);
    let struck = strike_on(&mut strikes, &mut random, length, &told).await;
    leaving.store(true, Ordering::Relaxed);
    let people = working.await?;
    struck?;
    strikes.whole().await?;
    people.read_back(&told).await;
    for error in unseen_errors(rack).await? {
        tally.unseen_error(&error);
    }
    let seen = tally.seen();
    told(&seen.to_string());
    Ok(seen)
}

async fn strike_on(
    strikes: &mut Strikes<'_>,
    random: &mut StdRng,
    length: Length,
    told: &impl Fn(&str),
) -> Result<()> {
    let (began, before) = (Instant::now(), strikes.made());
    let is_over = |made: usize| match length {
        Length::Faults(faults) => made >= before + faults,
        Length::Minutes(minutes) => began.elapsed() >= Duration::from_secs(60 * minutes),
    };
    while !is_over(strikes.made()) {
        strikes.progress(random.random_range(ANSWERS_MAX / 4..=ANSWERS_MAX)).await?;
        strikes.strike(if random.random() { BLOG } else { WIKI }).await?;
        strikes.whole().await.with_context(|| format!("after fault {}", strikes.made()))?;
        told(&format!("fault {}, and whole again; {} answers", strikes.made(), strikes.answers()));
    }
    strikes.progress(ANSWERS_MAX).await
}

/// Errors of the database that the sites wrote down, whether or not anybody saw a page of it.
async fn unseen_errors(rack: &Rack) -> Result<Vec<String>> {
    let wiki = rack.run(&["site", "exec", WIKI, "--", "sh", "-c", mediawiki::TOLD]).await?;
    let blog = rack.run(&["site", "logs", BLOG]).await?;
    let blog = blog.lines().filter(|line| line.contains("WordPress database error"));
    // The rest are backtraces.
    let wiki = wiki.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_alphanumeric()));
    Ok(blog.chain(wiki).map(|line| line.chars().take(600).collect()).collect())
}

// Sites

async fn create_blog(rack: &Rack) -> Result<Place> {
    let folder = tempfile::tempdir()?;
    let tree = wordpress::prepare(folder.path())?;
    let tree = tree.to_string_lossy();
    rack.run(&["site", "create", BLOG, "--from", &tree, "--domain", "blog.test", "--max", "1", "--wait"])
        .await?;
    place(rack, "blog.test").await
}

/// Its LocalSettings.php is still to be made, so the database is told by hand.
async fn create_wiki(rack: &Rack, folder: &std::path::Path) -> Result<Place> {
    let tree = mediawiki::prepare(folder)?;
    let password = folder.join("password");
    fs::write(&password, WIKI_DATABASE.password)?;
    let (tree, password) = (tree.to_string_lossy(), password.to_string_lossy());
    // One instance: what it uploads and keeps of sessions in /tmp is its own until volumes are replicated.
    let mut words = vec!["site", "create", WIKI, "--from", &tree, "--domain", "wiki.test", "--max", "1"];
    words.extend(["--db-name", WIKI_DATABASE.name, "--db-user", WIKI_DATABASE.user]);
    words.extend(["--db-password-file", &password, "--wait"]);
    rack.run(&words).await?;
    place(rack, "wiki.test").await
}

/// The servers stay, so any address that is held will do.
async fn place(rack: &Rack, host: &str) -> Result<Place> {
    let vips = rack.cell().await?.vips;
    let vip = vips.iter().find(|vip| vip.holder.is_some()).context("nobody holds a VIP")?;
    let place = Place::named((vip.address, 80).into(), host);
    until("the site's first answer", SERVED_LIMIT, || async {
        let answer = crate::http::Browser::new(&place).get("/").await?;
        Ok((answer.status < 500).then_some(()))
    })
    .await?;
    Ok(place)
}

async fn install_blog(strikes: &mut Strikes<'_>, place: &Place, tally: &Arc<Tally>) -> Result<()> {
    let mut owner = Reader::new(place, BLOG, tally);
    owner.page("/wp-admin/install.php").await?;
    let fields = [
        ("weblog_title", "Editors"),
        ("user_name", wordpress::USER),
        ("admin_password", wordpress::PASSWORD),
        ("admin_password2", wordpress::PASSWORD),
        ("admin_email", "owner@blog.test"),
        ("blog_public", "0"),
        ("language", ""),
        ("Submit", "Install WordPress"),
    ];
    let installing = owner.post("/wp-admin/install.php?step=2", &fields, &[200]);
    let (installed, struck) = tokio::join!(installing, strikes.strike(BLOG));
    struck?;
    ensure!(installed?.text().contains("Success!"), "WordPress's installer has no success");
    strikes.whole().await
}

async fn install_wiki(
    strikes: &mut Strikes<'_>,
    place: &Place,
    tally: &Arc<Tally>,
    folder: &std::path::Path,
) -> Result<()> {
    let mut owner = Reader::new(place, WIKI, tally);
    mediawiki::begin_install(&mut owner, "Editors", &WIKI_DATABASE).await?;
    let (settings, struck) = tokio::join!(mediawiki::make_tables(&mut owner), strikes.strike(WIKI));
    struck?;
    let tree = folder.join("mediawiki");
    fs::write(tree.join("LocalSettings.php"), settings? + mediawiki::OWN_SETTINGS)?;
    let tree = tree.to_string_lossy();
    strikes.rack().run(&["site", "deploy", WIKI, "--from", &tree, "--wait"]).await?;
    owner.page("/index.php?title=Main_Page").await?;
    strikes.whole().await
}

// People

struct People {
    bloggers: Vec<Blogger>,
    wikians: Vec<Wikian>,
}

impl People {
    async fn gather(
        editors: usize,
        blog: &Place,
        wiki: &Place,
        tally: &Arc<Tally>,
        random: &mut StdRng,
    ) -> Result<People> {
        let mut people = People { bloggers: Vec::new(), wikians: Vec::new() };
        for name in ["Ann", "Bob"].into_iter().take(editors) {
            let mut blogger =
                Blogger::new(name, Reader::new(blog, BLOG, tally), StdRng::seed_from_u64(random.random()));
            blogger.log_in().await?;
            people.bloggers.push(blogger);
            let mut wikian =
                Wikian::new(name, Reader::new(wiki, WIKI, tally), StdRng::seed_from_u64(random.random()));
            wikian.log_in().await?;
            people.wikians.push(wikian);
        }
        Ok(people)
    }

    /// Each does one thing after the other until they are to leave.
    fn work(self, leaving: &Arc<AtomicBool>) -> impl Future<Output = Result<People>> + use<> {
        let at_work = |leaving: &Arc<AtomicBool>| {
            let leaving = leaving.clone();
            move || !leaving.load(Ordering::Relaxed)
        };
        let spawn_blogger = |mut blogger: Blogger| {
            let at_work = at_work(leaving);
            tokio::spawn(async move {
                while at_work() {
                    blogger.work().await;
                }
                blogger
            })
        };
        let bloggers: Vec<_> = self.bloggers.into_iter().map(spawn_blogger).collect();
        let spawn_wikian = |mut wikian: Wikian| {
            let at_work = at_work(leaving);
            tokio::spawn(async move {
                while at_work() {
                    wikian.work().await;
                }
                wikian
            })
        };
        let wikians: Vec<_> = self.wikians.into_iter().map(spawn_wikian).collect();
        async move {
            let mut people = People { bloggers: Vec::new(), wikians: Vec::new() };
            for blogger in bloggers {
                people.bloggers.push(blogger.await?);
            }
            for wikian in wikians {
                people.wikians.push(wikian.await?);
            }
            Ok(people)
        }
    }

    async fn read_back(mut self, told: &impl Fn(&str)) {
        let (mut posts, mut pages) = (0, 0);
        for blogger in &mut self.bloggers {
            posts += blogger.read_back().await;
        }
        for wikian in &mut self.wikians {
            pages += wikian.read_back().await;
        }
        told(&format!("read back: {posts} texts and comments of the blog, {pages} revisions of the wiki"));
    }
}
