//! The servers' network as keepalived sees it: each server announces its VIPs, and the one with the highest
//! priority among those that hear one another holds the address (RFC 5798 section 6.4).

use std::collections::BTreeMap;
use std::net::IpAddr;

use kopek_core::ServerId;
use kopek_core::assignment::Tenure;

use crate::machine::Machine;

/// Sets what each machine holds now. One that is cut off hears nobody and holds all that it may.
pub(crate) fn announce(machines: &mut BTreeMap<ServerId, Machine>) {
    let mut winners: BTreeMap<IpAddr, (u8, ServerId)> = BTreeMap::new();
    for machine in machines.values().filter(|machine| machine.is_reachable()) {
        for (vip, priority) in announced(machine) {
            let offer = (priority, machine.name.clone());
            let best = winners.entry(vip).or_insert_with(|| offer.clone());
            if offer.0 > best.0 {
                *best = offer;
            }
        }
    }
    for machine in machines.values_mut() {
        let is_alone = machine.runs() && machine.cut;
        machine.vips = announced(machine)
            .map(|(vip, _)| vip)
            .filter(|vip| is_alone || winners.get(vip).is_some_and(|(_, winner)| *winner == machine.name))
            .collect();
    }
}

/// What it announces and how eagerly: a holder that is to let an address go has let its requests end at once.
fn announced(machine: &Machine) -> impl Iterator<Item = (IpAddr, u8)> + use<> {
    let assignment = machine.assignment.clone().filter(|_| machine.runs() && machine.confirmed);
    let vips = assignment.map(|assignment| assignment.vips).unwrap_or_default();
    vips.into_iter().map(|vip| match vip.tenure {
        Tenure::Stay => (vip.address, vip.priority),
        Tenure::Leave => (vip.address, 1),
    })
}
