//! How a joining server without an address finds its cell: it asks by UDP multicast, naming the CA's
//! fingerprint from its token, and whichever control process serves that cell answers with its address. Both
//! are in clear and prove nothing: the fingerprint is checked by `fetch_ca` afterwards.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kopek_core::Digest;
use kopek_core::config::DISCOVERY_PORT;
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::{interval, timeout};
use tracing::debug;

/// RFC 2365 organisation-local scope.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 192, 74, 0);
/// A datagram may be lost, and control may only just be starting.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A question has about 85 bytes.
const DATAGRAM_MAX: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("{address} is not an IPv4 address; name the address of a server of the cell instead")]
    NeedsIpv4 { address: IpAddr },
    #[error("cannot use multicast on {address}; name the address of a server of the cell instead")]
    Socket { address: IpAddr, source: io::Error },
    #[error(
        "no server of this cell answered on the network of {address}; name the address of one, or check the token"
    )]
    NobodyAnswered { address: IpAddr },
}

#[derive(Serialize, Deserialize)]
struct Question {
    kopek_cell: Digest,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    control: SocketAddr,
}

/// Answers for the cell with this fingerprint, until dropped. `interface_address` is this server's own on the
/// network where it listens.
pub async fn answer(
    fingerprint: Digest,
    control_address: SocketAddr,
    interface_address: IpAddr,
) -> Result<(), DiscoveryError> {
    let failed = |source| DiscoveryError::Socket { address: interface_address, source };
    let interface = ipv4(interface_address)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DISCOVERY_PORT)).await.map_err(failed)?;
    socket.join_multicast_v4(GROUP, interface).map_err(failed)?;
    let reply = serde_json::to_vec(&Answer { control: control_address }).expect("an address is text");
    let mut datagram = [0; DATAGRAM_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            // Also reports that an asker no longer listens: no reason to stop.
            Err(error) => {
                debug!(%error, "discovery");
                continue;
            }
        };
        let is_ours = serde_json::from_slice::<Question>(&datagram[..length])
            .is_ok_and(|question| question.kopek_cell == fingerprint);
        if is_ours && let Err(error) = socket.send_to(&reply, from).await {
            debug!(%error, %from, "discovery");
        }
    }
}

/// The control address of some server of the cell with this fingerprint, asked on the network of
/// `interface_address`.
pub async fn find(
    fingerprint: &Digest,
    interface_address: IpAddr,
    limit: Duration,
) -> Result<SocketAddr, DiscoveryError> {
    let failed = |source| DiscoveryError::Socket { address: interface_address, source };
    // The source address also chooses the interface that multicast leaves by (ip_route_output_key, Linux).
    let socket = UdpSocket::bind((ipv4(interface_address)?, 0)).await.map_err(failed)?;
    let question =
        serde_json::to_vec(&Question { kopek_cell: fingerprint.clone() }).expect("a digest is text");
    let ask = async {
        let mut again = interval(ASK_AGAIN_AFTER);
        let mut datagram = [0; DATAGRAM_MAX];
        loop {
            tokio::select! {
                _ = again.tick() => {
                    socket.send_to(&question, (GROUP, DISCOVERY_PORT)).await?;
                }
                received = socket.recv_from(&mut datagram) => {
                    let (length, _) = received?;
                    if let Ok(answer) = serde_json::from_slice::<Answer>(&datagram[..length]) {
                        return io::Result::Ok(answer.control);
                    }
                }
            }
        }
    };
    match timeout(limit, ask).await {
        Ok(found) => found.map_err(failed),
        Err(_) => Err(DiscoveryError::NobodyAnswered { address: interface_address }),
    }
}

fn ipv4(address: IpAddr) -> Result<Ipv4Addr, DiscoveryError> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(DiscoveryError::NeedsIpv4 { address }),
    }
}
