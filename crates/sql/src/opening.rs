//! The first use of a writer in a new epoch. Promise: before any statement of a site reaches its new writer,
//! the former one has closed the site (or is known to be dead), and the new one has applied all that the
//! former had committed. So no client ever sees older state than it has seen. Called by `session`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use kopek_core::SiteName;
use kopek_core::part::{FormerWriter, RoutedWriter};
use kopek_link::{Preamble, dial_stream};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tracing::debug;

use crate::backend::{Shape, Ways};
use crate::warm::{Left, Warm};

/// The former writer's `sql` lets transactions end for a moment and then cuts them.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Waits in the member for the write-sets that it has received and not applied yet.
pub(crate) const CATCH_UP: &str = "SET STATEMENT wsrep_sync_wait=1 FOR SELECT 1";

pub(crate) struct Openings {
    ways: Ways,
    warm: Rc<Warm>,
    /// The newest one of each site.
    epochs: RefCell<BTreeMap<SiteName, Epoch>>,
}

/// An epoch, and whether it is open.
type Epoch = (u64, Rc<OnceCell<()>>);

impl Openings {
    pub(crate) fn new(ways: Ways, warm: Rc<Warm>) -> Openings {
        Openings { ways, warm, epochs: RefCell::default() }
    }

    pub(crate) fn is_open(&self, site: &SiteName, writer: &RoutedWriter) -> bool {
        let epochs = self.epochs.borrow();
        epochs.get(site).is_some_and(|(epoch, opening)| *epoch == writer.epoch && opening.initialized())
    }

    /// Ends when the writer may be used; whoever comes meanwhile waits for the same opening.
    pub(crate) async fn open(
        &self,
        site: &SiteName,
        writer: &RoutedWriter,
        shape: &Shape,
    ) -> Result<(), String> {
        let opening = {
            let mut epochs = self.epochs.borrow_mut();
            let known = epochs.entry(site.clone()).or_insert_with(|| (writer.epoch, Rc::default()));
            if known.0 != writer.epoch {
                *known = (writer.epoch, Rc::default());
            }
            known.1.clone()
        };
        if opening.initialized() {
            return Ok(());
        }
        opening
            .get_or_try_init(|| async {
                if let Some(former) = &writer.former {
                    self.close(site, former).await?;
                }
                self.catch_up(site, writer, shape).await
            })
            .await?;
        Ok(())
    }

    async fn close(&self, site: &SiteName, former: &FormerWriter) -> Result<(), String> {
        let is_here = self.ways.part.borrow().as_ref().is_some_and(|part| part.server == former.server);
        debug!(%site, server = %former.server, epoch = former.epoch, "asking the former writer to close");
        if is_here {
            let closing = self.ways.fences.close(site, former.epoch);
            return timeout(CLOSE_LIMIT, closing)
                .await
                .map_err(|_| format!("connections of epoch {} do not end", former.epoch));
        }
        let want = Preamble::SqlClose { site: site.clone(), epoch: former.epoch };
        match dial_stream(&self.ways.identity, former.relay, &want, CLOSE_LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the former writer has not closed: {error}")),
        }
    }

    async fn catch_up(&self, site: &SiteName, writer: &RoutedWriter, shape: &Shape) -> Result<(), String> {
        let mut backend = self.warm.take(site, writer, shape).await.map_err(|error| error.to_string())?;
        let said = backend.query(CATCH_UP).await.map_err(|error| error.to_string())?;
        match said.error {
            None => {
                self.warm.give_back(site, backend, Left::Usual);
                Ok(())
            }
            Some(code) => Err(format!("the new writer has not caught up (error {code})")),
        }
    }
}
