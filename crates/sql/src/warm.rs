//! Connections to writers that are logged in, clean and waiting: a site that connects for every page gets one
//! at once. A client's backend comes back here, is made as new, and serves the next client of the same shape.
//! One set for each worker, so nothing is locked. Called by `session`.
//!
//! Promise: what is taken was made as new after its last client, is connected to the site's writer of now as
//! far as this server knows, and has said nothing since.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::part::RoutedWriter;
use tokio::task::spawn_local;
use tokio::time::{Instant, interval, timeout};
use tracing::debug;

use crate::backend::{Backend, OpenError, Shape, Ways};
use crate::handshake::Facts;
use crate::packet::{command, command_packet};
use crate::writer::{account_of, is_same, writer_of};

/// Waiting at most, for each site and worker: as many as a busy web server's workers would take within one
/// page. Each costs the member a thread and about 100 KB.
pub(crate) const WARM_MAX: usize = 16;
/// Then it is closed, but for the last of a site: somebody who comes once a minute finds it warm.
const WAITS_AT_MOST: Duration = Duration::from_secs(60);
/// Of a packet of five bytes, which a member that is gone may not take.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
const SWEEP: Duration = Duration::from_secs(5);

pub(crate) struct Warm {
    ways: Ways,
    max: usize,
    sites: RefCell<BTreeMap<SiteName, Set>>,
}

#[derive(Default)]
struct Set {
    waiting: Vec<Waiting>,
    /// What the last client wanted: the next one probably wants the same.
    last_shape: Option<Shape>,
    /// Of the writer that was reached last.
    facts: Option<Rc<Facts>>,
    /// One more is being opened.
    opening: bool,
    /// Counts what a session cannot see that began before: other global variables, another password.
    generation: u64,
}

struct Waiting {
    backend: Backend,
    since: Instant,
}

/// What a client left behind decides how its backend becomes clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing that COM_RESET_CONNECTION does not undo.
    Usual,
    /// Another schema: only a new login undoes that.
    OtherSchema,
    /// Something that is not known to be undone by either.
    Unknown,
}

impl Warm {
    pub(crate) fn new(ways: Ways, max: usize) -> Rc<Warm> {
        Rc::new(Warm { ways, max, sites: RefCell::default() })
    }

    /// A client has changed what sessions find when they begin: those that wait are not as new any more.
    pub(crate) fn forget(&self, site: &SiteName) {
        if let Some(set) = self.sites.borrow_mut().get_mut(site) {
            set.generation += 1;
            set.waiting.drain(..).for_each(|waiting| part_with(waiting.backend));
        }
    }

    fn generation(&self, site: &SiteName) -> u64 {
        self.sites.borrow().get(site).map_or(0, |set| set.generation)
    }

    /// What members say of themselves, if one of the site was ever reached.
    pub(crate) fn facts(&self, site: &SiteName) -> Option<Rc<Facts>> {
        self.sites.borrow().get(site)?.facts.clone()
    }

    /// One that waits and is as the last client wanted it.
    pub(crate) fn take_likely(self: &Rc<Self>, site: &SiteName, writer: &RoutedWriter) -> Option<Backend> {
        let shape = self.sites.borrow().get(site)?.last_shape.clone()?;
        let backend = self.take_waiting(site, writer, &shape)?;
        self.refill(site, &shape);
        Some(backend)
    }

    /// A clean backend, warm or newly opened.
    pub(crate) async fn take(
        self: &Rc<Self>,
        site: &SiteName,
        writer: &RoutedWriter,
        shape: &Shape,
    ) -> Result<Backend, OpenError> {
        if let Some(backend) = self.take_waiting(site, writer, shape) {
            self.refill(site, shape);
            return Ok(backend);
        }
        let account = account_of(&self.ways.part.borrow(), site).cloned();
        let account =
            account.ok_or_else(|| OpenError::Unreachable(format!("site {site} has no database")))?;
        let backend = Backend::open(&self.ways, site, writer, &account, shape).await?;
        let mut sites = self.sites.borrow_mut();
        let set = sites.entry(site.clone()).or_default();
        set.facts = Some(backend.facts.clone());
        set.last_shape = Some(shape.clone());
        Ok(backend)
    }

    fn take_waiting(&self, site: &SiteName, writer: &RoutedWriter, shape: &Shape) -> Option<Backend> {
        let mut sites = self.sites.borrow_mut();
        let set = sites.get_mut(site)?;
        set.waiting.retain(|waiting| is_same(&waiting.backend.writer, writer));
        // The one that came back last: the others may grow old.
        while let Some(at) = set.waiting.iter().rposition(|waiting| waiting.backend.shape == *shape) {
            let mut backend = set.waiting.remove(at).backend;
            if backend.wire.is_quiet() {
                set.last_shape = Some(shape.clone());
                return Some(backend);
            }
        }
        None
    }

