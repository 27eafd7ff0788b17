//! Whether a serving member is hung, told from one that is only slow: a query of nothing every 50 ms on a
//! connection of its own, and, while no answer comes, what the kernel says of the process. Silence alone proves
//! nothing on a loaded machine. Called by keep.rs, which kills a hung member, so that it serves nobody when it
//! thaws.
//!
//! ```text
//!             no answer for 50 ms              stopped for 3 looks, or
//!   Answers ─────────────────────► Doubted ─── not one thread ran for 1 s ──► hung
//!      ▲                              │
//!      └──────────────────────────────┘ answers
//! ```

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::client::{Client, ClientError};

/// The stall that people see is this, the looks below and the move of the writer: 0.5 s in all.
const EVERY: Duration = Duration::from_millis(50);
/// Nobody stops a process by accident; three looks, because whoever wakes a whole server (a debugger, a virtual
/// machine's host) may wake its agent a moment before its database.
const STOPPED_LOOKS: u32 = 3;
/// Looks between two counts of the threads' time. InnoDB's own threads wake every second, so one of two counts
/// over 1 s shows something for any process that is not frozen.
const FROZEN_LOOKS: u32 = 20;

/// Returns when the member is hung, and why it is called so.
pub async fn hung(pid: i32, socket: &Path) -> String {
    let mut client = None;
    let mut doubt = Doubt::default();
    loop {
        let asked = answered(&mut client, socket);
        tokio::pin!(asked);
        let answered = loop {
            tokio::select! {
                biased;
                answered = &mut asked => break answered,
                // The question stays: asking anew would only load a member that is slow.
                () = tokio::time::sleep(EVERY) => {
                    if let Some(why) = doubt.look(|| process(pid), || threads(pid)) {
                        return why;
                    }
                }
            }
        };
        if answered {
            doubt = Doubt::default();
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// An error is an answer; so is a closed socket, which one has that is being stopped.
async fn answered(client: &mut Option<Client>, socket: &Path) -> bool {
    let result = async {
        let mut at = match client.take() {
            Some(at) => at,
            None => Client::connect(socket).await?,
        };
        at.ping().await?;
        *client = Some(at);
        Ok(())
    };
    !matches!(result.await, Err(ClientError::Late { .. }))
}

#[derive(Debug, Default)]
struct Doubt {
    looks: u32,
    stopped: u32,
    /// At the last count.
    ran: Option<Threads>,
}

/// All threads of a process together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Threads {
    /// Nanoseconds on a processor.
    ran: u64,
    /// One waits for a processor: the machine is busy, the process is not to blame.
    starves: bool,
}

impl Doubt {
    /// Once in `EVERY` while no answer comes.
    fn look(
        &mut self,
        process: impl FnOnce() -> Option<char>,
        threads: impl FnOnce() -> Option<Threads>,
    ) -> Option<String> {
        self.looks += 1;
        // T: stopped by a signal. Not t, which is a debugger's: somebody looks at it.
        self.stopped = if process() == Some('T') { self.stopped + 1 } else { 0 };
        if self.stopped >= STOPPED_LOOKS {
            return Some("it is stopped by a signal".to_owned());
        }
        if !self.looks.is_multiple_of(FROZEN_LOOKS) {
            return None;
        }
        let now = threads()?;
        let before = self.ran.replace(now)?;
        let frozen = before.ran == now.ran && !before.starves && !now.starves;
        frozen.then(|| "it answers nobody, and not one of its threads ran for 1 s".to_owned())
    }
}

/// The state of a process, from /proc/PID/stat (proc(5), field 3).
fn process(pid: i32) -> Option<char> {
    state(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// From /proc/PID/task: `stat` as above, `schedstat` (Documentation/scheduler/sched-stats.rst): the first number
/// is the time on a processor in nanoseconds.
fn threads(pid: i32) -> Option<Threads> {
    let mut all = Threads { ran: 0, starves: false };
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        // A thread that ended meanwhile has run.
        let ran = text("schedstat").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        all.ran = all.ran.wrapping_add(ran.unwrap_or(1));
        all.starves |= text("stat").and_then(|text| state(&text)) == Some('R');
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The look, counted from 1, at which it is called hung.
    fn hung_after(looks: impl Iterator<Item = (char, u64, bool)>) -> Option<usize> {
        let mut doubt = Doubt::default();
        let looks = looks.map(|(state, ran, starves)| {
            doubt.look(|| Some(state), || Some(Threads { ran, starves })).is_some()
        });
        looks.collect::<Vec<_>>().into_iter().position(|hung| hung).map(|at| at + 1)
    }

    #[test]
    fn a_stopped_process_is_hung_at_the_third_look_and_one_that_was_woken_is_not() {
        assert_eq!(hung_after([('T', 0, false); 5].into_iter()), Some(3));
        let woken = ['T', 'T', 'S', 'T', 'T', 'S'].map(|state| (state, 0, false));
        assert_eq!(hung_after(woken.into_iter()), None);
        assert_eq!(hung_after([('t', 0, false); 19].into_iter()), None, "somebody debugs it");
    }

    #[test]
    fn a_frozen_process_is_hung_and_one_that_runs_or_waits_for_a_processor_is_slow() {
        assert_eq!(hung_after((0..100).map(|_| ('S', 7, false))), Some(40));
        assert_eq!(hung_after((0..100).map(|look| ('S', look, false))), None);
        assert_eq!(hung_after((0..100).map(|_| ('S', 7, true))), None);
    }

    #[test]
    fn the_kernel_tells_of_this_process_that_it_runs() {
        let me = std::process::id().cast_signed();
        assert!(matches!(process(me), Some('R' | 'S')));
        let before = threads(me).unwrap();
        assert!(before.starves, "the thread that asks is running");
        while threads(me).unwrap().ran == before.ran {}
        assert_eq!(state("7 (a) T) T 1 2"), Some('T'));
    }
}
