//! `kopek files` against real file systems, real archives and real TLS on loopback. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod apply;
mod gate;
mod hostile;
mod pack;
mod pour;
mod words;
