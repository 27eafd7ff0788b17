//! The few pages that the edge answers with itself: plain, short, naming what is wrong. Called by `proxy`.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::body::Answer;

/// Seconds after which a held site is worth another look.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

pub fn bad_request(why: &str) -> Response<Answer> {
    page(StatusCode::BAD_REQUEST, "Bad request", why)
}

pub fn not_allowed() -> Response<Answer> {
    page(StatusCode::METHOD_NOT_ALLOWED, "Not allowed", "This server is not a proxy for other servers.")
}

pub fn unknown_host(host: &str) -> Response<Answer> {
    let text = format!("There is no site for {} here.", escaped(host));
    page(StatusCode::NOT_FOUND, "Unknown site", &text)
}

pub fn too_slow() -> Response<Answer> {
    page(StatusCode::REQUEST_TIMEOUT, "Too slow", "The request did not arrive in time.")
}

pub fn broken() -> Response<Answer> {
    let text =
        "The site broke off this request. It may have been carried out: look before you send it again.";
    page(StatusCode::BAD_GATEWAY, "Broken off", text)
}

pub fn no_answer() -> Response<Answer> {
    page(StatusCode::GATEWAY_TIMEOUT, "No answer", "The site did not answer in time.")
}

pub fn unavailable() -> Response<Answer> {
    let text = "The site is being started or moved. Please try again in a few seconds.";
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, "Not available", text);
    response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    response
}

fn page(status: StatusCode, title: &str, text: &str) -> Response<Answer> {
    let html = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n<p>{text}</p>\n"
    );
    let mut response = Response::new(Answer::Page(Some(Bytes::from(html))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
