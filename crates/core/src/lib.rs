//! Kopek's words, documents and decisions.
//!
//! Pure: no sockets, no clocks, no randomness. Times and seeds come in as arguments, maps are ordered, so
//! the same input gives the same output on every server. The effects that follow from a decision live in
//! `node`, `edge`, `files`, `sql` and `control`.
//!
//! The documents, in the order in which they arise:
//! `desired` (what people asked for) → `placement` (where it goes; what `plan` edits) → `assignment` and
//! `part` (what each server and each of its processes must do) → `observed` (what agents report).

pub mod api;
pub mod assign;
pub mod assignment;
pub mod big_change;
pub mod check;
pub mod config;
pub mod converge;
pub mod desired;
pub mod event;
pub mod id;
pub mod keys;
pub mod meter;
pub mod observed;
pub mod part;
pub mod placement;
pub mod plan;
pub mod supervise;
pub mod units;

pub use id::{Digest, Domain, ImageName, InstanceId, PoolName, ServerId, SiteName};
pub use units::{Bytes, Load, Micros, MilliCores, Moment};
