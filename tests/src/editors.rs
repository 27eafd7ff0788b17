//! People who edit a WordPress and a MediaWiki through their own pages, from the installers on, while the databases'
//! writers are killed and frozen. Every answer is judged, and what was saved is read back: once, no more, no less.
//!
//! ```text
//!   hour ──▶ strikes ──▶ rack               the writers' ends
//!    │
//!    ├──▶ blogger ──┐
//!    └──▶ wikian ───┴──▶ reader ──▶ edge ──▶ site        tally ──▶ verdict
//! ```

pub mod blogger;
pub mod hour;
pub mod reader;
pub mod strikes;
pub mod tally;
pub mod wikian;
