//! Which site a request names: the target's authority or else the `Host` header (RFC 9112 section 3.2), in
//! lower case, without port and trailing dot. Pure; called by `proxy`.

use hyper::Request;
use hyper::header::{HOST, HeaderValue};

/// Why a request names no host. Shown to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("The request has no Host header.")]
    Missing,
    #[error("The request has more than one Host header.")]
    Several,
    #[error("The request's Host header is not a host name.")]
    Malformed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What the routing table knows it by.
    pub name: String,
    /// As the client wrote it, with the port: what the site sees.
    pub header: HeaderValue,
}

pub fn host_of<B>(request: &Request<B>) -> Result<Host, HostError> {
    let mut headers = request.headers().get_all(HOST).iter();
    let first = headers.next();
    if headers.next().is_some() {
        return Err(HostError::Several);
    }
    let header = match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).map_err(|_| HostError::Malformed)?,
        None => first.ok_or(HostError::Missing)?.clone(),
    };
    let text = header.to_str().map_err(|_| HostError::Malformed)?;
    Ok(Host { name: host_name(text).ok_or(HostError::Malformed)?, header })
}

/// `Shop.Example.org.:8080` → `shop.example.org`. An IPv6 address keeps its brackets.
fn host_name(text: &str) -> Option<String> {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(end) => text.split_at(end + 2),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port_is_valid = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let name = name.strip_suffix('.').unwrap_or(name);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
    (port_is_valid && (1..=255).contains(&name.len()) && name.bytes().all(allowed))
        .then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_port_and_trailing_dot_do_not_matter() {
        for text in ["shop.example.org", "Shop.EXAMPLE.org", "shop.example.org:8080", "shop.example.org.:80"]
        {
            assert_eq!(host_name(text).as_deref(), Some("shop.example.org"), "{text}");
        }
        assert_eq!(host_name("[::1]:80").as_deref(), Some("[::1]"));
        assert_eq!(host_name("10.0.0.1:80").as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn what_is_not_a_host_name_is_refused() {
        for text in ["", ":80", "a b", "a/b", "user@a", "a:80x", "a:80:90", "<script>", "[::1]x"] {
            assert_eq!(host_name(text), None, "{text}");
        }
    }

    #[test]
    fn the_target_of_a_request_wins_over_its_host_header() {
        let request = Request::get("http://a.org:81/x").header("host", "b.org").body(()).unwrap();
        let host = host_of(&request).unwrap();
        assert_eq!((host.name.as_str(), host.header.to_str().unwrap()), ("a.org", "a.org:81"));
        let several = Request::get("/").header("host", "a").header("host", "b").body(()).unwrap();
        assert_eq!(host_of(&several), Err(HostError::Several));
        assert_eq!(host_of(&Request::get("/").body(()).unwrap()), Err(HostError::Missing));
    }
}
