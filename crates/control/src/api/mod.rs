//! The HTTP API: JSON over mutual TLS. Who may call what is decided here, by router: people with an admin
//! certificate everything, servers their own report, the rest only `/join` with a token. A controller on
//! standby answers 421 and names the active one.

mod afresh;
mod cell;
#[cfg(test)]
mod desk;
mod events;
mod images;
mod move_writer;
mod pools;
pub mod servers;
mod site_dump;
pub mod site_removal;
mod site_turn;
mod site_view;
mod sites;

use std::net::SocketAddr;
use std::sync::Arc;

use afresh::decide_afresh;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json, Router};
use kopek_core::api::Refusal;
use kopek_link::identity::Peer;
use kopek_store::{Commit, StoreError};
use tokio::sync::watch;

use crate::active::Active;

/// What the handlers reach: the active controller's things while this one is active, else who is.
pub struct Office {
    pub active: watch::Receiver<Option<Arc<Active>>>,
    pub leader: watch::Receiver<Option<SocketAddr>>,
}

/// JSON documents are small; trees and dumps have routes without this limit.
const DOCUMENT_MAX: usize = 1 << 20;

pub fn router(office: Arc<Office>) -> Router {
    let people = Router::new()
        .route("/cell", get(cell::show))
        .route("/pools", get(pools::list).post(pools::create))
        .route("/events", get(events::list))
        .route("/store/migrate", post(cell::migrate))
        .route("/servers", get(servers::list))
        .route("/servers/{name}", delete(servers::remove))
        .route("/servers/{name}/drain", post(servers::drain))
        .route("/servers/{name}/undrain", post(servers::undrain))
        .route("/tokens", post(servers::issue_token))
        .route("/images", get(images::list).post(images::register))
        .route("/instances", get(sites::instances))
        .route("/sites", get(sites::list).post(sites::create))
        .route("/sites/{name}", get(sites::show).delete(site_removal::delete))
        .route("/sites/{name}/deploy", post(sites::deploy))
        .route("/sites/{name}/scale", post(sites::scale))
        .route("/sites/{name}/limit", post(sites::limit))
        .route("/sites/{name}/move-writer", post(move_writer::move_writer))
        .layer(middleware::from_fn(decide_afresh))
        .layer(DefaultBodyLimit::max(DOCUMENT_MAX))
        .route("/trees", put(images::upload))
        .route("/sites/{name}/dump", put(site_dump::dump))
        .layer(middleware::from_fn(only_admins));
    let machines =
        Router::new().route("/report", post(servers::report)).layer(DefaultBodyLimit::max(DOCUMENT_MAX * 16));
    let anybody = Router::new().route("/join", post(servers::join)).layer(DefaultBodyLimit::max(64 << 10));
    people.merge(machines).merge(anybody).with_state(office)
}

async fn only_admins(request: Request, next: Next) -> Result<Response, Refused> {
    match request.extensions().get::<Option<Peer>>() {
        Some(Some(Peer::Admin(_))) => Ok(next.run(request).await),
        _ => Err(Refused::new(StatusCode::FORBIDDEN, "this needs an admin certificate of the cell")),
    }
}

/// The server whose certificate the caller presents. A certificate outlives its server's removal: what counts
/// is the cell's list.
pub struct FromServer(kopek_core::ServerId);

impl FromRequestParts<Arc<Office>> for FromServer {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, office: &Arc<Office>) -> Result<Self, Refused> {
        let Some(Some(Peer::Server(server))) = parts.extensions.get::<Option<Peer>>().cloned() else {
            return Err(Refused::new(StatusCode::FORBIDDEN, "this needs a server's certificate of the cell"));
        };
        let Acting(active) = Acting::from_request_parts(parts, office).await?;
        if !active.view().state.desired.servers.contains_key(&server) {
            let error = format!("server {server} does not belong to the cell any more; let it join again");
            return Err(Refused::new(StatusCode::FORBIDDEN, error));
        }
        Ok(FromServer(server))
    }
}

