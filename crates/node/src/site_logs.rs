//! Keeps the logs of instances and of visitors from filling the disk: above a size a log becomes `.1`, what was
//! `.1` becomes `.2`, and the oldest goes. The agent runs it. An instance's log is copied and cut short, because
//! the container keeps it open: lines written between the two are lost. The edge looks for its files by name
//! again, so an access log is renamed and loses nothing.
//!
//! The logs of a site go when the store says that it is deleted: a later site of that name must not show them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kopek_core::SiteName;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::feed::Sites;

/// About 100,000 lines.
const LARGEST: u64 = 16 << 20;
const KEPT: u32 = 3;
/// A site that writes 100 MB/s gets 1 GB in this time.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Who writes into a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Keeps the file open for as long as it lives, and appends.
    Holds,
    /// Opens the file by name again when another lies there.
    LooksAgain,
}

/// Runs for ever. `log` is `Dirs::log`; `known` are the sites that there were when this server last ran.
pub async fn keep(log: PathBuf, mut known: Sites, mut sites: watch::Receiver<Option<Sites>>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = sites.changed() => {}
        }
        let now = sites.borrow_and_update().clone();
        let strangers = match &now {
            Some(now) => {
                Strangers { sites: Some(now.keys().cloned().collect()), made_anew: made_anew(&known, now) }
            }
            // Unless the store has said so, no site is known to be deleted.
            None => Strangers::default(),
        };
        known = now.unwrap_or(known);
        let log = log.clone();
        let looked = tokio::task::spawn_blocking(move || {
            for (folder, writer) in [("instances", Writer::Holds), ("access", Writer::LooksAgain)] {
                let folder = log.join(folder);
                let kept =
                    remove_strange(&folder, &strangers).and_then(|()| rotate_large(&folder, writer, LARGEST));
                if let Err(error) = kept {
                    warn!(folder = %folder.display(), %error, "a log may grow without end");
                }
            }
        });
        if let Err(error) = looked.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Sites whose name stayed and whose number did not: what is here is the log of a deleted one.
fn made_anew(before: &Sites, now: &Sites) -> BTreeSet<SiteName> {
    let anew = before.iter().filter_map(|(site, before)| {
        let (before, now) = (before.as_ref()?, now.get(site)?.as_ref()?);
        (before != now).then(|| site.clone())
    });
    anew.collect()
}

/// Whose logs must go.
#[derive(Debug, Default)]
struct Strangers {
    /// Those of every site that is not among these, once these are known.
    sites: Option<BTreeSet<SiteName>>,
    made_anew: BTreeSet<SiteName>,
}

impl Strangers {
    fn include(&self, site: &SiteName) -> bool {
        self.made_anew.contains(site) || self.sites.as_ref().is_some_and(|sites| !sites.contains(site))
    }
}

fn remove_strange(folder: &Path, strangers: &Strangers) -> io::Result<()> {
    for path in files(folder)? {
        if site_of(&path).is_some_and(|site| strangers.include(&site)) {
            fs::remove_file(&path)?;
            info!(log = %path.display(), "removed: its site was deleted");
        }
    }
    Ok(())
}

/// `SITE.log`, `SITE.log.1` and so on.
fn site_of(log: &Path) -> Option<SiteName> {
    let (site, rest) = log.file_name().and_then(OsStr::to_str)?.split_once('.')?;
    if rest.starts_with("log") { site.parse().ok() } else { None }
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn rotate_large(folder: &Path, writer: Writer, largest: u64) -> io::Result<()> {
    for path in files(folder)? {
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        // Its site may just have been deleted.
        if is_log && fs::metadata(&path).is_ok_and(|log| log.len() > largest) {
            rotate(&path, writer)?;
        }
    }
    Ok(())
}

fn rotate(log: &Path, writer: Writer) -> io::Result<()> {
    let older = |number: u32| log.with_extension(format!("log.{number}"));
    for number in (1..KEPT).rev() {
        match fs::rename(older(number), older(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match writer {
        Writer::LooksAgain => fs::rename(log, older(1)),
        Writer::Holds => {
            let copied = fs::copy(log, older(1));
            // Also when the disk is too full for a copy: that is when it matters most.
            fs::OpenOptions::new().write(true).open(log)?.set_len(0)?;
            copied.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(folder: &Path, name: &str) -> Option<String> {
        fs::read_to_string(folder.join(name)).ok()
    }

    #[test]
    fn a_log_that_is_held_open_goes_on_in_the_same_file_and_three_older_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blog.log");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n"] {
            log.write_all(line.as_bytes()).unwrap();
            rotate_large(folder.path(), Writer::Holds, 3).unwrap();
        }
        log.write_all(b"6\n").unwrap();
        rotate_large(folder.path(), Writer::Holds, 3).unwrap();
        let names = ["blog.log", "blog.log.1", "blog.log.2", "blog.log.3", "blog.log.4"];
        let texts = names.map(|name| read(folder.path(), name));
        let kept = ["6\n", "five\n", "four\n", "three\n"].map(|text| Some(text.to_owned()));
        assert_eq!((&texts[..4], &texts[4]), (&kept[..], &None));
    }

    #[test]
    fn an_access_log_is_renamed_and_loses_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blog.log");
        fs::write(&path, "one\n").unwrap();
        let mut open = fs::OpenOptions::new().append(true).open(&path).unwrap();
        rotate_large(folder.path(), Writer::LooksAgain, 3).unwrap();
        open.write_all(b"late\n").unwrap();
        assert_eq!(read(folder.path(), "blog.log.1").as_deref(), Some("one\nlate\n"));
        assert!(!path.exists());
        rotate_large(&folder.path().join("absent"), Writer::LooksAgain, 3).unwrap();
    }

    fn sites(sites: &[(&str, u32)]) -> Sites {
        sites.iter().map(|(site, number)| (SiteName::parse(site).unwrap(), Some(*number))).collect()
    }

    #[tokio::test]
    async fn the_logs_of_a_deleted_site_go_by_the_stores_word_and_those_of_a_site_made_anew_too() {
        let log = tempfile::tempdir().unwrap();
        let all = [
            "access/blog.log",
            "access/blog.log.2",
            "access/shop.log",
            "instances/shop.log",
            "instances/wiki.log",
        ];
        let put = || {
            for name in all {
                let path = log.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "line\n").unwrap();
            }
        };
        let there = || all.into_iter().filter(|name| log.path().join(name).exists()).collect::<Vec<_>>();
        let become_these = async |wanted: &[&str]| {
            let reached = async {
                while there() != wanted {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), reached).await.expect("the logs to be as wanted");
        };
        put();
        let (tell, told) = watch::channel(None);
        let keeping = tokio::spawn(keep(log.path().to_owned(), sites(&[("shop", 2), ("wiki", 3)]), told));
        tell.send_replace(Some(sites(&[("blog", 1), ("shop", 4), ("wiki", 3)])));
        become_these(&["access/blog.log", "access/blog.log.2", "instances/wiki.log"]).await;
        put();
        tell.send_replace(Some(sites(&[("shop", 4), ("wiki", 3)])));
        become_these(&["access/shop.log", "instances/shop.log", "instances/wiki.log"]).await;
        keeping.abort();
    }

    #[test]
    fn without_the_stores_word_no_log_goes() {
        let log = tempfile::tempdir().unwrap();
        let path = log.path().join("blog.log");
        fs::write(&path, "line\n").unwrap();
        remove_strange(log.path(), &Strangers::default()).unwrap();
        assert!(path.exists());
    }
}
