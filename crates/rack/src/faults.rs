//! The ways in which a virtual server fails and comes back.
//!
//! ```text
//!               kill                 power_on
//!  running ──────────────▶ killed ─────────────▶ running
//!     │       power_off                 power_on
//!     ├──────────────────▶ powered-off ────────▶ running
//!     ├─ freeze ─▶ frozen ─ heal ─▶ running          (kill and power_off end a frozen server as well)
//!     └─ cut ────▶ cut ──── heal ─▶ running          (beside any other state; survives kill and power_on)
//! ```

use std::path::PathBuf;

use kopek_core::ServerId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::RackError;
use crate::network::{self, Cable};
use crate::rack::Rack;
use crate::record::{Lock, Power, Process, Record};
use crate::{STATE_DIR, cgroup, disk};

impl Rack {
    /// SIGKILL to every process of the server. Its network stays up, with every address it had: the kernel goes on
    /// answering pings, and refuses connections.
    pub fn kill(&self, server: &ServerId) -> Result<(), RackError> {
        self.end(server, Power::Killed)
    }

    /// A power cut: the file system is shut down mid-write, then everything is killed. What was not flushed to the
    /// disk (fsync) is lost. Nothing answers on its addresses until the next boot, and no peer is told.
    pub fn power_off(&self, server: &ServerId) -> Result<(), RackError> {
        self.end(server, Power::PoweredOff)
    }

    fn end(&self, server: &ServerId, how: Power) -> Result<(), RackError> {
        let _lock = Lock::take(self.dir())?;
        let mut record = self.record()?;
        let found = record.server(server)?;
        let state = self.state_of(found);
        let (Power::Running, Some(init)) = (state.power, found.init) else {
            return Err(RackError::WrongState { server: server.clone(), state, remedy: "power-on" });
        };
        if how == Power::PoweredOff {
            disk::cut_power(&PathBuf::from(format!("/proc/{}/root{STATE_DIR}", init.pid)))?;
            network::silence(&self.names, server)?;
        }
        // Noted before it is done: a `dev` command that is itself killed here leaves a server that can be booted.
        record.server_mut(server)?.power = how;
        record.write(&self.names)?;
        self.end_processes(server, Some(init))
    }

    /// Kills to the last process, and waits until its mounts, its disk and its cgroups are gone.
    pub(crate) fn end_processes(&self, server: &ServerId, init: Option<Process>) -> Result<(), RackError> {
        if let Some(init) = init.filter(Process::is_alive) {
            // Ends its whole pid namespace, also what may have left the cgroup.
            let _ = kill(Pid::from_raw(init.pid), Signal::SIGKILL);
        }
        self.group(server)?.kill()?;
        disk::wait_released(&self.names.image(server))?;
        cgroup::remove_everywhere(&self.names.server_cgroup(server))
    }

    /// Boots a killed or powered-off server: the file system replays its journal, and the services that were enabled
    /// are started again.
    pub fn power_on(&self, server: &ServerId) -> Result<(), RackError> {
        let _lock = Lock::take(self.dir())?;
        let mut record = self.record()?;
        let found = record.server(server)?;
        if self.state_of(found).power == Power::Running {
            return Err(RackError::AlreadyRunning { server: server.clone() });
        }
        // Of a server that somebody else's kill -9 ended, pieces may be left.
        self.end_processes(server, found.init)?;
        self.boot(&mut record, server)
    }

    /// SIGSTOP to every process of the server, at one moment. Its kernel goes on answering pings and accepting
    /// connections into listen queues, as that of a machine with hung programs does.
    pub fn freeze(&self, server: &ServerId) -> Result<(), RackError> {
        let _lock = Lock::take(self.dir())?;
        let record = self.record()?;
        self.need_power(&record, server)?;
        self.group(server)?.stop()
    }

    /// Pulls the server's cable out of the bridge: its `eth0` loses the carrier.
    pub fn cut(&self, server: &ServerId) -> Result<(), RackError> {
        let _lock = Lock::take(self.dir())?;
        let record = self.record()?;
        self.need_power(&record, server)?;
        network::pull(&self.names, server)
    }

    /// Undoes [`Rack::freeze`] and [`Rack::cut`], whichever was done.
    pub fn heal(&self, server: &ServerId) -> Result<(), RackError> {
        let _lock = Lock::take(self.dir())?;
        let record = self.record()?;
        let state = self.state_of(record.server(server)?);
        if network::cable(&self.names, server) == Cable::Pulled {
            network::plug(&self.names, server)?;
        }
        if state.power == Power::Running {
            self.group(server)?.resume();
        }
        Ok(())
    }

    fn need_power(&self, record: &Record, server: &ServerId) -> Result<(), RackError> {
        let state = self.state_of(record.server(server)?);
        if state.power == Power::Running {
            return Ok(());
        }
        Err(RackError::WrongState { server: server.clone(), state, remedy: "power-on" })
    }
}
