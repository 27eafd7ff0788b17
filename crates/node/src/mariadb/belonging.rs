//! Whose data this server has. It may leave one pool and become a member of another, and what it kept of the one
//! must never be taken for the other's: then it is set aside, for people, and the new pool's begin from nothing.
//! Called by keep.rs before a member is started.

use std::fs;
use std::io;
use std::path::PathBuf;

use kopek_core::PoolName;

use super::home::Home;
use super::position::{replace, sync_folder};

/// The first pool's where nothing is written: data from before there could be others.
pub fn pool(home: &Home) -> PoolName {
    let written = fs::read_to_string(home.belonging()).ok();
    written.and_then(|text| text.trim().parse().ok()).unwrap_or_else(PoolName::first)
}

/// From now on the data are this pool's. Where another one's were set aside, if some were. Only while mariadbd does
/// not run; cut off anywhere, it can be repeated.
pub fn belong_to(home: &Home, wanted: &PoolName) -> io::Result<Option<PathBuf>> {
    let former = pool(home);
    if former == *wanted {
        return Ok(None);
    }
    // A server's first member may be of any pool.
    fs::create_dir_all(home.state())?;
    let aside = home.data_of(&former);
    let had_data = home.data().is_dir();
    if had_data {
        // An earlier time's there are older.
        absent(fs::remove_dir_all(&aside))?;
        fs::rename(home.data(), &aside)?;
    }
    // They are about the data that are gone.
    absent(fs::remove_file(home.copy_mark()))?;
    absent(fs::remove_file(home.spent_bootstrap()))?;
    sync_folder(&home.state())?;
    replace(&home.belonging(), wanted.as_str())?;
    Ok(had_data.then_some(aside))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::position::tests::home_with;
    use super::*;

    #[test]
    fn a_server_that_never_had_a_member_may_have_its_first_of_any_pool() {
        let (_folder, home) = home_with("");
        fs::remove_dir_all(home.state()).unwrap();
        let second = PoolName::parse("pool2").unwrap();
        assert_eq!(belong_to(&home, &second).unwrap(), None);
        assert_eq!(pool(&home), second);
        assert!(!home.data().exists());
    }

    #[test]
    fn what_a_server_kept_of_one_pool_is_set_aside_when_it_is_given_to_another() {
        let (_folder, home) = home_with("of the first");
        let second = PoolName::parse("pool2").unwrap();
        assert_eq!(pool(&home), PoolName::first(), "nothing is written");
        fs::write(home.copy_mark(), "").unwrap();
        fs::write(home.spent_bootstrap(), "").unwrap();
        let aside = belong_to(&home, &second).unwrap().unwrap();
        assert_eq!(pool(&home), second);
        assert!(!home.data().exists() && !home.copy_mark().exists() && !home.spent_bootstrap().exists());
        assert_eq!(fs::read_to_string(aside.join("grastate.dat")).unwrap(), "of the first");
        // Once more, and back again: nothing of the second pool is taken for the first's.
        assert_eq!(belong_to(&home, &second).unwrap(), None);
        fs::create_dir_all(home.data()).unwrap();
        belong_to(&home, &PoolName::first()).unwrap();
        assert!(!home.data().exists());
        assert!(home.data_of(&second).is_dir() && home.data_of(&PoolName::first()).is_dir());
    }
}
