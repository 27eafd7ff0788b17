//! Brings every image and volume of the part to this server: fetches the packed tree, unpacks or applies it,
//! reports it. What fails is tried again until it succeeds or is no longer wanted. Complete ones are found
//! again after a restart, by looking. Volumes that the cell took from this server are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use kopek_core::assignment::AssignedVolume;
use kopek_core::config::Dirs;
use kopek_core::observed::SeenVolume;
use kopek_core::part::FilesPart;
use kopek_core::{Digest, ServerId, SiteName};
use kopek_link::Identity;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::fetch::{FetchError, fetch};
use crate::report::Report;
use crate::tree::{
    GONE, UnpackError, apply_volume, claim_volume, is_applied, is_whole, remove_whole, unpack_image,
    volume_stats,
};

/// Enough to fill the network; each holds a file and 256 KiB.
const FETCHES_MAX: usize = 4;
/// Unpacking takes a core each; the sites need the others.
const UNPACKS_MAX: usize = 2;
const RETRY_FIRST: Duration = Duration::from_millis(200);
const FETCH_RETRY_LAST: Duration = Duration::from_secs(2);
/// Unpacking fails for reasons that do not pass quickly: full disk, refused tree.
const UNPACK_RETRY_LAST: Duration = Duration::from_secs(30);
/// How often volumes are counted anew: sites write to them.
const RECOUNT_EVERY: Duration = Duration::from_secs(60);

type Part = watch::Receiver<Option<FilesPart>>;

/// A thing to have here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Image(Digest),
    Volume(SiteName),
}

/// How to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Image(Digest),
    Volume(AssignedVolume),
}

