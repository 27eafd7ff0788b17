//! How servers speak to each other: the cell's own CA, mutual TLS, stream preambles, the parts that the agent
//! hands out, and the small HTTPS client and server that the APIs stand on.
//!
//! Promise: no byte between two servers travels outside TLS with a certificate of the cell's CA on both sides;
//! only joining and discovery, which carry nothing secret, begin without one. Every wait has a limit.

pub mod authority;
pub mod clock;
pub mod dial;
pub mod discovery;
pub mod http;
pub mod identity;
pub mod part;
pub mod preamble;
pub mod receive;
pub mod root_only;
pub mod serve;

pub use authority::{AuthorityError, CellAuthority, Csr};
pub use dial::{DialError, Tls, dial, dial_stream, fetch_ca};
pub use discovery::{DiscoveryError, answer, find};
pub use http::{Api, ApiError};
pub use identity::{Identity, IdentityError, Peer, peer_of};
pub use part::{Following, Part, Parts, follow};
pub use preamble::{
    Preamble, PreambleError, Welcome, read_preamble, read_welcome, send_preamble, send_welcome,
};
pub use serve::{Clients, serve_https};
