//! What can be wrong with one entry of a tree. Said by `path`, `inventory`, `source` and `tarball`.

/// Why an entry is refused, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("its path is absolute; pack again with relative paths, from inside the folder")]
    Absolute,
    #[error("its path has `..`; pack again with relative paths, from inside the folder")]
    DotDot,
    #[error("its name has a NUL byte; pack again with an ordinary archiver")]
    Nul,
    #[error("its name is longer than Linux allows; shorten it")]
    LongName,
    #[error("is a {0}; a tree holds only files, folders and links: leave it out")]
    Special(&'static str),
    #[error(
        "is a link to {0:?}, which leaves the tree; make it relative, or bring the folder with --follow-links"
    )]
    LeavesTree(String),
    #[error("is a link to nothing or to itself and cannot be followed; remove it")]
    Unfollowable,
    #[error(
        "is a hard link to {0:?}, which does not come before it as a file; pack again with an ordinary archiver"
    )]
    NoTarget(String),
    #[error("comes twice, as {0} and as {1}; pack again from a clean folder")]
    Twice(&'static str, &'static str),
    #[error("lies under {0:?}, which is no folder but a {1}; pack again from a clean folder")]
    UnderNoFolder(String, &'static str),
    #[error("is encrypted; pack again without a password")]
    Encrypted,
    #[error("is a sparse file of GNU tar; pack again without --sparse")]
    Sparse,
}

/// An entry and its fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} {fault}")]
pub(crate) struct Refusal {
    pub entry: String,
    pub fault: Fault,
}

impl Refusal {
    pub fn new(raw: &[u8], fault: Fault) -> Refusal {
        Refusal { entry: shown(raw), fault }
    }
}

/// A name from a stranger's archive, safe for a terminal and a log line.
pub(crate) fn shown(raw: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    let text: String =
        String::from_utf8_lossy(raw).chars().flat_map(|c| c.escape_debug()).take(SHOWN_MAX).collect();
    text.replace("\\'", "'").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_name_is_shown_on_one_line() {
        assert_eq!(shown(b"a\n\x1b[31m'\xff"), "a\\n\\u{1b}[31m'\u{fffd}");
    }
}
