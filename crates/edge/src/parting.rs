//! The addresses that clients of one worker came to, and those of them that this server is about to give up:
//! their connections end with the request that is under way. Asked for on the status socket.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use tokio::sync::oneshot;

/// What the status socket asks of a worker.
pub struct Question {
    pub ask: Ask,
    /// How many connections to that address are open.
    pub answer: oneshot::Sender<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Only whether it answers.
    Health,
    Leave(IpAddr),
    Stay(IpAddr),
}

#[derive(Debug, Default)]
pub struct Addresses {
    leaving: RefCell<BTreeSet<IpAddr>>,
    open: RefCell<BTreeMap<IpAddr, usize>>,
}

impl Addresses {
    /// How many connections are open to the address, and whether it is newly one to leave.
    pub fn ask(&self, ask: Ask) -> (usize, bool) {
        let mut leaving = self.leaving.borrow_mut();
        let (address, is_new) = match ask {
            Ask::Health => return (0, false),
            Ask::Leave(address) => (address, leaving.insert(address)),
            Ask::Stay(address) => {
                leaving.remove(&address);
                (address, false)
            }
        };
        (self.open.borrow().get(&address).copied().unwrap_or(0), is_new)
    }

    pub fn is_leaving(&self, address: IpAddr) -> bool {
        self.leaving.borrow().contains(&address)
    }

    /// Counts a connection until the guard goes.
    pub fn open(self: &Rc<Self>, address: IpAddr) -> Open {
        *self.open.borrow_mut().entry(address).or_default() += 1;
        Open { addresses: self.clone(), address }
    }
}

pub struct Open {
    addresses: Rc<Addresses>,
    address: IpAddr,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.addresses.open.borrow_mut();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}
