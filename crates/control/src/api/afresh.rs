//! A command that was overtaken (its commit was a conflict, so nothing was written) is decided afresh, on what the
//! cell is now, before somebody is told to repeat it: here, or by the controller that took over, which the answer
//! then names.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, sleep};

use super::{DOCUMENT_MAX, Overtaken, Refused};

/// A deposed controller notices in less than this.
const LIMIT: Duration = Duration::from_secs(3);
/// What overtook the command shows in milliseconds.
const PAUSE: Duration = Duration::from_millis(100);

/// Only for commands that are a small document, and that may be given again when nothing came of them.
pub async fn decide_afresh(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let document = match to_bytes(body, DOCUMENT_MAX).await {
        Ok(document) => document,
        Err(source) => {
            let error = format!("the document cannot be read: {source}");
            return Refused::new(StatusCode::PAYLOAD_TOO_LARGE, error).into_response();
        }
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        let request = Request::from_parts(head.clone(), Body::from(document.clone()));
        let answer = next.clone().run(request).await;
        if answer.extensions().get::<Overtaken>().is_none() || Instant::now() > deadline {
            return answer;
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::extract::Request;
    use axum::http::Method;
    use kopek_core::keys;
    use kopek_link::identity::Peer;
    use kopek_store::Op;
    use tokio::sync::watch;
    use tower_service::Service;

    use super::*;
    use crate::active::Active;
    use crate::api::desk::Desk;
    use crate::api::{Office, router};
    use crate::state::put;

    /// The desk's fence is that this key is absent.
    const LEADER: &str = "/leader";

    struct Front {
        desk: Desk,
        active: watch::Sender<Option<Arc<Active>>>,
        office: Arc<Office>,
    }

    impl Front {
        /// Of a controller that is deposed and does not know it yet.
        async fn deposed() -> Front {
            let desk = Desk::new().await;
            desk.active.store.commit(vec![], vec![put(LEADER.to_owned(), &"another")]).await.unwrap();
            let (active, office_active) = watch::channel(Some(desk.active.clone()));
            let address = "10.0.0.2:7400".parse().unwrap();
            let (_, leader) = watch::channel(Some(address));
            Front { desk, active, office: Arc::new(Office { active: office_active, leader }) }
        }

        async fn ask_for_a_token(&self) -> StatusCode {
            let mut request = Request::new(Body::empty());
            *request.method_mut() = Method::POST;
            *request.uri_mut() = "/tokens".parse().unwrap();
            request.extensions_mut().insert(Some(Peer::Admin("root".to_owned())));
            let answer = router(self.office.clone()).call(request).await;
            answer.unwrap_or_else(|never| match never {}).status()
        }

        async fn tokens(&self) -> usize {
            self.desk.active.store.range(keys::TOKENS).await.unwrap().entries.len()
        }
    }

    #[tokio::test]
    async fn a_command_that_was_overtaken_is_decided_afresh() {
        let front = Front::deposed().await;
        let again = async {
            sleep(PAUSE / 2).await;
            let elected = vec![Op::Delete { key: LEADER.to_owned() }];
            front.desk.active.store.commit(vec![], elected).await.unwrap();
        };
        let (status, ()) = tokio::join!(front.ask_for_a_token(), again);
        assert_eq!((status, front.tokens().await), (StatusCode::OK, 1));
    }

    #[tokio::test]
    async fn a_deposed_controller_sends_whoever_asks_to_the_active_one() {
        let front = Front::deposed().await;
        let leaving = async {
            sleep(PAUSE / 2).await;
            front.active.send_replace(None);
        };
        let (status, ()) = tokio::join!(front.ask_for_a_token(), leaving);
        assert_eq!((status, front.tokens().await), (StatusCode::MISDIRECTED_REQUEST, 0));
    }

    #[tokio::test]
    async fn whoever_is_overtaken_for_too_long_is_told() {
        let front = Front::deposed().await;
        let status = front.ask_for_a_token().await;
        assert_eq!((status, front.tokens().await), (StatusCode::CONFLICT, 0));
    }
}
