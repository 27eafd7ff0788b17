//! The demo story, as `make demo STORY=short` tells it: load, scale-out, a dead server, recovery, and nothing left.

use kopek_tests::rack::kopek_binary;
use kopek_tests::story::{Story, Teller};

#[tokio::test(flavor = "current_thread")]
async fn the_demo_story_comes_true() {
    let folder = tempfile::Builder::new().prefix("kopek-e2e-").tempdir_in("/var/tmp").unwrap();
    let teller = Teller {
        kopek: kopek_binary().unwrap(),
        dir: folder.path().join("rack"),
        listen: None,
        story: Story::Short,
    };
    teller.tell().await.unwrap();
}
