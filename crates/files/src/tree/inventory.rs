//! What a tree holds, before its content moves: every entry once, in order, and proof that none of them can
//! reach out of the tree. Filled by `source` and `tarball`, written by `pack`, followed by `apply`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::fault::{Fault, Refusal, shown};
use super::path::TreePath;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    /// Index into the contents; files with the same index are hard links of one another.
    File(usize),
    Symlink(Vec<u8>),
}

impl Kind {
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Folder => "folder",
            Kind::File(_) => "file",
            Kind::Symlink(_) => "symbolic link",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub bytes: u64,
    pub at: Where,
}

/// Where the bytes of a file are read from.
#[derive(Debug, Clone)]
pub(crate) enum Where {
    Path(PathBuf),
    /// Index in the zip archive.
    Zip(usize),
    /// Offset in the uncompressed tar stream, and what was read there.
    Tar {
        offset: u64,
        hash: blake3::Hash,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub nodes: BTreeMap<TreePath, Node>,
    pub contents: Vec<Content>,
}

impl Inventory {
    /// Adds content and gives its index.
    pub fn hold(&mut self, content: Content) -> usize {
        self.contents.push(content);
        self.contents.len() - 1
    }

    /// A later entry of the same kind replaces an earlier one, as tar does it; a change of kind is refused: it
    /// serves nobody but one who writes through a symbolic link.
    pub fn add(&mut self, path: TreePath, node: Node) -> Result<(), Refusal> {
        if path.is_top() {
            return match node.kind {
                Kind::Folder => Ok(()),
                kind => Err(Refusal::new(b".", Fault::Twice("folder", kind.word()))),
            };
        }
        if let Some(before) = self.nodes.get(&path)
            && before.kind.word() != node.kind.word()
        {
            let fault = Fault::Twice(before.kind.word(), node.kind.word());
            return Err(Refusal::new(path.bytes(), fault));
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// The content that a hard link shares.
    pub fn linked(&self, path: &TreePath, target: &[u8]) -> Result<usize, Refusal> {
        let found = TreePath::parse(target).ok().and_then(|target| self.nodes.get(&target));
        match found {
            Some(Node { kind: Kind::File(content), .. }) => Ok(*content),
            _ => Err(Refusal::new(path.bytes(), Fault::NoTarget(shown(target)))),
        }
    }

    /// Takes away the one folder in which everything lies, and gives its name.
    pub fn strip_single_folder(&mut self) -> Option<String> {
        let (top, node) = self.nodes.first_key_value()?;
        let top = top.names().next()?.to_vec();
        let alone = self.nodes.keys().all(|path| path.names().next() == Some(&top));
        let is_folder = self.nodes.len() > 1 || node.kind == Kind::Folder;
        if !alone || !is_folder {
            return None;
        }
        let nodes = std::mem::take(&mut self.nodes);
        self.nodes =
            nodes.into_iter().filter_map(|(path, node)| Some((path.without_first()?, node))).collect();
        Some(shown(&top))
    }

    /// Adds folders that are only implied, then proves that every entry lies in a folder and that no link
    /// leads out.
    pub fn close(&mut self) -> Result<(), Refusal> {
        for path in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.imply_folders(&path)?;
        }
        for (path, node) in &self.nodes {
            if let Kind::Symlink(target) = &node.kind
                && self.leads_out(path, target)
            {
                return Err(Refusal::new(path.bytes(), Fault::LeavesTree(shown(target))));
            }
        }
        Ok(())
    }

    fn imply_folders(&mut self, path: &TreePath) -> Result<(), Refusal> {
        let mut folder = path.parent();
        while !folder.is_top() {
            match self.nodes.get(&folder).map(|node| &node.kind) {
                Some(Kind::Folder) => return Ok(()),
                Some(kind) => {
                    let fault = Fault::UnderNoFolder(folder.to_string(), kind.word());
                    return Err(Refusal::new(path.bytes(), fault));
                }
                None => {}
            }
            let implied = Node { kind: Kind::Folder, mode: 0o755, uid: 0, gid: 0, mtime: 0 };
            let above = folder.parent();
            self.nodes.insert(folder, implied);
            folder = above;
        }
        Ok(())
    }

    /// Walks the link as the kernel would, through other links of the tree. Counting `..` in the text alone
    /// would miss `a/b -> ../..` followed by `c -> a/b/../x`.
    fn leads_out(&self, link: &TreePath, target: &[u8]) -> bool {
        // MAXSYMLINKS of Linux: beyond it the kernel opens nothing.
        const HOPS_MAX: usize = 40;
        let start = link.parent();
        let mut here: Vec<&[u8]> = start.names().collect();
        let mut to_go: Vec<&[u8]> = Vec::new();
        let mut next = Some(target);
        let mut hops = 0;
        loop {
            if let Some(target) = next.take() {
                hops += 1;
                if target.starts_with(b"/") {
                    return true;
                }
                if hops > HOPS_MAX {
                    return false;
                }
                to_go.extend(target.split(|byte| *byte == b'/').rev());
            }
            match to_go.pop() {
                None => return false,
                Some(b"" | b".") => {}
                Some(b"..") => {
                    if here.pop().is_none() {
                        return true;
                    }
                }
                Some(name) => {
                    here.push(name);
                    if let Some(Node { kind: Kind::Symlink(inner), .. }) =
                        self.nodes.get(&TreePath::join(&here))
                    {
                        here.pop();
                        next = Some(inner);
                    }
                }
            }
        }
    }

    pub fn files(&self) -> u64 {
        self.nodes.values().filter(|node| matches!(node.kind, Kind::File(_))).count() as u64
    }
}
