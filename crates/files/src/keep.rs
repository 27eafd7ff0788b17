//! Removes packed trees that nothing needs any more. A tree that came lately is kept in any case: `kopek
//! control` puts uploads here before the site that needs them exists.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kopek_core::Digest;
use kopek_core::config::Dirs;
use kopek_core::part::FilesPart;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::fetch::UNFINISHED;

const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A site that is created again, a deploy that is taken back: the tree need not travel again.
const UNNEEDED_FOR: Duration = Duration::from_secs(600);
/// By then an upload has become a site, or was given up.
const YOUNG_FOR: Duration = Duration::from_secs(3600);

/// Runs for ever.
pub(crate) async fn sweep(dirs: Dirs, part: watch::Receiver<Option<FilesPart>>) {
    let folder = dirs.state.join("trees");
    remove_unfinished(&folder);
    let mut unneeded_since = BTreeMap::new();
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        // Without a part nothing is known to be unneeded.
        let Some(part) = part.borrow().clone() else { continue };
        let needed = part.images.into_iter().chain(part.volumes.into_values()).collect();
        if let Err(error) =
            sweep_once(&folder, &needed, &mut unneeded_since, Instant::now(), SystemTime::now())
        {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove unneeded trees");
        }
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

fn sweep_once(
    folder: &Path,
    needed: &BTreeSet<Digest>,
    unneeded_since: &mut BTreeMap<PathBuf, Instant>,
    now: Instant,
    clock: SystemTime,
) -> io::Result<()> {
    let mut unneeded = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let digest = name.to_str().and_then(|name| Digest::parse(name.strip_suffix(".tar.zst")?).ok());
        if digest.is_none_or(|digest| needed.contains(&digest)) {
            continue;
        }
        let since = unneeded_since.get(&entry.path()).copied().unwrap_or(now);
        let age = clock.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
        if now - since >= UNNEEDED_FOR && age >= YOUNG_FOR {
            std::fs::remove_file(entry.path())?;
            tracing::info!(tree = %entry.path().display(), "removed: neither an image nor a volume needs it");
        } else {
            unneeded.insert(entry.path(), since);
        }
    }
    *unneeded_since = unneeded;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};

    #[test]
    fn unneeded_trees_go_after_a_while_and_young_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let digest = |c: &str| Digest::parse(&c.repeat(64)).unwrap();
        let clock = SystemTime::now();
        let put = |c: &str, age: Duration| {
            let path = folder.path().join(format!("{}.tar.zst", digest(c)));
            let file = File::create(&path).unwrap();
            file.set_times(FileTimes::new().set_modified(clock - age)).unwrap();
            path
        };
        let old = put("a", YOUNG_FOR);
        let young = put("b", YOUNG_FOR / 2);
        let needed = put("c", YOUNG_FOR * 10);
        let wanted = BTreeSet::from([digest("c")]);
        let mut since = BTreeMap::new();
        let start = Instant::now();
        sweep_once(folder.path(), &wanted, &mut since, start, clock).unwrap();
        sweep_once(folder.path(), &wanted, &mut since, start + UNNEEDED_FOR / 2, clock).unwrap();
        assert!(old.exists());
        sweep_once(folder.path(), &wanted, &mut since, start + UNNEEDED_FOR, clock).unwrap();
        assert_eq!([old.exists(), young.exists(), needed.exists()], [false, true, true]);
    }
}
