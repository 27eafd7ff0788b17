//! Keeps room on the disk of a member's data. A disk that is found full in the middle of a rollback ends the whole of
//! mariadbd ("InnoDB: Error (Out of disk space) in rollback"), and as all members have the same rows, one after the
//! other. So before that the member takes no more writes of sites (`read_only`): they get MySQL's own error 1290,
//! reads and the rows of other members' sites go on. Called by keep.rs at each of its looks.
//!
//! What people can do then: make the disk larger, delete what else lies on it, or delete a site.

use std::path::Path;

use kopek_core::Bytes;

use super::client::{Client, ClientError};

/// What a second of the fastest writing could take on a disk of ours, several times over.
const LEAST: Bytes = Bytes(256 << 20);
/// Of a small disk this part instead: 1/32.
const LEAST_PART: u64 = 32;
/// Freed once more before writes are taken again, or it would go on and off with every deleted file.
const AGAIN: u64 = 2;

/// Whether a member takes writes of sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writes {
    #[default]
    Taken,
    Refused,
}

impl Writes {
    fn next(self, free: Bytes, disk: Bytes) -> Writes {
        let least = LEAST.0.min(disk.0 / LEAST_PART);
        match self {
            _ if free.0 < least => Writes::Refused,
            Writes::Refused if free.0 < least * AGAIN => Writes::Refused,
            _ => Writes::Taken,
        }
    }
}

/// What the member was told; nothing yet, also of one that another agent started.
#[derive(Debug, Default)]
pub struct Room(Option<Writes>);

impl Room {
    /// Looks at the disk and tells the member if that changes anything. Gives what is new.
    pub async fn heed(&mut self, client: &mut Client, data: &Path) -> Result<Option<Writes>, ClientError> {
        // Who cannot look knows nothing new.
        let Ok(disk) = rustix::fs::statvfs(data) else { return Ok(None) };
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(disk.f_frsize));
        let before = self.0.unwrap_or_default();
        let next = before.next(bytes(disk.f_bavail), bytes(disk.f_blocks));
        if self.0 == Some(next) {
            return Ok(None);
        }
        client
            .change(match next {
                Writes::Refused => "SET GLOBAL read_only=ON",
                Writes::Taken => "SET GLOBAL read_only=OFF",
            })
            .await?;
        self.0 = Some(next);
        Ok((next != before).then_some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn writes_are_refused_before_the_disk_is_full_and_taken_again_when_there_is_clearly_room() {
        let disk = Bytes(100 * GIB);
        let mut writes = Writes::Taken;
        for (free, then) in [
            (GIB, Writes::Taken),
            (LEAST.0, Writes::Taken),
            (LEAST.0 - 1, Writes::Refused),
            (LEAST.0 + 1, Writes::Refused),
            (2 * LEAST.0, Writes::Taken),
            (LEAST.0 + 1, Writes::Taken),
        ] {
            writes = writes.next(Bytes(free), disk);
            assert_eq!(writes, then, "{free} free");
        }
        assert_eq!(
            Writes::Taken.next(Bytes(100 << 20), Bytes(GIB)),
            Writes::Taken,
            "a small disk needs less"
        );
        assert_eq!(Writes::Taken.next(Bytes(10 << 20), Bytes(GIB)), Writes::Refused);
    }
}
