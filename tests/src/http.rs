//! A browser's view of a site: plain HTTP/1.1 to one address with a host name, with cookies where they are needed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, COOKIE, HOST, HeaderMap, LOCATION, SET_COOKIE};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longer than an edge holds a request.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Where a site is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub address: SocketAddr,
    /// As it stands in the address bar: with a port that is not 80.
    pub host: String,
}

impl Place {
    pub fn of(address: SocketAddr) -> Place {
        let host = if address.port() == 80 { address.ip().to_string() } else { address.to_string() };
        Place { address, host }
    }

    pub fn named(address: SocketAddr, host: &str) -> Place {
        Place { address, host: host.to_owned() }
    }
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn location(&self) -> Option<&str> {
        self.header(LOCATION.as_str())
    }
}

/// One connection, kept alive.
pub struct Connection {
    host: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub async fn open(place: &Place) -> Result<Connection> {
        let stream = TcpStream::connect(place.address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the connection; its error is the request's.
        tokio::spawn(connection);
        Ok(Connection { host: place.host.clone(), sender })
    }

    /// Whether the server has said good-bye after the last answer.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask(Request::get(path).body(Full::default())?).await
    }

    async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Result<Answer> {
        request.headers_mut().insert(HOST, self.host.parse()?);
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await.context("the answer was cut off")?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}

/// A person with cookies; each request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Browser {
    place: Place,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    pub fn new(place: &Place) -> Browser {
        Browser { place: place.clone(), cookies: BTreeMap::new() }
    }

    /// Another person at the same place.
    pub fn stranger(&self) -> Browser {
        Browser::new(&self.place)
    }

    pub fn set_cookie(&mut self, name: &str, value: &str) {
        self.cookies.insert(name.to_owned(), value.to_owned());
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// An answer other than 200 is an error.
    pub async fn page(&mut self, path: &str) -> Result<String> {
        let answer = self.get(path).await?;
        if answer.status != 200 {
            bail!("{path} answers {} {}", answer.status, answer.location().unwrap_or_default());
        }
        Ok(answer.text())
    }

    pub async fn post_form(&mut self, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        let (kind, body) = form(fields);
        self.send(Method::POST, path, &[kind], body).await
    }

    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(&method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !self.cookies.is_empty() {
            let pairs = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
            request = request.header(COOKIE, pairs.collect::<Vec<_>>().join("; "));
        }
        let request = request.body(Full::new(body))?;
        let asked = async { Connection::open(&self.place).await?.ask(request).await };
        let answer = tokio::time::timeout(PATIENCE, asked)
            .await
            .with_context(|| format!("{method} {path}: no answer in {} s", PATIENCE.as_secs()))?
            .with_context(|| format!("{method} {path}"))?;
        for set in answer.headers.get_all(SET_COOKIE) {
            let pair = set.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(answer)
    }

    /// Fields and one file, as a browser's form sends them (RFC 7578).
    pub async fn post_file(
        &mut self,
        path: &str,
        fields: &[(&str, &str)],
        (field, file, kind, content): (&str, &str, &str, &[u8]),
    ) -> Result<Answer> {
        const BOUNDARY: &str = "----kopek-form-boundary-7d41c2";
        let mut body = Vec::new();
        for (name, value) in fields {
            let part =
                format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            body.extend_from_slice(part.as_bytes());
        }
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file}\"\r\n\
             {CONTENT_TYPE}: {kind}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.send(Method::POST, path, &[("content-type", &kind)], body.into()).await
    }
}

/// The header and the body of a form that is sent.
pub fn form(fields: &[(&str, &str)]) -> ((&'static str, &'static str), Bytes) {
    (("content-type", "application/x-www-form-urlencoded"), query(fields).into())
}

/// What follows the question mark of an address.
pub fn query(fields: &[(&str, &str)]) -> String {
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// application/x-www-form-urlencoded (WHATWG URL, section 5).
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => out.push(byte as char),
            b' ' => out.push('+'),
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}
