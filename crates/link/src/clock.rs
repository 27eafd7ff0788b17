//! The wall clock as a `Moment`: what servers tell each other bears the time of their clocks.

use std::time::SystemTime;

use kopek_core::Moment;

pub fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.map_or(0, |since| since.as_millis() as u64))
}
