//! One core's share of the instances: a single-threaded runtime with its own listeners, sessions and warm
//! backends. An instance has one worker: it has one core's worth of PHP, whose queries one core of ours carries.
//! Called by `run`.

use std::io;
use std::num::NonZero;
use std::thread::JoinHandle;

use kopek_core::ServerId;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tracing::error;

use crate::backend::Ways;
use crate::lease;
use crate::listen::{Share, keep_listeners};
use crate::manners::Manners;
use crate::session::{Bounds, Sites};
use crate::status::Question;
use crate::token::Slots;

/// Ends them when dropped.
pub(crate) struct Workers {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    /// For the status socket, one for each.
    pub(crate) questions: Vec<mpsc::Sender<Question>>,
}

/// More wait for their turn at the status socket.
const QUESTIONS_MAX: usize = 16;

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

pub(crate) fn start(ways: &Ways, server: &ServerId) -> io::Result<Workers> {
    let count = std::thread::available_parallelism().map_or(1, NonZero::get);
    let bounds = Bounds::default();
    let mut workers = Workers { stop: watch::Sender::new(false), threads: Vec::new(), questions: Vec::new() };
    for number in 0..count {
        let (ways, server, mut stop) = (ways.clone(), server.clone(), workers.stop.subscribe());
        let bounds = bounds.clone();
        let (ask, mut questions) = mpsc::channel::<Question>(QUESTIONS_MAX);
        workers.questions.push(ask);
        let thread = std::thread::Builder::new().name(format!("sql-{number}")).spawn(move || {
            let runtime: io::Result<LocalRuntime> =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return error!(%error, "a worker cannot begin"),
            };
            runtime.block_on(async {
                if number == 0 {
                    spawn_local(lease::keep(ways.clone()));
                }
                let sites = Sites::new(ways, Slots::new(server, number), bounds, Manners::OF_A_POOL);
                spawn_local(sites.warm.clone().sweep());
                spawn_local(sites.meters.clone().follow());
                let meters = sites.meters.clone();
                spawn_local(async move {
                    while let Some(Question { site, answer }) = questions.recv().await {
                        // Whoever asked may have given up.
                        let _ = answer.send(meters.told(site.as_ref()));
                    }
                });
                tokio::select! {
                    () = keep_listeners(sites, Share { number, of: count }) => error!("the agent's parts ended"),
                    _ = stop.wait_for(|stop| *stop) => {}
                }
            });
        })?;
        workers.threads.push(thread);
    }
    Ok(workers)
}
