//! Servers: what they are and how they stand, draining, removal, joining, and their agents' reports.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Path;
use axum::http::StatusCode;
use kopek_core::api::{IssuedToken, Join, Joined, ServerView};
use kopek_core::desired::{Server, Standing};
use kopek_core::observed::{MemberState, Report};
use kopek_core::{Load, Moment, ServerId, keys};
use kopek_link::authority::CellAuthority;
use kopek_store::{Commit, Compare, Entry, Op};
use serde::{Deserialize, Serialize};

use super::{Acting, FromServer, Refused, committed};
use crate::active::Active;
use crate::state::put;
use crate::token::{Issued, Token};

/// Long enough to copy it to another machine's terminal, short enough to forget.
const TOKEN_LIFE_MS: u64 = 60 * 60 * 1000;

/// Deleted with each new token: far below what one commit takes (`kopek_store::OPS_MAX`).
const EXPIRED_MAX: usize = 100;

/// The cell's CA as it lies in the store.
#[derive(Serialize, Deserialize)]
pub struct StoredAuthority {
    pub certificate: String,
    pub key: String,
}

pub async fn list(Acting(active): Acting) -> Json<Vec<ServerView>> {
    let view = active.view();
    let mut instances: BTreeMap<&ServerId, usize> = BTreeMap::new();
    for placement in view.state.placed.sites.values() {
        for placed in placement.instances.values() {
            *instances.entry(&placed.server).or_default() += 1;
        }
    }
    let views = view.state.desired.servers.values().map(|server| {
        let report = view.observed.servers.get(&server.name).map(|seen| &seen.report);
        let alive = report.filter(|_| server.standing != Standing::Dead);
        ServerView {
            name: server.name.clone(),
            address: server.address,
            rack: server.rack.clone(),
            slots: server.slots,
            state: standing_name(server.standing).to_owned(),
            instances: instances.get(&server.name).copied().unwrap_or(0),
            load: Load(alive.map_or(0, |report| report.instances.values().map(|seen| seen.load.0).sum())),
            pool: alive
                .and_then(|report| report.member.as_ref())
                .map_or("none", |member| member_name(&member.state))
                .to_owned(),
            vips: alive.map(|report| report.vips.clone()).unwrap_or_default(),
            active_controller: server.name == active.me,
            disk_free: report.map(|report| report.disk_free).unwrap_or_default(),
            memory_free: report.map(|report| report.memory_free).unwrap_or_default(),
            images: alive.map(|report| report.images.clone()).unwrap_or_default(),
        }
    });
    Json(views.collect())
}

pub fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Up => "up",
        Standing::Draining => "draining",
        Standing::Dead => "dead",
        Standing::Returning => "returning",
    }
}

pub fn member_name(state: &MemberState) -> &'static str {
    match state {
        MemberState::Stopped => "stopped",
        MemberState::Starting => "starting",
        MemberState::Synced => "synced",
        MemberState::Unready { .. } => "unready",
    }
}

pub async fn drain(Acting(active): Acting, Path(name): Path<ServerId>) -> Result<Json<()>, Refused> {
    let _editing = active.editing.lock().await;
    let server = known(&active, &name)?;
    match server.standing {
        Standing::Draining => Ok(Json(())),
        Standing::Up => set_standing(&active, server, Standing::Draining, "draining").await,
        Standing::Dead | Standing::Returning => Err(Refused::conflict(format!(
            "server {name} is {}, so there is nothing to drain; `kopek server remove {name}` if it is lost for good",
            standing_name(server.standing)
        ))),
    }
}

pub async fn undrain(Acting(active): Acting, Path(name): Path<ServerId>) -> Result<Json<()>, Refused> {
    let _editing = active.editing.lock().await;
    let server = known(&active, &name)?;
    if server.standing != Standing::Draining {
        return Ok(Json(()));
    }
    set_standing(&active, server, Standing::Up, "takes instances again").await
}

async fn set_standing(
    active: &Active,
    mut server: Server,
    standing: Standing,
    what: &str,
) -> Result<Json<()>, Refused> {
    let name = server.name.clone();
    let unchanged = active.view().state.unchanged(&keys::server(&name));
    server.standing = standing;
    let ops = vec![put(keys::server(&name), &server), active.event(&name, what, "asked for by an admin")];
    committed(active.commit(vec![unchanged], ops).await?)?;
    Ok(Json(()))
}

