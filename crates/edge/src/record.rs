//! What is remembered of one request for the access log and the counters.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use hyper::body::{Body, Incoming};
use hyper::header::{HeaderValue, REFERER, USER_AGENT};
use hyper::{Method, Request, Response, Uri, Version};

use crate::access_log::Entry;
use crate::body::Answer;
use crate::table::{Counters, SiteRoute};
use crate::worker::Worker;

/// Logged for a client that left before it was answered; nginx's number, which log readers know.
const CLIENT_LEFT: u16 = 499;

/// One request. Dropped when the request has ended, however it did.
pub struct Record {
    pub worker: Rc<Worker>,
    site: Arc<SiteRoute>,
    client: IpAddr,
    at: SystemTime,
    method: Method,
    target: Uri,
    version: Version,
    referer: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    pub status: u16,
    pub bytes: u64,
}

impl Record {
    pub fn begin(
        worker: &Rc<Worker>,
        site: &Arc<SiteRoute>,
        client: IpAddr,
        request: &Request<Incoming>,
    ) -> Record {
        Counters::add(&site.counters.requests);
        Counters::add(&site.counters.in_flight);
        Record {
            worker: worker.clone(),
            site: site.clone(),
            client,
            at: SystemTime::now(),
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            referer: request.headers().get(REFERER).cloned(),
            agent: request.headers().get(USER_AGENT).cloned(),
            status: CLIENT_LEFT,
            bytes: 0,
        }
    }

    /// The request ends with a page of ours.
    pub fn page(mut self, page: Response<Answer>) -> Response<Answer> {
        self.status = page.status().as_u16();
        self.bytes = page.body().size_hint().exact().unwrap_or(0);
        if page.status().is_server_error() {
            Counters::add(&self.site.counters.errors);
        }
        page
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.site.counters.in_flight.fetch_sub(1, Relaxed);
        self.worker.lines.add(
            &self.site.site,
            &Entry {
                client: self.client,
                at: self.at,
                method: &self.method,
                target: &self.target,
                version: self.version,
                status: self.status,
                bytes: self.bytes,
                referer: self.referer.as_ref(),
                agent: self.agent.as_ref(),
            },
        );
    }
}
