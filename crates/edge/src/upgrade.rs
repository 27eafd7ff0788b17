//! After `101 Switching Protocols`: bytes both ways until either side ends, as for WebSockets. The instance's
//! count of work in flight and the access log line wait for the end. Called by `proxy`.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tracing::debug;

use crate::record::Record;

pub async fn relay(client: OnUpgrade, instance: OnUpgrade, mut record: Record) {
    match tokio::try_join!(client, instance) {
        Ok((client, instance)) => record.bytes += join(client, instance).await,
        Err(error) => debug!(%error, "a change of protocol did not happen"),
    }
}

/// Gives the bytes that the client got.
async fn join(client: Upgraded, instance: Upgraded) -> u64 {
    let (mut client, mut instance) = (TokioIo::new(client), TokioIo::new(instance));
    match copy_bidirectional(&mut client, &mut instance).await {
        Ok((_, to_client)) => to_client,
        Err(error) => {
            debug!(%error, "an upgraded connection broke");
            0
        }
    }
}
