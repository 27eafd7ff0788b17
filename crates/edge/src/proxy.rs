//! The way of one request through the edge, from its header to the last byte of the response.
//!
//! ```text
//! host known? → read a small body → pick an instance ⇄ hold → send → relay the response → log
//!                                        ▲                     │ failed, and may be sent again
//!                                        └─────────────────────┘
//! ```

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use kopek_core::InstanceId;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

use crate::body::{Answer, BodyError, Intake, Outgoing};
use crate::clock::Uptime;
use crate::hold::Seat;
use crate::host::{Host, host_of};
use crate::pick::{self, Candidate, pick};
use crate::record::Record;
use crate::relayed::{InFlight, Relayed};
use crate::retry::{Next, Reached, Retries};
use crate::table::{BackendRoute, Counters, SiteRoute};
use crate::upstream::{Lease, OpenError, Upstream, Want, mark_failed};
use crate::worker::{Routed, Worker};
use crate::{forward, page, upgrade};

pub async fn answer(worker: Rc<Worker>, client: IpAddr, mut request: Request<Incoming>) -> Response<Answer> {
    if request.method() == Method::CONNECT {
        return page::not_allowed();
    }
    let host = match host_of(&request) {
        Ok(host) => host,
        Err(why) => return page::bad_request(&why.to_string()),
    };
    let site = match worker.site(&host.name) {
        Routed::Site(site) => site,
        Routed::Unknown => return page::unknown_host(&host.name),
        Routed::NothingYet => return page::unavailable(),
    };
    let record = Record::begin(&worker, &site, client, &request);
    let is_http_11 = request.version() == Version::HTTP_11;
    let protocol = forward::wanted_upgrade(request.headers()).filter(|_| is_http_11);
    let switch = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = match Intake::read(body, worker.limits.replay, worker.limits.client_stall).await {
        Ok(body) => body,
        Err(BodyError::Stalled) => return record.page(page::too_slow()),
        Err(BodyError::Broken(_)) => {
            return record.page(page::bad_request("The request's body is malformed."));
        }
    };
    let cookies = head.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let sticky = pick::sticky_of(cookies).map(str::to_owned);
    let visit = Visit {
        retries: Retries::new(&head.method, matches!(body, Intake::Whole(_))),
        headers: forward::to_instance(head.headers, client, &host.header, protocol.as_ref()),
        method: head.method,
        target: head.uri,
        worker,
        record,
        host,
        protocol,
        switch,
        body: Some(body),
        sticky,
        tried: Vec::new(),
        wants_new: false,
        seat: None,
        hold_until: None,
    };
    visit.answer().await
}

/// One request under way.
struct Visit {
    worker: Rc<Worker>,
    record: Record,
    host: Host,
    method: Method,
    target: Uri,
    /// As the instance gets them.
    headers: HeaderMap,
    protocol: Option<HeaderValue>,
    switch: Option<OnUpgrade>,
    /// None while a large one is on its way.
    body: Option<Intake>,
    sticky: Option<String>,
    retries: Retries,
    tried: Vec<InstanceId>,
    /// The last attempt met a connection that the instance had just closed.
    wants_new: bool,
    seat: Option<Seat>,
    hold_until: Option<Instant>,
}

/// Why an attempt gave no response.
enum Failure {
    May(Reached),
    TooSlow,
    ClientStalled,
}

/// An instance's response, and what goes on until its last byte.
struct Reply {
    response: Response<Incoming>,
    lease: Lease,
    in_flight: InFlight,
}

impl Visit {
    async fn answer(mut self) -> Response<Answer> {
        loop {
            let site = match self.worker.site(&self.host.name) {
                Routed::Site(site) => site,
                Routed::Unknown => return self.record.page(page::unknown_host(&self.host.name)),
                Routed::NothingYet => return self.record.page(page::unavailable()),
            };
            let Some(route) = self.pick(&site) else {
                match self.hold(&site).await {
                    Some(()) => continue,
                    None => return self.record.page(page::unavailable()),
                }
            };
            let failure = match self.attempt(&site, &route).await {
                Ok(reply) => return self.relay(&site, route, reply),
                Err(failure) => failure,
            };
            match failure {
                Failure::TooSlow => return self.record.page(page::no_answer()),
                Failure::ClientStalled => return self.record.page(page::too_slow()),
                Failure::May(reached) => match self.retries.after(reached) {
                    Next::GiveUp => return self.record.page(page::broken()),
                    Next::Again => Counters::add(&site.counters.retried),
                },
            }
        }
    }

