//! Feeds one watch from whichever member answers, resuming after the last revision that was handed on.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::entry;
use super::members::{ANSWER_MAX, Members, OTHER_CLUSTER};
use crate::store::{Change, Revision};

/// A silent stream is asked for a sign of life this often.
const ASK: Duration = Duration::from_millis(500);
/// And given up after this: the member is frozen or its server lost.
const SILENT: Duration = Duration::from_millis(1_500);
/// Before a cut stream is opened again.
const PAUSE: Duration = Duration::from_millis(50);

enum End {
    /// The changes after the last one handed on cannot be had.
    Compacted,
    /// Nobody listens any more.
    Dropped,
    Cut(String),
}

pub(super) async fn feed(
    members: Arc<Members>,
    prefix: String,
    from: Revision,
    batches: mpsc::Sender<Vec<Change>>,
) {
    let mut seen = from;
    loop {
        let (index, client) = members.current();
        match follow(&members, client, &prefix, &mut seen, &batches).await {
            End::Compacted | End::Dropped => return,
            End::Cut(why) => members.leave(index, &why),
        }
        sleep(PAUSE).await;
    }
}

async fn follow(
    members: &Members,
    client: Client,
    prefix: &str,
    seen: &mut Revision,
    batches: &mpsc::Sender<Vec<Change>>,
) -> End {
    let Ok(start) = i64::try_from(*seen + 1) else { return End::Compacted };
    let mut client = client.watch_client().max_decoding_message_size(ANSWER_MAX);
    let options = WatchOptions::new().with_prefix().with_start_revision(start);
    let mut stream = match timeout(SILENT, client.watch(prefix, Some(options))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return End::Cut(error.to_string()),
        Err(_) => return End::Cut("no watch opened".to_owned()),
    };
    loop {
        let message = match next(&mut stream).await {
            Ok(message) => message,
            Err(why) => return End::Cut(why),
        };
        if !members.are_of(message.header()) {
            return End::Cut(OTHER_CLUSTER.to_owned());
        }
        if message.compact_revision() > 0 {
            return End::Compacted;
        }
        if message.canceled() {
            return End::Cut(message.cancel_reason().to_owned());
        }
        let changes = match changes(&message) {
            Ok(changes) => changes,
            Err(why) => return End::Cut(why),
        };
        // A message holds whole commits: without fragments, etcd splits between revisions only.
        let Some(last) = changes.last().map(Change::revision) else { continue };
        if batches.send(changes).await.is_err() {
            return End::Dropped;
        }
        *seen = last;
    }
}

/// The next message, also one that only says that the member lives.
async fn next(stream: &mut WatchStream) -> Result<WatchResponse, String> {
    let asked_since = Instant::now();
    loop {
        match timeout(ASK, stream.message()).await {
            Ok(Ok(Some(message))) => return Ok(message),
            Ok(Ok(None)) => return Err("closed".to_owned()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) if asked_since.elapsed() >= SILENT => return Err("silent".to_owned()),
            Err(_) => stream.request_progress().await.map_err(|error| error.to_string())?,
        }
    }
}

fn changes(message: &WatchResponse) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    for event in message.events() {
        let found = event.kv().ok_or("an event without a key")?;
        let entry = entry(found).map_err(|error| error.to_string())?;
        changes.push(match event.event_type() {
            EventType::Put => Change::Put(entry),
            EventType::Delete => Change::Deleted { key: entry.key, revision: entry.revision },
        });
    }
    Ok(changes)
}
