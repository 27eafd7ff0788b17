//! One server converging on its assignment: the agent and the daemons it keeps.

pub mod agent;
mod api;
pub mod daemon;
mod edge_health;
mod edge_status;
pub mod etcd;
mod feed;
mod fellows;
mod hand_out;
mod handover;
mod instances;
pub mod keepalived;
mod last_good;
mod machine;
pub mod mariadb;
mod reporting;
mod resolvers;
mod site_logs;
mod sql_status;
mod store_host;
pub mod store_member;
mod vips;
pub mod whereabouts;
