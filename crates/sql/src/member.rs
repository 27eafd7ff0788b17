//! This server's pool member as the end of a site's connections. Called by `backend` when the writer is here
//! and by `relay` for the other servers: the same rule and the same address for both.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::part::{SqlPart, site_loopback};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use crate::backend::Ways;
use crate::fence::Entered;
use crate::wire::Stream;

/// mariadbd's backlog answers in microseconds; one that is stopped does not answer at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How to reach the member for one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the site's own address, to which its account is bound.
    Port { member: SocketAddr, source: IpAddr },
    /// One database without a cell around it.
    Alone(Endpoint),
}

/// Where a database listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Port(SocketAddr),
    Socket(PathBuf),
}

/// Who knows the ways.
#[derive(Debug, Clone)]
pub(crate) enum Reach {
    /// The agent's part.
    Cell,
    /// Nobody but us (`alone`).
    Alone(Arc<BTreeMap<SiteName, Endpoint>>),
}

/// A connection to the member that counts as open as long as it is held.
pub(crate) struct Joined {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) entered: Entered,
}

/// Opens a connection for a site in `epoch`, or says why not.
pub(crate) async fn join(ways: &Ways, site: &SiteName, epoch: u64) -> Result<Joined, String> {
    let way = match (&ways.reach, &*ways.part.borrow()) {
        (Reach::Alone(endpoints), _) => {
            let endpoint = endpoints.get(site).ok_or_else(|| format!("{site} has no database"))?;
            Way::Alone(endpoint.clone())
        }
        (Reach::Cell, Some(part)) => way_to_member(part, site, epoch)?,
        (Reach::Cell, None) => return Err("this server has no part in the cell yet".to_owned()),
    };
    let entered =
        ways.fences.enter(site, epoch).ok_or_else(|| format!("epoch {epoch} of site {site} is over"))?;
    let (stream, line) =
        way.connect().await.map_err(|error| format!("the pool member cannot be reached: {error}"))?;
    line.into_iter().for_each(|line| entered.is_by(line));
    Ok(Joined { stream, entered })
}

/// Whether this server's member is the site's writer in `epoch`, as far as the agent knows.
pub(crate) fn serves(part: &SqlPart, site: &SiteName, epoch: u64) -> bool {
    part.writes_for.get(site) == Some(&epoch)
}

/// The way, or why there is none.
fn way_to_member(part: &SqlPart, site: &SiteName, epoch: u64) -> Result<Way, String> {
    let server = &part.server;
    if !serves(part, site, epoch) {
        return Err(match part.writes_for.get(site) {
            Some(now) => format!("{server} serves site {site} in epoch {now}, not {epoch}"),
            None => format!("{server} does not serve site {site}"),
        });
    }
    let member = part.member.ok_or_else(|| format!("the pool member of {server} is not in service"))?;
    let number = part.sites.get(site).ok_or_else(|| format!("{server} does not know site {site}"))?.number;
    Ok(Way::Port { member, source: site_loopback(number) })
}

impl Way {
    /// The connection, and a second hold of its socket if somebody may have to cut it.
    async fn connect(&self) -> io::Result<(Box<dyn Stream>, Option<OwnedFd>)> {
        let connecting = async {
            match self {
                Way::Port { member, source } => {
                    let stream = connect_from(*source, *member).await?;
                    let line = stream.as_fd().try_clone_to_owned()?;
                    Ok((Box::new(stream) as Box<dyn Stream>, Some(line)))
                }
                Way::Alone(Endpoint::Port(member)) => {
                    Ok((Box::new(connected(TcpStream::connect(member).await?)?) as Box<dyn Stream>, None))
                }
                Way::Alone(Endpoint::Socket(path)) => {
                    Ok((Box::new(UnixStream::connect(path).await?) as Box<dyn Stream>, None))
                }
            }
        };
        timeout(CONNECT_LIMIT, connecting)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the member does not answer"))?
    }
}

async fn connect_from(source: IpAddr, member: SocketAddr) -> io::Result<TcpStream> {
    let socket = if member.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Otherwise bind would reserve a port, and a site that opens a connection for each page would run
    // out of them: those in TIME_WAIT are reused only by connect.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::new(source, 0))?;
    connected(socket.connect(member).await?)
}

fn connected(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}
