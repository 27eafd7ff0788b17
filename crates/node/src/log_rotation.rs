//! Keeps the logs of instances and of visitors from filling the disk: above a size a log becomes `.1`, what was
//! `.1` becomes `.2`, and the oldest goes. The agent runs it. An instance's log is copied and cut short, because
//! the container keeps it open: lines written between the two are lost. The edge looks for its files by name
//! again, so an access log is renamed and loses nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

/// About 100,000 lines.
const LARGEST: u64 = 16 << 20;
const KEPT: u32 = 3;
/// A site that writes 100 MB/s gets 1 GB in this time.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Who writes into a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Keeps the file open for as long as it lives, and appends.
    Holds,
    /// Opens the file by name again when another lies there.
    LooksAgain,
}

/// Runs for ever. `log` is `Dirs::log`.
pub async fn keep_small(log: PathBuf) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        for (folder, writer) in [("instances", Writer::Holds), ("access", Writer::LooksAgain)] {
            let folder = log.join(folder);
            let looked = tokio::task::spawn_blocking(move || rotate_large(&folder, writer, LARGEST)).await;
            if let Ok(Err(error)) = looked {
                warn!(%error, "a log may grow without end");
            }
        }
    }
}

fn rotate_large(folder: &Path, writer: Writer, largest: u64) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        // Its site may just have been deleted.
        if is_log && fs::metadata(&path).is_ok_and(|log| log.len() > largest) {
            rotate(&path, writer)?;
        }
    }
    Ok(())
}

fn rotate(log: &Path, writer: Writer) -> io::Result<()> {
    let older = |number: u32| log.with_extension(format!("log.{number}"));
    for number in (1..KEPT).rev() {
        match fs::rename(older(number), older(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match writer {
        Writer::LooksAgain => fs::rename(log, older(1)),
        Writer::Holds => {
            let copied = fs::copy(log, older(1));
            // Also when the disk is too full for a copy: that is when it matters most.
            fs::OpenOptions::new().write(true).open(log)?.set_len(0)?;
            copied.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(folder: &Path, name: &str) -> Option<String> {
        fs::read_to_string(folder.join(name)).ok()
    }

    #[test]
    fn a_log_that_is_held_open_goes_on_in_the_same_file_and_three_older_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blog.log");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n"] {
            log.write_all(line.as_bytes()).unwrap();
            rotate_large(folder.path(), Writer::Holds, 3).unwrap();
        }
        log.write_all(b"6\n").unwrap();
        rotate_large(folder.path(), Writer::Holds, 3).unwrap();
        let names = ["blog.log", "blog.log.1", "blog.log.2", "blog.log.3", "blog.log.4"];
        let texts = names.map(|name| read(folder.path(), name));
        let kept = ["6\n", "five\n", "four\n", "three\n"].map(|text| Some(text.to_owned()));
        assert_eq!((&texts[..4], &texts[4]), (&kept[..], &None));
    }

    #[test]
    fn an_access_log_is_renamed_and_loses_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blog.log");
        fs::write(&path, "one\n").unwrap();
        let mut open = fs::OpenOptions::new().append(true).open(&path).unwrap();
        rotate_large(folder.path(), Writer::LooksAgain, 3).unwrap();
        open.write_all(b"late\n").unwrap();
        assert_eq!(read(folder.path(), "blog.log.1").as_deref(), Some("one\nlate\n"));
        assert!(!path.exists());
        rotate_large(&folder.path().join("absent"), Writer::LooksAgain, 3).unwrap();
    }
}
