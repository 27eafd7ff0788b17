//! `sql` against the real thing: mariadbd and the mariadb client.
#![allow(clippy::unwrap_used)]

mod ground;
mod going_on;
mod reaching;
mod sessions;
