//! Brings a volume to a deployed tree while the site goes on writing to it.
//!
//! Promise: files of the deployment are as in the packed tree, files that only the deployment before had are
//! gone, all others (uploads) stay. What a deploy has to put in the place of the site's own things is moved to
//! `displaced`, never deleted. Everything is staged before the first change, so a full disk changes nothing.
//! The live tree belongs to the tenant and may hold hostile links: see `beneath`. Called by `pour`.
//!
//! ```text
//! volumes/SITE/tree        live, bind-mounted into instances
//! volumes/SITE/manifest    what was deployed (see `manifest`)
//! volumes/SITE/incoming    staged, gone when the deploy ends
//! volumes/SITE/displaced   what stood in a deploy's way, by digest of that deploy
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kopek_core::assignment::AssignedVolume;
use kopek_core::{Bytes, Digest};
use rustix::fs::{AtFlags, FileType, linkat, renameat};

use super::Owners;
use super::beneath::Beneath;
use super::budget::Budget;
use super::inventory::{Inventory, Kind, Node, Where};
use super::manifest::{Deployed, Manifest};
use super::packed::PackedReader;
use super::path::TreePath;
use super::place::{Attributes, put_file, put_folder, put_symlink};
use super::remove::{finish_removal, remove_whole};
use super::tarball::{self, TarKind};
use super::unpack::{Explain, Incoming, UnpackError, sync_file_system, unpack_whole};

pub use super::unpack::UnpackError as ApplyError;

/// What a deploy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Files and links put in place.
    pub written: u64,
    /// Files and links of the deployment before that are gone.
    pub removed: u64,
    /// Things of the site's own that stood in the way and were moved out of the tree.
    pub displaced: u64,
}

/// The tree that is wholly applied to this volume (`volumes/SITE`), if any.
pub fn applied_tree(volume: &Path) -> io::Result<Option<Digest>> {
    Ok(applied(volume)?.and_then(|manifest| manifest.tree))
}

/// Whether this tree of this site is wholly applied to the volume.
pub(crate) fn is_applied(volume: &Path, wanted: &AssignedVolume) -> io::Result<bool> {
    let is_it = |m: Manifest| m.tree.as_ref() == Some(&wanted.tree) && m.number == Some(wanted.number);
    Ok(applied(volume)?.is_some_and(is_it))
}

fn applied(volume: &Path) -> io::Result<Option<Manifest>> {
    if !volume.join("tree").is_dir() {
        return Ok(None);
    }
    Manifest::read(&volume.join("manifest")).map(Some)
}

/// Makes `volume` (`volumes/SITE`) that of the site with this number, before anything is applied to it. What
/// another site of the same name left there is removed.
pub(crate) fn claim_volume(volume: &Path, number: u32) -> io::Result<()> {
    finish_removal(volume)?;
    let path = volume.join("manifest");
    // One that cannot be read says nothing of another site; the files are far more likely our own.
    let manifest = read_manifest(&path)?;
    match manifest.number {
        Some(known) if known == number => Ok(()),
        Some(known) => {
            tracing::info!(volume = %volume.display(), known, number, "removing what an earlier site left");
            remove_whole(volume)?;
            fs::create_dir_all(volume)?;
            Manifest { number: Some(number), ..Manifest::default() }.write(&path)
        }
        None => {
            fs::create_dir_all(volume)?;
            Manifest { number: Some(number), ..manifest }.write(&path)
        }
    }
}

/// Brings `volume` (`volumes/SITE`) to the packed tree. Safe to repeat after any interruption; must not run
/// twice at once for one volume. Needs root.
pub fn apply_volume(packed: &Path, digest: &Digest, volume: &Path) -> Result<Applied, UnpackError> {
    let explain = Explain { packed, path: volume };
    let inventory = read_verified(packed, digest, &explain)?;
    let manifest = volume.join("manifest");
    let before = read_manifest(&manifest).map_err(|error| explain.io(error))?;
    let next = Manifest::of(digest, before.number, &inventory);
    let (tree, incoming) = (volume.join("tree"), volume.join("incoming"));
    if !tree.exists() {
        unpack_whole(packed, digest, &incoming, &tree, Owners::Site)?;
        next.write(&manifest).map_err(|error| explain.io(error))?;
        return Ok(Applied { written: inventory.files(), ..Applied::default() });
    }

    let incoming = Incoming::make(&incoming).map_err(|error| explain.io(error))?;
    let live = Beneath::open(&tree).map_err(|error| explain.io(error))?;
    let staged = stage_changed(packed, &inventory, &live, &incoming.path, &explain)?;
    before.unfinished(&next).write(&manifest).map_err(|error| explain.io(error))?;
    let mut deploy = Deploy {
        live,
        incoming: open_folder(&incoming.path).map_err(|error| explain.io(error))?,
        displaced: volume.join("displaced").join(digest.as_str()),
        applied: Applied::default(),
    };
    deploy.run(&inventory, &staged, &before).map_err(|error| explain.io(error))?;
    // A power cut must not find the new manifest over old files.
    sync_file_system(&tree).map_err(|error| explain.io(error))?;
    next.write(&manifest).map_err(|error| explain.io(error))?;
    Ok(deploy.applied)
}