impl Wanted {
    fn tree(&self) -> &Digest {
        match self {
            Wanted::Image(tree) | Wanted::Volume(AssignedVolume { tree, .. }) => tree,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum BringError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("cannot make this volume the site's own: {0}")]
    Claim(#[from] std::io::Error),
    #[error("unpacking ended abruptly; see the log")]
    Panicked,
}

struct Pour {
    dirs: Dirs,
    identity: Identity,
    part: Part,
    report: Report,
    fetches: Semaphore,
    unpacks: Semaphore,
    /// Two sites with the same tree fetch it once.
    fetching: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// Runs for ever.
pub(crate) async fn pour(dirs: Dirs, identity: Identity, mut part: Part, report: Report) {
    let pour = Arc::new(Pour {
        dirs,
        identity,
        part: part.clone(),
        report,
        fetches: Semaphore::new(FETCHES_MAX),
        unpacks: Semaphore::new(UNPACKS_MAX),
        fetching: Mutex::default(),
    });
    // One worker for each subject at a time: a volume must not be applied twice at once.
    let mut working = BTreeSet::new();
    let mut workers = JoinSet::new();
    let mut recount = tokio::time::interval(RECOUNT_EVERY);
    part.mark_changed();
    loop {
        let mut unwanted = Vec::new();
        tokio::select! {
            changed = part.changed() => {
                if changed.is_err() {
                    // The follower ended: there will be no other part.
                    return std::future::pending().await;
                }
                part.borrow_and_update();
                pour.forget_unwanted();
                unwanted = pour.unwanted();
            }
            Some(ended) = workers.join_next() => {
                let subject: Subject = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                working.remove(&subject);
            }
            _ = recount.tick() => {
                pour.clone().recount();
                unwanted = pour.unwanted();
            }
        }
        for subject in unwanted {
            if working.insert(subject.clone()) {
                let pour = pour.clone();
                workers.spawn(async move {
                    pour.remove(&subject).await;
                    subject
                });
            }
        }
        for (subject, wanted) in pour.missing() {
            if working.insert(subject.clone()) {
                let pour = pour.clone();
                workers.spawn(async move {
                    pour.bring(&subject, &wanted).await;
                    subject
                });
            }
        }
    }
}

impl Pour {
    /// How the subject is wanted now.
    fn wanted(&self, subject: &Subject) -> Option<Wanted> {
        let part = self.part.borrow();
        let part = part.as_ref()?;
        match subject {
            Subject::Image(digest) => part.images.contains(digest).then(|| Wanted::Image(digest.clone())),
            Subject::Volume(site) => part.volumes.get(site).cloned().map(Wanted::Volume),
        }
    }

    fn missing(&self) -> Vec<(Subject, Wanted)> {
        let part = self.part.borrow();
        let Some(part) = part.as_ref() else { return Vec::new() };
        let report = self.report.borrow();
        let images = part.images.iter().filter(|digest| !report.images.contains(digest));
        let volumes = part
            .volumes
            .iter()
            .filter(|(site, wanted)| report.volumes.get(site).is_none_or(|seen| seen.volume() != **wanted));
        images
            .map(|digest| (Subject::Image(digest.clone()), Wanted::Image(digest.clone())))
            .chain(
                volumes.map(|(site, volume)| (Subject::Volume(site.clone()), Wanted::Volume(volume.clone()))),
            )
            .collect()
    }

    /// Volumes on disk that this server is not to hold any more: their sites are deleted, or held elsewhere.
    fn unwanted(&self) -> Vec<Subject> {
        let part = self.part.borrow();
        let Some(part) = part.as_ref().filter(|part| part.confirmed.is_some()) else { return Vec::new() };
        let here = std::fs::read_dir(self.dirs.state.join("volumes")).into_iter().flatten().flatten();
        let names = here.filter_map(|entry| entry.file_name().into_string().ok());
        // What an interrupted removal left counts for the site that it was of.
        let sites = names.filter_map(|name| SiteName::parse(name.trim_start_matches(GONE)).ok());
        sites.filter(|site| !part.volumes.contains_key(site)).map(Subject::Volume).collect()
    }

    async fn remove(&self, subject: &Subject) {
        let Some(volume) = self.volume(subject).filter(|_| self.wanted(subject).is_none()) else { return };
        match blocking(move || remove_whole(&volume)).await {
            Ok(Ok(())) => tracing::info!(?subject, "removed: this server is not to hold it any more"),
            Ok(Err(error)) => tracing::warn!(?subject, %error, "cannot be removed yet"),
            Err(error) => tracing::warn!(?subject, %error, "cannot be removed yet"),
        }
    }

    /// Takes out of the report what the part no longer has.
    fn forget_unwanted(&self) {
        let part = self.part.borrow();
        let Some(part) = part.as_ref() else { return };
        self.report.send_if_modified(|report| {
            let before = report.clone();
            report.images.retain(|digest| part.images.contains(digest));
            report.volumes.retain(|site, seen| {
                part.volumes.get(site).is_some_and(|wanted| wanted.number == seen.number)
            });
            report.troubles.retain(|digest, _| {
                part.images.contains(digest) || part.volumes.values().any(|volume| volume.tree == *digest)
            });
            *report != before
        });
    }

    /// Ends when the subject is complete or wanted otherwise.
    async fn bring(self: &Arc<Self>, subject: &Subject, wanted: &Wanted) {
        let mut part = self.part.clone();
        let mut pause = RETRY_FIRST;
        while self.wanted(subject).as_ref() == Some(wanted) {
            part.borrow_and_update();
            let retry_last = match self.try_bring(subject, wanted).await {
                Ok(()) => return,
                Err(error) => {
                    self.note_trouble(subject, wanted.tree(), &error);
                    if matches!(error, BringError::Fetch(_)) { FETCH_RETRY_LAST } else { UNPACK_RETRY_LAST }
                }
            };
            tokio::select! {
                _ = part.changed() => pause = RETRY_FIRST,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(retry_last),
            }
        }
    }

    async fn try_bring(self: &Arc<Self>, subject: &Subject, wanted: &Wanted) -> Result<(), BringError> {
        let tree = wanted.tree();
        if !self.is_here(subject, wanted).await? {
            let packed = self.packed(tree).await?;
            let result = self.unpack(subject, wanted, packed.clone()).await;
            if let Err(BringError::Unpack(UnpackError::Corrupt { .. })) = &result {
                self.drop_if_damaged(tree, packed).await?;
            }
            result?;
        }
        self.note_complete(subject, wanted).await
    }

    async fn is_here(&self, subject: &Subject, wanted: &Wanted) -> Result<bool, BringError> {
        let (root, volume, wanted) =
            (self.dirs.image_root(wanted.tree()), self.volume(subject), wanted.clone());
        blocking(move || match (volume, &wanted) {
            (Some(volume), Wanted::Volume(wanted)) => is_applied(&volume, wanted).unwrap_or(false),
            _ => root.exists(),
        })
        .await
    }

    /// The folder `volumes/SITE`; `None` for an image.
    fn volume(&self, subject: &Subject) -> Option<PathBuf> {
        let Subject::Volume(site) = subject else { return None };
        let tree = self.dirs.volume_tree(site);
        Some(tree.parent().expect("a volume's tree lies in the volume's folder").to_owned())
    }

    /// The packed tree, fetched if it is not here.
    async fn packed(&self, tree: &Digest) -> Result<PathBuf, BringError> {
        let packed = self.dirs.packed_tree(tree);
        let only_one = {
            let mut fetching = self.fetching.lock().expect("nothing panics while it holds the lock");
            fetching.retain(|_, lock| lock.strong_count() > 0);
            fetching.get(tree).and_then(Weak::upgrade).unwrap_or_else(|| {
                let lock = Arc::default();
                fetching.insert(tree.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        let _only_one = only_one.lock().await;
        if !packed.exists() {
            let _slot = self.fetches.acquire().await.expect("never closed");
            fetch(&self.identity, &self.peers(), tree, &packed).await?;
        }
        Ok(packed)
    }

    /// The next server by name first, so that not everybody asks the same one.
    fn peers(&self) -> Vec<(ServerId, SocketAddr)> {
        let part = self.part.borrow();
        let Some(part) = part.as_ref() else { return Vec::new() };
        let (before, after): (Vec<_>, Vec<_>) =
            part.peers.clone().into_iter().partition(|(server, _)| *server < part.server);
        after.into_iter().chain(before).collect()
    }

    async fn unpack(&self, subject: &Subject, wanted: &Wanted, packed: PathBuf) -> Result<(), BringError> {
        let _slot = self.unpacks.acquire().await.expect("never closed");
        let tree = wanted.tree();
        let (root, volume, wanted) = (self.dirs.image_root(tree), self.volume(subject), wanted.clone());
        let applied = blocking(move || match (volume, &wanted) {
            (Some(volume), Wanted::Volume(AssignedVolume { tree, number })) => {
                claim_volume(&volume, *number)?;
                Ok::<_, BringError>(Some(apply_volume(&packed, tree, &volume)?))
            }
            _ => Ok(unpack_image(&packed, wanted.tree(), &root).map(|()| None)?),
        })
        .await??;
        tracing::info!(?subject, %tree, ?applied, "poured");
        Ok(())
    }

    /// A packed tree that lost its content on our own disk is fetched anew.
    async fn drop_if_damaged(&self, tree: &Digest, packed: PathBuf) -> Result<(), BringError> {
        let digest = tree.clone();
        blocking(move || {
            if !is_whole(&packed, &digest).unwrap_or(false) {
                tracing::warn!(packed = %packed.display(), "damaged on disk; removed, to be fetched again");
                // If it cannot be removed the next attempt says so.
                drop(std::fs::remove_file(&packed));
            }
        })
        .await
    }

    async fn note_complete(&self, subject: &Subject, wanted: &Wanted) -> Result<(), BringError> {
        let tree = wanted.tree();
        let seen = match (subject, wanted.clone()) {
            (Subject::Volume(site), Wanted::Volume(AssignedVolume { tree, number })) => {
                let folder = self.dirs.volume_tree(site);
                let (files, bytes) = blocking(move || volume_stats(&folder)).await?;
                Some((site.clone(), SeenVolume { tree, number, files, bytes }))
            }
            _ => None,
        };
        self.report.send_modify(|report| {
            report.troubles.remove(tree);
            match seen {
                None => {
                    report.images.push(tree.clone());
                    report.images.sort();
                    report.images.dedup();
                }
                Some((site, seen)) => drop(report.volumes.insert(site, seen)),
            }
        });
        self.forget_unwanted();
        Ok(())
    }

    fn note_trouble(&self, subject: &Subject, tree: &Digest, error: &BringError) {
        let line = error.to_string().replace('\n', " ");
        let is_new = self.report.send_if_modified(|report| {
            report.troubles.insert(tree.clone(), line.clone()).as_ref() != Some(&line)
        });
        if is_new {
            tracing::warn!(?subject, %tree, error = line, "cannot be poured yet");
        }
    }

    /// Counts complete volumes anew.
    fn recount(self: Arc<Self>) {
        let trees: Vec<(SiteName, Digest)> = self
            .report
            .borrow()
            .volumes
            .iter()
            .map(|(site, seen)| (site.clone(), seen.tree.clone()))
            .collect();
        spawn_blocking(move || {
            for (site, tree) in trees {
                let (files, bytes) = volume_stats(&self.dirs.volume_tree(&site));
                self.report.send_if_modified(|report| match report.volumes.get_mut(&site) {
                    Some(seen) if seen.tree == tree && (seen.files, seen.bytes) != (files, bytes) => {
                        (seen.files, seen.bytes) = (files, bytes);
                        true
                    }
                    _ => false,
                });
            }
        });
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BringError> {
    spawn_blocking(work).await.map_err(|_| BringError::Panicked)
}
