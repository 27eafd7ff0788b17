//! Removes packed trees and images that nothing needs any more. A packed tree that came lately is kept in any
//! case: `kopek control` puts uploads here before the site that needs them exists.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kopek_core::Digest;
use kopek_core::config::Dirs;
use kopek_core::part::FilesPart;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::fetch::UNFINISHED;
use crate::tree::{GONE, remove_whole};

const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A site that is created again, a deploy that is taken back: the tree need not travel again.
const UNNEEDED_FOR: Duration = Duration::from_secs(600);
/// By then an upload has become a site, or was given up.
const YOUNG_FOR: Duration = Duration::from_secs(3600);

/// Runs for ever.
pub(crate) async fn sweep(dirs: Dirs, part: watch::Receiver<Option<FilesPart>>) {
    let mut shelves = [Shelf::trees(&dirs), Shelf::images(&dirs)];
    remove_unfinished(&shelves[0].folder);
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        // Unless the store has confirmed the part, nothing is known to be unneeded.
        let Some(part) = part.borrow().clone().filter(|part| part.confirmed.is_some()) else { continue };
        let volumes = part.volumes.into_values().map(|volume| volume.tree);
        let needed: BTreeSet<Digest> = part.images.into_iter().chain(volumes).collect();
        let swept = spawn_blocking(move || {
            for shelf in &mut shelves {
                if let Err(error) = shelf.sweep(&needed, Instant::now(), SystemTime::now()) {
                    tracing::warn!(folder = %shelf.folder.display(), %error, "cannot remove what is unneeded");
                }
            }
            shelves
        });
        shelves = match swept.await {
            Ok(shelves) => shelves,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
    }
}

/// Transfers that the process before this one did not finish.
fn remove_unfinished(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What cannot be removed costs only space, and the next start tries again.
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

/// A folder whose entries are named by digests.
struct Shelf {
    folder: PathBuf,
    /// What follows the digest in a name.
    suffix: &'static str,
    /// Younger entries stay, needed or not.
    young_for: Duration,
    remove: fn(&Path) -> io::Result<()>,
    unneeded_since: BTreeMap<PathBuf, Instant>,
}

impl Shelf {
    fn trees(dirs: &Dirs) -> Shelf {
        Shelf {
            folder: dirs.state.join("trees"),
            suffix: ".tar.zst",
            young_for: YOUNG_FOR,
            remove: |path| std::fs::remove_file(path),
            unneeded_since: BTreeMap::new(),
        }
    }

    fn images(dirs: &Dirs) -> Shelf {
        Shelf {
            folder: dirs.state.join("images"),
            suffix: "",
            young_for: Duration::ZERO,
            remove: remove_whole,
            unneeded_since: BTreeMap::new(),
        }
    }

    fn sweep(&mut self, needed: &BTreeSet<Digest>, now: Instant, clock: SystemTime) -> io::Result<()> {
        let mut unneeded = BTreeMap::new();
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(self.suffix)) else { continue };
            if name.starts_with(GONE) {
                (self.remove)(&path)?;
            }
            if Digest::parse(name).ok().is_none_or(|digest| needed.contains(&digest)) {
                continue;
            }
            let since = self.unneeded_since.get(&path).copied().unwrap_or(now);
            let age = clock.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            if now - since >= UNNEEDED_FOR && age >= self.young_for {
                (self.remove)(&path)?;
                tracing::info!(path = %path.display(), "removed: neither an image nor a volume needs it");
            } else {
                unneeded.insert(path, since);
            }
        }
        self.unneeded_since = unneeded;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kopek_core::assignment::AssignedVolume;
    use kopek_core::{ServerId, SiteName};
    use std::fs::{File, FileTimes};

    fn digest(c: &str) -> Digest {
        Digest::parse(&c.repeat(64)).unwrap()
    }

    fn dirs(folder: &tempfile::TempDir) -> Dirs {
        let dirs = Dirs { state: folder.path().to_owned(), ..Dirs::default() };
        std::fs::create_dir_all(dirs.state.join("trees")).unwrap();
        dirs
    }

    #[test]
    fn unneeded_trees_go_after_a_while_and_young_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = dirs(&folder);
        let clock = SystemTime::now();
        let put = |c: &str, age: Duration| {
            let path = dirs.packed_tree(&digest(c));
            let file = File::create(&path).unwrap();
            file.set_times(FileTimes::new().set_modified(clock - age)).unwrap();
            path
        };
        let old = put("a", YOUNG_FOR);
        let young = put("b", YOUNG_FOR / 2);
        let needed = put("c", YOUNG_FOR * 10);
        let wanted = BTreeSet::from([digest("c")]);
        let mut shelf = Shelf::trees(&dirs);
        let start = Instant::now();
        shelf.sweep(&wanted, start, clock).unwrap();
        shelf.sweep(&wanted, start + UNNEEDED_FOR / 2, clock).unwrap();
        assert!(old.exists());
        shelf.sweep(&wanted, start + UNNEEDED_FOR, clock).unwrap();
        assert_eq!([old.exists(), young.exists(), needed.exists()], [false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_before_the_store_has_confirmed_the_part_and_never_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = dirs(&folder);
        let put = |path: PathBuf| {
            let file = File::create(&path).unwrap();
            file.set_times(FileTimes::new().set_modified(SystemTime::now() - YOUNG_FOR * 2)).unwrap();
            path
        };
        let [unneeded, of_image, of_volume] = ["a", "b", "c"].map(|c| put(dirs.packed_tree(&digest(c))));
        let unfinished = put(dirs.state.join("trees").join(format!("{UNFINISHED}1")));
        let volume = AssignedVolume { tree: digest("c"), number: 1 };
        let (parts, part) = watch::channel(Some(FilesPart {
            server: ServerId::parse("s1").unwrap(),
            confirmed: None,
            images: vec![digest("b")],
            volumes: BTreeMap::from([(SiteName::parse("blog").unwrap(), volume)]),
            peers: BTreeMap::new(),
            gates: BTreeMap::new(),
        }));
        let sweeping = tokio::spawn(sweep(dirs, part));
        tokio::time::sleep(UNNEEDED_FOR * 3).await;
        assert!(unneeded.exists() && !unfinished.exists());
        parts.send_modify(|part| part.as_mut().unwrap().confirmed = Some(1));
        tokio::time::sleep(UNNEEDED_FOR + SWEEP_EVERY * 3).await;
        assert_eq!([unneeded.exists(), of_image.exists(), of_volume.exists()], [false, true, true]);
        sweeping.abort();
    }

    #[test]
    fn unneeded_images_go_after_ten_minutes_with_what_an_interruption_left() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = dirs(&folder);
        let put = |c: &str| {
            let root = dirs.image_root(&digest(c));
            std::fs::create_dir_all(root.join("usr")).unwrap();
            root
        };
        let (old, needed) = (put("a"), put("c"));
        let half = dirs.state.join("images").join(format!("{GONE}{}", digest("b")));
        std::fs::create_dir_all(half.join("usr")).unwrap();
        let wanted = BTreeSet::from([digest("c")]);
        let mut shelf = Shelf::images(&dirs);
        let (start, clock) = (Instant::now(), SystemTime::now());
        shelf.sweep(&wanted, start, clock).unwrap();
        assert_eq!([old.exists(), half.exists()], [true, false]);
        shelf.sweep(&wanted, start + UNNEEDED_FOR, clock).unwrap();
        assert_eq!([old.exists(), needed.exists()], [false, true]);
        assert_eq!(std::fs::read_dir(dirs.state.join("images")).unwrap().count(), 1);
    }
}
