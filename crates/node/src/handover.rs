//! The last moments of an address on the server that holds it and is to let it go: new visitors are kept out (they
//! knock again a second later, RFC 6298 section 2.1, and find the next holder), the edge ends its connections
//! with the requests that are under way, and only then does keepalived step back. Called by `vips`.
//!
//! ```text
//!  Emptying ──── nobody is left, or all patience is ────► LetGo ──► another holds it; the assignment says so
//!   │    ▲
//!   │    └── after a rest ◄── Resting
//!   └── some request takes long ──►┘
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use kopek_core::assignment::{AssignedVip, Tenure};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::edge_status;

/// New visitors are kept out for so long at most: who knocks again after a second must not be kept out again, the
/// next time would be after two more.
const ATTEMPT: Duration = Duration::from_millis(900);
/// And are let in for so long before the next attempt.
const REST: Duration = Duration::from_secs(5);
/// Who takes longer than this for one request loses it.
const PATIENCE: Duration = Duration::from_secs(60);
/// A visitor whose first packet came before they were kept out has connected by then.
const ROUND_TRIP: Duration = Duration::from_millis(300);
/// The next holder takes over sooner; without one, visitors are let in again.
const TAKE_OVER: Duration = Duration::from_secs(2);
/// How soon to look again while visitors wait.
const HURRY: Duration = Duration::from_millis(20);
/// Less eager than all others that keepalived may hear of.
const LAST: u8 = 1;

#[derive(Debug)]
pub struct Handovers {
    edge_socket: PathBuf,
    by_vip: BTreeMap<IpAddr, Handover>,
}

#[derive(Debug)]
struct Handover {
    began: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Emptying { since: Instant },
    Resting { since: Instant },
    LetGo { since: Instant },
}

impl Handovers {
    pub fn new(edge_socket: PathBuf) -> Handovers {
        Handovers { edge_socket, by_vip: BTreeMap::new() }
    }

    /// Begins what the assignment newly asks for, and ends what it no longer does.
    pub async fn follow(&mut self, wanted: &[AssignedVip], held: &[IpAddr]) {
        let leaves = |vip: &IpAddr| wanted.iter().any(|w| w.address == *vip && w.tenure == Tenure::Leave);
        let over: Vec<IpAddr> = self.by_vip.keys().filter(|vip| !leaves(vip)).copied().collect();
        for vip in over {
            self.by_vip.remove(&vip);
            self.stay(vip).await;
        }
        let now = Instant::now();
        for vip in wanted.iter().map(|vip| vip.address).filter(leaves) {
            self.by_vip.entry(vip).or_insert_with(|| {
                let stage = match held.contains(&vip) {
                    true => Stage::Emptying { since: now },
                    false => Stage::LetGo { since: now },
                };
                info!(%vip, ?stage, "this server is to let an address go");
                Handover { began: now, stage }
            });
        }
    }

    /// Addresses to which nobody may connect anew. To be in force before `advance`.
    pub fn closed(&self) -> Vec<IpAddr> {
        let is_closed = |handover: &Handover| match handover.stage {
            Stage::Emptying { .. } => true,
            Stage::Resting { .. } => false,
            Stage::LetGo { since } => since.elapsed() < TAKE_OVER,
        };
        self.by_vip.iter().filter(|(_, handover)| is_closed(handover)).map(|(vip, _)| *vip).collect()
    }

