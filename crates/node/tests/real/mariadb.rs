//! Three real pool members in three namespaces.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kopek_core::assignment::{AssignedDatabase, AssignedMember, Start};
use kopek_core::desired::Database;
use kopek_core::observed::{MemberState, Position, SeenMember};
use kopek_core::part::site_loopback;
use kopek_core::{PoolName, SiteName};
use kopek_node::mariadb::{DumpError, Evicted, Member, MemberConfig};

use crate::rack::{Rack, Server, eventually, rack};

const SOON: Duration = Duration::from_secs(40);

struct Pool {
    members: Vec<PoolMember>,
    _rack: Rack,
}

struct PoolMember {
    server: Server,
    member: Arc<Member>,
}

fn pool(tag: &str, subnet: u8, size: usize) -> Pool {
    let mut rack = rack(tag, subnet);
    let members = (0..size).map(|_| PoolMember::on(rack.server())).collect();
    Pool { members, _rack: rack }
}

impl Pool {
    fn order(&self, index: usize, start: Start) {
        self.order_with(index, start, BTreeMap::new());
    }

    fn order_with(&self, index: usize, start: Start, databases: BTreeMap<SiteName, AssignedDatabase>) {
        let group = self.members.iter().map(|m| (m.server.name.clone(), m.server.address)).collect();
        self.members[index].member.apply(Some(AssignedMember {
            pool: PoolName::first(),
            group,
            start,
            databases,
        }));
    }

    fn form(&self) {
        self.order(0, Start::Bootstrap);
        self.members[0].wait_for(&MemberState::Synced, 1);
        for index in 1..self.members.len() {
            self.order(index, Start::Join);
        }
        for member in &self.members {
            member.wait_for(&MemberState::Synced, self.members.len());
        }
    }
}

impl PoolMember {
    fn on(server: Server) -> PoolMember {
        let member = PoolMember::agent(&server);
        PoolMember { server, member }
    }

    /// What an agent does when it starts.
    fn agent(server: &Server) -> Arc<Member> {
        let (dirs, config) = (server.dirs.clone(), MemberConfig::new(&server.name, server.address));
        Arc::new(server.run(async move { Member::start(&dirs, config) }))
    }

    fn seen(&self) -> Option<SeenMember> {
        self.member.seen().borrow().clone()
    }

    fn wait_for(&self, state: &MemberState, size: usize) -> SeenMember {
        let what = format!("{} {state:?} in a group of {size}", self.server.name);
        eventually(&what, SOON, || self.seen().filter(|s| s.state == *state && s.group_size == size))
    }

    fn kill_and_see_it_restart(&self) {
        let before = self.server.pids();
        before.iter().copied().for_each(crate::rack::kill);
        eventually("another mariadbd", SOON, || {
            self.server.pids().into_iter().find(|pid| !before.contains(pid))
        });
    }

    fn stopped_at(&self) -> Position {
        let what = format!("{} stopped at a known position", self.server.name);
        eventually(&what, SOON, || {
            self.seen().filter(|s| s.state == MemberState::Stopped).and_then(|s| s.position)
        })
    }