/// The active controller's things; refuses with 421 on standby.
pub struct Acting(Arc<Active>);

impl FromRequestParts<Arc<Office>> for Acting {
    type Rejection = Refused;
    async fn from_request_parts(parts: &mut Parts, office: &Arc<Office>) -> Result<Self, Refused> {
        let State(office) =
            State::<Arc<Office>>::from_request_parts(parts, office).await.expect("the state is always there");
        if let Some(active) = office.active.borrow().clone() {
            return Ok(Acting(active));
        }
        let active = *office.leader.borrow();
        let error = match active {
            Some(address) => format!("this controller is on standby; {address} is active"),
            None => "no controller is active yet; try again in a moment".to_owned(),
        };
        let refusal = Refusal { error, active };
        Err(Refused { status: StatusCode::MISDIRECTED_REQUEST, refusal, overtaken: None })
    }
}

/// An answer that is not 2xx: one line for people.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    refusal: Refusal,
    /// Nothing was written, and asked again it may be decided otherwise.
    overtaken: Option<Overtaken>,
}

/// Marks such an answer.
#[derive(Debug, Clone, Copy)]
struct Overtaken;

impl Refused {
    fn new(status: StatusCode, error: impl ToString) -> Refused {
        let refusal = Refusal { error: error.to_string(), active: None };
        Refused { status, refusal, overtaken: None }
    }

    #[cfg(test)]
    fn says(&self, words: &str) -> bool {
        self.refusal.error.contains(words)
    }

    fn unknown(kind: &str, name: impl std::fmt::Display) -> Refused {
        let error = format!("there is no {kind} {name}; `kopek {kind} ls` lists them");
        Refused::new(StatusCode::NOT_FOUND, error)
    }

    fn conflict(error: impl ToString) -> Refused {
        Refused::new(StatusCode::CONFLICT, error)
    }

    fn overtaken(error: impl ToString) -> Refused {
        Refused { overtaken: Some(Overtaken), ..Refused::conflict(error) }
    }

    fn unusable(error: impl ToString) -> Refused {
        Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error)
    }

    fn unavailable(error: impl ToString) -> Refused {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, self.overtaken.map(Extension), Json(self.refusal)).into_response()
    }
}

impl From<StoreError> for Refused {
    fn from(source: StoreError) -> Refused {
        Refused::unavailable(format!("the cell's store does not answer: {source}; try again"))
    }
}

/// A conflict under `editing` means that the reconcile loop wrote in between, or that another controller took over.
fn committed(commit: Commit) -> Result<(), Refused> {
    match commit {
        Commit::Done { .. } => Ok(()),
        Commit::Conflict => Err(Refused::overtaken("the cell changed in between; repeat the command")),
    }
}

#[cfg(test)]
mod tests {
    use super::desk::Desk;
    use super::*;

    #[tokio::test]
    async fn a_server_that_was_removed_is_heard_no_more() {
        let desk = Desk::new().await;
        let (_leader, leader) = watch::channel(None);
        let (_active, active) = watch::channel(Some(desk.active.clone()));
        let office = Arc::new(Office { active, leader });
        let from = |peer: Option<Peer>| {
            let office = office.clone();
            async move {
                let mut parts = Request::new(()).into_parts().0;
                parts.extensions.insert(peer);
                FromServer::from_request_parts(&mut parts, &office).await.map(|FromServer(server)| server)
            }
        };
        let server = |name: &str| Some(Peer::Server(kopek_core::ServerId::parse(name).unwrap()));
        assert_eq!(from(server("s1")).await.unwrap().as_str(), "s1");
        let removed = from(server("s9")).await.unwrap_err();
        assert!(removed.says("s9 does not belong to the cell any more"), "{removed:?}");
        for stranger in [None, Some(Peer::Admin("root".to_owned()))] {
            assert!(from(stranger).await.unwrap_err().says("server's certificate"));
        }
    }
}