    fn pick(&self, site: &SiteRoute) -> Option<Arc<BackendRoute>> {
        let now = Uptime::now();
        if let [only] = site.backends.as_slice() {
            return only.health.is_usable(now).then(|| only.clone());
        }
        let candidates: Vec<Candidate<'_>> = site
            .backends
            .iter()
            .map(|route| Candidate {
                instance: &route.instance,
                intake: route.intake,
                in_flight: route.health.in_flight(),
                usable: route.health.is_usable(now),
                tried: self.tried.contains(&route.instance),
            })
            .collect();
        let index = pick(&candidates, self.sticky.as_deref(), self.worker.turn())?;
        Some(site.backends[index].clone())
    }

    /// Waits for a reason to look again; None when there is no room or no time left.
    async fn hold(&mut self, site: &SiteRoute) -> Option<()> {
        if self.seat.is_none() {
            let bytes = match &self.body {
                Some(Intake::Whole(bytes)) => bytes.len(),
                // What was read to see that it is large.
                _ => self.worker.limits.replay,
            };
            self.seat = Some(site.room.enter(&self.worker.memory, bytes)?);
        }
        if self.hold_until.is_none() {
            Counters::add(&site.counters.held);
        }
        let end = *self.hold_until.get_or_insert_with(|| Instant::now() + self.worker.limits.hold);
        if Instant::now() >= end {
            return None;
        }
        let now = Uptime::now();
        let usable_again = site.backends.iter().map(|route| now.until(route.health.usable_at())).min();
        let look = usable_again.map_or(end, |wait| end.min(Instant::now() + wait));
        tokio::select! {
            () = self.worker.changed.notified() => {}
            () = site.room.recovered.notified() => {}
            () = sleep_until(look) => {}
        }
        Some(())
    }

    async fn attempt(&mut self, site: &SiteRoute, route: &BackendRoute) -> Result<Reply, Failure> {
        let in_flight = InFlight::begin(route);
        let upstream = self.worker.upstreams.of(route);
        let mut lease = self.lease(&upstream, route).await.map_err(|()| Failure::May(Reached::Nothing))?;
        self.seat = None;
        let request = self.request();
        let waiting = upstream.wait();
        let is_new = !lease.is_reused;
        let sent = timeout(self.worker.limits.respond, lease.sender.try_send_request(request));
        let turn = self.worker.limits.turn;
        let sent = async {
            tokio::pin!(sent);
            if !is_new {
                return sent.await;
            }
            let mut patience = turn;
            // Asked for again and again: the turn may have gone to another that waits.
            loop {
                match timeout(patience, &mut sent).await {
                    Ok(outcome) => return outcome,
                    Err(_elapsed) => upstream.make_room(route),
                }
                patience *= 2;
            }
        };
        tokio::pin!(sent);
        let outcome = loop {
            let (left, silent) = (upstream.left.notified(), upstream.silent.notified());
            if !self.retries.is_repeatable() {
                break sent.await;
            }
            tokio::select! {
                biased;
                outcome = &mut sent => break outcome,
                () = left => return Err(Failure::May(Reached::Perhaps)),
                () = silent => {
                    if self.has_other(site, route) {
                        mark_failed(route, &"its gate is silent");
                        self.tried.push(route.instance.clone());
                        return Err(Failure::May(Reached::Perhaps));
                    }
                }
            }
        };
        drop(waiting);
        match outcome {
            Err(_elapsed) => Err(Failure::TooSlow),
            Ok(Ok(response)) => Ok(Reply { response, lease, in_flight }),
            Ok(Err(mut error)) => {
                let returned = error.take_message().map(Request::into_body);
                Err(self.broke(route, &lease, returned, &error.into_error()))
            }
        }
    }

