//! The agent's own HTTPS port: what only this server can do for the controller or an admin. A line that is
//! never answered (control's lines.rs), commands in instances, logs, dumps, databases to drop, and what
//! fellow members of the pool tell one another (fellows.rs).

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use kopek_core::api::{DumpFault, ExecLine, ExecRequest, LOG_TAIL_HEADER, Refusal};
use kopek_core::assignment::{AssignedDatabase, Assignment};
use kopek_core::config::{Dirs, ServerConfig};
use kopek_core::{InstanceId, ServerId, SiteName};
use kopek_instance::Who;
use kopek_link::identity::Peer;
use kopek_link::receive::receive;
use kopek_store::Location;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use crate::fellows::{self, Heard};
use crate::instances::Instances;
use crate::mariadb::{DumpError, Lost, Member};
use crate::store_host::StoreHost;
use crate::{sql_status, whereabouts};

/// What a command in an instance may read on standard input, with some room for base64.
const EXEC_BODY_MAX: usize = 96 << 20;
/// Lines of a command's output that wait for a slow reader.
const EXEC_LINES_MAX: usize = 64;
const LOG_BYTES_MAX: u64 = 4 << 20;
const LOG_LOOK_EVERY: Duration = Duration::from_millis(200);

pub struct Desk {
    pub dirs: Dirs,
    pub config: ServerConfig,
    pub launcher: PathBuf,
    pub instances: Arc<Mutex<Instances>>,
    pub member: Arc<Member>,
    pub assignment: watch::Receiver<Option<Assignment>>,
    pub heard: Arc<Heard>,
    pub host: Arc<StoreHost>,
    /// Of the store's member that runs here.
    pub store_cluster: watch::Receiver<Option<String>>,
    pub store_location: watch::Receiver<Location>,
}

pub fn router(desk: Arc<Desk>) -> Router {
    // Of an agent that was killed while it read them.
    for left in std::fs::read_dir(desk.dirs.state.join("dumps")).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(left.path());
    }
    let people = Router::new()
        .route("/exec/{instance}", post(exec))
        .layer(DefaultBodyLimit::max(EXEC_BODY_MAX))
        .route("/logs/{site}", get(logs))
        .route("/databases/{site}/meter", get(meter))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn(only_admins));
    let cell = Router::new()
        .route("/line", get(line))
        .route("/pool/pulse", get(pulse))
        .route("/pool/silent/{server}", get(silent))
        .route("/pool/lost", post(lost))
        .route("/store/open", post(open_store))
        .route("/store/cluster", get(store_cluster))
        .route("/databases/{site}/dump", put(dump))
        .route("/databases/{site}", delete(drop_database))
        .route("/meters", get(meters))
        .layer(middleware::from_fn(only_servers));
    let whereabouts =
        whereabouts::router(desk.store_location.clone()).layer(middleware::from_fn(only_servers));
    people.merge(cell).with_state(desk).merge(whereabouts)
}

async fn only_admins(request: Request, next: Next) -> Response {
    match request.extensions().get::<Option<Peer>>() {
        Some(Some(Peer::Admin(_))) => next.run(request).await,
        _ => refuse(StatusCode::FORBIDDEN, "this needs an admin certificate of the cell"),
    }
}

async fn only_servers(request: Request, next: Next) -> Response {
    match request.extensions().get::<Option<Peer>>() {
        Some(Some(Peer::Server(_))) => next.run(request).await,
        _ => refuse(StatusCode::FORBIDDEN, "this needs a server's certificate of the cell"),
    }
}

fn refuse(status: StatusCode, error: impl ToString) -> Response {
    (status, Json(Refusal { error: error.to_string(), active: None })).into_response()
}

/// Never answers: when this process ends, its kernel closes the connection, and that is the answer.
async fn line() -> Response {
    std::future::pending().await
}

/// That this server is there.
async fn pulse() -> Json<()> {
    Json(())
}

/// Milliseconds since this agent heard of a fellow; null when it cannot say.
async fn silent(State(desk): State<Arc<Desk>>, Path(server): Path<ServerId>) -> Json<Option<u64>> {
    let silent = desk.heard.silent_for(&server);
    Json(silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)))
}

/// The caller's own pool member is lost to the group.
async fn lost(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Option<Peer>>,
    Json(lost): Json<Lost>,
) -> Response {
    let Some(Peer::Server(server)) = peer else {
        return refuse(StatusCode::FORBIDDEN, "this needs a server's certificate of the cell");
    };
    match fellows::heard_of_loss(&desk.member, &server, &lost).await {
        Ok(()) => Json(()).into_response(),
        Err(error) => refuse(StatusCode::CONFLICT, error),
    }
}

