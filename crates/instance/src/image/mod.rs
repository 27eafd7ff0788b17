//! Images: read-only root file systems that hold Debian, a web server and a PHP version. `recipe.rs` says
//! what is in one, `build.rs` makes it. An image says itself how it is started: `/etc/kopek-image.json`.

mod build;
mod recipe;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub use build::{BuildError, BuiltImage, build_image};
pub use recipe::known_images;

/// Where an image says how it is started.
pub(crate) const LAUNCH_FILE: &str = "etc/kopek-image.json";

/// How an image is started and stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Stays in the foreground and needs nothing in /run.
    pub init: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// On this it ends when its requests are done.
    pub stop_signal: i32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LaunchFile {
    pub init: Vec<String>,
    pub environment: BTreeMap<String, String>,
    /// By name, for example SIGWINCH.
    pub stop_signal: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{} cannot be read: {source}; this tree is no Kopek image", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {message}", .path.display())]
    Invalid { path: PathBuf, message: String },
}

impl Launch {
    pub(crate) fn read(root: &Path) -> Result<Launch, LaunchError> {
        let path = root.join(LAUNCH_FILE);
        let text =
            std::fs::read(&path).map_err(|source| LaunchError::Unreadable { path: path.clone(), source })?;
        let invalid = |message: String| LaunchError::Invalid { path: path.clone(), message };
        let file: LaunchFile = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        let signal: Signal =
            file.stop_signal.parse().map_err(|_| invalid(format!("no signal {:?}", file.stop_signal)))?;
        Ok(Launch { init: file.init, environment: file.environment, stop_signal: signal as i32 })
    }
}
