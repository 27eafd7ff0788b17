//! The servers that carry the pool's other members, as this server's agent follows them. A member that left its
//! group without a word holds up everybody's writes until it is put out (3 s by Galera's own rules), so whoever
//! can prove its end tells or acts at once, without the controller, which may have died with it:
//!
//! ```text
//!  our own member died or hangs   (pidfd, pulse)            told to the fellows, who evict it
//!  a fellow's server was killed   (its line broke and its pool port refuses)         evicted
//!  a fellow is silent             (no pulse for 0.8 s, and most members say so)        evicted
//! ```
//!
//! Who writes for a site is decided by the controller alone; it hears from the survivors who is in the group.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Method;
use kopek_core::ServerId;
use kopek_core::assignment::Assignment;
use kopek_core::config::{AGENT_PORT, POOL_PORT};
use kopek_link::http::Api;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::daemon::explained;
use crate::mariadb::{Evicted, Lost, Member, NodeId};

/// Between two looks at a fellow that does not hold its line: one restarts its agent in 50 ms.
const RETRY: Duration = Duration::from_millis(50);
/// Of a server that is killed, one process may end some 100 ms after another.
const EAGER: Duration = Duration::from_secs(3);
const RETRY_LATER: Duration = Duration::from_secs(1);
/// A line that lasted this long was one.
const HELD: Duration = Duration::from_secs(1);
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Ten in the time after which a fellow is called silent.
const PULSE: Duration = Duration::from_millis(80);
/// A fellow counts as silent after this. About half of what would still be within 1.5 s from a server's
/// end to the writes going on elsewhere (with 1 s it took 1.4 to 1.6 s), and ten pulses, so that one that is late
/// on a loaded machine costs nothing.
const SILENT: Duration = Duration::from_millis(800);
/// The question stays open meanwhile: asking anew would only load a server that is slow.
const PULSE_LIMIT: Duration = Duration::from_secs(2);
/// Where an eviction would cost the quorum, only time can help.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// An agent that itself was late by this much knows nothing of others' silence.
const OWN_LATENESS_MAX: Duration = Duration::from_millis(300);
/// To hear from the others whether they miss a fellow too; far more than they need.
const ASK_LIMIT: Duration = Duration::from_millis(300);
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// Galera puts a dead member out by itself after 3 s: after these nothing is left to tell.
const TELL_ATTEMPTS: usize = 3;

/// When each fellow was last heard of. Shared with the agent's API, where fellows ask for it.
#[derive(Debug, Default)]
pub struct Heard(Mutex<BTreeMap<ServerId, Instant>>);

impl Heard {
    /// None: never.
    pub fn silent_for(&self, server: &ServerId) -> Option<Duration> {
        self.lock().get(server).map(Instant::elapsed)
    }

    fn note(&self, server: &ServerId) {
        self.lock().insert(server.clone(), Instant::now());
    }

    /// What this agent missed while it was late itself does not count.
    fn begin_anew(&self, server: &ServerId) {
        if let Some(heard) = self.lock().get_mut(server) {
            *heard = Instant::now();
        }
    }

