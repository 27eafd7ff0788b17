//! The public HTTP balancer of a server.
