//! Every bound of the edge, with the reason for its number. Tests shorten some.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Limits {
    /// Runtimes, one thread each.
    pub workers: usize,
    /// A request waits so long for a backend, then gets 503. Longer than a server's death takes to heal
    /// (about 3 s), shorter than most clients' patience.
    pub hold: Duration,
    /// Requests of one site that wait at once.
    pub held_per_site: usize,
    /// Bodies of all waiting requests together.
    pub held_bytes: usize,
    /// A body up to this size is read before it is sent on, so that it can be sent again; a larger one streams.
    pub replay: usize,
    /// To reach an instance: TCP, TLS, preamble and welcome. Doubled after each failure, up to eight times.
    /// A round trip in a cell is a few milliseconds.
    pub connect: Duration,
    /// Until the first byte of the response. PHP's own limit is 30 s, imports raise it to minutes.
    pub respond: Duration,
    /// A peer's kernel that acknowledges nothing for so long is gone.
    pub peer_silence: Duration,
    /// The same on a connection with a large upload, where an instance that reads slowly looks alike.
    pub peer_silence_upload: Duration,
    /// Requests wait and a server sent nothing for so long: its gate is asked for a sign of life.
    pub suspicion: Duration,
    /// Requests that cannot be repeated may still end on a backend that left the table, for so long.
    pub gone_grace: Duration,
    /// A request that waits so long on a new connection has perhaps not been accepted: an Apache with mod_php
    /// has a process for each connection, and those that are kept busy by others never come to accept it. One
    /// of those connections is then closed. Longer than most pages take; wrongly done it costs one reconnect.
    pub turn: Duration,
    /// Unused connections are closed after this: each occupies a process of an Apache with mod_php.
    pub idle_upstream: Duration,
    /// Unused connections kept per worker and instance.
    pub idle_per_backend: usize,
    /// A client must send its next request's header within this time, waiting between requests included.
    pub client_header: Duration,
    /// A client that sends a body may pause so long; one that does not read for so long is given up.
    pub client_stall: Duration,
    /// Request line and headers together.
    pub header_bytes: usize,
    /// Requests may end after SIGTERM.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            hold: Duration::from_secs(30),
            held_per_site: 1_000,
            held_bytes: 64 << 20,
            replay: 64 << 10,
            connect: Duration::from_millis(300),
            respond: Duration::from_secs(300),
            peer_silence: Duration::from_secs(1),
            peer_silence_upload: Duration::from_secs(15),
            suspicion: Duration::from_millis(400),
            gone_grace: Duration::from_secs(10),
            turn: Duration::from_millis(100),
            idle_upstream: Duration::from_secs(2),
            idle_per_backend: 32,
            client_header: Duration::from_secs(30),
            client_stall: Duration::from_secs(60),
            header_bytes: 64 << 10,
            stop: Duration::from_secs(10),
        }
    }
}
