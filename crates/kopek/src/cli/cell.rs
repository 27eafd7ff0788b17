//! The cell that the command line speaks to: an admin's certificate and the addresses of controllers, in one
//! folder. Finds the active controller; every command goes through here, and leaves the folder with the
//! addresses of all servers that the cell has then: the one that the folder came from may be dead tomorrow.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Method, Response, StatusCode};
use kopek_core::api::ServerView;
use kopek_core::config::CONTROL_PORT;
use kopek_link::http::{Api, ApiError};
use kopek_link::identity::Identity;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::Fault;
use super::dev_up::admin_folder;

/// One answer; control may wait for a pool or for instances to stop meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// What changes nothing is answered from memory, or by one read of the store.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Control moves in at most 3 s when its server dies; a command given then should not fail.
const ACTIVE_LIMIT: Duration = Duration::from_secs(10);
/// What a command can wait for beside its own work.
const LEARN_LIMIT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);

pub struct Cell {
    api: Api,
    folder: PathBuf,
    /// The one that was active last comes first.
    controls: Mutex<Vec<SocketAddr>>,
    has_learnt: AtomicBool,
}

impl Cell {
    /// `given` is `--cell`; without it the cell of this server, else that of the virtual rack.
    pub fn open(given: Option<&Path>) -> Result<Cell> {
        let own = Path::new("/etc/kopek/admin");
        let rack = admin_folder(Path::new(kopek_rack::DEFAULT_DIR));
        let folder = match given {
            Some(folder) => folder.to_owned(),
            None if own.exists() => own.to_owned(),
            None => rack.clone(),
        };
        if !folder.exists() {
            bail!(
                "there is no cell here ({} does not exist); start a virtual rack with `kopek dev up`, or give --cell FOLDER",
                folder.display()
            );
        }
        let key = folder.join("server.key");
        if std::fs::File::open(&key).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        {
            bail!("{} is not yours to read; run the command with sudo, or give --cell FOLDER", key.display());
        }
        let identity = Identity::load(&folder)?;
        let file = folder.join("controls.json");
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let controls: Vec<SocketAddr> =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
        let (controls, has_learnt) = (Mutex::new(controls), AtomicBool::new(false));
        Ok(Cell { api: Api::new(identity), folder, controls, has_learnt })
    }

    /// Also for the next commands.
    pub fn know_controls(&self, controls: Vec<SocketAddr>) -> Result<()> {
        if *self.controls() == controls {
            return Ok(());
        }
        let file = self.folder.join("controls.json");
        // Whole or not at all: other commands read it meanwhile.
        let written = tempfile::NamedTempFile::new_in(&self.folder).and_then(|draft| {
            std::fs::write(draft.path(), serde_json::to_vec(&controls)?)?;
            Ok(draft.persist(&file)?)
        });
        written.with_context(|| format!("cannot write {}", file.display()))?;
        *self.controls() = controls;
        Ok(())
    }

    fn controls(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.controls.lock().expect("no code panics while it holds the addresses")
    }

    /// By the next call: one that was active before may be cut off, and takes seconds to be unreachable.
    fn ask_first(&self, active: SocketAddr) {
        let mut controls = self.controls();
        controls.retain(|control| *control != active);
        controls.insert(0, active);
    }

    /// Once a command: every server of the cell can run control. That they cannot be noted fails nothing.
    async fn learn_controls(&self, active: SocketAddr) {
        if self.has_learnt.swap(true, Ordering::Relaxed) {
            return;
        }
        let asked = self.api.call(Method::GET, active, "/servers", None::<&()>, LEARN_LIMIT).await;
        let Ok::<Vec<ServerView>, _>(mut servers) = asked else { return };
        servers.sort_by_key(|server| (!server.active_controller, server.state != "up"));
        let controls = servers.iter().map(|server| SocketAddr::new(server.address, CONTROL_PORT)).collect();
        let _ = self.know_controls(controls);
    }

    pub async fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub async fn post<B: Serialize, R: DeserializeOwned>(&self, path: &str, body: &B) -> Result<R> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<()> {
        self.call(Method::DELETE, path, None::<&()>).await
    }

    async fn call<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<R> {
        Ok(self.ask(method, path, body).await?.1)
    }

    /// The active controller's address and answer. One on standby says who is active. Only what changes nothing is
    /// asked again when it may have been worked on.
    async fn ask<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(SocketAddr, R)> {
        let deadline = Instant::now() + ACTIVE_LIMIT;
        let limit = if method == Method::GET { LOOK_LIMIT } else { ANSWER_LIMIT };
        loop {
            let mut last = None;
            let mut controls = self.controls().clone();
            let mut next = 0;
            while let Some(control) = controls.get(next).copied() {
                next += 1;
                match self.api.call(method.clone(), control, path, body, limit).await {
                    Ok(answer) => {
                        self.learn_controls(control).await;
                        self.ask_first(control);
                        return Ok((control, answer));
                    }
                    Err(error) if error.is_elsewhere() || (method == Method::GET && may_pass(&error)) => {
                        controls.extend(error.active().filter(|active| !controls.contains(active)));
                        last = Some(error);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if Instant::now() > deadline {
                return Err(nobody_active(last));
            }
            sleep(RETRY).await;
        }
    }

    /// Streams a body to the active controller.
    pub async fn send<B>(&self, path: &str, body: B) -> Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (active, _): (_, serde_json::Value) = self.ask(Method::GET, "/cell", None::<&()>).await?;
        Ok(self.api.send_body(Method::PUT, active, path, body).await?)
    }

    /// A streamed answer of some server's agent.
    pub async fn ask_agent<B: Serialize>(
        &self,
        method: Method,
        agent: SocketAddr,
        path: &str,
        body: Option<&B>,
    ) -> Result<Response<Incoming>> {
        let text = match body {
            Some(body) => serde_json::to_vec(body)?,
            None => Vec::new(),
        };
        let body = http_body_util::Full::new(Bytes::from(text));
        Ok(self.api.send_json(method, agent, path, body).await?)
    }

    /// Polls until `done` gives a value; exit code 3 when `limit` passes first.
    pub async fn wait_for<R, T>(
        &self,
        path: &str,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(R) -> Option<T>,
    ) -> Result<T>
    where
        R: DeserializeOwned,
    {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = done(self.get(path).await?) {
                return Ok(value);
            }
            if Instant::now() > deadline {
                return Err(Fault::TimedOut { what: what.to_owned(), limit }.into());
            }
            sleep(RETRY).await;
        }
    }
}

/// The controller died, hangs, or lost its store: another one may be active soon.
fn may_pass(error: &ApiError) -> bool {
    match error {
        ApiError::Answered { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
        other => matches!(other, ApiError::Broken { .. } | ApiError::TimedOut { .. }),
    }
}

fn nobody_active(last: Option<ApiError>) -> anyhow::Error {
    let why = match last {
        Some(error) if may_pass(&error) => return error.into(),
        Some(error) => error.to_string(),
        None => "no controller is known".to_owned(),
    };
    anyhow::anyhow!(
        "no controller of the cell is active: {why}; see `kopek dev status`, or the servers' logs"
    )
}

/// Reads a streamed answer piece by piece.
pub async fn for_each_piece(
    mut answer: Response<Incoming>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    while let Some(frame) = answer.frame().await {
        if let Ok(data) = frame?.into_data() {
            take(&data)?;
        }
    }
    Ok(())
}
