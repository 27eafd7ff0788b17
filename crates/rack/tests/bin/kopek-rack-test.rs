//! Stands in for `kopek` in this crate's tests: the hidden subcommands, and small services to supervise.

use std::io::{Read, Write};
use std::net::TcpListener;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["dev-init"] => kopek_rack::init_main(),
        ["dev-forward", _, to] => kopek_rack::forward_main(to.parse().expect("an address")),
        ["echo", port] => echo(port.parse().expect("a port")),
        ["die"] => std::process::exit(3),
        ["up", dir] => {
            kopek_rack::Rack::create(dir.as_ref(), kopek_rack::RackOptions::new(2)).expect("a rack");
        }
        _ => panic!("unknown subcommand {words:?}"),
    }
}

/// Answers every connection with the host name and what it sent.
fn echo(port: u16) {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    println!("echo on {port}");
    for client in TcpListener::bind(("0.0.0.0", port)).expect("a free port").incoming().flatten() {
        let mut client = client;
        let mut word = [0; 64];
        let length = client.read(&mut word).unwrap_or(0);
        let _ = client
            .write_all(format!("{} {}", name.trim(), String::from_utf8_lossy(&word[..length])).as_bytes());
    }
}
