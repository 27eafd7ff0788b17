//! Asking this server's edge over its own socket; the questions are at the edge's `status`.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A loaded edge answers in milliseconds; one that hangs must not keep its address for long.
const LIMIT: Duration = Duration::from_secs(1);
const ANSWER_MAX: u64 = 256;

pub async fn ask(socket: &Path, question: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut answer).await?;
        Ok(answer.trim_end().to_owned())
    };
    timeout(LIMIT, asked).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}
