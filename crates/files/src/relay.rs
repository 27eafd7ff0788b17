//! Relays bytes between an edge and an instance, both ways, with bounded memory. A side that says it has sent
//! all is shut down on the other side too, while the other direction goes on. Called by `gate`.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

use crate::flight::Flight;

/// Buffers grow to this while much is sent: larger ones moved no more bytes over loopback.
const BUFFER_MAX: usize = 64 << 10;
/// And are this small on idle connections, of which edges keep many.
const BUFFER_MIN: usize = 4 << 10;
/// An instance that has sent all reads no more than this long.
const LINGER: Duration = Duration::from_secs(30);

/// Ends when both directions have ended or one is broken.
pub(crate) async fn relay<A, B>(edge: A, instance: B, flight: &Flight) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut edge_read, mut edge_write) = split(edge);
    let (mut instance_read, mut instance_write) = split(instance);
    let mut requests = Box::pin(pass(&mut edge_read, &mut instance_write, || flight.request_bytes()));
    let mut responses = Box::pin(pass(&mut instance_read, &mut edge_write, || flight.response_bytes()));
    let both = async {
        tokio::select! {
            ended = &mut requests => {
                ended?;
                responses.await
            }
            ended = &mut responses => {
                ended?;
                timeout(LINGER, requests).await.unwrap_or(Ok(()))
            }
        }
    };
    tokio::select! {
        ended = both => ended,
        () = flight.watch() => unreachable!("a flight is watched as long as its connection"),
    }
}

async fn pass<R, W>(from: &mut R, to: &mut W, note: impl Fn()) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_MIN];
    loop {
        let got = from.read(&mut buffer).await?;
        if got == 0 {
            return to.shutdown().await;
        }
        note();
        to.write_all(&buffer[..got]).await?;
        // TLS keeps what did not fit into the socket until it is flushed.
        to.flush().await?;
        if got == buffer.len() && got < BUFFER_MAX {
            buffer = vec![0; BUFFER_MAX];
        } else if got <= BUFFER_MIN && buffer.len() > BUFFER_MIN {
            buffer = vec![0; BUFFER_MIN];
        }
    }
}
