//! The public sockets. Each worker has its own on the same port (SO_REUSEPORT): the kernel spreads connections
//! over them, and a new edge may begin while the old one still finishes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: u32 = 4_096;

/// On all IPv4 addresses, and on all IPv6 ones if this machine has IPv6. Must be called within a runtime.
pub fn listen(port: u16) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let mut listeners = vec![bind(v4).map_err(|error| (v4, error))?];
    match bind(v6) {
        Ok(listener) => listeners.push(listener),
        Err(error) if has_no_ipv6(&error) => {}
        Err(error) => return Err((v6, error)),
    }
    Ok(listeners)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn has_no_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let number = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    matches!(number, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT)
}