    async fn lease(&mut self, upstream: &Rc<Upstream>, route: &BackendRoute) -> Result<Lease, ()> {
        let want = match (&self.body, self.wants_new) {
            (Some(Intake::Large(_)), _) => Want::Upload,
            (_, true) => Want::New,
            (_, false) => Want::Warm,
        };
        let left = upstream.left.notified();
        let opened: Result<Lease, OpenError> = tokio::select! {
            biased;
            opened = self.worker.upstreams.lease(upstream, route, want) => opened,
            () = left => return Err(()),
        };
        opened.map_err(|error| {
            mark_failed(route, &error);
            self.tried.push(route.instance.clone());
        })
    }

    fn request(&mut self) -> Request<Outgoing> {
        let body = match self.body.take().expect("a body that is on its way is not sent again") {
            Intake::Large(stream) => Outgoing::Large(Box::new(stream)),
            Intake::Whole(bytes) => {
                self.body = Some(Intake::Whole(bytes.clone()));
                Outgoing::Whole((!bytes.is_empty()).then_some(bytes))
            }
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = origin_form(&self.target);
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// The connection ended without a response. `returned`: nothing of the request was sent.
    fn broke(
        &mut self,
        route: &BackendRoute,
        lease: &Lease,
        returned: Option<Outgoing>,
        error: &hyper::Error,
    ) -> Failure {
        if is_stalled_client(error) {
            return Failure::ClientStalled;
        }
        self.wants_new = true;
        if !lease.is_reused && !lease.upstream.is_gone() {
            mark_failed(route, error);
            self.tried.push(route.instance.clone());
        }
        match returned {
            Some(Outgoing::Large(stream)) => self.body = Some(Intake::Large(*stream)),
            Some(Outgoing::Whole(_)) => {}
            None => return Failure::May(Reached::Perhaps),
        }
        Failure::May(Reached::Nothing)
    }

    fn has_other(&self, site: &SiteRoute, route: &BackendRoute) -> bool {
        let now = Uptime::now();
        site.backends.iter().any(|other| other.instance != route.instance && other.health.is_usable(now))
    }

    fn relay(mut self, site: &SiteRoute, route: Arc<BackendRoute>, reply: Reply) -> Response<Answer> {
        let Reply { response, lease, in_flight } = reply;
        if route.health.worked() {
            info!(instance = %route.instance, "instance answers again");
            site.room.recovered.notify_waiters();
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, &lease, in_flight);
        }
        self.record.status = response.status().as_u16();
        let (mut head, body) = response.into_parts();
        // After a large upload the connection's time limits are those of an upload.
        let lease = self.body.is_some().then_some(lease);
        let relayed = Relayed::new(body, &head.headers, lease, route.clone(), self.record, in_flight);
        forward::to_client(&mut head.headers, None);
        if site.backends.len() > 1 && self.sticky.as_deref() != Some(route.instance.as_str()) {
            head.headers.append(SET_COOKIE, sticky_cookie(&route.instance));
        }
        head.version = Version::HTTP_11;
        Response::from_parts(head, Answer::Relayed(Box::new(relayed)))
    }

    fn switch(
        mut self,
        mut response: Response<Incoming>,
        lease: &Lease,
        flight: InFlight,
    ) -> Response<Answer> {
        let (Some(client), Some(protocol)) = (self.switch.take(), self.protocol.as_ref()) else {
            return self.record.page(page::broken());
        };
        self.record.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        let instance = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        forward::to_client(&mut head.headers, Some(protocol));
        let record = self.record;
        lease.upstream.spawn(async move {
            upgrade::relay(client, instance, record).await;
            drop(flight);
        });
        Response::from_parts(head, Answer::Nothing)
    }
}

/// RFC 9112 section 3.2.1: a path and a query, whatever form the client used.
fn origin_form(target: &Uri) -> Uri {
    let path = target.path_and_query().cloned();
    path.map_or_else(|| Uri::from_static("/"), Uri::from)
}

fn is_stalled_client(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.downcast_ref::<BodyError>().is_some())
}

fn sticky_cookie(instance: &InstanceId) -> HeaderValue {
    HeaderValue::from_str(&format!("{}={instance}; Path=/; HttpOnly; SameSite=Lax", pick::COOKIE))
        .expect("an instance id has only letters, digits, - and a dot")
}
