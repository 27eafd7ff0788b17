//! kopek-sim
