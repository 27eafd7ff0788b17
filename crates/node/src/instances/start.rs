//! Brings one attempt of an instance up and stays with it to its end: network, container, probe, watch. A task
//! of its own; `Instances` starts it and hears its words.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kopek_instance::{InstanceSpec, Running};
use tracing::warn;

use super::word::{Happening, Speaker};

/// Apache and nginx listen there in every image.
pub(super) const HTTP_PORT: u16 = 80;
/// From start to the first answer. Starting takes a tenth of a second; a machine that boots with a hundred
/// instances at once is slower.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Network, container, probe; then waits for its end.
pub(super) async fn bring_up(speaker: Speaker, spec: InstanceSpec, launcher: PathBuf) {
    let connecting = spec.clone();
    let connected = blocking(move || {
        std::fs::create_dir_all(&connecting.sql_socket_dir).map_err(|error| error.to_string())?;
        if let Some(folder) = connecting.log.parent() {
            std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        }
        kopek_instance::connect(&connecting).map_err(|error| error.to_string())
    });
    if let Err(why) = connected.await {
        return speaker.tell(Happening::Failed(why)).await;
    }
    speaker.tell(Happening::Connected).await;
    let starting = spec.clone();
    let started =
        blocking(move || kopek_instance::start(&starting, &launcher).map_err(|error| error.to_string()));
    match started.await {
        Err(why) => speaker.tell(Happening::Failed(why)).await,
        Ok(running) => {
            speaker.tell(Happening::Started(running.clone())).await;
            prove_and_watch(speaker, spec, running).await;
        }
    }
}

pub(super) async fn prove_and_watch(speaker: Speaker, spec: InstanceSpec, running: Running) {
    let address = SocketAddr::new(IpAddr::V4(spec.address), HTTP_PORT);
    tokio::select! {
        probed = kopek_instance::probe(address, PROBE_LIMIT) => {
            if let Err(error) = probed {
                return speaker.tell(Happening::Failed(error.to_string())).await;
            }
        }
        _ = kopek_instance::watch(&running) => {
            let why = format!("it ended before it answered; see {}", spec.log.display());
            return speaker.tell(Happening::Failed(why)).await;
        }
    }
    speaker.tell(Happening::Serving).await;
    watch_to_the_end(speaker, running).await;
}

pub(super) async fn watch_to_the_end(speaker: Speaker, running: Running) {
    if let Err(error) = kopek_instance::watch(&running).await {
        warn!(instance = %speaker.id, %error, "cannot be watched; taken for ended");
    }
    speaker.tell(Happening::Ended).await;
}

/// In the instance's folder once it has answered its probe.
pub(super) fn served_mark(spec: &InstanceSpec) -> PathBuf {
    spec.dir.join("served")
}

pub(super) fn has_served(spec: &InstanceSpec) -> bool {
    served_mark(spec).exists()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}
