//! Sessions share backends and never one another's state.

use tokio::time::timeout;

use crate::ground::{Cell, Member, SOON, Server, answer_of, client, client_command, long_statement, until};

async fn site_of(member: &Member) -> (Cell, Server, std::path::PathBuf) {
    let cell = Cell::new();
    let mut s1 = cell.server(1).await.with_member(member).with_instance("blog.1");
    s1.learns("blog", Some((1, 1)));
    let socket = s1.listens("blog.1").await;
    (cell, s1, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_leaves_behind_no_other_one_sees() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    let leave = "SET @a = 1, SESSION sql_mode = 'ANSI_QUOTES', NAMES latin1; SET SESSION autocommit = 0; \
                 CREATE TEMPORARY TABLE blog.t (a INT); SELECT GET_LOCK('x', 0); \
                 PREPARE s FROM 'SELECT 1'; USE information_schema; \
                 INSERT INTO blog.who VALUES ('lost'); SELECT SQL_CALC_FOUND_ROWS 1 FROM blog.who LIMIT 1";
    let look = "SELECT @a, @@sql_mode LIKE '%ANSI%', @@character_set_client, @@autocommit, DATABASE(), \
                IS_FREE_LOCK('x'), LAST_INSERT_ID()";
    let threads = "SELECT CONNECTION_ID()";
    let mut seen = std::collections::BTreeSet::new();
    let clean = client(&socket, "blog", look).await.unwrap();
    for _ in 0..8 {
        seen.insert(client(&socket, "blog", threads).await.unwrap());
        client(&socket, "blog", leave).await.unwrap();
        assert_eq!(client(&socket, "blog", look).await.unwrap(), clean);
        for (asked, complaint) in [("SELECT * FROM blog.t", "1146"), ("EXECUTE s", "1243")] {
            let refused = client(&socket, "blog", asked).await.unwrap_err();
            assert!(refused.contains(complaint), "{asked}: {refused}");
        }
        assert_eq!(client(&socket, "blog", "SELECT COUNT(*) FROM blog.who").await.unwrap(), "1");
    }
    assert!(seen.len() < 8, "backends are used again: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_on_its_own_looks_as_without_its_token() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    let statements = "CREATE TABLE blog.n (id INT AUTO_INCREMENT PRIMARY KEY, v TINYINT); \
                      SET sql_mode = ''; \
                      INSERT INTO blog.n (v) VALUES (1), (2); SELECT LAST_INSERT_ID(), ROW_COUNT(); \
                      INSERT INTO blog.n (v) VALUES (1000); SHOW WARNINGS; \
                      UPDATE blog.n SET v = 5 WHERE id < 3; SELECT ROW_COUNT(); \
                      SELECT @@in_transaction; SELECT id, v FROM blog.n";
    // As one packet each, so that they are writes on their own.
    let through = client(&socket, "blog", statements).await.unwrap();
    let direct = member.root(&statements.replace("blog.n", "shop.n")).await;
    assert_eq!(through.replace("blog.n", "shop.n"), direct);
    assert_ne!(member.root("SELECT COUNT(*) FROM kopek.site_5").await, "0", "a token was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_in_mariadbs_words_and_a_right_one_is_not_asked_for_at_the_member() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    client(&socket, "blog", "SELECT 1").await.unwrap();
    let mut command = client_command(&socket, "blog", "SELECT 1");
    command.arg("-pwrong");
    let refused = answer_of(timeout(SOON, command.output()).await.unwrap().unwrap()).unwrap_err();
    assert!(
        refused
            .contains("ERROR 1045 (28000): Access denied for user 'blog'@'127.1.0.5' (using password: YES)"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_compression_and_a_clients_file_work() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    let long = "SELECT REPEAT('x', 100000)";
    for option in ["--ssl", "--compress"] {
        let mut command = client_command(&socket, "blog", long);
        command.arg(option);
        let answer = answer_of(timeout(SOON, command.output()).await.unwrap().unwrap()).unwrap();
        assert_eq!(answer.len(), 100_000, "{option}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one\ntwo\n").unwrap();
    let load = format!(
        "LOAD DATA LOCAL INFILE '{}' INTO TABLE blog.who; SELECT COUNT(*) FROM blog.who",
        file.path().display()
    );
    let mut command = client_command(&socket, "blog", &load);
    command.arg("--local-infile=1");
    assert_eq!(answer_of(timeout(SOON, command.output()).await.unwrap().unwrap()).unwrap(), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_of_more_than_sixteen_mebibytes_passes_both_ways() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("big.sql");
    std::fs::write(&script, format!("SELECT LENGTH('{}'), REPEAT('y', 20000000);", "x".repeat(20_000_000)))
        .unwrap();
    let mut command = client_command(&socket, "blog", &format!("source {}", script.display()));
    let answer = answer_of(timeout(SOON, command.output()).await.unwrap().unwrap()).unwrap();
    assert!(answer.starts_with("20000000\tyyy") && answer.len() == 20_000_009, "{} bytes", answer.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_connection_is_killed_is_not_begun_again() {
    let member = Member::new("m1").await;
    // A member that began only now may have begun anew.
    const UP: &str =
        "SELECT variable_value > 2 FROM information_schema.global_status WHERE variable_name = 'UPTIME'";
    until("the member has been up for a while", async || member.root(UP).await == "1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    let session = long_statement(&socket);
    until("the statement runs", async || member.sleepers_of("blog").await == "1").await;
    let number = "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'";
    let number = client(&socket, "blog", number).await.unwrap();
    client(&socket, "blog", &format!("KILL {number}")).await.unwrap();
    let ended = answer_of(timeout(SOON, session.wait_with_output()).await.expect("it ends").unwrap());
    assert!(ended.as_ref().is_err_and(|complaint| complaint.contains("Lost connection")), "{ended:?}");
    assert_eq!(member.sleepers_of("blog").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_too_many_connections_says_so_to_the_one_who_logs_in() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    client(&socket, "blog", "SELECT 1").await.unwrap();
    member.root("SET GLOBAL max_connections = 10").await;
    let mut taken = Vec::new();
    until("one too many is turned away", async || {
        taken.push(long_statement(&socket));
        let refused = client(&socket, "blog", "SELECT 1").await;
        refused
            .is_err_and(|complaint| complaint.contains("1040") && complaint.contains("Too many connections"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_statement_along() {
    let member = Member::new("m1").await;
    let (_cell, _s1, socket) = site_of(&member).await;
    let mut session = long_statement(&socket);
    until("the statement runs", async || member.sleepers_of("blog").await == "1").await;
    session.kill().await.unwrap();
    until("the statement ends", async || member.sleepers_of("blog").await == "0").await;
    assert_eq!(client(&socket, "blog", "SELECT 5").await.unwrap(), "5");
}