async fn open_store(State(desk): State<Arc<Desk>>) -> Response {
    match desk.host.open().await {
        Ok(()) => Json(()).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn store_cluster(State(desk): State<Arc<Desk>>) -> Json<Option<String>> {
    Json(desk.store_cluster.borrow().clone())
}

/// Runs a command in an instance; answers with `ExecLine`s as they come, the exit code last.
async fn exec(
    State(desk): State<Arc<Desk>>,
    Path(id): Path<InstanceId>,
    Json(request): Json<ExecRequest>,
) -> Response {
    let running = desk.instances.lock().expect("no code panics while it holds the instances").running(&id);
    let Some(running) = running else {
        let error =
            format!("instance {id} does not run on {}; `kopek instance ls` shows where", desk.config.name);
        return refuse(StatusCode::NOT_FOUND, error);
    };
    let Ok(input) = STANDARD.decode(&request.stdin) else {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, "the standard input is not base64");
    };
    let command = kopek_instance::exec_command(&running, &desk.launcher, Who::WwwData, &request.argv);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("instance {id}: {error}")),
    };
    let (lines, mut inbox) = mpsc::channel::<ExecLine>(EXEC_LINES_MAX);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    tokio::spawn(async move {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command may end without reading all of it.
                let _ = stdin.write_all(&input).await;
            }
        };
        let out = forward(stdout, ExecLine::Out, &lines);
        let err = forward(stderr, ExecLine::Err, &lines);
        let finished = async {
            tokio::join!(feed, out, err);
            child.wait().await.ok().and_then(|status| status.code()).unwrap_or(1)
        };
        tokio::select! {
            code = finished => {
                let _ = lines.send(ExecLine::Exit(code)).await;
            }
            // Nobody listens any more: dropping the child kills the command.
            () = lines.closed() => {}
        }
    });
    let stream = futures::stream::poll_fn(move |context| inbox.poll_recv(context));
    let body = stream.map(|line| {
        let mut text = serde_json::to_string(&line).expect("a line is plain JSON");
        text.push('\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(text))
    });
    Body::from_stream(body).into_response()
}

async fn forward(
    from: Option<impl tokio::io::AsyncRead + Unpin>,
    wrap: fn(String) -> ExecLine,
    to: &mpsc::Sender<ExecLine>,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.send(wrap(STANDARD.encode(&buffer[..length]))).await.is_err() {
            return;
        }
    }
}

/// What this server's `sql` counted for a site, a `SiteMeter`.
async fn meter(State(desk): State<Arc<Desk>>, Path(site): Path<SiteName>) -> Response {
    let answer = sql_status::ask(&desk.dirs.sql_socket(), &format!("site {site}")).await;
    passed_on(&desk, answer, "application/json")
}

/// The same of all sites, without their statements: what accounts are kept from.
async fn meters(State(desk): State<Arc<Desk>>) -> Response {
    let answer = sql_status::ask(&desk.dirs.sql_socket(), "sites").await;
    passed_on(&desk, answer, "application/json")
}

/// Prometheus' text format 0.0.4.
async fn metrics(State(desk): State<Arc<Desk>>) -> Response {
    let answer = sql_status::ask(&desk.dirs.sql_socket(), "metrics").await;
    passed_on(&desk, answer, "text/plain; version=0.0.4; charset=utf-8")
}

