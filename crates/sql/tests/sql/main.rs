//! `sql` against the real thing: mariadbd and the mariadb client.
#![allow(clippy::unwrap_used)]

mod going_on;
mod ground;
mod metering;
mod reaching;
mod sessions;