    /// Makes sure that another one waits, in the background.
    fn refill(self: &Rc<Self>, site: &SiteName, shape: &Shape) {
        {
            let mut sites = self.sites.borrow_mut();
            let set = sites.entry(site.clone()).or_default();
            if self.max == 0
                || set.opening
                || set.waiting.iter().any(|waiting| waiting.backend.shape == *shape)
            {
                return;
            }
            set.opening = true;
        }
        let (warm, site, shape) = (self.clone(), site.clone(), shape.clone());
        spawn_local(async move {
            let known = {
                let part = warm.ways.part.borrow();
                writer_of(&part, &site).cloned().zip(account_of(&part, &site).cloned())
            };
            let generation = warm.generation(&site);
            let opened = match &known {
                Some((writer, account)) => {
                    Backend::open(&warm.ways, &site, writer, account, &shape).await.ok()
                }
                None => None,
            };
            if let Some(set) = warm.sites.borrow_mut().get_mut(&site) {
                set.opening = false;
            }
            if let Some(mut backend) = opened {
                backend.generation = generation;
                warm.keep(&site, backend);
            }
        });
    }

    /// Takes a client's backend back. It is cleaned in the background, while nobody waits for it.
    pub(crate) fn give_back(self: &Rc<Self>, site: &SiteName, mut backend: Backend, left: Left) {
        let (warm, site) = (self.clone(), site.clone());
        if !self.is_current(&site, &backend) || left == Left::Unknown || self.max == 0 {
            return part_with(backend);
        }
        spawn_local(async move {
            backend.generation = warm.generation(&site);
            let cleaned = match left {
                Left::Usual => backend.reset().await,
                _ => {
                    let account = account_of(&warm.ways.part.borrow(), &site).cloned();
                    let Some(account) = account else { return };
                    let shape = backend.shape.clone();
                    backend.change_user(&account, &shape).await
                }
            };
            match cleaned {
                Ok(()) => warm.keep(&site, backend),
                Err(error) => debug!(%site, %error, "a backend could not be made as new"),
            }
        });
    }

    fn is_current(&self, site: &SiteName, backend: &Backend) -> bool {
        let part = self.ways.part.borrow();
        writer_of(&part, site).is_some_and(|writer| is_same(writer, &backend.writer))
    }

    /// Lets a clean backend wait for the next client.
    pub(crate) fn keep(&self, site: &SiteName, backend: Backend) {
        if !self.is_current(site, &backend) {
            return part_with(backend);
        }
        let mut sites = self.sites.borrow_mut();
        let set = sites.entry(site.clone()).or_default();
        set.facts = Some(backend.facts.clone());
        if set.waiting.len() < self.max && set.generation == backend.generation {
            set.waiting.push(Waiting { backend, since: Instant::now() });
        } else {
            part_with(backend);
        }
    }

    /// Closes what nobody needs any more: of other writers at once, as soon as the agent names another. For ever.
    pub(crate) async fn sweep(self: Rc<Self>) {
        let mut ticks = interval(SWEEP);
        let mut part = self.ways.part.clone();
        let mut closings = self.ways.fences.closings();
        loop {
            tokio::select! {
                _ = ticks.tick() => (),
                () = crate::writer::news(&mut part) => (),
                _ = closings.changed() => (),
            }
            let part = part.borrow_and_update();
            let mut sites = self.sites.borrow_mut();
            sites.retain(|site, _| part.as_ref().is_none_or(|part| part.sites.contains_key(site)));
            for (site, set) in sites.iter_mut() {
                let writer = writer_of(&part, site);
                set.waiting.retain_mut(|waiting| {
                    writer.is_some_and(|writer| is_same(writer, &waiting.backend.writer))
                        && !waiting.backend.is_closed()
                        && waiting.backend.wire.is_quiet()
                });
                let last = set.waiting.last().map(|waiting| waiting.since);
                let is_old = |waiting: &mut Waiting| {
                    waiting.since.elapsed() >= WAITS_AT_MOST && Some(waiting.since) != last
                };
                set.waiting.extract_if(.., is_old).for_each(|waiting| part_with(waiting.backend));
            }
        }
    }
}

/// Says goodbye, in the background: a connection that only ends is an aborted one to the member, which counts it
/// and writes a warning to its log.
pub(crate) fn part_with(mut backend: Backend) {
    spawn_local(async move {
        let goodbye = command_packet(command::QUIT, b"");
        let _ = timeout(GOODBYE_LIMIT, backend.wire.send(&goodbye)).await;
    });
}
