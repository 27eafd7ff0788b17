//! The active controller: observes, plans, dispatches, and serves the API.
