//! One server with its edge, its gate and an agent that hands out routes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use kopek_core::config::{Dirs, ServerConfig};
use kopek_core::part::{Backend, EdgePart, Intake, Route};
use kopek_core::{Domain, InstanceId, ServerId, SiteName};
use kopek_edge::{EdgeError, Limits, run_until};
use kopek_link::{CellAuthority, Csr, Identity, Parts};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::gate::Gate;

pub struct Rig {
    pub port: u16,
    pub gate: Gate,
    parts: Option<Parts>,
    dirs: Dirs,
    limits: Limits,
    stop: Option<oneshot::Sender<()>>,
    edge: Option<JoinHandle<Result<(), EdgeError>>>,
    _folder: tempfile::TempDir,
}

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Short where a test would wait.
pub fn limits() -> Limits {
    Limits { workers: 2, stop: Duration::from_secs(2), ..Limits::default() }
}

pub async fn rig() -> Rig {
    rig_with(limits()).await
}

pub async fn rig_with(limits: Limits) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let under = |name: &str| folder.path().join(name);
    let dirs = Dirs { etc: under("etc"), state: under("state"), run: under("run"), log: under("log") };
    for dir in [&dirs.etc, &dirs.state, &dirs.run, &dirs.log] {
        std::fs::create_dir(dir).unwrap();
    }
    let gate = Gate::on_socket(&dirs.gate_socket()).await;
    let parts = Parts::serve(&dirs).await.unwrap();
    let port = free_port();
    let (stop, stopped) = oneshot::channel();
    let edge = start(&dirs, port, limits.clone(), stopped);
    let parts = Some(parts);
    let rig = Rig { port, gate, parts, dirs, limits, stop: Some(stop), edge: Some(edge), _folder: folder };
    eventually("the edge serves", async || rig.ask("health").await == "ok").await;
    rig
}

pub fn start(
    dirs: &Dirs,
    port: u16,
    limits: Limits,
    stopped: oneshot::Receiver<()>,
) -> JoinHandle<Result<(), EdgeError>> {
    let text = format!("name = \"s1\"\naddress = \"127.0.0.1\"\ninterface = \"lo\"\nhttp_port = {port}\n");
    let config = ServerConfig::parse(&text, Path::new("kopek.toml")).unwrap();
    let dirs = dirs.clone();
    std::thread::spawn(move || {
        let stop = async {
            let _ = stopped.await;
            Ok(())
        };
        run_until(dirs, config, identity("s1"), limits, stop)
    })
}

/// A server's identity in the one cell of these tests.
pub fn identity(server: &str) -> Identity {
    static CELL: OnceLock<CellAuthority> = OnceLock::new();
    let cell = CELL.get_or_init(|| CellAuthority::create("test").unwrap());
    let csr = Csr::new().unwrap();
    let addresses = ["127.0.0.1".parse().unwrap()];
    let certificate = cell.issue_server(&csr.csr_pem, &ServerId::parse(server).unwrap(), &addresses).unwrap();
    Identity::from_pem(cell.ca_pem(), &certificate, &csr.key_pem).unwrap()
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Awaits what no event tells.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(10), "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Where an instance is, for a route.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub instance: &'a str,
    pub server: &'a str,
    pub gate: SocketAddr,
    pub intake: Intake,
}

pub fn here(instance: &str) -> At<'_> {
    At { instance, server: "s1", gate: "127.0.0.1:1".parse().unwrap(), intake: Intake::Open }
}

pub fn draining(instance: &str) -> At<'_> {
    At { intake: Intake::Draining, ..here(instance) }
}

pub fn there<'a>(instance: &'a str, gate: &Gate) -> At<'a> {
    At { server: "s2", gate: gate.address, ..here(instance) }
}

impl Rig {
    /// Routes the site `blog` (blog.org) so, and waits until all workers do.
    pub async fn route(&self, instances: &[At<'_>]) {
        self.route_sites(&[("blog", instances)]).await;
    }

    pub async fn route_sites(&self, sites: &[(&str, &[At<'_>])]) {
        let routes: BTreeMap<SiteName, Route> = sites.iter().map(|(site, at)| route_of(site, at)).collect();
        let parts = self.parts.as_ref().unwrap();
        parts.publish(EdgePart { server: ServerId::parse("s1").unwrap(), routes: routes.clone() });
        eventually("the routes are followed", async || {
            let known = self.counters().await;
            routes.iter().all(|(site, route)| {
                let instances = &known["sites"][site.as_str()]["instances"];
                instances.as_object().is_some_and(|all| all.len() == route.backends.len())
                    && route.backends.iter().all(|(instance, backend)| {
                        instances[instance.as_str()]["intake"]
                            == serde_json::to_value(backend.intake).unwrap()
                    })
            })
        })
        .await;
        assert_eq!(self.ask("health").await, "ok", "each worker answers after it took the routes");
    }

    pub async fn ask(&self, question: &str) -> String {
        let Ok(mut stream) = UnixStream::connect(self.dirs.edge_socket()).await else {
            return "not there".to_owned();
        };
        stream.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await.unwrap();
        answer.trim_end().to_owned()
    }

    pub async fn counters(&self) -> serde_json::Value {
        serde_json::from_str(&self.ask("counters").await).unwrap_or_default()
    }

    /// One of the site `blog`'s counters.
    pub async fn counter(&self, name: &str) -> u64 {
        self.counters().await["sites"]["blog"][name].as_u64().unwrap()
    }

    pub fn access_log(&self, site: &str) -> PathBuf {
        self.dirs.log.join("access").join(format!("{site}.log"))
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, "", &[]).await
    }

    pub async fn post(&self, path: &str, body: &str) -> Reply {
        self.send(Method::POST, path, body, &[]).await
    }

    /// On a connection of its own, to blog.org unless `headers` names another host.
    pub async fn send(&self, method: Method, path: &str, body: &str, headers: &[(&str, &str)]) -> Reply {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::new(Full::new(Bytes::from(body.to_owned())));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("host", HeaderValue::from_static("blog.org"));
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let answered = async {
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            (head, body.collect().await.unwrap().to_bytes())
        };
        let (head, body) = timeout(PATIENCE, answered).await.expect("an answer within a client's patience");
        Reply { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// Ends the edge as SIGTERM does. Await [`Rig::ended`] for its end.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// As if the agent had died.
    pub async fn end_agent(&mut self) {
        self.parts = None;
        let socket = self.dirs.agent_socket();
        eventually("the agent is gone", async || UnixStream::connect(&socket).await.is_err()).await;
    }

    pub async fn restart_edge(&mut self) {
        self.stop();
        self.ended().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        self.edge = Some(start(&self.dirs, self.port, self.limits.clone(), stopped));
        eventually("the edge serves", async || self.ask("health").await == "ok").await;
    }

    pub async fn ended(&mut self) -> Result<(), EdgeError> {
        let edge = self.edge.take().unwrap();
        tokio::task::spawn_blocking(move || edge.join().unwrap()).await.unwrap()
    }
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn route_of(site: &str, instances: &[At<'_>]) -> (SiteName, Route) {
    let name = SiteName::parse(site).unwrap();
    let backends = instances
        .iter()
        .map(|at| {
            let server = ServerId::parse(at.server).unwrap();
            let backend = Backend { server, gate: at.gate, intake: at.intake };
            (InstanceId::parse(at.instance).unwrap(), backend)
        })
        .collect();
    let domains = vec![Domain::parse(&format!("{site}.org")).unwrap()];
    (name.clone(), Route { site: name, number: 1, domains, backends, writer: None })
}
