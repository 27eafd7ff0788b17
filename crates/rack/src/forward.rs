//! The forwarder `kopek dev-forward LISTEN TO`: a loopback port of the machine that leads to a VIP, for a browser
//! that comes through ssh. Started by `dev up`, lives in the rack's cgroup, ended by `down`.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::cgroup::Group;
use crate::enter;
use crate::error::{Doing, RackError};
use crate::names::Names;
use crate::rack::Rack;
use crate::record::{ForwardRecord, Lock, Process};

/// More than one browser opens; one that leaks connections must not take every descriptor.
const CONNECTIONS_MAX: usize = 512;
/// A VIP that moves is back within a second; a visitor behind a dead one should get an error, not wait.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

impl Rack {
    /// Starts a forwarder from `listen` to `to`. It outlives the calling process.
    pub fn forward(&self, listen: SocketAddr, to: SocketAddr) -> Result<(), RackError> {
        let _lock = Lock::take(self.dir())?;
        let mut record = self.record()?;
        let listener = TcpListener::bind(listen).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => RackError::PortInUse { address: listen },
            _ => RackError::CannotListen { address: listen, source },
        })?;
        let group = group(&self.names)?;
        group.create()?;
        let mut command = Command::new(&record.program);
        command.args(["dev-forward", &listen.to_string(), &to.to_string()]);
        // It gets the listening socket as its standard input: the port is taken from this moment on.
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
        enter::join(&mut command, &group)?;
        let child = command.spawn().doing(|| format!("start {}", record.program.display()))?;
        let pid = i32::try_from(child.id()).expect("Linux pids fit 22 bits");
        let process = Process::of(pid).ok_or_else(|| RackError::Command {
            command: format!("{} dev-forward {listen} {to}", record.program.display()),
            output: "it ended at once".to_owned(),
        })?;
        record.forwards.retain(|forward| forward.process.is_alive());
        record.forwards.push(ForwardRecord { listen, to, process });
        record.write(&self.names)
    }
}

fn group(names: &Names) -> Result<Group, RackError> {
    Group::named(&format!("{}/forward", names.cgroup()))
}

/// The hidden subcommand `dev-forward LISTEN TO`; the listening socket is its standard input. Call it before any
/// thread is started.
pub fn forward_main(to: SocketAddr) -> ! {
    // Fails only for a process group's leader, which outlives its terminal all the same.
    let _ = nix::unistd::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| runtime.block_on(forward(to)));
    match result {
        Ok(()) => std::process::exit(0),
        Err(e) => {
            eprintln!("cannot forward to {to}: {e}; `kopek dev up` starts the forwarder");
            std::process::exit(1)
        }
    }
}

async fn forward(to: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of descriptors, or a client that is gone again.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(async move {
            let _place = place;
            let connecting = tokio::time::timeout(CONNECT_WAIT, tokio::net::TcpStream::connect(to)).await;
            if let Ok(Ok(mut server)) = connecting {
                // Ends with either side; both see it as their peer closing.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
