//! Racks live side by side, and leave nothing behind.

use kopek_tests::rack::Rack;
use kopek_tests::traces::Traces;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[tokio::test(flavor = "current_thread")]
async fn two_racks_do_not_meet_and_leave_nothing_even_after_a_kill_of_everything() {
    let mut one = Rack::up(1).await.unwrap();
    let mut other = Rack::up(1).await.unwrap();
    let (first, second) = (Traces::of(&one).await.unwrap(), Traces::of(&other).await.unwrap());
    assert_ne!(one.status().await.unwrap().vips, other.status().await.unwrap().vips);

    for pid in first.processes() {
        // Some end because others did.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    one.down().await.unwrap();
    first.gone().unwrap();

    other.whole().await.unwrap();
    other.down().await.unwrap();
    second.gone().unwrap();
}
