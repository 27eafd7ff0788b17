//! The store in an etcd cluster. Keys lie under `/kopek`, which the interface does not show.
//!
//! Members that do not answer are left for the next one at once (`members`); a commit whose answer was lost
//! is reported as `Uncertain`, never repeated. Watches resume by themselves (`watching`).

mod members;
mod watching;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};

use crate::moving::{self, MOVED_KEY};
use crate::store::{
    Commit, Compare, Entry, LeaseId, Op, Range, Revision, Store, StoreError, check_commit, whole_ttl,
};
use crate::watch::Watch;
pub use members::Pems;
use members::{ANSWER_MAX, Failure, Members, Request};

/// How the product starts its etcd members (3.4), beside names, addresses, folders and certificates:
/// - a heartbeat of 50 ms and an election after 300 ms without one, so that a new leader is there in 0.3–0.6 s:
///   until then nothing can be decided about a dead server, and its sites' visitors wait. A leader that a slow
///   disk holds up for longer is replaced, which costs the others as little;
///   pre-vote, so that a member which returns or was paused does not depose a leader that works;
/// - only servers' certificates are let in (they alone hold the name `localhost`, see
///   `CellAuthority::issue_server`): an administrator's would otherwise read the cell's CA key;
/// - room for `OPS_MAX`, history for a slow watcher, and clients may ask every second whether it is alive.
pub const SETTINGS: &[&str] = &[
    "--heartbeat-interval=50",
    "--election-timeout=300",
    "--pre-vote=true",
    "--client-cert-auth=true",
    "--client-cert-allowed-hostname=localhost",
    "--peer-client-cert-auth=true",
    "--peer-cert-allowed-hostname=localhost",
    "--max-txn-ops=1100",
    "--auto-compaction-mode=revision",
    "--auto-compaction-retention=10000",
    "--grpc-keepalive-min-time=1s",
];

/// Where Kopek's keys lie in etcd.
const ROOT: &str = "/kopek";

pub struct EtcdStore {
    members: Arc<Members>,
}

impl EtcdStore {
    /// Connects when first asked. `endpoints` are `https://ADDRESS:PORT`, tried in this order.
    pub async fn new(endpoints: &[String], pems: &Pems) -> Result<EtcdStore, StoreError> {
        Ok(EtcdStore { members: Arc::new(Members::new(endpoints, pems).await?) })
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        let options = GetOptions::new().with_prefix();
        let mut answer = self
            .members
            .call(Request::Read, |client| {
                let mut client = client.kv_client().max_decoding_message_size(ANSWER_MAX);
                let options = options.clone();
                async move { client.get(rooted(prefix), Some(options)).await }
            })
            .await?;
        let revision = answer.header().map_or(0, |header| header.revision() as Revision);
        let entries = answer.take_kvs().iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Range { entries, revision })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let answer = self
            .members
            .call(Request::Read, |mut client| async move { client.get(rooted(key), None).await })
            .await?;
        answer.kvs().first().map(entry).transpose()
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        check_commit(&compares, &ops)?;
        let about_marker = moving::is_about_the_marker(&compares);
        let mut conditions: Vec<EtcdCompare> = compares.iter().map(condition).collect();
        if !about_marker {
            conditions.push(condition(&Compare::Absent { key: MOVED_KEY.to_owned() }));
        }
        let transaction = Txn::new()
            .when(conditions)
            .and_then(ops.iter().map(operation).collect::<Vec<_>>())
            .or_else([TxnOp::get(rooted(MOVED_KEY), None)]);
        let answer = self
            .members
            .call(Request::Write, |mut client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await
            .map_err(|error| lease_of(&ops, error))?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision() as Revision);
            return Ok(Commit::Done { revision });
        }
        match answer.op_responses().first() {
            Some(TxnOpResponse::Get(found)) if !about_marker => match found.kvs().first() {
                Some(marker) => Err(moving::refusal(&entry(marker)?)),
                None => Ok(Commit::Conflict),
            },
            _ => Ok(Commit::Conflict),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let (members, prefix) = (self.members.clone(), rooted(prefix));
        Ok(Watch::fed_by(|batches| watching::feed(members, prefix, from, batches)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = whole_ttl(ttl).as_secs() as i64;
        // A repeated grant may leave a lease that nobody knows; it expires.
        let answer =
            self.members
                .call(Request::RepeatableWrite, |mut client| async move {
                    client.lease_grant(seconds, None).await
                })
                .await?;
        Ok(LeaseId(answer.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let kept = self
            .members
            .call(Request::RepeatableWrite, |mut client| async move {
                // The first message goes out with the call; etcd-client reads its answer and turns a lease
                // that is gone into an error.
                client.lease_keep_alive(lease.0).await.map(drop)
            })
            .await;
        kept.map_err(|error| lost_if_not_found(lease, error))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoked = self
            .members
            .call(Request::RepeatableWrite, |mut client| async move {
                client.lease_revoke(lease.0).await.map(drop)
            })
            .await;
        revoked.map_err(|error| lost_if_not_found(lease, error))
    }
}

fn rooted(key: &str) -> String {
    format!("{ROOT}{key}")
}

fn entry(found: &KeyValue) -> Result<Entry, StoreError> {
    let key = std::str::from_utf8(found.key()).ok().and_then(|key| key.strip_prefix(ROOT));
    let key = key.ok_or_else(|| StoreError::Refused {
        why: format!("etcd holds a key that is not Kopek's under {ROOT}: {:?}; delete it", found.key()),
    })?;
    Ok(Entry {
        key: key.to_owned(),
        value: found.value().to_owned(),
        revision: found.mod_revision() as Revision,
        lease: (found.lease() != 0).then_some(LeaseId(found.lease())),
    })
}

/// One each, for etcd counts them against `--max-txn-ops`.
fn condition(compare: &Compare) -> EtcdCompare {
    let key = rooted(compare.key());
    match compare {
        Compare::Absent { .. } => EtcdCompare::create_revision(key, CompareOp::Equal, 0),
        Compare::RevisionIs { revision, .. } => {
            // In etcd an absent key has revision 0 and compares like one, but no entry ever has it.
            let never = i64::MAX;
            let revision = if *revision == 0 { never } else { i64::try_from(*revision).unwrap_or(never) };
            EtcdCompare::mod_revision(key, CompareOp::Equal, revision)
        }
        Compare::ValueIs { value, .. } => EtcdCompare::value(key, CompareOp::Equal, value.clone()),
    }
}

fn operation(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(rooted(key), value.clone(), options)
        }
        Op::Delete { key } => TxnOp::delete(rooted(key), None),
        Op::DeletePrefix { prefix } => {
            TxnOp::delete(rooted(prefix), Some(DeleteOptions::new().with_prefix()))
        }
    }
}

/// etcd does not say which of the leases is gone: the first is named.
fn lease_of(ops: &[Op], error: Failure) -> StoreError {
    let lease = ops.iter().find_map(|op| if let Op::Put { lease, .. } = op { *lease } else { None });
    match lease {
        Some(lease) => lost_if_not_found(lease, error),
        None => error.into(),
    }
}

fn lost_if_not_found(lease: LeaseId, error: Failure) -> StoreError {
    match error {
        Failure::NotFound(_) => StoreError::LeaseLost { lease },
        other => other.into(),
    }
}
