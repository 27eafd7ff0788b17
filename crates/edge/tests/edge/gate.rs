//! A gate: reads the preamble, then relays bytes to the instance's address. It can be frozen as SIGSTOP would:
//! the kernel still takes connections and bytes, nobody reads them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use kopek_core::InstanceId;
use kopek_link::{Identity, Preamble, Welcome, read_preamble, send_welcome};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub struct Gate {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    instances: Mutex<BTreeMap<InstanceId, SocketAddr>>,
    opened: AtomicUsize,
    frozen: watch::Sender<bool>,
    /// The next connection is opened to its instance, but the edge hears of it only when this is told.
    late: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Gate {
    pub async fn on_socket(path: &Path) -> Gate {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Shared::new();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let shared = shared.clone();
            async move {
                let mut streams = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    streams.spawn(shared.clone().relay(stream));
                }
            }
        });
        Gate { address: "127.0.0.1:1".parse().unwrap(), shared, _tasks: tasks }
    }

    pub async fn on_tls(identity: Identity) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new();
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let shared = shared.clone();
            async move {
                let mut streams = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (shared, acceptor) = (shared.clone(), identity.acceptor());
                    streams.spawn(async move {
                        shared.wait_while_frozen().await;
                        if let Ok(stream) = acceptor.accept(stream).await {
                            shared.relay(stream).await;
                        }
                    });
                }
            }
        });
        Gate { address, shared, _tasks: tasks }
    }

    pub fn lead(&self, instance: &str, to: SocketAddr) {
        self.shared.instances.lock().unwrap().insert(InstanceId::parse(instance).unwrap(), to);
    }

    /// Connections that were opened to instances so far.
    pub fn opened(&self) -> usize {
        self.shared.opened.load(SeqCst)
    }

    /// The edge hears that the next connection is open when it is told so by what is given back.
    pub fn open_next_late(&self) -> oneshot::Sender<()> {
        let (tell, told) = oneshot::channel();
        *self.shared.late.lock().unwrap() = Some(told);
        tell
    }

    pub fn freeze(&self) {
        self.shared.frozen.send_replace(true);
    }
}

impl Shared {
    fn new() -> Arc<Shared> {
        let frozen = watch::channel(false).0;
        let (instances, late) = Default::default();
        Arc::new(Shared { instances, opened: AtomicUsize::new(0), frozen, late })
    }

    async fn wait_while_frozen(&self) {
        let mut frozen = self.frozen.subscribe();
        frozen.wait_for(|frozen| !frozen).await.unwrap();
    }

    async fn relay<S: AsyncRead + AsyncWrite + Unpin>(self: Arc<Self>, mut stream: S) {
        let Ok(Preamble::Gate { instance }) = read_preamble(&mut stream).await else { return };
        let address = self.instances.lock().unwrap().get(&instance).copied();
        let origin = match address {
            Some(address) => TcpStream::connect(address).await.map_err(|error| error.to_string()),
            None => Err(format!("{instance} is not here")),
        };
        match origin {
            Err(why) => drop(send_welcome(&mut stream, &Welcome::Refused { why }).await),
            Ok(mut origin) => {
                let late = self.late.lock().unwrap().take();
                self.opened.fetch_add(1, SeqCst);
                if let Some(late) = late {
                    late.await.unwrap();
                }
                if send_welcome(&mut stream, &Welcome::Open { bytes: None }).await.is_err() {
                    return;
                }
                let mut frozen = self.frozen.subscribe();
                tokio::select! {
                    _ = copy_bidirectional(&mut stream, &mut origin) => {}
                    // Keeps both streams open, unread.
                    _ = async { frozen.wait_for(|frozen| *frozen).await.map(|_| ()) } => self.wait_while_frozen().await,
                }
            }
        }
    }
}
