//! File trees as they travel and as they lie on disk: images, and the volumes of sites.
//!
//! `pack` reads what a person brings (`source`, `tarball`) into an `inventory`, refuses what could harm, and
//! writes the canonical form: a tar.zst with sorted entries, named by its BLAKE3 digest. `unpack` makes a new
//! folder of it; `apply` brings a live volume to it while the site goes on writing.

mod apply;
mod beneath;
mod budget;
mod fault;
mod inventory;
mod manifest;
mod pack;
mod packed;
mod path;
mod place;
mod remove;
mod source;
mod tarball;
mod unpack;
mod volume_stats;

pub use apply::{Applied, ApplyError, applied_tree, apply_volume};
pub(crate) use apply::{claim_volume, is_applied};
pub use fault::Fault;
pub use pack::{PackError, PackOptions, Packed, Progress, pack_source};
pub(crate) use packed::is_whole;
pub(crate) use remove::{GONE, remove_whole};
pub use source::SourceError;
pub use unpack::{UnpackError, unpack_image};
pub use volume_stats::volume_stats;

/// Whose the packed entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// A site's volume: everything is www-data's, and no entry keeps a set-user-id, set-group-id or sticky bit.
    Site,
    /// An image: numeric owners and modes as the source has them.
    Kept,
}

/// What becomes of symbolic links in a folder that is packed. Archives cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symlinks {
    /// Kept; one that leaves the tree is refused.
    Within,
    /// Each is replaced by what it points to.
    Follow,
}

/// The user and group that Debian's web servers run as (www-data).
pub(crate) const SITE_OWNER: u32 = 33;
