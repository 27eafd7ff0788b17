//! Files that hold passwords of sites' databases: readable by root alone, in folders that nobody else enters.
//! Called by part.rs and by the agent's feed.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, set_permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes the folder, or closes it where it is open: an earlier Kopek may have made it so.
pub fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    set_permissions(path, Permissions::from_mode(0o700))
}

/// Writes a new file, over an old one if need be. The caller renames it to its final name.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // Before anything is in it: `mode` counts only for a file that was not there.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_open_to_others_is_closed_before_a_password_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, file) = (dir.path().join("parts"), dir.path().join("parts/sql.new"));
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(&file, "old").unwrap();
        for path in [&parts, &file] {
            set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        folder(&parts).unwrap();
        write(&file, b"new").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&parts), mode(&file)), (0o700, 0o600));
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
    }
}
