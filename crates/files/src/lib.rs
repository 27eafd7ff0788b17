//! Volumes: the gate in front of instances, and pouring of trees to holders.
//!
//! `run` is the process `kopek files`. `pack_source` makes the packed trees that it pours: the command line and
//! `kopek control` call it before anything is written to the cell.

mod fetch;
mod flight;
mod gate;
mod keep;
mod pour;
mod relay;
mod report;
mod run;
mod tree;

pub use run::{FilesError, run};
pub use tree::{
    Applied, ApplyError, Fault, Owners, PackError, PackOptions, Packed, Progress, SourceError, Symlinks,
    UnpackError, applied_tree, apply_volume, pack_source, unpack_image, volume_stats,
};
