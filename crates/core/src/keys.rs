//! Where each document lies in the store. The only place that spells a key.

use crate::{Digest, ImageName, PoolName, ServerId, SiteName};

pub const CELL: &str = "/cell";
/// The cell's CA with its private key. The store is reached only by mutual TLS with servers' certificates.
pub const AUTHORITY: &str = "/authority";
/// Who is in the first pool: where that of the only one was before there could be others.
pub const FIRST_POOL: &str = "/pool";
/// Which edge holds which VIP: `placement::Placed::vips`.
pub const VIPS: &str = "/vips";
/// Which servers run an etcd member: `desired::StoreMembers`.
pub const STORE_MEMBERS: &str = "/store-members";

pub const SERVERS: &str = "/servers/";
/// Pools that people made.
pub const POOLS: &str = "/pools/";
/// Who is in the others.
pub const PLACED_POOLS: &str = "/placed-pools/";
pub const IMAGES: &str = "/images/";
pub const SITES: &str = "/sites/";
/// The number that was given to a site last. It only grows: what a deleted site left anywhere can never be
/// taken for a later one's.
pub const SITE_NUMBER: &str = "/site-number";
/// Sites whose database is still being filled: what they become when that has succeeded.
pub const PREPARING: &str = "/preparing/";
/// Sites whose creation failed, to be removed as soon as their database can be dropped.
pub const ABANDONED: &str = "/abandoned/";
pub const PLACEMENTS: &str = "/placements/";
pub const ASSIGNMENTS: &str = "/assignments/";
pub const ROUTES: &str = "/routes/";
pub const TOKENS: &str = "/tokens/";
pub const EVENTS: &str = "/events/";
/// Trees that were uploaded lately: any server can fetch them, also when control has moved since.
pub const TREES: &str = "/trees/";

pub fn server(id: &ServerId) -> String {
    format!("{SERVERS}{id}")
}

pub fn pool(name: &PoolName) -> String {
    format!("{POOLS}{name}")
}

pub fn placed_pool(name: &PoolName) -> String {
    if *name == PoolName::first() { FIRST_POOL.to_owned() } else { format!("{PLACED_POOLS}{name}") }
}

pub fn image(name: &ImageName) -> String {
    format!("{IMAGES}{name}")
}

pub fn site(name: &SiteName) -> String {
    format!("{SITES}{name}")
}

pub fn preparing(name: &SiteName) -> String {
    format!("{PREPARING}{name}")
}

pub fn abandoned(name: &SiteName) -> String {
    format!("{ABANDONED}{name}")
}

pub fn placement(name: &SiteName) -> String {
    format!("{PLACEMENTS}{name}")
}

pub fn assignment(id: &ServerId) -> String {
    format!("{ASSIGNMENTS}{id}")
}

pub fn route(name: &SiteName) -> String {
    format!("{ROUTES}{name}")
}

pub fn tree(digest: &Digest) -> String {
    format!("{TREES}{digest}")
}