fn passed_on(desk: &Desk, answer: std::io::Result<String>, kind: &'static str) -> Response {
    match answer {
        Ok(text) => ([(CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => {
            let error = format!("sql of server {} does not answer: {error}", desk.config.name);
            refuse(StatusCode::SERVICE_UNAVAILABLE, error)
        }
    }
}

#[derive(Deserialize)]
struct LogQuery {
    /// The edge's access log instead of what the instances wrote.
    #[serde(default)]
    access: bool,
    #[serde(default)]
    follow: bool,
    /// From the end.
    #[serde(default)]
    lines: usize,
}

async fn logs(
    State(desk): State<Arc<Desk>>,
    Path(site): Path<SiteName>,
    Query(query): Query<LogQuery>,
) -> Response {
    let folder = if query.access { "access" } else { "instances" };
    let path = desk.dirs.log.join(folder).join(format!("{site}.log"));
    // Nothing ran or was asked for here yet.
    let mut file = std::fs::File::open(&path).ok();
    let tail = match file.as_mut().map_or(Ok(Vec::new()), |file| read_tail(file, query.lines)) {
        Ok(tail) => tail,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    };
    let head = [(LOG_TAIL_HEADER, tail.len().to_string())];
    if !query.follow {
        return (head, Body::from(tail)).into_response();
    }
    let first = futures::stream::once(async move { Ok(Bytes::from(tail)) });
    let rest = futures::stream::unfold((file, path), |(mut file, path)| async move {
        loop {
            let Some(open) = &mut file else {
                tokio::time::sleep(LOG_LOOK_EVERY).await;
                file = std::fs::File::open(&path).ok();
                continue;
            };
            let mut buffer = Vec::new();
            match open.take(LOG_BYTES_MAX).read_to_end(&mut buffer) {
                Ok(0) => {
                    tokio::time::sleep(LOG_LOOK_EVERY).await;
                    if let Some(next) = rotated(open, &path) {
                        file = Some(next);
                    }
                }
                Ok(_) => return Some((Ok::<_, std::io::Error>(Bytes::from(buffer)), (file, path))),
                Err(error) => return Some((Err(error), (file, path))),
            }
        }
    });
    (head, Body::from_stream(first.chain(rest))).into_response()
}

/// The log from its start, if it was cut short or replaced since (see site_logs.rs).
fn rotated(file: &mut std::fs::File, path: &std::path::Path) -> Option<std::fs::File> {
    let (open, there) = (file.metadata().ok()?, std::fs::metadata(path).ok()?);
    let same = (open.dev(), open.ino()) == (there.dev(), there.ino());
    let is_cut = file.stream_position().is_ok_and(|at| there.len() < at);
    if same && !is_cut { None } else { std::fs::File::open(path).ok() }
}

/// The last `lines` lines, or as many as `LOG_BYTES_MAX` holds; leaves the file at its end.
fn read_tail(file: &mut std::fs::File, lines: usize) -> std::io::Result<Vec<u8>> {
    let before = file.metadata()?.len().saturating_sub(LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(before))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let ends: Vec<usize> =
        text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    let from = match ends.len().checked_sub(lines + 1) {
        Some(last) => ends[last] + 1,
        None if before == 0 => 0,
        // Not the rest of a line.
        None => ends.first().map_or(text.len(), |end| end + 1),
    };
    Ok(text.split_off(from))
}

/// Imports an SQL dump with the rights of the site's own account.
async fn dump(State(desk): State<Arc<Desk>>, Path(site): Path<SiteName>, body: Body) -> Response {
    let database = desk
        .assignment
        .borrow()
        .as_ref()
        .and_then(|assignment| assignment.member.as_ref()?.databases.get(&site).cloned());
    let Some(database) = database else {
        let error =
            format!("{} is not the writer of site {site} any more; repeat the command", desk.config.name);
        return refuse(StatusCode::CONFLICT, error);
    };
    let folder = desk.dirs.state.join("dumps");
    let imported = async {
        let unread = |message: String| DumpFault { line: None, message };
        tokio::fs::create_dir_all(&folder).await.map_err(|error| unread(error.to_string()))?;
        // A name of its own: one whose sender went away is removed whenever that is noticed.
        let path = folder.join(format!("{site}-{:016x}.sql", rand::random::<u64>()));
        let dump = receive(body, path, |_| {})
            .await
            .map_err(|error| unread(format!("server {} cannot take it: {error}", desk.config.name)))?;
        desk.member.import_dump(&database, dump.path()).await.map_err(|error| match error {
            DumpError::Statement { line, message } => DumpFault { line: Some(line), message },
            other => unread(other.to_string()),
        })
    };
    match imported.await {
        Ok(()) => Json(()).into_response(),
        Err(fault) => (StatusCode::UNPROCESSABLE_ENTITY, Json(fault)).into_response(),
    }
}

async fn drop_database(
    State(desk): State<Arc<Desk>>,
    Path(site): Path<SiteName>,
    Json(database): Json<AssignedDatabase>,
) -> Response {
    match desk.member.drop_database(&database).await {
        Ok(()) => Json(()).into_response(),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, format!("database of site {site}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn tail(text: &str, lines: usize) -> String {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        String::from_utf8(read_tail(&mut file, lines).unwrap()).unwrap()
    }

    #[test]
    fn a_log_is_followed_from_the_start_after_it_was_cut_or_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blog.log");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let mut file = std::fs::File::open(&path).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        assert!(rotated(&mut file, &path).is_none());
        std::fs::write(&path, "3\n").unwrap();
        assert!(rotated(&mut file, &path).is_some());
        let mut file = std::fs::File::open(&path).unwrap();
        std::fs::rename(&path, folder.path().join("blog.log.1")).unwrap();
        assert!(rotated(&mut file, &path).is_none(), "the new one is not there yet");
        std::fs::write(&path, "four\n").unwrap();
        assert!(rotated(&mut file, &path).is_some());
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb\nc\n", 9), "a\nb\nc\n");
        assert_eq!(tail("a\nb\nc\n", 0), "");
        assert_eq!(tail("", 3), "");
    }

    #[test]
    fn a_tail_that_is_too_long_begins_with_a_whole_line() {
        let half = "x".repeat(LOG_BYTES_MAX as usize / 2);
        assert_eq!(tail(&format!("{half}\n{half}\nb\n"), 9), format!("{half}\nb\n"));
    }
}
