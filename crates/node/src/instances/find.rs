//! After a restart of the agent: which instances run already, and what others left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kopek_core::config::ServerConfig;
use kopek_instance::InstanceSpec;
use tokio::sync::mpsc;
use tracing::info;

use super::Instances;
use super::known::Known;
use super::start::{has_served, prove_and_watch, watch_to_the_end};
use super::word::{Happening, WORDS_MAX, Word};

impl Instances {
    /// Finds what runs already, after a restart of the agent.
    pub fn find(config: &ServerConfig, launcher: PathBuf) -> (Instances, mpsc::Receiver<Word>) {
        let (words, inbox) = mpsc::channel(WORDS_MAX);
        let mut instances = Instances {
            config: config.clone(),
            launcher,
            known: BTreeMap::new(),
            leftovers: BTreeSet::new(),
            attempts: 0,
            words,
        };
        for id in kopek_instance::leftovers(&instances.folder()) {
            let spec = InstanceSpec::read(&instances.dir(&id));
            match spec.and_then(|spec| Some((kopek_instance::adopt(&spec)?, spec))) {
                Some((running, spec)) => {
                    info!(instance = %id, pid = running.pid, "found running");
                    let attempt = instances.next_attempt();
                    instances.known.insert(id.clone(), Known::starting(attempt, 0, 0, Some(spec.clone())));
                    instances.heard(Word { id: id.clone(), attempt, happening: Happening::Connected });
                    let started = Happening::Started(running.clone());
                    instances.heard(Word { id: id.clone(), attempt, happening: started });
                    let speaker = instances.speaker(&id, attempt);
                    if has_served(&spec) {
                        // It stays routed: a probe that waits behind its visitors says nothing against it.
                        instances.heard(Word { id: id.clone(), attempt, happening: Happening::Serving });
                        tokio::spawn(watch_to_the_end(speaker, running));
                    } else {
                        tokio::spawn(prove_and_watch(speaker, spec, running));
                    }
                }
                None => drop(instances.leftovers.insert(id)),
            }
        }
        (instances, inbox)
    }
}
