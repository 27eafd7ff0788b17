//! How parts travel from the agent to edge, files and sql of the same server: JSON lines over
//! `<run>/agent.sock`, the whole part each time. The follower keeps the last good one on disk and goes on with
//! it while the agent is gone; it sends reports the other way.
//!
//! Agent: `Parts`. The others: `follow`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kopek_core::config::Dirs;
use kopek_core::part::{EdgePart, FilesPart, FilesReport, SqlPart, SqlReport};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};

use crate::root_only;

/// A part with the routes of 10,000 sites is about 5 MB.
const LINE_MAX: u64 = 16 << 20;
/// Reports replace one another; a few may wait while the socket is busy.
const REPORTS_MAX: usize = 16;
/// Short, because a new agent's first parts may move a writer; long enough to cost nothing.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);

/// A document that the agent hands to one of the other processes.
pub trait Part: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + 'static {
    /// Also the file's name in `<state>/parts`.
    const NAME: &'static str;

    /// What it is worth when it comes from the disk and no agent has handed it out since.
    fn remembered(self) -> Self {
        self
    }
}

impl Part for EdgePart {
    const NAME: &'static str = "edge";
}

impl Part for FilesPart {
    const NAME: &'static str = "files";

    fn remembered(self) -> Self {
        FilesPart { confirmed: None, ..self }
    }
}

impl Part for SqlPart {
    const NAME: &'static str = "sql";
}

const NAMES: [&str; 3] = [EdgePart::NAME, FilesPart::NAME, SqlPart::NAME];

/// A follower's first line.
#[derive(Serialize, Deserialize)]
struct Hello {
    follow: String,
}

/// The agent's side. Stops serving when dropped.
pub struct Parts {
    shelf: Arc<Shelf>,
    serving: JoinHandle<()>,
}

struct Shelf {
    outlets: BTreeMap<&'static str, Outlet>,
    files_report: watch::Sender<FilesReport>,
    sql_report: watch::Sender<SqlReport>,
}

struct Outlet {
    /// The latest part as a line, for those who come later too.
    line: watch::Sender<Option<Arc<str>>>,
    /// How many follow now; two for a moment when a process is replaced.
    followers: watch::Sender<usize>,
    connected: watch::Sender<bool>,
}

impl Parts {
    pub async fn serve(dirs: &Dirs) -> io::Result<Parts> {
        let socket = dirs.agent_socket();
        let listener = bind_fresh(&socket)?;
        let outlets = NAMES.map(|name| {
            let outlet = Outlet {
                line: watch::Sender::new(None),
                followers: watch::Sender::new(0),
                connected: watch::Sender::new(false),
            };
            (name, outlet)
        });
        let shelf = Arc::new(Shelf {
            outlets: outlets.into(),
            files_report: watch::Sender::new(FilesReport::default()),
            sql_report: watch::Sender::new(SqlReport::default()),
        });
        let serving = tokio::spawn(accept_followers(listener, shelf.clone()));
        Ok(Parts { shelf, serving })
    }

    /// Sends the part if it differs from the last one.
    pub fn publish<P: Part>(&self, part: P) {
        let mut line = serde_json::to_string(&part).expect("parts have only text keys");
        line.push('\n');
        assert!(line.len() as u64 <= LINE_MAX, "the part for {} has {} bytes", P::NAME, line.len());
        self.outlet(P::NAME).line.send_if_modified(|latest| {
            let is_new = latest.as_deref() != Some(&line);
            if is_new {
                *latest = Some(line.into());
            }
            is_new
        });
    }

    /// What `kopek files` said last; the empty report before it said anything.
    pub fn files_report(&self) -> watch::Receiver<FilesReport> {
        self.shelf.files_report.subscribe()
    }

    /// What `kopek sql` said last; the empty report before it said anything.
    pub fn sql_report(&self) -> watch::Receiver<SqlReport> {
        self.shelf.sql_report.subscribe()
    }

    /// Whether the process that follows the part `name` is connected.
    pub fn connected(&self, name: &str) -> watch::Receiver<bool> {
        self.outlet(name).connected.subscribe()
    }

