//! Tells other servers where the cell's state is, as far as this one knows: for those that find nothing where
//! it was (`kopek_store::whereabouts`). Part of the agent's API, for servers.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use kopek_store::{Location, whereabouts};
use tokio::sync::watch;

pub fn router(location: watch::Receiver<Location>) -> Router {
    Router::new().route(whereabouts::PATH, get(tell)).with_state(location)
}

async fn tell(State(location): State<watch::Receiver<Location>>) -> Json<Location> {
    Json(location.borrow().clone())
}