    /// Asks the edge who is still there.
    pub async fn advance(&mut self) {
        let now = Instant::now();
        let mut reopened = Vec::new();
        for (vip, handover) in &mut self.by_vip {
            match handover.stage {
                Stage::Emptying { since } => {
                    let asked = edge_status::ask(&self.edge_socket, &format!("leave {vip}")).await;
                    // An edge that does not answer serves nobody who could be waited for.
                    let left = asked.ok().and_then(|answer| answer.parse::<usize>().ok()).unwrap_or(0);
                    if left == 0 && since.elapsed() >= ROUND_TRIP {
                        info!(%vip, took = ?handover.began.elapsed(), "nobody is left on an address: it goes");
                        handover.stage = Stage::LetGo { since: now };
                    } else if handover.began.elapsed() > PATIENCE {
                        warn!(%vip, left, "an address goes although requests are under way");
                        handover.stage = Stage::LetGo { since: now };
                    } else if since.elapsed() > ATTEMPT {
                        handover.stage = Stage::Resting { since: now };
                        reopened.push(*vip);
                    }
                }
                Stage::Resting { since } if since.elapsed() > REST => {
                    handover.stage = Stage::Emptying { since: now };
                }
                Stage::Resting { .. } | Stage::LetGo { .. } => {}
            }
        }
        for vip in reopened {
            self.stay(vip).await;
        }
    }

    /// What keepalived is to announce: an address that was let go not at all, so that it says goodbye and the next
    /// holder need not wait; but if nobody took it, then as the last who would.
    pub fn announced(&self, wanted: &[AssignedVip]) -> Vec<AssignedVip> {
        let announce = |vip: &AssignedVip| match self.by_vip.get(&vip.address)?.stage {
            Stage::LetGo { since } if since.elapsed() < TAKE_OVER => None,
            Stage::LetGo { .. } => Some(AssignedVip { priority: LAST, ..vip.clone() }),
            Stage::Emptying { .. } | Stage::Resting { .. } => Some(vip.clone()),
        };
        let stays = |vip: &AssignedVip| !self.by_vip.contains_key(&vip.address);
        wanted.iter().filter_map(|vip| if stays(vip) { Some(vip.clone()) } else { announce(vip) }).collect()
    }

    /// When to look again.
    pub fn look_within(&self, otherwise: Duration) -> Duration {
        if self.closed().is_empty() { otherwise } else { HURRY }
    }

    /// An edge that does not answer has no visitors to tell; one that starts anew lets all stay.
    async fn stay(&self, vip: IpAddr) {
        let _ = edge_status::ask(&self.edge_socket, &format!("stay {vip}")).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100));

    fn assigned(tenure: Tenure) -> Vec<AssignedVip> {
        vec![AssignedVip { address: VIP, router: 1, priority: 200, tenure }]
    }

    /// On a server whose edge is gone: nobody is there who could be waited for.
    fn handovers() -> Handovers {
        Handovers::new(PathBuf::from("/nonexistent/edge.sock"))
    }

    fn priorities(handovers: &Handovers) -> Vec<u8> {
        handovers.announced(&assigned(Tenure::Leave)).iter().map(|vip| vip.priority).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_closed_to_newcomers_then_let_go_then_offered_as_the_last_who_would_take_it() {
        let mut handovers = handovers();
        handovers.follow(&assigned(Tenure::Leave), &[VIP]).await;
        handovers.advance().await;
        assert_eq!(
            (handovers.closed(), priorities(&handovers)),
            (vec![VIP], vec![200]),
            "some may be connecting"
        );
        tokio::time::advance(ROUND_TRIP).await;
        handovers.advance().await;
        assert_eq!(
            (handovers.closed(), priorities(&handovers)),
            (vec![VIP], vec![]),
            "keepalived says goodbye"
        );
        tokio::time::advance(TAKE_OVER).await;
        handovers.advance().await;
        assert_eq!((handovers.closed(), priorities(&handovers)), (vec![], vec![LAST]), "nobody took it");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_elsewhere_already_is_not_announced_and_one_that_stays_after_all_is() {
        let mut handovers = handovers();
        handovers.follow(&assigned(Tenure::Leave), &[]).await;
        assert_eq!((handovers.closed(), priorities(&handovers)), (vec![VIP], vec![]));
        handovers.follow(&assigned(Tenure::Stay), &[]).await;
        assert_eq!((handovers.closed(), priorities(&handovers)), (vec![], vec![200]));
    }
}
