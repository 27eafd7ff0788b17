//! What the instance and the client get to see of each other's headers. Pure; called by `proxy`.
//!
//! A client's word about who it is (`X-Forwarded-*`, `X-Real-IP`, `Forwarded`) is replaced by ours. No `Via` is
//! added, unlike RFC 9110 section 7.6.3 asks: web servers turn compression off when they see one.

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::pick;

/// RFC 9110 section 7.6.1, and older names that some still send.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// CGI turns it into HTTP_PROXY, which libraries obey (CVE-2016-5385).
const PROXY: HeaderName = HeaderName::from_static("proxy");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// A request's headers as the instance gets them. `upgrade` is the protocol that may be changed to.
pub fn to_instance(
    mut headers: HeaderMap,
    client: IpAddr,
    host: &HeaderValue,
    upgrade: Option<&HeaderValue>,
) -> HeaderMap {
    remove_hop_by_hop(&mut headers);
    remove_claims(&mut headers);
    // The edge has answered `100 Continue` and frames the body anew.
    headers.remove(EXPECT);
    headers.remove(CONTENT_LENGTH);
    hide_own_cookie(&mut headers);
    headers.insert(HOST, host.clone());
    let client = HeaderValue::from_str(&client.to_string()).expect("an address is ASCII");
    headers.insert(FORWARDED_FOR, client.clone());
    headers.insert(REAL_IP, client);
    headers.insert(FORWARDED_HOST, host.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    announce_upgrade(&mut headers, upgrade);
    headers
}

/// A response's headers as the client gets them.
pub fn to_client(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    remove_hop_by_hop(headers);
    announce_upgrade(headers, upgrade);
}

/// The protocol that a message wants to change to, if the edge lets it. Not to HTTP/2 or TLS: what follows
/// would pass the edge unread, under another visitor's name if it likes.
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let text = protocol.to_str().ok()?.to_ascii_lowercase();
    let refused = ["h2", "http", "tls"].iter().any(|prefix| text.trim_start().starts_with(prefix));
    let listed = named_in_connection(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    (listed && !refused && !text.contains(',')).then(|| protocol.clone())
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> =
            named_in_connection(headers).filter_map(|name| name.parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn named_in_connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn remove_claims(headers: &mut HeaderMap) {
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in claimed.iter().chain(&[FORWARDED, REAL_IP, PROXY, HTTP2_SETTINGS]) {
        headers.remove(name);
    }
}

/// The site never set it, so it need not see it: some caches key on all cookies.
fn hide_own_cookie(headers: &mut HeaderMap) {
    let names_ours = |value: &HeaderValue| {
        value.as_bytes().windows(pick::COOKIE.len()).any(|w| w == pick::COOKIE.as_bytes())
    };
    if !headers.get_all(COOKIE).iter().any(names_ours) {
        return;
    }
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    for line in lines {
        let Ok(text) = line.to_str() else {
            headers.append(COOKIE, line);
            continue;
        };
        let is_ours = |pair: &&str| pair.trim().split_once('=').is_some_and(|(name, _)| name == pick::COOKIE);
        let others: Vec<&str> = text.split(';').filter(|pair| !is_ours(pair)).collect();
        let others = others.join(";");
        if let (false, Ok(value)) = (others.trim().is_empty(), HeaderValue::from_str(others.trim_start())) {
            headers.append(COOKIE, value);
        }
    }
}

fn announce_upgrade(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    fn sent(pairs: &[(&str, &str)]) -> HeaderMap {
        let host = HeaderValue::from_static("blog.org:8080");
        to_instance(headers(pairs), "192.0.2.7".parse().unwrap(), &host, None)
    }

    #[test]
    fn what_a_client_claims_about_itself_is_replaced() {
        let sent = sent(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("proxy", "evil:80"),
            ("host", "other"),
        ]);
        assert_eq!(
            sent,
            headers(&[
                ("host", "blog.org:8080"),
                ("x-forwarded-for", "192.0.2.7"),
                ("x-real-ip", "192.0.2.7"),
                ("x-forwarded-host", "blog.org:8080"),
                ("x-forwarded-proto", "http"),
            ])
        );
    }

    #[test]
    fn headers_of_one_hop_stay_there_also_those_that_connection_names() {
        let sent = sent(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-forwarded-for"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);
        let names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        assert!(names.contains(&"accept") && names.contains(&"x-forwarded-for"));
        for gone in ["connection", "x-secret", "keep-alive", "te", "transfer-encoding", "upgrade", "expect"] {
            assert!(!names.contains(&gone), "{gone}");
        }
    }

    #[test]
    fn a_site_does_not_see_the_edges_cookie() {
        let cookie =
            |text: &str| sent(&[("cookie", text)]).get(COOKIE).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(cookie("a=1; kopek_i=blog.1; b=2").as_deref(), Some("a=1; b=2"));
        assert_eq!(cookie("kopek_i=blog.1; b=2").as_deref(), Some("b=2"));
        assert_eq!(cookie("kopek_i=blog.1"), None);
        assert_eq!(cookie("my_kopek_i=2").as_deref(), Some("my_kopek_i=2"));
    }

    #[test]
    fn websockets_may_upgrade_and_http2_may_not() {
        let wants = |protocol| {
            wanted_upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", protocol)]))
        };
        assert_eq!(wants("websocket").unwrap(), "websocket");
        for protocol in ["h2c", "H2C", "HTTP/2.0", "TLS/1.0", "websocket, h2c"] {
            assert_eq!(wants(protocol), None, "{protocol}");
        }
        assert_eq!(wanted_upgrade(&headers(&[("upgrade", "websocket")])), None);
    }
}