/// A server may go when nothing of value is on it any more: it is drained and empty, or dead.
pub async fn remove(Acting(active): Acting, Path(name): Path<ServerId>) -> Result<Json<()>, Refused> {
    let _editing = active.editing.lock().await;
    let server = known(&active, &name)?;
    let view = active.view();
    let busy = view.state.placed.sites.values().any(|placement| {
        placement.instances.values().any(|instance| instance.server == name)
            || placement.writer.as_ref().is_some_and(|writer| writer.server == name)
    });
    if server.is_up() || busy {
        return Err(Refused::conflict(format!(
            "server {name} still works for the cell; `kopek server drain {name}` first and wait until it is empty"
        )));
    }
    if view.state.store_members.members.contains_key(&name) {
        return Err(Refused::conflict(format!(
            "server {name} keeps a member of the cell's store; `kopek store migrate --to embedded` first"
        )));
    }
    let ops = vec![
        Op::Delete { key: keys::server(&name) },
        active.event(&name, "server removed", "asked for by an admin"),
    ];
    committed(active.commit(vec![view.state.unchanged(&keys::server(&name))], ops).await?)?;
    Ok(Json(()))
}

fn known(active: &Active, name: &ServerId) -> Result<Server, Refused> {
    active.view().state.desired.servers.get(name).cloned().ok_or_else(|| Refused::unknown("server", name))
}

pub async fn issue_token(Acting(active): Acting) -> Result<Json<IssuedToken>, Refused> {
    let authority = authority(&active).await?;
    let token = Token::new(authority.fingerprint().clone());
    let expires = active.now().plus_millis(TOKEN_LIFE_MS);
    let given = active.store.range(keys::TOKENS).await?;
    let mut ops = vec![put(token.key(), &Issued { expires })];
    let expired = given.entries.into_iter().filter(|entry| has_expired(entry, active.now()));
    ops.extend(expired.take(EXPIRED_MAX).map(|entry| Op::Delete { key: entry.key }));
    committed(active.commit(vec![], ops).await?)?;
    Ok(Json(IssuedToken { token: token.to_string(), expires }))
}

/// A new server gives its token and a signing request, and gets a certificate and the store's location. The
/// token is spent in the same commit that makes the server known.
pub async fn join(Acting(active): Acting, Json(join): Json<Join>) -> Result<Json<Joined>, Refused> {
    let refuse = |error: &str| Err(Refused::new(StatusCode::FORBIDDEN, error));
    let token = Token::parse(&join.token).map_err(Refused::unusable)?;
    // Before anything that others would wait for: anybody may call this.
    let Some(entry) = active.store.get(&token.key()).await? else { return refuse(UNKNOWN_TOKEN) };
    if has_expired(&entry, active.now()) {
        let unchanged = Compare::RevisionIs { key: token.key(), revision: entry.revision };
        active.commit(vec![unchanged], vec![Op::Delete { key: token.key() }]).await?;
        return refuse("this join token has expired; get a new one with `kopek server token`");
    }
    let _editing = active.editing.lock().await;
    let view = active.view();
    let servers = &view.state.desired.servers;
    if servers.contains_key(&join.name) {
        return Err(Refused::conflict(format!(
            "the cell already has a server {}; give another --name, or `kopek server remove` the old one",
            join.name
        )));
    }
    if let Some(other) = servers.values().find(|server| server.address == join.address) {
        return Err(Refused::conflict(format!("address {} belongs to server {}", join.address, other.name)));
    }
    let certificate = authority(&active)
        .await?
        .issue_server(&join.csr, &join.name, &[join.address])
        .map_err(Refused::unusable)?;
    let server = Server {
        name: join.name.clone(),
        address: join.address,
        rack: join.rack,
        slots: join.slots,
        standing: Standing::Up,
        joined: active.now(),
    };
    let compares = vec![
        Compare::RevisionIs { key: token.key(), revision: entry.revision },
        Compare::Absent { key: keys::server(&join.name) },
    ];
    let ops = vec![
        Op::Delete { key: token.key() },
        put(keys::server(&join.name), &server),
        active.event(&join.name, "server joined", format!("at {} with {} slots", join.address, join.slots)),
    ];
    let commit = active.commit(compares, ops).await?;
    // Another server may have joined with it meanwhile.
    if commit == Commit::Conflict && active.store.get(&token.key()).await?.is_none() {
        return refuse(UNKNOWN_TOKEN);
    }
    committed(commit)?;
    let store = serde_json::to_value(active.location.borrow().clone()).expect("a location is plain JSON");
    Ok(Json(Joined { ca: authority(&active).await?.ca_pem().to_owned(), certificate, store }))
}

