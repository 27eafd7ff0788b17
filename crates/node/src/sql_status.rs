//! Asking this server's `sql` over its own socket; the questions are at sql's `status`.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// `sql` itself gives up after 5 s.
const LIMIT: Duration = Duration::from_secs(6);
/// Some kilobytes for each site of this server.
const ANSWER_MAX: u64 = 64 << 20;

pub async fn ask(socket: &Path, question: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
        match answer.is_empty() {
            true => Err(io::Error::other("a part of it does not answer")),
            false => Ok(answer),
        }
    };
    timeout(LIMIT, asked).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}
