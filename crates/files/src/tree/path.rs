//! A path inside a tree, checked once where it enters: relative, no `..`, no NUL. Bytes, because a tree may
//! hold names that are not UTF-8.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::fault::{Fault, shown};

/// NAME_MAX and PATH_MAX of Linux, the latter with its closing NUL.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;

/// Components joined by single slashes; empty is the top of the tree. Ordered by bytes, which puts every
/// folder before what it holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct TreePath(Vec<u8>);

impl TreePath {
    pub fn parse(raw: &[u8]) -> Result<TreePath, Fault> {
        if raw.starts_with(b"/") {
            return Err(Fault::Absolute);
        }
        if raw.contains(&0) {
            return Err(Fault::Nul);
        }
        let mut path = Vec::with_capacity(raw.len());
        for name in raw.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            match name {
                b".." => return Err(Fault::DotDot),
                name if name.len() > NAME_MAX => return Err(Fault::LongName),
                name => {
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(name);
                }
            }
        }
        if path.len() >= PATH_MAX { Err(Fault::LongName) } else { Ok(TreePath(path)) }
    }

    pub fn is_top(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The folder that holds it; the top holds itself.
    pub fn parent(&self) -> TreePath {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => TreePath(self.0[..slash].to_vec()),
            None => TreePath(Vec::new()),
        }
    }

    /// The last component.
    pub fn name(&self) -> &OsStr {
        let start = self.0.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        OsStr::from_bytes(&self.0[start..])
    }

    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    pub fn join(names: &[&[u8]]) -> TreePath {
        TreePath(names.join(&b'/'))
    }

    /// Without its first component, `None` if that was all.
    pub fn without_first(&self) -> Option<TreePath> {
        let slash = self.0.iter().position(|byte| *byte == b'/')?;
        Some(TreePath(self.0[slash + 1..].to_vec()))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_relative_and_plain() {
        assert_eq!(TreePath::parse(b"./a//b/./c/").unwrap().bytes(), b"a/b/c");
        assert_eq!(TreePath::parse(b"./").unwrap(), TreePath(Vec::new()));
        assert_eq!(TreePath::parse(b"/etc/passwd"), Err(Fault::Absolute));
        assert_eq!(TreePath::parse(b"a/../../b"), Err(Fault::DotDot));
        assert_eq!(TreePath::parse(b"a\0b"), Err(Fault::Nul));
        assert_eq!(TreePath::parse(&[b'x'; 256]), Err(Fault::LongName));
    }

    #[test]
    fn a_folder_sorts_before_what_it_holds() {
        let mut paths = ["a/b", "a-b", "a", "a/b/c"].map(|p| TreePath::parse(p.as_bytes()).unwrap());
        paths.sort();
        assert_eq!(paths.map(|p| p.to_string()), ["a", "a-b", "a/b", "a/b/c"]);
    }
}
