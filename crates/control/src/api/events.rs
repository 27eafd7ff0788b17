//! The cell's events, and those that came since: told apart by the store's revision, which only rises. Their
//! keys and times are those of the controllers' clocks, one of which may be slow.

use axum::Json;
use axum::extract::Query;
use kopek_core::api::EventsAfter;
use kopek_core::event::Event;
use kopek_core::keys;
use kopek_store::{Range, Revision};
use serde::Deserialize;

use super::{Acting, Refused};

#[derive(Deserialize)]
pub struct After {
    #[serde(default)]
    after: Revision,
}

pub async fn list(Acting(active): Acting, Query(after): Query<After>) -> Result<Json<EventsAfter>, Refused> {
    Ok(Json(events_after(active.store.range(keys::EVENTS).await?, after.after)))
}

/// In the order in which they were written.
fn events_after(range: Range, after: Revision) -> EventsAfter {
    let mut entries = range.entries;
    entries.retain(|entry| entry.revision > after);
    // The sort is stable: those of one commit stay in the order of their keys.
    entries.sort_by_key(|entry| entry.revision);
    let events: Vec<(String, Event)> = entries
        .into_iter()
        .filter_map(|entry| Some((entry.key, serde_json::from_slice(&entry.value).ok()?)))
        .collect();
    EventsAfter { events, after: range.revision }
}

#[cfg(test)]
mod tests {
    use kopek_core::Moment;
    use kopek_store::{Embedded, Store};

    use super::*;
    use crate::state::put;

    async fn happens(store: &Embedded, what: &str, at: u64) {
        let event = Event {
            at: Moment(at),
            subject: "s1".to_owned(),
            what: what.to_owned(),
            reason: "a test".to_owned(),
        };
        store.commit(vec![], vec![put(event.key(0), &event)]).await.unwrap();
    }

    async fn news(store: &Embedded, after: Revision) -> (Vec<String>, Revision) {
        let news = events_after(store.range(keys::EVENTS).await.unwrap(), after);
        (news.events.into_iter().map(|(_, event)| event.what).collect(), news.after)
    }

    #[tokio::test]
    async fn an_event_of_a_controller_with_a_slow_clock_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.redb")).unwrap();
        happens(&store, "first", 2_000).await;
        happens(&store, "second", 3_000).await;
        let (all, after) = news(&store, 0).await;
        assert_eq!(all, ["first", "second"]);
        assert_eq!(news(&store, after).await, (vec![], after));
        happens(&store, "by a slow clock", 1_000).await;
        happens(&store, "last", 4_000).await;
        let (new, after) = news(&store, after).await;
        assert_eq!(new, ["by a slow clock", "last"]);
        assert_eq!(news(&store, after).await.0, Vec::<String>::new());
        assert_eq!(news(&store, 0).await.0, ["first", "second", "by a slow clock", "last"]);
    }
}
