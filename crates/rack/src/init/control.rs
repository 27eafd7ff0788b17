//! How the machine speaks to a server's init: one JSON line in, one back, on a Unix socket in the server's
//! /run/kopek. The library reaches it through /proc/PID/root.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ServiceStatus;

const SOCKET: &str = "/run/kopek/init.sock";

/// One client at a time is read; a silent one must not keep init from reaping.
const CLIENT_WAIT: Duration = Duration::from_millis(500);
const LINE_MAX: u64 = 64 << 10;
/// Init answers between two turns of its loop.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "want", rename_all = "kebab-case")]
pub(crate) enum Order {
    List,
    Service { service: String, order: ServiceOrder },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceOrder {
    /// Now and at every boot.
    Start,
    /// Now, and not at the next boot.
    Stop,
    Restart,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Services { services: Vec<ServiceStatus> },
    NoSuchService,
    Failed { why: String },
}

/// Asks the init that the machine knows as process `init`.
pub(crate) fn ask(init: i32, order: &Order) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(format!("/proc/{init}/root{SOCKET}"))?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    write_line(&mut stream, order)?;
    read_line(&stream)
}

pub(super) fn listen() -> io::Result<UnixListener> {
    UnixListener::bind(SOCKET)
}

/// Reads one order and answers it.
pub(super) fn serve(listener: &UnixListener, answer: impl FnOnce(Order) -> Answer) -> io::Result<()> {
    let (mut client, _) = listener.accept()?;
    client.set_read_timeout(Some(CLIENT_WAIT))?;
    client.set_write_timeout(Some(CLIENT_WAIT))?;
    let order = read_line(&client)?;
    write_line(&mut client, &answer(order))
}

fn read_line<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn write_line<T: Serialize>(stream: &mut UnixStream, document: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(document)?;
    line.push(b'\n');
    stream.write_all(&line)
}