/// A manifest that cannot be read is taken as absent: then nothing is removed.
fn read_manifest(path: &Path) -> io::Result<Manifest> {
    Manifest::read(path).or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "files that vanish with this deploy will stay");
        match error.raw_os_error() {
            Some(_) => Err(error),
            None => Ok(Manifest::default()),
        }
    })
}

/// Reads the whole packed tree, proves that it is the one named and that nothing in it reaches out.
fn read_verified(packed: &Path, digest: &Digest, explain: &Explain<'_>) -> Result<Inventory, UnpackError> {
    let mut reader = PackedReader::open(packed).map_err(|error| explain.io(error))?;
    // Its size was limited when it was packed; a full disk ends what is too large here.
    let mut budget = Budget::new(Bytes(u64::MAX));
    let inventory = tarball::read_inventory(&mut reader.tar, &mut budget);
    if !reader.is(digest).map_err(|error| explain.io(error))? {
        return Err(explain.corrupt("it is not what its digest names"));
    }
    let mut inventory = inventory.map_err(|error| explain.tar(error))?;
    inventory.close().map_err(|refusal| explain.tar(refusal.into()))?;
    Ok(inventory)
}

/// Writes each content that some live file lacks to `incoming/INDEX`; `true` at its index if it did.
fn stage_changed(
    packed: &Path,
    inventory: &Inventory,
    live: &Beneath,
    incoming: &Path,
    explain: &Explain<'_>,
) -> Result<Vec<bool>, UnpackError> {
    let mut changed = vec![false; inventory.contents.len()];
    for (path, node) in &inventory.nodes {
        if let Kind::File(content) = node.kind
            && !changed[content]
        {
            let same = is_same(live, path, inventory, content);
            changed[content] = !same.map_err(|error| explain.io(error))?;
        }
    }
    let folder = open_folder(incoming).map_err(|error| explain.io(error))?;
    let mut reader = PackedReader::open(packed).map_err(|error| explain.io(error))?;
    let mut content = 0;
    while let Some(entry) = reader.tar.next_entry().map_err(|error| explain.tar(error))? {
        if entry.kind != TarKind::File {
            continue;
        }
        if changed[content] {
            let attributes = Attributes::of(&entry, Owners::Site).map_err(|error| explain.io(error))?;
            put_file(&folder, &staged_name(content), &mut reader.tar, &attributes)
                .map_err(|error| explain.io(error))?;
        }
        content += 1;
    }
    Ok(changed)
}

fn is_same(live: &Beneath, path: &TreePath, inventory: &Inventory, content: usize) -> io::Result<bool> {
    let Some(file) = live.file(path)? else { return Ok(false) };
    let wanted = &inventory.contents[content];
    let Where::Tar { hash, .. } = &wanted.at else { unreachable!("a packed tree is a tar") };
    if file.metadata()?.len() != wanted.bytes {
        return Ok(false);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file)?;
    Ok(hasher.finalize() == *hash)
}

