//! What a site may try with SQL against other sites and the platform, and what comes of it.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::ground::{Cell, Member, SOON, client, until};
use crate::raw::Raw;

/// Binlog dumps go on without end; who may not have one must not get past what is done with statements.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_replica_is_a_client_as_before() {
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let blog = s1.listens("blog.1").await;
    let mut raw = Raw::logged_in(&blog, "blog").await;
    raw.send(0, b"\x12\x04\0\0\0\0\0\x07\0\0\0").await;
    assert_eq!(raw.error().await, Some(1227));
    raw.query("SELECT GET_LOCK('x', 0)").await;
    while raw.packet().await.unwrap().1[0] != 0xfe {}
    assert_eq!(member.root("SELECT IS_FREE_LOCK('x')").await, "1", "its name has the site's prefix");
}

/// The proof that a member is in its group is asked for under a site's account.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_changes_its_password_or_ends_its_connections_holds_no_other_site_up() {
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1").with_instance("shop.1");
    s1.learns("blog", Some((1, 1)));
    s1.learns("shop", Some((1, 1)));
    let (blog, shop) = (s1.listens("blog.1").await, s1.listens("shop.1").await);
    client(&blog, "blog", "SET PASSWORD = PASSWORD('other')").await.unwrap();
    let all = "SELECT GROUP_CONCAT('KILL ', id SEPARATOR ';') FROM information_schema.processlist WHERE user = 'blog'";
    until("the site's connections are gone", async || {
        let kills = member.root(all).await;
        if kills == "NULL" {
            return true;
        }
        member.root(&kills).await;
        false
    })
    .await;
    // Longer than any proof holds.
    for _ in 0..5 {
        sleep(Duration::from_millis(300)).await;
        let served = timeout(Duration::from_secs(5), client(&shop, "shop", "SELECT 1")).await;
        assert_eq!(served.expect("served").unwrap(), "1");
    }
    let refused = timeout(SOON, client(&blog, "blog", "SELECT 1")).await.unwrap().unwrap_err();
    assert!(refused.contains("1045"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_reads_and_ends_nothing_of_another_ones_nor_of_the_platforms() {
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1").with_instance("shop.1");
    s1.learns("blog", Some((1, 1)));
    s1.learns("shop", Some((1, 1)));
    let (blog, shop) = (s1.listens("blog.1").await, s1.listens("shop.1").await);
    let mut victim = Raw::logged_in(&shop, "shop").await;
    victim.query("SELECT CONNECTION_ID()").await;
    let own = "SELECT id FROM information_schema.processlist WHERE user = 'shop' LIMIT 1";
    let id = member.root(own).await;
    let kill = format!("KILL {id}");
    for (statement, complaint) in [
        ("SET GLOBAL max_connections = 1", "1227"),
        ("SET SESSION sql_log_bin = 0", "1227"),
        ("SET SESSION enforce_storage_engine = NULL", "1227"),
        ("FLUSH TABLES WITH READ LOCK", "1227"),
        ("FLUSH PRIVILEGES", "1227"),
        ("RESET MASTER", "1227"),
        ("SHUTDOWN", "1227"),
        ("CREATE USER x", "1227"),
        ("INSTALL SONAME 'metadata_lock_info'", "1142"),
        ("SELECT 1 INTO OUTFILE '/tmp/kopek-should-not-be'", "1227"),
        ("LOAD DATA INFILE '/etc/passwd' INTO TABLE blog.who", "1045"),
        ("SELECT * FROM mysql.global_priv", "1142"),
        ("SELECT * FROM shop.who", "1142"),
        ("SELECT * FROM kopek.site_6", "1142"),
        ("DROP TABLE kopek.site_5", "1142"),
        ("CREATE DEFINER=root@localhost PROCEDURE blog.p() SELECT 1", "1227"),
        ("/*! SELECT */ * FROM shop.who", "1142"),
        ("SELECT 1; SELECT * FROM shop.who", "1142"),
        (&kill, "1095"),
    ] {
        let refused = client(&blog, "blog", statement).await.expect_err(statement);
        assert!(refused.contains(complaint), "{statement}: {refused}");
    }
    for (statement, answer) in [
        ("SELECT LOAD_FILE('/etc/passwd')", "NULL"),
        ("SELECT COUNT(*) FROM information_schema.processlist WHERE user <> 'blog'", "0"),
        ("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema IN ('shop', 'mysql')", "0"),
        ("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name IN ('shop', 'mysql')", "0"),
    ] {
        assert_eq!(client(&blog, "blog", statement).await.unwrap(), answer, "{statement}");
    }
    assert_eq!(client(&shop, "shop", "SELECT COUNT(*) FROM shop.who").await.unwrap(), "1");
}

/// DDL on one member alone puts the others out of the group as soon as rows follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_cannot_choose_ddl_on_one_member_alone() {
    let (cell, member) = (Cell::new(), Member::new("m1").await);
    let mut s1 = cell.server(1).await.with_member(&member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let blog = s1.listens("blog.1").await;
    for statement in [
        "SET SESSION wsrep_OSU_method = 'RSU'",
        "EXECUTE IMMEDIATE 'SET wsrep_OSU_method=RSU'",
        "CREATE PROCEDURE blog.p() SET wsrep_OSU_method=RSU",
    ] {
        let refused = client(&blog, "blog", statement).await.expect_err(statement);
        assert!(refused.contains("ERROR 1227 (42000)"), "{statement}: {refused}");
    }
    let told = "INSERT INTO blog.who VALUES ('wsrep_OSU_method'); SELECT @@wsrep_OSU_method";
    assert_eq!(client(&blog, "blog", told).await.unwrap(), "TOI");
}
