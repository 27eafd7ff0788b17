//! Two members of one Galera group, with the pool's settings that matter here.

use std::process::Stdio;

use tokio::process::Command;

use crate::ground::{Member, address, client, until};

const PROVIDER: &str = "/usr/lib/galera/libgalera_smm.so";

pub async fn pair() -> (Member, Member) {
    let found = options(11, "gcomm://");
    let founding: Vec<&str> = found.iter().map(String::as_str).chain(["--wsrep-new-cluster"]).collect();
    let mut first = Member::installed().await.started_with(&founding).await.with_accounts("pool").await;
    first.root("SHUTDOWN").await;
    first.process.wait().await.unwrap();
    // With the first one's data and place in history the second joins without a copy.
    let second = Member::installed().await;
    copy(&first, &second).await;
    let first = first.started_with(&founding).await;
    is_synced(&first).await;
    let joining = options(12, &format!("gcomm://{}", address(11)));
    let joining: Vec<&str> = joining.iter().map(String::as_str).collect();
    let second = second.started_with(&joining).await;
    is_synced(&second).await;
    (first, second)
}

fn options(number: u8, group: &str) -> Vec<String> {
    let own = address(number);
    [
        "--wsrep-on=ON".to_owned(),
        format!("--wsrep-provider={PROVIDER}"),
        format!("--wsrep-cluster-address={group}"),
        format!("--wsrep-node-address={own}"),
        format!(
            "--wsrep-provider-options=gmcast.listen_addr=tcp://{own}:4567;ist.recv_addr={own}:4568;\
             pc.recovery=FALSE;gcache.size=32M"
        ),
        "--binlog-format=ROW".to_owned(),
        "--innodb-autoinc-lock-mode=2".to_owned(),
        "--wsrep-mode=REPLICATE_MYISAM,REPLICATE_ARIA".to_owned(),
    ]
    .to_vec()
}

async fn copy(from: &Member, to: &Member) {
    tokio::fs::remove_dir_all(to.data()).await.unwrap();
    let copied = Command::new("cp").arg("-a").args([from.data(), to.data()]).status().await.unwrap();
    assert!(copied.success());
    for name in ["galera.cache", "gvwstate.dat"] {
        let _ = tokio::fs::remove_file(to.data().join(name)).await;
    }
}

async fn is_synced(member: &Member) {
    until("the member is synced", async || {
        let state = client(&member.socket(), "root", "SHOW STATUS LIKE 'wsrep_local_state_comment'").await;
        state.is_ok_and(|state| state.ends_with("Synced"))
    })
    .await;
}

/// What runs now for sites' accounts with this beginning, at one member.
pub async fn running(member: &Member, beginning: &str) -> usize {
    let asked = Command::new("mariadb")
        .args(["--no-defaults", "-NB", "-uroot", "-S"])
        .arg(member.socket())
        .args([
            "-e",
            &format!(
                "SELECT COUNT(*) FROM information_schema.processlist
             WHERE user IN ('blog', 'shop') AND info LIKE '{beginning}%'"
            ),
        ])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    String::from_utf8(asked.stdout).unwrap().trim().parse().unwrap()
}
