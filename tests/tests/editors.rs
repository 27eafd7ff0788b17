//! The short run of the editors: each installer loses its writer once, then editing loses it some more times. `make
//! chaos-editors` goes on for an hour.

use kopek_tests::editors::hour::{self, Length};
use kopek_tests::rack::Rack;

const FAULTS: usize = 2;
const SEED: u64 = 5;
/// With two, what one commits in the time of a failover makes the other one's repeated transaction a deadlock.
const EDITORS: usize = 1;
/// Also the site's own jobs behind its answers are others: MediaWiki shows a page where MySQL tells of a deadlock.
const DEADLOCK: &str = "Error 1213";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_editor_of_a_blog_or_a_wiki_sees_an_error_while_writers_are_killed() {
    let rack = Rack::up(3).await.unwrap();
    let seen = hour::run(&rack, SEED, EDITORS, Length::Faults(FAULTS)).await.unwrap();
    let deadlocks = seen.unseen.iter().filter(|told| told.contains(DEADLOCK)).count();
    assert!(seen.error_pages.len() <= deadlocks, "{:#?}", seen.error_pages);
    assert!(seen.untrue.is_empty(), "{:#?}", seen.untrue);
    assert!(seen.edits > 20, "only {} edits were made", seen.edits);
}
