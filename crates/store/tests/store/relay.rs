//! A TCP relay on loopback whose connections can be cut or made silent, and that can refuse new ones.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub struct Relay {
    pub address: SocketAddr,
    cut: Arc<Notify>,
    hold: Arc<Notify>,
    open: Arc<AtomicBool>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, hold) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let open = Arc::new(AtomicBool::new(true));
        let relay = Relay { address, cut: cut.clone(), hold: hold.clone(), open: open.clone() };
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if !open.load(Ordering::SeqCst) {
                    continue;
                }
                let (cut, hold) = (cut.clone(), hold.clone());
                tokio::spawn(async move {
                    let (mut ended, held) = (pin!(cut.notified()), hold.notified());
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        biased;
                        () = &mut ended => return,
                        () = held => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    }
                    tokio::select! {
                        () = ended => {}
                        _ = tokio::io::copy(&mut near, &mut far) => {}
                    }
                });
            }
        });
        relay
    }

    /// Breaks every connection; new ones go through.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Lets no answer through on the connections that there are; requests still arrive.
    pub fn hold_answers(&self) {
        self.hold.notify_waiters();
    }

    /// Breaks every connection and lets none through.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
        self.cut();
    }

    pub fn reopen(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}
