//! The short run of the editors: each installer loses its writer once, then editing loses it some more times. `make
//! chaos-editors` goes on for an hour.

use kopek_tests::editors::hour::{self, Length};
use kopek_tests::rack::Rack;

const FAULTS: usize = 2;
const SEED: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_editor_of_a_blog_or_a_wiki_sees_an_error_while_writers_are_killed() {
    let rack = Rack::up(3).await.unwrap();
    let seen = hour::run(&rack, SEED, Length::Faults(FAULTS)).await.unwrap();
    assert!(seen.error_pages.is_empty(), "{:#?}", seen.error_pages);
    assert!(seen.untrue.is_empty(), "{:#?}", seen.untrue);
    assert!(seen.edits > 20, "only {} edits were made", seen.edits);
}
