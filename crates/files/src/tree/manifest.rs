//! What was deployed to a volume, kept beside its live tree at `<state>/volumes/<site>/manifest`: which files
//! are the deployment's and which the site's own. Written last, so a volume with an unfinished deploy says so
//! and is brought up again wholly.
//!
//! Records end with a NUL, because names may hold anything else: first `tree DIGEST` or `unfinished`, then
//! `site NUMBER` if it is known, then `d PATH` for each folder and `f PATH` for each file and link.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use kopek_core::Digest;

use super::inventory::{Inventory, Kind};
use super::path::TreePath;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deployed {
    Folder,
    /// A file or a symbolic link.
    File,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Manifest {
    /// `None` while a deploy is under way or was interrupted.
    pub tree: Option<Digest>,
    /// Of the site whose volume it is.
    pub number: Option<u32>,
    pub entries: BTreeMap<TreePath, Deployed>,
}

impl Manifest {
    pub fn of(tree: &Digest, number: Option<u32>, inventory: &Inventory) -> Manifest {
        let kind = |kind: &Kind| if *kind == Kind::Folder { Deployed::Folder } else { Deployed::File };
        let entries = inventory.nodes.iter().map(|(path, node)| (path.clone(), kind(&node.kind))).collect();
        Manifest { tree: Some(tree.clone()), number, entries }
    }

    /// What may lie in a volume while it changes from this to `next`.
    pub fn unfinished(&self, next: &Manifest) -> Manifest {
        let mut entries = self.entries.clone();
        entries.extend(next.entries.clone());
        Manifest { tree: None, number: next.number, entries }
    }

    /// An absent manifest is an empty one.
    pub fn read(path: &Path) -> io::Result<Manifest> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifest::default()),
            text => text?,
        };
        Manifest::parse(&text).ok_or_else(|| io::Error::other(format!("{} is broken", path.display())))
    }

    fn parse(text: &[u8]) -> Option<Manifest> {
        let mut records = text.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let tree = match records.next()? {
            b"unfinished" => None,
            head => Some(Digest::parse(std::str::from_utf8(head.strip_prefix(b"tree ")?).ok()?).ok()?),
        };
        let (mut number, mut entries) = (None, BTreeMap::new());
        for record in records {
            if let Some(digits) = record.strip_prefix(b"site ") {
                number = Some(std::str::from_utf8(digits).ok()?.parse().ok()?);
                continue;
            }
            let kind = match record.first_chunk()? {
                b"d " => Deployed::Folder,
                b"f " => Deployed::File,
                _ => return None,
            };
            entries.insert(TreePath::parse(&record[2..]).ok()?, kind);
        }
        Some(Manifest { tree, number, entries })
    }

    /// Whole or not at all, also through a power cut.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = match &self.tree {
            Some(tree) => format!("tree {tree}\0").into_bytes(),
            None => b"unfinished\0".to_vec(),
        };
        if let Some(number) = self.number {
            text.extend_from_slice(format!("site {number}\0").as_bytes());
        }
        for (entry, kind) in &self.entries {
            text.extend_from_slice(if *kind == Deployed::Folder { b"d " } else { b"f " });
            text.extend_from_slice(entry.bytes());
            text.push(0);
        }
        let folder = path.parent().expect("a manifest lies in its volume's folder");
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest");
        assert_eq!(Manifest::read(&path).unwrap(), Manifest::default());
        let mut manifest =
            Manifest { tree: Some(Digest::parse(&"a".repeat(64)).unwrap()), ..Default::default() };
        manifest.entries.insert(TreePath::parse(b"wp content/\xff\n").unwrap(), Deployed::File);
        manifest.entries.insert(TreePath::parse(b"wp content").unwrap(), Deployed::Folder);
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        (manifest.tree, manifest.number) = (None, Some(7));
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
    }
}
