//! Steering the services of a running server from outside, as `systemctl` does on a real one.

use std::collections::BTreeMap;
use std::time::Duration;

use kopek_core::ServerId;

use crate::error::RackError;
use crate::init::{self, Answer, Order, ServiceOrder, ServicePhase, ServiceStatus};
use crate::rack::Rack;
use crate::record::{Lock, Service};
use crate::wait::until;

/// A stop ends in a KILL after ten seconds.
const SERVICE_WAIT: Duration = Duration::from_secs(20);

impl Service {
    /// The running binary with `arguments`.
    pub fn of_program(name: &str, arguments: &[&str]) -> Service {
        let program = std::env::current_exe().unwrap_or_else(|_| "kopek".into());
        let words = arguments.iter().map(|&word| word.to_owned());
        let argv = std::iter::once(program.to_string_lossy().into_owned()).chain(words).collect();
        Service { name: name.to_owned(), argv, env: BTreeMap::new() }
    }
}

impl Rack {
    /// What a running server's init says of its services.
    pub fn services(&self, server: &ServerId) -> Result<Vec<ServiceStatus>, RackError> {
        match self.ask_init(server, &Order::List)? {
            Answer::Services { services } => Ok(services),
            other => Err(silent(server, format!("{other:?}"))),
        }
    }

    /// Starts, stops or restarts a service, and returns once that is so. A service that dies at once, or cannot be
    /// started, is `waiting`.
    pub fn service(
        &self,
        server: &ServerId,
        service: &str,
        order: ServiceOrder,
    ) -> Result<ServiceStatus, RackError> {
        let _lock = Lock::take(&self.names.dir)?;
        match self.ask_init(server, &Order::Service { service: service.to_owned(), order })? {
            Answer::Services { .. } => {}
            Answer::Failed { why } => return Err(silent(server, why)),
            Answer::NoSuchService => {
                let known: Vec<String> = self.record()?.services.into_iter().map(|s| s.name).collect();
                let (server, service) = (server.clone(), service.to_owned());
                return Err(RackError::UnknownService { server, service, known: known.join(", ") });
            }
        }
        let mut seen = self.status_of(server, service)?;
        let settled = until(SERVICE_WAIT, || {
            if let Ok(status) = self.status_of(server, service) {
                seen = status;
            }
            match order {
                ServiceOrder::Stop => seen.phase == ServicePhase::Off,
                ServiceOrder::Start | ServiceOrder::Restart => seen.phase != ServicePhase::Stopping,
            }
        });
        if settled { Ok(seen) } else { Err(silent(server, format!("{service} is still {:?}", seen.phase))) }
    }

    fn status_of(&self, server: &ServerId, service: &str) -> Result<ServiceStatus, RackError> {
        let found = self.services(server)?.into_iter().find(|status| status.name == service);
        found.ok_or_else(|| silent(server, format!("it forgot {service}")))
    }

    fn ask_init(&self, server: &ServerId, order: &Order) -> Result<Answer, RackError> {
        let init = self.running_init(server)?;
        init::ask(init.pid, order).map_err(|e| silent(server, e.to_string()))
    }
}

fn silent(server: &ServerId, why: String) -> RackError {
    RackError::InitSilent { server: server.clone(), why }
}
