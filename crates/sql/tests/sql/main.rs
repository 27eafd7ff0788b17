//! `sql` against the real thing: mariadbd and the mariadb client.
#![allow(clippy::unwrap_used)]

mod going_on;
mod ground;
mod hostile;
mod metering;
mod pair;
mod raw;
mod reaching;
mod sessions;
mod tenant;
mod turns;
