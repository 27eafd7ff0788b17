//! Where requests wait while no instance can take them: bounded in number per site and in memory over all
//! sites; the time is bounded by `proxy`, which waits for a change of the table or a recovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::Notify;

/// A count with an upper bound.
#[derive(Debug)]
pub struct Bounded {
    taken: AtomicUsize,
    most: usize,
}

impl Bounded {
    pub fn new(most: usize) -> Bounded {
        Bounded { taken: AtomicUsize::new(0), most }
    }

    fn take(&self, number: usize) -> bool {
        let fits = |taken: usize| taken.checked_add(number).filter(|sum| *sum <= self.most);
        self.taken.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn give_back(&self, number: usize) {
        self.taken.fetch_sub(number, Relaxed);
    }
}

/// A site's waiting room. Lives as long as the site is routed.
#[derive(Debug)]
pub struct WaitingRoom {
    seats: Bounded,
    /// An instance that had failed answers again.
    pub recovered: Notify,
}

impl WaitingRoom {
    pub fn new(seats: usize) -> WaitingRoom {
        WaitingRoom { seats: Bounded::new(seats), recovered: Notify::new() }
    }

    /// None when the room is full or its requests' bodies, `bytes` of this one, would take too much memory.
    pub fn enter(self: &Arc<Self>, memory: &Arc<Bounded>, bytes: usize) -> Option<Seat> {
        if !self.seats.take(1) {
            return None;
        }
        if !memory.take(bytes) {
            self.seats.give_back(1);
            return None;
        }
        Some(Seat { room: self.clone(), memory: memory.clone(), bytes })
    }
}

/// One waiting request. Dropping it frees the seat.
#[derive(Debug)]
pub struct Seat {
    room: Arc<WaitingRoom>,
    memory: Arc<Bounded>,
    bytes: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
        self.room.seats.give_back(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_and_memory_are_bounded_and_freed() {
        let room = Arc::new(WaitingRoom::new(2));
        let memory = Arc::new(Bounded::new(100));
        let first = room.enter(&memory, 60).unwrap();
        assert!(room.enter(&memory, 41).is_none(), "101 bytes");
        let second = room.enter(&memory, 40).unwrap();
        assert!(room.enter(&memory, 0).is_none(), "a third seat");
        drop(first);
        assert!(room.enter(&memory, 60).is_some());
        drop(second);
        let other = Arc::new(WaitingRoom::new(1));
        assert!(other.enter(&memory, 100).is_some(), "all memory is free again");
    }
}