fn staged_name(content: usize) -> OsString {
    content.to_string().into()
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

struct Deploy {
    live: Beneath,
    incoming: OwnedFd,
    displaced: std::path::PathBuf,
    applied: Applied,
}

impl Deploy {
    fn run(&mut self, inventory: &Inventory, staged: &[bool], before: &Manifest) -> io::Result<()> {
        // The first name of each content is the file; the others become links of it.
        let mut first_names: Vec<Option<&TreePath>> = vec![None; inventory.contents.len()];
        for (path, node) in &inventory.nodes {
            match &node.kind {
                Kind::Folder => self.put_folder(path, node)?,
                Kind::Symlink(target) => self.put_symlink(path, node, target)?,
                Kind::File(content) => match first_names[*content] {
                    Some(first) => self.put_link(path, first)?,
                    None => {
                        first_names[*content] = Some(path);
                        self.put_file(path, node, *content, staged[*content])?;
                    }
                },
            }
        }
        for (path, kind) in before.entries.iter().rev() {
            if inventory.nodes.contains_key(path) {
                continue;
            }
            match kind {
                Deployed::File => self.applied.removed += u64::from(self.live.remove(path)?),
                Deployed::Folder => drop(self.live.remove_empty_folder(path)?),
            }
        }
        Ok(())
    }

    fn put_folder(&mut self, path: &TreePath, node: &Node) -> io::Result<()> {
        let is_new = self.make_way(path, FileType::Directory)?;
        if is_new {
            put_folder(&self.live.folder(&path.parent())?, path.name())?;
        }
        let folder = self.live.folder_to_change(path)?;
        let wanted = Attributes::site(node.mode, node.mtime);
        match is_new || folder.metadata()?.mode() & 0o7777 != wanted.mode {
            true => wanted.dress(&folder),
            false => Ok(()),
        }
    }

    fn put_file(&mut self, path: &TreePath, node: &Node, content: usize, staged: bool) -> io::Result<()> {
        if staged {
            return self.move_in(&staged_name(content), path, FileType::RegularFile);
        }
        // The site removed it since it was compared; the next attempt stages it.
        let file = self.live.file(path)?.ok_or(io::ErrorKind::NotFound)?;
        let wanted = Attributes::site(node.mode, node.mtime);
        let meta = file.metadata()?;
        let same = (meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.mtime())
            == (wanted.uid, wanted.gid, wanted.mode, i64::try_from(wanted.mtime).unwrap_or(i64::MAX));
        if same { Ok(()) } else { wanted.dress(&file) }
    }

    fn put_link(&mut self, path: &TreePath, first: &TreePath) -> io::Result<()> {
        if let (Some(there), Some(wanted)) = (self.live.stat(path)?, self.live.stat(first)?)
            && (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
        {
            return Ok(());
        }
        let from = self.live.folder(&first.parent())?;
        linkat(&from, first.name(), &self.incoming, "link", AtFlags::empty())?;
        self.move_in("link".as_ref(), path, FileType::RegularFile)
    }

    fn put_symlink(&mut self, path: &TreePath, node: &Node, target: &[u8]) -> io::Result<()> {
        if self.live.kind(path)? == Some(FileType::Symlink) && self.live.read_link(path)? == target {
            return Ok(());
        }
        put_symlink(&self.incoming, "link".as_ref(), target, &Attributes::site(node.mode, node.mtime))?;
        self.move_in("link".as_ref(), path, FileType::Symlink)
    }

    fn move_in(&mut self, staged: &std::ffi::OsStr, path: &TreePath, kind: FileType) -> io::Result<()> {
        self.make_way(path, kind)?;
        renameat(&self.incoming, staged, &self.live.folder(&path.parent())?, path.name())?;
        self.applied.written += 1;
        Ok(())
    }

    /// Moves away what a rename cannot replace: a folder where a file goes, anything else where a folder
    /// goes. `true` if the place is empty or replaceable.
    fn make_way(&mut self, path: &TreePath, wanted: FileType) -> io::Result<bool> {
        let there = self.live.kind(path)?;
        let (is_folder, wants_folder) = (there == Some(FileType::Directory), wanted == FileType::Directory);
        if there.is_none() || (!is_folder && !wants_folder) {
            return Ok(true);
        }
        if is_folder && wants_folder {
            return Ok(false);
        }
        if is_folder && self.live.remove_empty_folder(path)? {
            return Ok(true);
        }
        fs::create_dir_all(&self.displaced)?;
        let number = fs::read_dir(&self.displaced)?.count();
        let name: String = format!("{number}-{}", path.name().to_string_lossy()).chars().take(60).collect();
        let folder = self.live.folder(&path.parent())?;
        renameat(&folder, path.name(), &open_folder(&self.displaced)?, &name)?;
        self.applied.displaced += 1;
        tracing::warn!(path = %path, to = %self.displaced.join(name).display(), "moved out of a deploy's way");
        Ok(true)
    }
}
