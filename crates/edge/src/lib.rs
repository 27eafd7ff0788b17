//! The public HTTP balancer of a server: `kopek edge`.
//!
//! Promise: a request that an instance could answer is answered. It goes to the instance with the least work
//! in flight, is repeated on another when that is safe, and waits, within bounds, while there is none. No
//! change of the routes interrupts anything. Needs neither the store nor the controller: the routes come from
//! the agent and the last good ones are kept on disk.
//!
//! The way of a request: `listen` → `worker` → `proxy` → (`table`, `pick`, `hold`, `retry`) → `upstream`, with
//! headers rewritten by `forward`, and at its end one line through `access_log`.

mod access_log;
mod body;
mod clock;
mod forward;
mod health;
mod hold;
mod host;
mod limits;
mod listen;
mod page;
mod parting;
mod pick;
mod proxy;
mod record;
mod relayed;
mod retry;
mod serve;
mod status;
mod table;
mod upgrade;
mod upstream;
mod worker;

pub use limits::Limits;
pub use serve::{EdgeError, run, run_until};
