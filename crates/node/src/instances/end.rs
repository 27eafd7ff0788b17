//! Ends an instance and removes what is left of it, in a task of its own.

use std::path::PathBuf;
use std::time::Duration;

use kopek_instance::Running;
use tracing::warn;

use super::word::{Happening, Speaker};

/// Lets what runs end within `grace`, removes everything in and around `dir`, then says `word`.
pub(super) fn end(
    speaker: Speaker,
    running: Option<Running>,
    dir: PathBuf,
    grace: Duration,
    word: Happening,
) {
    tokio::task::spawn_blocking(move || {
        let ended = match running {
            Some(running) => kopek_instance::stop(&running, grace).map(drop),
            None => kopek_instance::clean(&dir),
        };
        // Once more: what did not go a moment ago often goes now.
        if let Err(error) = ended.or_else(|_| kopek_instance::clean(&dir)) {
            warn!(instance = %speaker.id, %error, "something is left of it; tried again at the next start");
        }
        speaker.say(word);
    });
}
