//! What the tasks that work for an instance tell the agent's loop, each with the number of the attempt it
//! belongs to, so that a late word about an earlier run changes nothing.

use kopek_core::InstanceId;
use kopek_instance::Running;
use tokio::sync::mpsc;

/// Words that wait for the agent's loop: several for each of a few hundred instances.
pub(super) const WORDS_MAX: usize = 1_024;

/// What came of a step.
pub(super) enum Happening {
    /// Its network is there: `sql` can listen in it.
    Connected,
    Started(Running),
    Serving,
    /// It did not start, or did not answer its probe.
    Failed(String),
    /// Its first process ended.
    Ended,
    /// What it had is removed after a failure.
    Cleared(String),
    /// Stopped or cleaned: nothing is left of it.
    Gone,
}

pub struct Word {
    pub(super) id: InstanceId,
    pub(super) attempt: u64,
    pub(super) happening: Happening,
}

/// Speaks for one attempt of one instance.
#[derive(Clone)]
pub(super) struct Speaker {
    pub id: InstanceId,
    pub attempt: u64,
    pub words: mpsc::Sender<Word>,
}

impl Speaker {
    pub async fn tell(&self, happening: Happening) {
        // Fails only when the agent ends.
        let _ = self.words.send(self.word(happening)).await;
    }

    pub fn say(&self, happening: Happening) {
        let _ = self.words.blocking_send(self.word(happening));
    }

    fn word(&self, happening: Happening) -> Word {
        Word { id: self.id.clone(), attempt: self.attempt, happening }
    }
}
