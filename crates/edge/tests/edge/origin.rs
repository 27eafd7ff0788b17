//! An instance's web server. `/who` gives its name, `/headers` what it was sent, `/wait` answers when told to,
//! `/upload` counts, `/big` sends much, `/echo` changes the protocol and echoes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Origin {
    pub address: SocketAddr,
    pub site: Arc<Site>,
    tasks: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Processes {
    /// One for each connection.
    ForEach,
    One,
}

pub struct Site {
    name: String,
    /// Method and path of all requests.
    requests: Mutex<Vec<String>>,
    /// Bytes of bodies.
    pub received: AtomicU64,
    released: watch::Sender<bool>,
}

impl Origin {
    pub async fn start(name: &str) -> Origin {
        Origin::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    /// As an Apache that has one process: it takes the next connection when the one before is closed.
    pub async fn start_with_one_process(name: &str) -> Origin {
        Origin::listen(name, "127.0.0.1:0".parse().unwrap(), Processes::One).await
    }

    pub async fn start_at(name: &str, address: SocketAddr) -> Origin {
        Origin::listen(name, address, Processes::ForEach).await
    }

    async fn listen(name: &str, address: SocketAddr, processes: Processes) -> Origin {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let address = listener.local_addr().unwrap();
        let site = Arc::new(Site {
            name: name.to_owned(),
            requests: Mutex::default(),
            received: AtomicU64::new(0),
            released: watch::channel(false).0,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, site.clone(), processes));
        Origin { address, site, tasks }
    }

    /// As SIGKILL does: listener and connections end at once.
    pub async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }

    pub fn release(&self) {
        self.site.released.send_replace(true);
    }

    pub fn requests(&self) -> Vec<String> {
        self.site.requests.lock().unwrap().clone()
    }
}

async fn accept(listener: TcpListener, site: Arc<Site>, processes: Processes) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let site = site.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let site = site.clone();
                async move { Ok::<_, Infallible>(site.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.with_upgrades().await);
        });
        if processes == Processes::One {
            connections.join_next().await;
        }
    }
}

impl Site {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let line = format!("{} {}", request.method(), request.uri());
        self.requests.lock().unwrap().push(line);
        let path = request.uri().path().to_owned();
        let text = match path.as_str() {
            "/headers" => {
                let lines = request.headers().iter();
                lines.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect()
            }
            "/wait" => {
                self.released.subscribe().wait_for(|released| *released).await.unwrap();
                self.name.clone()
            }
            "/upload" => {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    let Ok(frame) = frame else { return Response::new(Full::default()) };
                    self.received.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, SeqCst);
                }
                self.received.load(SeqCst).to_string()
            }
            "/big" => "x".repeat(8 << 20),
            "/echo" => {
                let upgraded = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = TokioIo::new(upgraded.await.unwrap());
                    let mut buffer = [0; 1_024];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&buffer[..read]).await.unwrap();
                    }
                });
                return Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header(CONNECTION, "upgrade")
                    .header(UPGRADE, "websocket")
                    .body(Full::default())
                    .unwrap();
            }
            _ => self.name.clone(),
        };
        Response::new(Full::from(text))
    }
}