const UNKNOWN_TOKEN: &str =
    "this join token was used before or never given; get a new one with `kopek server token`";

/// Also what cannot be read: no token that this controller could honour.
fn has_expired(entry: &Entry, now: Moment) -> bool {
    serde_json::from_slice::<Issued>(&entry.value).map_or(true, |issued| issued.has_expired(now))
}

async fn authority(active: &Active) -> Result<CellAuthority, Refused> {
    let entry =
        active.store.get(keys::AUTHORITY).await?.ok_or_else(|| {
            Refused::unavailable("the cell's CA is not in the store; restore it from a backup")
        })?;
    let stored: StoredAuthority = serde_json::from_slice(&entry.value).map_err(Refused::unavailable)?;
    CellAuthority::from_pem(&stored.certificate, &stored.key).map_err(Refused::unavailable)
}

/// An agent's report. An agent speaks only for its own server.
pub async fn report(
    FromServer(server): FromServer,
    Acting(active): Acting,
    Json(report): Json<Report>,
) -> Result<Json<()>, Refused> {
    if report.server != server {
        let error = format!("server {server} reported for {}", report.server);
        return Err(Refused::new(StatusCode::FORBIDDEN, error));
    }
    active.reports.record(report, active.now());
    Ok(Json(()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kopek_core::Digest;
    use kopek_link::authority::Csr;

    use super::*;
    use crate::api::desk::Desk;

    async fn tokens(desk: &Desk) -> Vec<String> {
        let range = desk.active.store.range(keys::TOKENS).await.unwrap();
        range.entries.into_iter().map(|entry| entry.key).collect()
    }

    async fn give(desk: &Desk) -> Token {
        let issued = issue_token(desk.acting()).await.unwrap().0;
        Token::parse(&issued.token).unwrap()
    }

    async fn let_expire(desk: &Desk, token: &Token) {
        let put = put(token.key(), &Issued { expires: desk.active.now() });
        committed(desk.active.commit(vec![], vec![put]).await.unwrap()).unwrap();
    }

    async fn ask_to_join(desk: &Desk, token: &Token, name: &str, host: u8) -> Result<Joined, Refused> {
        let request = Join {
            token: token.to_string(),
            name: ServerId::parse(name).unwrap(),
            address: [10, 0, 0, host].into(),
            rack: "rack1".to_owned(),
            slots: 1,
            csr: Csr::new().unwrap().csr_pem,
        };
        join(desk.acting(), Json(request)).await.map(|joined| joined.0)
    }

    #[tokio::test]
    async fn a_token_is_good_for_one_server_and_is_gone_then() {
        let desk = Desk::new().await;
        let token = give(&desk).await;
        // At once: one of the two finds it spent when it comes to write.
        let (one, other) =
            tokio::join!(ask_to_join(&desk, &token, "s2", 2), ask_to_join(&desk, &token, "s3", 3));
        assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
        let refused = one.and(other).unwrap_err();
        assert!(refused.says("used before or never given"), "{refused:?}");
        assert_eq!(tokens(&desk).await, [""; 0]);
        let again = ask_to_join(&desk, &token, "s4", 4).await.unwrap_err();
        assert!(again.says("used before or never given"), "{again:?}");
        assert_eq!(desk.active.view().state.desired.servers.len(), 2);
    }

    #[tokio::test]
    async fn an_expired_token_lets_nobody_in_and_is_deleted() {
        let desk = Desk::new().await;
        let (tried, forgotten) = (give(&desk).await, give(&desk).await);
        let_expire(&desk, &tried).await;
        let refused = ask_to_join(&desk, &tried, "s2", 2).await.unwrap_err();
        assert!(refused.says("has expired"), "{refused:?}");
        assert_eq!(tokens(&desk).await, [forgotten.key()]);
        let_expire(&desk, &forgotten).await;
        let fresh = give(&desk).await;
        assert_eq!(tokens(&desk).await, [fresh.key()]);
    }

    #[tokio::test]
    async fn who_has_no_token_waits_for_nobody_and_nobody_for_them() {
        let desk = Desk::new().await;
        let _editing = desk.active.editing.lock().await;
        let token = Token::new(Digest::parse(&"ab".repeat(32)).unwrap());
        let refused = tokio::time::timeout(Duration::from_secs(5), ask_to_join(&desk, &token, "s2", 2));
        assert!(refused.await.expect("it waited for the lock").is_err());
    }
}
