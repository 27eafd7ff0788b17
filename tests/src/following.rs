//! A command that goes on until it is killed, such as `kopek events --follow`, and what it has said so far.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;

use crate::rack::Rack;
use crate::wait::until;

const LIMIT: Duration = Duration::from_secs(60);

/// Ends with its value.
pub struct Following {
    words: String,
    out: Said,
    err: Said,
    _child: Child,
}

type Said = Arc<Mutex<Vec<String>>>;

impl Following {
    pub fn begin(rack: &Rack, words: &[&str]) -> Result<Following> {
        let mut child = rack.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let out = gathered(child.stdout.take().context("no stdout")?);
        let err = gathered(child.stderr.take().context("no stderr")?);
        Ok(Following { words: words.join(" "), out, err, _child: child })
    }

    /// On stdout.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.out).clone()
    }

    /// On stderr.
    pub fn said(&self) -> Vec<String> {
        lock(&self.err).clone()
    }

    /// Waits for a line on stderr with these words.
    pub async fn says(&self, words: &str) -> Result<()> {
        let what = format!("`kopek {}` to say {words:?}", self.words);
        let said = || async {
            let said = self.said();
            match said.iter().any(|line| line.contains(words)) {
                true => Ok(Some(())),
                false => bail!("it says {said:?}"),
            }
        };
        until(&what, LIMIT, said).await
    }
}

fn gathered(from: impl AsyncRead + Unpin + Send + 'static) -> Said {
    let said = Said::default();
    let to = said.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            lock(&to).push(line);
        }
    });
    said
}

fn lock(said: &Said) -> std::sync::MutexGuard<'_, Vec<String>> {
    said.lock().expect("no code panics while it holds the lines")
}
