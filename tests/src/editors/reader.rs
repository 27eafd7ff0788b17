//! Somebody with a browser who takes no error for an answer: each one is judged and tallied. Called by blogger.rs,
//! wikian.rs and `mediawiki`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use crate::editors::tally::Tally;
use crate::html::visible;
use crate::http::{Answer, Browser, Place, form};

/// What no page shows that works: WordPress, MediaWiki and its API, PHP, and what MySQL says of lost connections and
/// deadlocks.
const ERRORS: [&str; 13] = [
    "Error establishing a database connection",
    "WordPress database error",
    "There has been a critical error on this website",
    "MediaWiki internal error",
    "internal_api_error",
    "DBQueryError",
    "DBConnectionError",
    "A database query error has occurred",
    "Cannot access the database",
    "Fatal error</b>",
    "server has gone away",
    "Lost connection to",
    "Deadlock found",
];

#[derive(Clone)]
pub struct Reader {
    browser: Browser,
    site: &'static str,
    tally: Arc<Tally>,
}

#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ErrorPage {
    what: String,
    why: String,
}

impl Reader {
    pub fn new(place: &Place, site: &'static str, tally: &Arc<Tally>) -> Reader {
        Reader { browser: Browser::new(place), site, tally: tally.clone() }
    }

    /// Another person, without cookies.
    pub fn stranger(&self) -> Reader {
        Reader { browser: self.browser.stranger(), site: self.site, tally: self.tally.clone() }
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub async fn page(&mut self, path: &str) -> Result<String> {
        Ok(self.ask(Method::GET, path, &[], Bytes::new(), &[200]).await?.text())
    }

    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)], expected: &[u16]) -> Result<Answer> {
        let (kind, body) = form(fields);
        self.ask(Method::POST, path, &[kind], body, expected).await
    }

    pub async fn json(&mut self, path: &str) -> Result<Value> {
        let answer = self.ask(Method::GET, path, &[], Bytes::new(), &[200]).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Fails on any other status and on a page that tells of an error.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        expected: &[u16],
    ) -> Result<Answer> {
        let what = format!("{} {method} {path}", self.site);
        let begun = Instant::now();
        self.tally.asks();
        let answer = self.browser.send(method, path, headers, body).await;
        self.judge(what, answer, begun.elapsed(), expected)
    }

    pub async fn upload(
        &mut self,
        path: &str,
        fields: &[(&str, &str)],
        file: (&str, &str, &str, &[u8]),
    ) -> Result<Answer> {
        let what = format!("{} POST {path}", self.site);
        let begun = Instant::now();
        self.tally.asks();
        let answer = self.browser.post_file(path, fields, file).await;
        self.judge(what, answer, begun.elapsed(), &[200])
    }

    fn judge(
        &self,
        what: String,
        answer: Result<Answer>,
        wait: Duration,
        expected: &[u16],
    ) -> Result<Answer> {
        self.tally.asked(&what, wait);
        let why = match &answer {
            Ok(answer) => error_in(answer, expected),
            Err(error) => Some(format!("{error:#}")),
        };
        match (answer, why) {
            (Ok(answer), None) => Ok(answer),
            (_, why) => {
                let why = why.unwrap_or_default();
                self.tally.error_page(&format!("{what}: {why}"), wait);
                Err(ErrorPage { what, why }.into())
            }
        }
    }
}

/// What makes of an answer an error page, if anything.
fn error_in(answer: &Answer, expected: &[u16]) -> Option<String> {
    let text = answer.text();
    let said = ERRORS.iter().find_map(|error| {
        let rest = &text[text.find(error)?..];
        Some(visible(rest.split_at_checked(600).map_or(rest, |(begin, _)| begin)))
    });
    let is_other = !expected.contains(&answer.status);
    let status = || format!("status {} {}", answer.status, visible(&text));
    said.or_else(|| is_other.then(status))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;

    fn answer(status: u16, text: &'static str) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn a_page_that_tells_of_an_error_is_one_whatever_its_status() {
        let shown = answer(200, "<p>MediaWiki internal error.</p><p>[x] Exception caught</p>");
        assert_eq!(
            error_in(&shown, &[200]).as_deref(),
            Some("MediaWiki internal error.[x] Exception caught")
        );
        assert_eq!(error_in(&answer(503, "busy"), &[200]).as_deref(), Some("status 503 busy"));
        assert_eq!(error_in(&answer(302, ""), &[200, 302]), None);
    }
}