    fn forget(&self, server: &ServerId) {
        self.lock().remove(server);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerId, Instant>> {
        self.0.lock().expect("no code panics while it holds this map")
    }
}

/// Of this server, with what it needs to speak to the others.
#[derive(Clone)]
pub struct Post {
    pub me: ServerId,
    pub api: Api,
    pub member: Arc<Member>,
    pub heard: Arc<Heard>,
}

type Addresses = BTreeMap<ServerId, IpAddr>;

/// Runs as long as the agent.
pub async fn follow(post: Post, mut assignment: watch::Receiver<Option<Assignment>>) {
    let (to_fellows, fellows) = watch::channel(Addresses::new());
    tokio::spawn(tell(post.clone(), fellows.clone()));
    let mut followed: BTreeMap<ServerId, (IpAddr, [AbortHandle; 2])> = BTreeMap::new();
    loop {
        let now = fellows_in(&post.me, assignment.borrow_and_update().as_ref());
        followed.retain(|name, (address, tasks)| {
            let keep = now.get(name) == Some(address);
            if !keep {
                tasks.iter().for_each(AbortHandle::abort);
                post.heard.forget(name);
            }
            keep
        });
        for (name, address) in &now {
            followed.entry(name.clone()).or_insert_with(|| {
                let line = tokio::spawn(hold_line(post.clone(), name.clone(), *address));
                let pulse = tokio::spawn(feel_pulse(post.clone(), name.clone(), *address, fellows.clone()));
                (*address, [line.abort_handle(), pulse.abort_handle()])
            });
        }
        to_fellows.send_replace(now);
        if assignment.changed().await.is_err() {
            return;
        }
    }
}

fn fellows_in(me: &ServerId, assignment: Option<&Assignment>) -> Addresses {
    let group = assignment.and_then(|assignment| assignment.member.as_ref()).map(|member| &member.group);
    let others = group.into_iter().flatten().filter(|(name, _)| *name != me);
    others.map(|(name, address)| (name.clone(), *address)).collect()
}

async fn tell(post: Post, fellows: watch::Receiver<Addresses>) {
    let mut lost = post.member.lost();
    while lost.changed().await.is_ok() {
        let Some(news) = lost.borrow_and_update().clone() else { continue };
        for (fellow, address) in fellows.borrow().clone() {
            let (api, news) = (post.api.clone(), news.clone());
            tokio::spawn(async move {
                for _ in 0..TELL_ATTEMPTS {
                    let agent = SocketAddr::new(address, AGENT_PORT);
                    let told: Result<(), _> =
                        api.call(Method::POST, agent, "/pool/lost", Some(&news), TELL_LIMIT).await;
                    match told {
                        Ok(()) => return,
                        Err(error) => warn!(%fellow, %error, "cannot tell that our pool member is lost"),
                    }
                    sleep(RETRY).await;
                }
            });
        }
    }
}

/// What a fellow says of its own member; it may speak for no other.
pub async fn heard_of_loss(member: &Member, server: &ServerId, lost: &Lost) -> Result<(), String> {
    put_out(member, server, &lost.node, &lost.why).await
}

async fn hold_line(post: Post, fellow: ServerId, address: IpAddr) {
    let agent = SocketAddr::new(address, AGENT_PORT);
    let mut broken = Instant::now();
    loop {
        let begun = Instant::now();
        // Returns only when the line broke or could not be made.
        let _: Result<serde_json::Value, _> =
            post.api.call(Method::GET, agent, "/line", None::<&()>, Duration::from_secs(3600)).await;
        // In this order: what is in the group now, and then no process at its port, is dead.
        if let Some(node) = in_group(&post.member, &fellow).await
            && refuses(address, POOL_PORT).await
        {
            let why = "its server's pool port refuses connections";
            if put_out(&post.member, &fellow, &node, why).await.is_err() {
                sleep(REFUSED_PAUSE).await;
            }
        }
        if begun.elapsed() > HELD {
            broken = Instant::now();
        }
        // A member whose agent stays away is looked at less often: each look is a line in its log.
        sleep(if broken.elapsed() < EAGER { RETRY } else { RETRY_LATER }).await;
    }
}

async fn feel_pulse(post: Post, fellow: ServerId, address: IpAddr, fellows: watch::Receiver<Addresses>) {
    let agent = SocketAddr::new(address, AGENT_PORT);
    loop {
        let felt = post.api.call(Method::GET, agent, "/pool/pulse", None::<&()>, PULSE_LIMIT);
        tokio::pin!(felt);
        loop {
            let begun = Instant::now();
            let felt: Option<Result<(), _>> = tokio::select! {
                biased;
                felt = &mut felt => Some(felt),
                () = sleep(PULSE) => None,
            };
            if begun.elapsed() > PULSE + OWN_LATENESS_MAX {
                post.heard.begin_anew(&fellow);
            }
            match felt {
                Some(Ok(())) => {
                    post.heard.note(&fellow);
                    break;
                }
                // Its agent is being restarted: that says nothing of its member, which the line looks at.
                Some(Err(_)) if refuses(address, AGENT_PORT).await => {
                    post.heard.note(&fellow);
                    break;
                }
                Some(Err(_)) if !is_silent(&post.heard, &fellow) => break,
                _ if is_silent(&post.heard, &fellow) => {
                    put_out_silent(&post, &fellow, &fellows).await;
                    if felt.is_some() {
                        break;
                    }
                }
                _ => {}
            }
        }
        sleep(PULSE).await;
    }
}

async fn put_out_silent(post: &Post, fellow: &ServerId, fellows: &watch::Receiver<Addresses>) {
    let others = fellows.borrow().clone();
    if let Some(node) = in_group(&post.member, fellow).await
        && most_miss(post, fellow, &others).await
        && is_silent(&post.heard, fellow)
    {
        let why = format!("most members have not heard of it for {} s", SILENT.as_secs_f32());
        if put_out(&post.member, fellow, &node, &why).await.is_err() {
            sleep(REFUSED_PAUSE).await;
        }
    }
}

fn is_silent(heard: &Heard, fellow: &ServerId) -> bool {
    heard.silent_for(fellow).is_some_and(|silent| silent >= SILENT)
}

/// Whether more than half of the pool's members, this one among them, have not heard of the fellow.
async fn most_miss(post: &Post, fellow: &ServerId, others: &Addresses) -> bool {
    let mut asked = JoinSet::new();
    for address in others.iter().filter(|(name, _)| *name != fellow).map(|(_, address)| *address) {
        let (api, path) = (post.api.clone(), format!("/pool/silent/{fellow}"));
        asked.spawn(async move {
            let agent = SocketAddr::new(address, AGENT_PORT);
            let silent: Result<Option<u64>, _> =
                api.call(Method::GET, agent, &path, None::<&()>, ASK_LIMIT).await;
            // A pulse less: the others need not begin to miss it at the same moment.
            let enough = SILENT.saturating_sub(PULSE * 2).as_millis();
            silent.is_ok_and(|silent| silent.is_some_and(|millis| u128::from(millis) >= enough))
        });
    }
    let missing = 1 + asked.join_all().await.into_iter().filter(|misses| *misses).count();
    missing * 2 > others.len() + 1
}

async fn in_group(member: &Member, fellow: &ServerId) -> Option<NodeId> {
    member.group().await.ok()?.remove(fellow)
}

/// Whether the server is there and no process listens at that port.
async fn refuses(address: IpAddr, port: u16) -> bool {
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect((address, port))).await;
    matches!(connected, Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

async fn put_out(member: &Member, server: &ServerId, node: &NodeId, why: &str) -> Result<(), String> {
    match member.evict(server, Some(node)).await {
        Ok(Evicted::Now) => info!(%server, why, "evicted from the pool's group"),
        Ok(Evicted::NotThere) => {}
        Err(error) => {
            let error = explained(&error);
            warn!(%server, why, error, "not evicted from the pool's group");
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kopek_core::PoolName;
    use kopek_core::assignment::{AssignedMember, Start};

    use super::*;
    use crate::feed;

    #[test]
    fn fellows_are_the_other_members_and_nobody_has_any_without_a_member() {
        let [s1, s2] = ["s1", "s2"].map(|name| ServerId::parse(name).unwrap());
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let group = [&s1, &s2].map(|server| (server.clone(), address)).into();
        let member = AssignedMember {
            pool: PoolName::first(),
            group,
            start: Start::Join,
            databases: Default::default(),
        };
        let mut assignment = Assignment { member: Some(member), ..feed::nothing_for(&s1) };
        assert_eq!(fellows_in(&s1, Some(&assignment)), Addresses::from([(s2, address)]));
        assignment.member = None;
        assert!(fellows_in(&s1, Some(&assignment)).is_empty() && fellows_in(&s1, None).is_empty());
    }

    #[test]
    fn a_fellow_that_was_never_heard_of_is_not_silent() {
        let (heard, s2) = (Heard::default(), ServerId::parse("s2").unwrap());
        assert!(!is_silent(&heard, &s2));
        heard.lock().insert(s2.clone(), Instant::now() - SILENT);
        assert!(is_silent(&heard, &s2));
        heard.begin_anew(&s2);
        assert!(!is_silent(&heard, &s2), "this agent was late itself");
        heard.forget(&s2);
        heard.begin_anew(&s2);
        assert_eq!(heard.silent_for(&s2), None);
    }
}
