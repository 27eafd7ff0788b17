//! Name servers that instances may use: those of this server, but for ones that only it can reach, and for
//! ones that nobody can: a site that asks a silent name server makes its visitor wait for ten seconds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// From resolv.conf(5); addresses on loopback mean nothing inside an instance.
pub fn of_this_server() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    resolvers_in(&text).into_iter().filter(|address| has_route(*address)).collect()
}

/// Connecting a UDP socket looks up the route and sends nothing (udp(7)).
fn has_route(address: IpAddr) -> bool {
    let any = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 53))).is_ok()
}

fn resolvers_in(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers
        .filter_map(|address| address.trim().parse().ok())
        .filter(|address: &IpAddr| !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_resolvers_are_left_out() {
        let text = "# local\nnameserver 127.0.0.53\nnameserver 10.9.8.7\nsearch example.org\n";
        assert_eq!(resolvers_in(text), ["10.9.8.7".parse::<IpAddr>().unwrap()]);
    }
}
