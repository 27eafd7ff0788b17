//! Removes whole volumes and images. A folder is not to be found under its name from the first moment, so that
//! nobody takes half of it for a whole; what an interruption leaves is removed by whoever looks next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What begins so is on its way out. No site's name and no digest does.
pub(crate) const GONE: &str = ".gone-";

/// Removes a folder with everything in it. An absent one is fine.
pub(crate) fn remove_whole(path: &Path) -> io::Result<()> {
    finish_removal(path)?;
    let gone = gone(path);
    if gone != path {
        absent_is_fine(fs::rename(path, &gone))?;
    }
    finish_removal(path)
}

/// Removes what an interrupted removal of this folder left.
pub(crate) fn finish_removal(path: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(gone(path)))
}

fn gone(path: &Path) -> PathBuf {
    let name = path.file_name().expect("a volume or an image has a name").to_string_lossy();
    path.with_file_name(format!("{GONE}{}", name.trim_start_matches(GONE)))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
