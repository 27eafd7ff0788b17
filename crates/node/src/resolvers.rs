//! Name servers that instances may use: those of this server, but for ones that only it can reach.

use std::net::IpAddr;

/// From resolv.conf(5); addresses on loopback mean nothing inside an instance.
pub fn of_this_server() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    resolvers_in(&text)
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