    fn outlet(&self, name: &str) -> &Outlet {
        self.shelf.outlets.get(name).unwrap_or_else(|| panic!("{name:?} is not one of {NAMES:?}"))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Only root, as which all of them run, may follow.
fn bind_fresh(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept_followers(listener: UnixListener, shelf: Arc<Shelf>) {
    let mut followers = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shelf = shelf.clone();
                followers.spawn(async move {
                    if let Err(error) = serve_follower(stream, &shelf).await {
                        debug!(%error, "a follower of parts left");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a follower of parts");
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
        }
        while followers.try_join_next().is_some() {}
    }
}

async fn serve_follower(stream: UnixStream, shelf: &Shelf) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut read = BufReader::new(read);
    let hello: Hello = parse(&read_line(&mut read).await?)?;
    let (name, outlet) = shelf
        .outlets
        .get_key_value(hello.follow.as_str())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no part {:?}", hello.follow)))?;
    let _presence = Presence::new(outlet);
    tokio::select! {
        ended = send_parts(write, outlet) => ended,
        ended = take_reports(&mut read, name, shelf) => ended,
    }
}

async fn send_parts(mut write: OwnedWriteHalf, outlet: &Outlet) -> io::Result<()> {
    let mut line = outlet.line.subscribe();
    line.mark_changed();
    while line.changed().await.is_ok() {
        let latest = line.borrow_and_update().clone();
        if let Some(latest) = latest {
            write.write_all(latest.as_bytes()).await?;
        }
    }
    Ok(())
}

async fn take_reports(read: &mut (impl AsyncBufRead + Unpin), name: &str, shelf: &Shelf) -> io::Result<()> {
    loop {
        let line = read_line(read).await?;
        match name {
            FilesPart::NAME => drop(shelf.files_report.send_replace(parse(&line)?)),
            SqlPart::NAME => drop(shelf.sql_report.send_replace(parse(&line)?)),
            _ => {}
        }
    }
}

/// Counts a follower as long as it lives.
struct Presence<'a>(&'a Outlet);

impl<'a> Presence<'a> {
    fn new(outlet: &'a Outlet) -> Self {
        let presence = Presence(outlet);
        presence.change(|count| *count += 1);
        presence
    }

    /// Inside the count's lock, so that `connected` always tells what the last change made true.
    fn change(&self, step: impl FnOnce(&mut usize)) {
        self.0.followers.send_modify(|count| {
            step(count);
            self.0.connected.send_replace(*count > 0);
        });
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.change(|count| *count -= 1);
    }
}

/// The other processes' side.
pub struct Following<P> {
    /// The latest part; nothing before the first one of this server's life.
    pub part: watch::Receiver<Option<P>>,
    /// Reports to the agent. The last one is repeated to each new agent.
    pub report: mpsc::Sender<serde_json::Value>,
}

/// Follows the agent's part as long as the runtime lives, across the agent's restarts. Starts from
/// `<state>/parts/NAME.json`.
pub fn follow<P: Part>(dirs: &Dirs) -> Following<P> {
    let cache = dirs.state.join("parts").join(format!("{}.json", P::NAME));
    let (parts, part) = watch::channel(read_cache::<P>(&cache));
    let (report, reports) = mpsc::channel(REPORTS_MAX);
    tokio::spawn(keep_cache(cache, parts.subscribe()));
    let socket = dirs.agent_socket();
    tokio::spawn(async move { follow_agents::<P>(&socket, &parts, reports).await });
    Following { part, report }
}

async fn follow_agents<P: Part>(
    socket: &Path,
    parts: &watch::Sender<Option<P>>,
    mut reports: mpsc::Receiver<serde_json::Value>,
) {
    let mut last_report = None;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                let error = follow_one(stream, parts, &mut reports, &mut last_report).await;
                warn!(part = P::NAME, %error, "the agent is gone; going on with the last part");
            }
            Err(error) => debug!(part = P::NAME, %error, "no agent yet"),
        }
        let pause = tokio::time::sleep(RECONNECT_AFTER);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                report = next_report(&mut reports) => last_report = Some(report),
            }
        }
    }
}

/// Why it ended.
async fn follow_one<P: Part>(
    stream: UnixStream,
    parts: &watch::Sender<Option<P>>,
    reports: &mut mpsc::Receiver<serde_json::Value>,
    last_report: &mut Option<serde_json::Value>,
) -> io::Error {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let send_reports = async {
        send_line(&mut write, &Hello { follow: P::NAME.to_owned() }).await?;
        if let Some(report) = last_report {
            send_line(&mut write, report).await?;
        }
        loop {
            let report = last_report.insert(next_report(reports).await);
            send_line(&mut write, report).await?;
        }
    };
    let sent: io::Result<Infallible> = tokio::select! {
        error = take_parts(&mut read, parts) => Err(error),
        sent = send_reports => sent,
    };
    match sent {
        Err(error) => error,
    }
}

/// Waits for ever if nobody reports.
async fn next_report(reports: &mut mpsc::Receiver<serde_json::Value>) -> serde_json::Value {
    match reports.recv().await {
        Some(report) => report,
        None => std::future::pending().await,
    }
}

async fn take_parts<P: Part>(
    read: &mut (impl AsyncBufRead + Unpin),
    parts: &watch::Sender<Option<P>>,
) -> io::Error {
    loop {
        let part: P = match read_line(read).await.and_then(|line| parse(&line)) {
            Ok(part) => part,
            Err(error) => return error,
        };
        parts.send_if_modified(|latest| {
            let is_new = latest.as_ref() != Some(&part);
            if is_new {
                *latest = Some(part);
            }
            is_new
        });
    }
}

fn read_cache<P: Part>(cache: &Path) -> Option<P> {
    let text = match std::fs::read(cache) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(cache = %cache.display(), %error, "the last part cannot be read; waiting for the agent");
            return None;
        }
    };
    serde_json::from_slice::<P>(&text)
        .inspect_err(|error| warn!(cache = %cache.display(), %error, "the last part is damaged; waiting for the agent"))
        .ok()
        .map(P::remembered)
}

/// Beside the hand-over, so that a slow disk never delays a change of writer; skips what is already replaced.
async fn keep_cache<P: Part>(cache: PathBuf, mut part: watch::Receiver<Option<P>>) {
    while part.changed().await.is_ok() {
        let latest = serde_json::to_vec(&*part.borrow_and_update()).expect("parts have only text keys");
        let path = cache.clone();
        let written = tokio::task::spawn_blocking(move || write_cache(&path, &latest)).await;
        if let Ok(Err(error)) = written {
            warn!(cache = %cache.display(), %error, "cannot keep the part for the next start");
        }
    }
}

fn write_cache(cache: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = cache.parent().expect("follow puts it into a folder");
    root_only::folder(folder)?;
    let unfinished = cache.with_extension("new");
    let file = root_only::write(&unfinished, bytes)?;
    // Without this a power cut can leave an empty file under the final name.
    file.sync_all()?;
    std::fs::rename(&unfinished, cache)
}

async fn send_line<W: AsyncWrite + Unpin>(write: &mut W, line: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

/// One line without its newline. The end of the stream is an error.
async fn read_line(read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    (&mut *read).take(LINE_MAX).read_until(b'\n', &mut line).await?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        Some(_) if line.len() as u64 + 1 == LINE_MAX => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line longer than {LINE_MAX} bytes")))
        }
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
