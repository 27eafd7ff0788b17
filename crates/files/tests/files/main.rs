//! `kopek files` against real file systems, real archives and real TLS on loopback. Needs root.

mod apply;
mod gate;
mod hostile;
mod pack;
mod pour;
mod words;
