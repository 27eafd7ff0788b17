//! Whether an instance answers: one request over a new connection, repeated until a status line comes back.
//! Any status counts, for what the site says is the site's business. Called by the agent before an instance
//! is reported as serving, and now and then after.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Images keep requests for this host out of the site's log.
pub const HOST: &str = "kopek-probe";

/// A refused connection in a namespace of the same machine costs some 50 µs, so asking often is cheap.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
#[error("{address} gave no HTTP answer within {} ms; look into the instance's log", .limit.as_millis())]
pub struct ProbeError {
    pub address: SocketAddr,
    pub limit: Duration,
    /// The last attempt's; none if that was still waiting.
    pub source: Option<io::Error>,
}

/// How long it took until the first byte of an answer came.
pub async fn probe(address: SocketAddr, limit: Duration) -> Result<Duration, ProbeError> {
    let begun = Instant::now();
    let mut last = None;
    let answered = tokio::time::timeout(limit, async {
        while let Err(error) = ask(address).await {
            last = Some(error);
            tokio::time::sleep(RETRY).await;
        }
    });
    match answered.await {
        Ok(()) => Ok(begun.elapsed()),
        Err(_) => Err(ProbeError { address, limit, source: last }),
    }
}

async fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut start = [0; 9];
    stream.read_exact(&mut start).await?;
    if start.starts_with(b"HTTP/1.") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answering(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 512]).await.unwrap();
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn any_status_counts_as_alive() {
        let address = answering("HTTP/1.1 500 Oops\r\n\r\n").await;
        probe(address, Duration::from_secs(2)).await.unwrap();
    }

    #[tokio::test]
    async fn something_else_than_http_is_not_alive() {
        let address = answering("SSH-2.0-OpenSSH_9\r\n").await;
        assert!(probe(address, Duration::from_millis(60)).await.is_err());
    }

    #[tokio::test]
    async fn it_waits_for_a_server_that_comes_later() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let probed = tokio::spawn(probe(address, Duration::from_secs(5)));
        // The listener above is gone: at least one attempt is refused before the next one listens.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let listener = TcpListener::bind(address).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(10), listener.accept());
        let (mut stream, _) = next.await.expect("another attempt").unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
        probed.await.unwrap().unwrap();
    }
}