    fn sql(&self, statement: &str) -> Result<String, String> {
        let socket = self.member.socket();
        let output =
            self.server.command("mariadb").arg("-S").arg(socket).args(["-Ne", statement]).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    fn import(&self, database: &AssignedDatabase, dump: &str) -> Result<(), DumpError> {
        let file = self.server.dirs.state.join("dump.sql");
        std::fs::write(&file, dump).unwrap();
        let (member, database) = (self.member.clone(), database.clone());
        self.server.run(async move { member.import_dump(&database, &file).await })
    }
}

fn database(number: u32, name: &str, password: &str) -> AssignedDatabase {
    let database = Database { name: name.to_owned(), user: "web".to_owned(), password: password.to_owned() };
    AssignedDatabase { number, database }
}

fn site(name: &str) -> SiteName {
    SiteName::parse(name).unwrap()
}

#[test]
fn a_pool_forms_loses_members_one_by_one_and_all_at_once_and_keeps_what_was_committed() {
    let pool = pool("m", 3, 3);
    let members = &pool.members;
    // Before anything: no data, nowhere in history.
    pool.order(0, Start::Hold);
    assert_eq!(members[0].stopped_at().seqno, -1);

    let start = Instant::now();
    pool.form();
    println!("a pool of three formed in {:?}", start.elapsed());
    members[0].sql("CREATE DATABASE d; CREATE TABLE d.t (a INT PRIMARY KEY)").unwrap();
    members[0]
        .sql("CREATE TABLE d.old (a INT PRIMARY KEY) ENGINE=MyISAM; INSERT INTO d.old VALUES (7)")
        .unwrap();
    assert_eq!(
        members[2].sql("SET wsrep_sync_wait=1; SELECT a FROM d.old").unwrap(),
        "7",
        "MyISAM replicates"
    );

    // One is killed: it comes back by itself.
    let start = Instant::now();
    members[1].kill_and_see_it_restart();
    members[0].sql("INSERT INTO d.t VALUES (1)").unwrap();
    println!("the others wrote {:?} after a member was killed", start.elapsed());
    members[1].wait_for(&MemberState::Synced, 3);
    println!("it was back after {:?}", start.elapsed());
    assert_eq!(members[1].sql("SET wsrep_sync_wait=1; SELECT a FROM d.t").unwrap(), "1");

    // The bootstrap order still stands at the first: when it dies it joins, it does not start another group.
    members[0].kill_and_see_it_restart();
    members[0].wait_for(&MemberState::Synced, 3);
    assert_eq!(members[0].sql("SELECT a FROM d.t").unwrap(), "1");

    // All are killed at once, told to hold, and tell how far they came.
    (0..3).for_each(|index| pool.order(index, Start::Hold));
    members[2].sql("INSERT INTO d.t VALUES (2)").unwrap();
    let pids: Vec<i32> = members.iter().flat_map(|m| m.server.pids()).collect();
    pids.into_iter().for_each(crate::rack::kill);
    let positions: Vec<Position> = members.iter().map(PoolMember::stopped_at).collect();
    assert!(positions.iter().all(|p| p.group == positions[0].group && p.seqno > 3), "{positions:?}");
    let newest = (0..3).max_by_key(|index| positions[*index].seqno).unwrap();
    pool.order(newest, Start::Bootstrap);
    let started = members[newest].wait_for(&MemberState::Synced, 1).position.unwrap();
    assert!(started.seqno >= positions[newest].seqno, "{started:?}, {positions:?}");
    assert_eq!(started.group, positions[newest].group);
    (0..3).filter(|index| *index != newest).for_each(|index| pool.order(index, Start::Join));
    for member in members {
        member.wait_for(&MemberState::Synced, 3);
        assert_eq!(member.sql("SET wsrep_sync_wait=1; SELECT COUNT(*) FROM d.t").unwrap(), "2");
    }

    // An agent that restarts finds its member running.
    let pids = members[1].server.pids();
    let successor = PoolMember::agent(&members[1].server);
    eventually("adopted", SOON, || {
        successor.seen().borrow().clone().filter(|s| s.state == MemberState::Synced)
    });
    assert_eq!(members[1].server.pids(), pids);
    drop(successor);

    // A frozen member is put out at once, but never one that the rest needs.
    let frozen = &members[2].server;
    frozen.pids().into_iter().for_each(|pid| signal(pid, nix::sys::signal::SIGSTOP));
    let start = Instant::now();
    assert_eq!(evict(&members[0], frozen).unwrap(), Evicted::Now);
    members[0].sql("INSERT INTO d.t VALUES (3)").unwrap();
    println!("writes went on {:?} after an eviction", start.elapsed());
    let why = evict(&members[0], &members[1].server).unwrap_err();
    assert!(why.contains("no quorum"), "{why}");
    // Its agent ends it and starts it anew.
    members[2].wait_for(&MemberState::Synced, 3);
    // What was seen last may still be from before it was frozen.
    let until = Instant::now() + std::time::Duration::from_secs(60);
    while !members[2].sql("SET wsrep_sync_wait=1; SELECT COUNT(*) FROM d.t").is_ok_and(|count| count == "3") {
        assert!(Instant::now() < until, "the member that was frozen has not caught up");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }

    // A server that carries no member any more stops it cleanly.
    members[2].member.apply(None);
    eventually("stopped", SOON, || members[2].server.pids().is_empty().then_some(()));
    assert_eq!(members[2].seen(), None);
    members[0].wait_for(&MemberState::Synced, 2);

    // One that lost its place in history gets everything anew, over TLS.
    std::fs::remove_file(members[2].server.dirs.state.join("mariadb/data/grastate.dat")).unwrap();
    let start = Instant::now();
    pool.order(2, Start::Join);
    members[2].wait_for(&MemberState::Synced, 3);
    println!("a full copy took {:?}", start.elapsed());
    assert_eq!(members[2].sql("SET wsrep_sync_wait=1; SELECT COUNT(*) FROM d.t").unwrap(), "3");
    let log = std::fs::read_to_string(members[2].server.log("mariadbd")).unwrap();
    assert!(log.contains("mariabackup SST completed on joiner"));
}

/// It may have been removed from the one and be free for the other.
#[test]
fn a_member_that_is_given_to_another_pool_begins_without_the_data_of_the_first() {
    let pool = pool("o", 13, 1);
    let member = &pool.members[0];
    pool.order(0, Start::Bootstrap);
    let first = member.wait_for(&MemberState::Synced, 1).position.unwrap();
    member.sql("CREATE DATABASE d").unwrap();
    let second = PoolName::parse("pool2").unwrap();
    let group = BTreeMap::from([(member.server.name.clone(), member.server.address)]);
    let give = |start| AssignedMember {
        pool: second.clone(),
        group: group.clone(),
        start,
        databases: BTreeMap::new(),
    };
    member.member.apply(Some(give(Start::Hold)));
    let seen = eventually("it has nothing of the second", SOON, || {
        member.seen().filter(|seen| seen.pool == second && seen.state == MemberState::Stopped)
    });
    assert_eq!(seen.position.unwrap().seqno, -1);
    member.member.apply(Some(give(Start::Bootstrap)));
    let seen = eventually("the second is in service", SOON, || {
        member.seen().filter(|seen| seen.pool == second && seen.state == MemberState::Synced)
    });
    assert_ne!(seen.position.unwrap().group, first.group);
    assert_eq!(member.sql("SHOW DATABASES LIKE 'd'").unwrap(), "");
    assert_eq!(member.sql("SELECT @@wsrep_cluster_name").unwrap(), "kopek-pool2");
    assert!(member.server.dirs.state.join("mariadb/data.of-pool1/d").is_dir(), "kept for people");
}

/// As after a total power loss: mariadbd by itself gives up after 30 s.
#[test]
fn a_member_that_looks_for_a_group_which_is_not_there_stops_when_told() {
    let pool = pool("w", 12, 2);
    pool.order(0, Start::Join);
    let log = pool.members[0].server.log("mariadbd");
    eventually("it looks for the group", SOON, || {
        std::fs::read_to_string(&log).ok().filter(|text| text.contains("connecting to group"))
    });
    pool.order(0, Start::Hold);
    let before_it_gives_up = Duration::from_secs(20);
    eventually("it stopped", before_it_gives_up, || {
        pool.members[0].seen().filter(|seen| seen.state == MemberState::Stopped)
    });
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

fn evict(by: &PoolMember, dead: &Server) -> Result<Evicted, String> {
    let (member, dead) = (by.member.clone(), dead.name.clone());
    by.server.run(async move { member.evict(&dead, None).await.map_err(|error| error.to_string()) })
}

#[test]
fn a_site_reaches_its_own_database_only_and_so_does_its_dump() {
    let pool = pool("d", 4, 1);
    let member = &pool.members[0];
    let (shop, blog) = (database(1, "web_1", "it's \\ secret"), database(300, "webx1", "b"));
    let both = BTreeMap::from([(site("shop"), shop.clone()), (site("blog"), blog.clone())]);
    pool.order_with(0, Start::Bootstrap, both);
    eventually("both databases", SOON, || member.seen().filter(|s| s.databases.len() == 2));

    // As the relay does: from the site's own loopback address, and from no other.
    let connect = |from: u32, as_site: &AssignedDatabase, statement: &str| {
        let (as_site, statement) = (as_site.clone(), statement.to_owned());
        member.server.run(async move { as_client(from, &as_site, &statement).await })
    };
    connect(1, &shop, "CREATE TABLE t (a INT PRIMARY KEY)").unwrap();
    connect(300, &blog, "CREATE TABLE secret (a INT PRIMARY KEY)").unwrap();
    connect(300, &shop, "SELECT 1").unwrap_err();
    for statement in [
        "SELECT * FROM webx1.secret",
        "USE webx1",
        "SELECT * FROM mysql.user",
        "GRANT ALL ON *.* TO web@'127.1.0.1'",
        "SELECT LOAD_FILE('/etc/passwd')  INTO @x; SELECT 1/ISNULL(@x) INTO OUTFILE '/tmp/x'",
        "SET GLOBAL max_connections = 1",
    ] {
        connect(1, &shop, statement).expect_err(statement);
    }

    // A dump: the good one, then errors with their line, then what must not work.
    member.import(&shop, GOOD_DUMP).unwrap();
    assert_eq!(connect(1, &shop, "SELECT COUNT(*) FROM posts").unwrap(), "2");
    assert_eq!(
        member.sql("SELECT engine FROM information_schema.tables WHERE table_name='posts'").unwrap(),
        "InnoDB"
    );
    let wrong = |dump: &str| match member.import(&shop, dump).unwrap_err() {
        DumpError::Statement { line, message } => (line, message),
        other => panic!("{other:?}"),
    };
    let (line, message) = wrong(
        "CREATE TABLE a (a INT);\n-- fine\nINSERT INTO a VALUES (1);\nINSERT INTO nowhere VALUES (1);\n",
    );
    assert_eq!(line, 4);
    assert!(message.contains("nowhere"), "{message}");
    // Mended, it is read into an empty database: what the first attempt made is not in its way.
    member.import(&shop, "CREATE TABLE a (a INT);\n").unwrap();
    assert_eq!(wrong("SELECT 1;\nUSE webx1;\n").0, 2);
    assert_eq!(wrong("SELECT 1;\nDROP TABLE webx1.secret;\n").0, 2);
    assert_eq!(wrong("GRANT ALL ON *.* TO web@'127.1.0.1';\n").0, 1);
    let mark = std::env::temp_dir().join(format!("kt-dump-{}", std::process::id()));
    wrong(&format!("SELECT 1;\n\\! touch {}\n", mark.display()));
    wrong(&format!("system touch {};\n", mark.display()));
    assert!(!mark.exists(), "a dump ran a shell command");
    assert_eq!(wrong("CREATE TABLE t (a TEXT);\nLOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE t;\n").0, 2);
    // A removal that was broken off took the account away.
    member.sql("DROP USER web@'127.1.0.1'").unwrap();
    member.import(&shop, "SELECT 1;").unwrap();

    // A changed password works at once, the old one does not.
    let changed = database(1, "web_1", "new");
    pool.order_with(0, Start::Join, BTreeMap::from([(site("shop"), changed.clone())]));
    eventually("the new password", SOON, || connect(1, &changed, "SELECT 1").ok());
    connect(1, &shop, "SELECT 1").unwrap_err();

    // Another site's name for its database, or MariaDB's own, is refused; the rest goes on.
    let orders = [
        ("thief", database(7, "web_1", "x")),
        ("king", database(8, "mysql", "x")),
        ("ok", database(9, "ok", "x")),
    ];
    pool.order_with(
        0,
        Start::Join,
        orders.into_iter().map(|(name, database)| (site(name), database)).collect(),
    );
    eventually("the good one", SOON, || member.seen().filter(|s| s.databases == [site("ok")]));
    connect(7, &database(7, "web_1", "x"), "SELECT 1").unwrap_err();

    // A deleted site leaves nothing, and deleting may be repeated.
    for _ in 0..2 {
        let (of_member, gone) = (member.member.clone(), changed.clone());
        member.server.run(async move { of_member.drop_database(&gone).await.unwrap() });
    }
    assert_eq!(member.sql("SHOW DATABASES LIKE 'web\\_1'").unwrap(), "");
    assert_eq!(member.sql("SELECT COUNT(*) FROM mysql.user WHERE Host='127.1.0.1'").unwrap(), "0");
    assert_eq!(member.sql("SELECT COUNT(*) FROM mysql.db WHERE Host='127.1.0.1'").unwrap(), "0");
}

const GOOD_DUMP: &str = "-- MariaDB dump\n/*!40101 SET NAMES utf8mb4 */;\n\
    DROP TABLE IF EXISTS `posts`;\nCREATE TABLE `posts` (\n  `id` int(11) NOT NULL AUTO_INCREMENT,\n  \
    `body` text,\n  PRIMARY KEY (`id`)\n) ENGINE=MyISAM AUTO_INCREMENT=3 DEFAULT CHARSET=utf8mb4;\n\
    INSERT INTO `posts` VALUES (1,'a;b'),(2,'it''s');\nDELIMITER ;;\n\
    /*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER `x` BEFORE INSERT ON `posts`\n\
    FOR EACH ROW BEGIN SET NEW.body = CONCAT(NEW.body, '!'); END */;;\nDELIMITER ;\n";

/// A client on the server's loopback, as the sql relay connects for a site: bound to an address of its own.
async fn as_client(from: u32, site: &AssignedDatabase, statement: &str) -> Result<String, String> {
    let socket = std::env::temp_dir().join(format!("kt-client-{}-{from}", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let relay = async {
        let (mut client, _) = listener.accept().await.unwrap();
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind((site_loopback(from), 0).into()).unwrap();
        let mut member = bound.connect(([127, 0, 0, 1], 3306).into()).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut member).await;
        std::future::pending::<()>().await;
    };
    let output = client_command(&socket, site, statement).output();
    let output = tokio::select! {
        output = output => output.unwrap(),
        () = relay => unreachable!(),
    };
    let _ = std::fs::remove_file(&socket);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn client_command(socket: &PathBuf, site: &AssignedDatabase, statement: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("mariadb");
    command.env("MYSQL_PWD", &site.database.password).arg("--no-defaults").arg("-S").arg(socket);
    command.args(["-u", &site.database.user, "-D", &site.database.name, "-Ne", statement]);
    command
}

/// Everybody's writes wait while a member that left without a word is still in the group.
#[test]
fn a_member_that_dies_or_hangs_is_known_lost_at_once_and_the_others_write_on() {
    let pool = pool("h", 14, 3);
    pool.form();
    let [writer, other, victim] = &pool.members[..] else { panic!("three members") };
    writer.sql("CREATE DATABASE d; CREATE TABLE d.t (a INT PRIMARY KEY)").unwrap();
    for (row, how) in [(1, nix::sys::signal::SIGKILL), (2, nix::sys::signal::SIGSTOP)] {
        let mut lost = victim.member.lost();
        lost.borrow_and_update();
        let pids = victim.server.pids();
        let start = Instant::now();
        pids.iter().for_each(|pid| signal(*pid, how));
        let news = victim.server.run(async move {
            lost.changed().await.unwrap();
            lost.borrow().clone().unwrap()
        });
        let known = start.elapsed();
        // What the fellows do when they are told. Each forgets the evicted one then: if one did not, they would
        // wait for the dead at every later change.
        let evict = |by: &PoolMember| {
            let (member, name, node) = (by.member.clone(), victim.server.name.clone(), news.node.clone());
            by.server.run(async move { member.evict(&name, Some(&node)).await.unwrap() })
        };
        assert_eq!(evict(writer), Evicted::Now);
        evict(other);
        other.sql(&format!("INSERT INTO d.t VALUES ({row})")).unwrap();
        let written = start.elapsed();
        println!("{how}: known after {known:?} ({}), written after {written:?}", news.why);
        assert!(known < Duration::from_secs(1), "{known:?}");
        // Less than the 3 s of Galera's own rules.
        assert!(written < Duration::from_millis(2_500), "{written:?}");
        eventually("ended", SOON, || {
            victim.server.pids().iter().all(|pid| !pids.contains(pid)).then_some(())
        });
        let seen = victim.wait_for(&MemberState::Synced, 3);
        println!("{how}: back after {:?}", start.elapsed());
        assert_eq!(seen.group.len(), 3);
        // The next start has another id: what is told late hits nobody.
        assert_eq!(evict(writer), Evicted::NotThere);
    }
    // Slow is not hung: no thread of it gets a processor for long, but nobody stopped it.
    let pids = victim.server.pids();
    for _ in 0..10 {
        pids.iter().for_each(|pid| signal(*pid, nix::sys::signal::SIGSTOP));
        std::thread::sleep(Duration::from_millis(90));
        pids.iter().for_each(|pid| signal(*pid, nix::sys::signal::SIGCONT));
        std::thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(victim.server.pids(), pids);
    assert_eq!(victim.seen().unwrap().state, MemberState::Synced);
}

/// The one member that a cell of one server has, with more data than its group remembers for those that come
/// late: they get copies.
#[test]
fn a_pool_of_one_grows_to_three_while_a_site_writes() {
    let pool = pool("g", 15, 3);
    let first = &pool.members[0];
    let shop = database(1, "shop", "s");
    let order = |index: usize, start: Start, size: usize| {
        let group = pool.members[..size].iter().map(|m| (m.server.name.clone(), m.server.address)).collect();
        let databases =
            if index == 0 { BTreeMap::from([(site("shop"), shop.clone())]) } else { BTreeMap::new() };
        pool.members[index].member.apply(Some(AssignedMember {
            pool: PoolName::first(),
            group,
            start,
            databases,
        }));
    };
    order(0, Start::Bootstrap, 1);
    eventually("the database", SOON, || first.seen().filter(|s| s.databases.len() == 1));
    first.sql("CREATE TABLE shop.t (a INT AUTO_INCREMENT PRIMARY KEY, b LONGBLOB)").unwrap();
    for _ in 0..12 {
        first.sql("INSERT INTO shop.t (b) SELECT REPEAT(MD5(RAND()), 262144)").unwrap(); // 8 MB of the 64 kept
    }
    let (stop, told) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), first.member.socket());
    let mut client = first.server.command("mariadb");
    client.arg("-S").arg(told).args(["-Nn"]).stdin(std::process::Stdio::piped());
    let mut client = client.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (mut ask, answer) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let until = stop.clone();
    let site = std::thread::spawn(move || {
        use std::io::{BufRead, Write};
        let mut answers = std::io::BufReader::new(answer).lines();
        let (mut written, mut longest) = (0, Duration::ZERO);
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            let begun = Instant::now();
            ask.write_all(b"INSERT INTO shop.t (b) VALUES ('x'); SELECT ROW_COUNT();\n").unwrap();
            assert_eq!(answers.next().unwrap().unwrap(), "1");
            longest = longest.max(begun.elapsed());
            written += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        (written, longest)
    });
    let start = Instant::now();
    for index in 0..3 {
        order(index, Start::Join, 3);
    }
    for member in &pool.members {
        member.wait_for(&MemberState::Synced, 3);
    }
    let grown = start.elapsed();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (written, longest) = site.join().unwrap();
    let _ = client.wait();
    println!(
        "grew to three with 100 MB in {grown:?}; {written} writes meanwhile, the longest took {longest:?}"
    );
    let rows = (written + 12).to_string();
    for member in &pool.members {
        assert_eq!(member.sql("SET wsrep_sync_wait=1; SELECT COUNT(*) FROM shop.t").unwrap(), rows);
    }
    let copied = pool.members[1..].iter().any(|member| {
        let log = std::fs::read_to_string(member.server.log("mariadbd")).unwrap();
        log.contains("mariabackup SST completed on joiner")
    });
    assert!(copied, "nothing was copied: the test wrote too little");
    assert!(longest < Duration::from_secs(5), "a site waited {longest:?}");
}
