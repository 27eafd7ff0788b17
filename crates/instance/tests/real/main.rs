//! Real images and real instances. Needs root and this machine's Debian sources; images are cached under
//! /var/cache/kopek.

// The whole crate is tests, also its helper functions, which clippy does not see.
#![allow(clippy::unwrap_used)]

mod image;
mod isolation;
mod life;
mod serve;
mod support;
