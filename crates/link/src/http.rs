//! The small HTTPS/1.1 client for the APIs of control and agents: mutual TLS, kept-alive connections.
//! Answers that are not a success become `ApiError::Answered` with the server's own words.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::dial::{Tls, connect, within};
use crate::identity::{Identity, IdentityError, anonymous_connector};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type SentBody = UnsyncBoxBody<Bytes, BoxError>;

/// Also for streamed calls, whose whole length has no limit. A server that is up accepts in milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The largest answer is a list of all sites.
const ANSWER_MAX: usize = 64 << 20;
/// Shorter than the server's wait for the next request, so that we are the one to close.
const IDLE_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot reach {address}: {why}")]
    Unreachable { address: SocketAddr, why: String },
    #[error("{address} did not answer within {} ms", .limit.as_millis())]
    TimedOut { address: SocketAddr, limit: Duration },
    /// The server's own words: `{"error": "..."}` or plain text. A controller on standby also names the active
    /// one.
    #[error("{message}")]
    Answered { address: SocketAddr, status: StatusCode, message: String, active: Option<SocketAddr> },
    /// After the request, or a part of it, was sent.
    #[error("the connection to {address} broke: {why}")]
    Broken { address: SocketAddr, why: String },
    #[error("{address} gave an answer that is not understood: {why}")]
    Garbled { address: SocketAddr, why: String },
}

impl ApiError {
    /// Where to ask instead, if a controller on standby answered.
    pub fn active(&self) -> Option<SocketAddr> {
        match self {
            ApiError::Answered { active, .. } => *active,
            _ => None,
        }
    }

    /// Whether nothing was done and another controller may be the active one: this one stands by, or is not there.
    pub fn is_elsewhere(&self) -> bool {
        match self {
            ApiError::Answered { status, .. } => *status == StatusCode::MISDIRECTED_REQUEST,
            other => other.is_unreachable(),
        }
    }

    /// Whether the request cannot have been worked on.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ApiError::Unreachable { .. })
    }
}

/// Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Api {
    client: Client<Dialer, SentBody>,
}

impl Api {
    pub fn new(identity: Identity) -> Api {
        Api::with(identity.connector())
    }

    /// Without a certificate of our own, for the join call. The server is verified by `ca_pem`.
    pub fn anonymous(ca_pem: &str) -> Result<Api, IdentityError> {
        Ok(Api::with(anonymous_connector(ca_pem)?))
    }

    fn with(tls: TlsConnector) -> Api {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(8)
            .build(Dialer { tls });
        Api { client }
    }

    /// JSON out, JSON in. An empty answer reads as `null`, so `R` may be `()`. A call that may have been
    /// worked on is not repeated.
    pub async fn call<B: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        method: Method,
        address: SocketAddr,
        path: &str,
        body: Option<&B>,
        limit: Duration,
    ) -> Result<R, ApiError> {
        let body: SentBody = match body {
            Some(body) => {
                let bytes = serde_json::to_vec(body)
                    .map_err(|error| ApiError::Garbled { address, why: error.to_string() })?;
                Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
            }
            None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
        };
        let request = request(method, address, path, "application/json", body)?;
        timeout(limit, async {
            let answer = self.send(address, request).await?;
            let bytes = collect(address, answer.into_body()).await?;
            let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            serde_json::from_slice(json)
                .map_err(|error| ApiError::Garbled { address, why: error.to_string() })
        })
        .await
        .unwrap_or(Err(ApiError::TimedOut { address, limit }))
    }

    /// A streamed body out, a streamed answer in; only connecting has a limit.
    pub async fn send_body<B>(
        &self,
        method: Method,
        address: SocketAddr,
        path: &str,
        body: B,
    ) -> Result<Response<Incoming>, ApiError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        self.send(address, request(method, address, path, "application/octet-stream", body)?).await
    }

    /// As `send_body`, for a JSON document that is answered by a stream.
    pub async fn send_json(
        &self,
        method: Method,
        address: SocketAddr,
        path: &str,
        document: Full<Bytes>,
    ) -> Result<Response<Incoming>, ApiError> {
        let body = document.map_err(|never| match never {}).boxed_unsync();
        self.send(address, request(method, address, path, "application/json", body)?).await
    }

    async fn send(
        &self,
        address: SocketAddr,
        request: Request<SentBody>,
    ) -> Result<Response<Incoming>, ApiError> {
        let answer = self.client.request(request).await.map_err(|error| explain(address, &error))?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let bytes = collect(address, answer.into_body()).await?;
        let (message, active) = words_in(status, &bytes);
        Err(ApiError::Answered { address, status, message, active })
    }
}

fn request(
    method: Method,
    address: SocketAddr,
    path: &str,
    content_type: &'static str,
    body: SentBody,
) -> Result<Request<SentBody>, ApiError> {
    let garbled = |why: String| ApiError::Garbled { address, why };
    let uri: Uri =
        format!("https://{address}{path}").parse().map_err(|_| garbled(format!("no path: {path:?}")))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(request)
}

async fn collect(address: SocketAddr, body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, ANSWER_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::Garbled { address, why: error.to_string() })
        }
        Err(error) => Err(ApiError::Broken { address, why: innermost(error.as_ref()) }),
    }
}

fn words_in(status: StatusCode, bytes: &[u8]) -> (String, Option<SocketAddr>) {
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let active = json["active"].as_str().and_then(|address| address.parse().ok());
    if let Some(message) = json["error"].as_str() {
        return (message.to_owned(), active);
    }
    let text = String::from_utf8_lossy(bytes).trim().to_owned();
    (if text.is_empty() { status.to_string() } else { text }, active)
}

fn explain(address: SocketAddr, error: &hyper_util::client::legacy::Error) -> ApiError {
    let why = innermost(error);
    if error.is_connect() {
        ApiError::Unreachable { address, why }
    } else {
        ApiError::Broken { address, why }
    }
}

/// The innermost cause says what happened; the layers above only say that something did.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Connects to the address in the URI; there are no names to look up in a cell.
#[derive(Clone)]
struct Dialer {
    tls: TlsConnector,
}

impl tower_service::Service<Uri> for Dialer {
    type Response = Link;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let authority = uri.authority().ok_or("a URI without an address")?.as_str();
            let address: SocketAddr = authority.parse()?;
            let stream = within(address, CONNECT_LIMIT, connect(&tls, address)).await?;
            notice_dead_peer(stream.get_ref().0)?;
            Ok::<Link, BoxError>(Link(TokioIo::new(stream)))
        })
    }
}

/// A server that is cut off closes nothing, and an answer may take for ever (a log that is followed): after
/// about 10 s without a sign of life the connection breaks.
fn notice_dead_peer(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &4)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &2)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)
}

/// One connection in the pool.
struct Link(TokioIo<Tls>);

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
