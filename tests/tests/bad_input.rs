//! Bad input against a real rack of one server: one line on stderr that names the thing and the remedy, nothing
//! on stdout, exit code 1 or 2 (3 when time ran out), and nothing half done afterwards.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kopek_core::api::SiteView;
use kopek_tests::rack::{Rack, kopek_binary};
use kopek_tests::wait::until;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// What a refused command said.
#[derive(Debug)]
struct Said {
    code: i32,
    line: String,
}

/// Runs a command that must be refused in the way that all are.
fn refused(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(!output.status.success(), "{command:?} was not refused: {out}{err}");
    assert_eq!(out, "", "{command:?} wrote to stdout");
    assert_eq!(err.lines().count(), 1, "{command:?} did not say one line: {err:?}");
    let line = err.trim_end().strip_prefix("kopek: ").unwrap_or_else(|| panic!("{err:?}")).to_owned();
    Said { code: output.status.code().unwrap(), line }
}

#[track_caller]
fn says(said: Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{said:?}");
    for word in words {
        assert!(said.line.contains(word), "{:?} does not say {word:?}", said.line);
    }
}

fn kopek(words: &[&str]) -> Command {
    let mut command = Command::new(kopek_binary().unwrap());
    command.args(words).env_remove("KOPEK_CELL");
    command
}

/// Speaks to the rack's cell.
fn on(rack: &Rack, words: &[&str]) -> Command {
    let mut command = kopek(words);
    command.env("KOPEK_CELL", rack.dir().join("admin"));
    command
}

/// Our binary in a mount namespace of its own, after `before` has changed that.
fn behind(before: &str, words: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{before} && exec \"$0\" \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(kopek_binary().unwrap()).args(words);
    command
}

/// No site is listed, and no file of one is left on the server.
async fn nothing_is_left(rack: &Rack) {
    let sites: Vec<SiteView> = rack.ask(&["site", "ls"]).await.unwrap();
    assert_eq!(sites, []);
    let look = "ls -A /var/lib/kopek/volumes /var/lib/kopek/dumps 2>/dev/null | grep -v -e : -e '^$' || true";
    let empty = || async {
        let left = rack.exec("s1", &["sh", "-c", look]).await?;
        Ok(left.trim().is_empty().then_some(()))
    };
    until("the files of refused and deleted sites to be gone", SOON, empty).await.unwrap();
}

/// A folder with a site, archives and dumps in it.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        desk.write("site/index.php", "<?php echo 'hello';");
        desk.write("password", "secret\n");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
        self.text(name)
    }

    /// Packs the site with tar, its index under another name.
    fn tar(&self, name: &str, options: &[&str]) -> String {
        let mut tar = Command::new("tar");
        tar.args(["-P", "-C"]).arg(self.path("site")).arg("-cf").arg(self.path(name)).args(options);
        assert!(tar.arg("./index.php").status().unwrap().success());
        self.text(name)
    }
}

#[tokio::test]
async fn what_does_not_exist_or_is_taken_is_named() {
    let rack = Rack::up(1).await.unwrap();
    let desk = Desk::new();
    let from = desk.text("site");
    for words in [
        &["site", "show", "nope"][..],
        &["site", "logs", "nope"],
        &["site", "exec", "nope", "--", "ls"],
        &["site", "delete", "nope", "--confirm", "nope"],
        &["site", "deploy", "nope", "--from", &from],
        &["instance", "ls", "--site", "nope"],
    ] {
        says(refused(&mut on(&rack, words)), 2, &["no site nope", "`kopek site ls`"]);
    }
    says(refused(&mut on(&rack, &["site", "scale", "nope", "--min", "1"])), 1, &["no site nope"]);
    says(refused(&mut on(&rack, &["server", "show", "s7"])), 2, &["no server s7", "`kopek server ls`"]);
    says(refused(&mut on(&rack, &["server", "drain", "s7"])), 1, &["no server s7", "`kopek server ls`"]);
    says(refused(&mut on(&rack, &["pool", "show", "nope"])), 2, &["no pool nope"]);
    let create = |name: &'static str, domain: &'static str, more: &[&str]| {
        refused(on(&rack, &["site", "create", name, "--domain", domain, "--from", &from]).args(more))
    };
    says(create("one", "one.test", &["--image", "nope"]), 2, &["no image nope", "`kopek image ls`"]);
    says(create("One!", "one.test", &[]), 2, &["One!", "a-z"]);
    says(create("one", "one test", &[]), 2, &["one test", "host name"]);
    for (min, max) in [("3", "2"), ("0", "2"), ("0", "0")] {
        says(create("one", "one.test", &["--min", min, "--max", max]), 1, &["site one", "--min", "--max"]);
    }
    says(create("one", "one.test", &["--db-dump", "nope.sql", "--db-user", "u"]), 2, &["--db-password-file"]);
    let password = desk.text("password");
    for name in ["mysql", "a/b", "Information_Schema"] {
        let said = create(
            "one",
            "one.test",
            &["--db-name", name, "--db-user", "u", "--db-password-file", &password],
        );
        says(said, 2, &["site one", name, "letters, digits"]);
    }
    nothing_is_left(&rack).await;

    rack.run(&["site", "create", "one", "--domain", "one.test", "--from", &from, "--wait"]).await.unwrap();
    says(create("two", "one.test", &[]), 1, &["domain one.test", "site one", "another --domain"]);
    says(create("one", "other.test", &[]), 1, &["site one exists", "deploy"]);
    let policy = |up: &str, down: &str| {
        let words = ["site", "scale", "one", "--policy", "load", "--up", up, "--down", down];
        refused(&mut on(&rack, &words))
    };
    says(policy("0", "0"), 2, &["site one", "--up"]);
    says(policy("1", "1.5"), 2, &["site one", "--down (1.50)", "--up (1.00)"]);
    says(refused(&mut on(&rack, &["site", "scale", "one", "--up", "3"])), 2, &["--policy"]);
    // Confirmed with another name, or by nobody.
    for more in [&["--confirm", "two"][..], &[]] {
        let said = refused(on(&rack, &["site", "delete", "one"]).args(more));
        says(said, 2, &["site one was not deleted", "--confirm one"]);
    }
    let out_of_time = &["site", "scale", "one", "--min", "2", "--max", "2", "--wait", "--timeout", "1"];
    says(refused(&mut on(&rack, out_of_time)), 3, &["waited 1 s", "site one"]);
    assert_eq!(rack.site("one").await.unwrap().instances.len(), 1);

    // A later site of the same name finds nothing of the first one.
    rack.run(&["site", "exec", "one", "--", "touch", "/var/www/html/left.txt"]).await.unwrap();
    rack.run(&["site", "delete", "one", "--confirm", "one"]).await.unwrap();
    rack.run(&["site", "create", "one", "--domain", "one.test", "--from", &from, "--wait"]).await.unwrap();
    let there = rack.run(&["site", "exec", "one", "--", "ls", "/var/www/html"]).await.unwrap();
    assert_eq!(there.trim(), "index.php");
    rack.run(&["site", "delete", "one", "--confirm", "one"]).await.unwrap();
    nothing_is_left(&rack).await;
}

#[tokio::test]
async fn archives_that_could_harm_or_do_not_fit_are_refused() {
    let rack = Rack::up(1).await.unwrap();
    let desk = Desk::new();
    let create = |from: &str| {
        refused(&mut on(&rack, &["site", "create", "one", "--domain", "one.test", "--from", from]))
    };
    says(create(&desk.text("nope")), 1, &["cannot read", "nope"]);
    let whole = fs::read(desk.tar("whole.tar.gz", &["-z"])).unwrap();
    let cut = desk.write("cut.tar.gz", &whole[..whole.len() / 2]);
    says(create(&cut), 1, &["cut.tar.gz is corrupt", "again"]);
    says(create(&desk.write("junk.zip", "junk")), 1, &["junk.zip is neither", ".tar.gz"]);
    says(
        create(&desk.tar("up.tar", &["--transform", "s,^./,../,"])),
        1,
        &["../index.php", "`..`", "relative"],
    );
    says(create(&desk.tar("abs.tar", &["--transform", "s,^./,/etc/,"])), 1, &["/etc/index.php", "absolute"]);
    let device = desk.path("device");
    fs::create_dir(&device).unwrap();
    assert!(Command::new("mknod").arg(device.join("null")).args(["c", "1", "3"]).status().unwrap().success());
    says(create(&desk.text("device")), 1, &["null", "device node", "leave it out"]);
    let tar =
        Command::new("tar").arg("-cf").arg(desk.path("device.tar")).arg("-C").arg(&device).arg(".").status();
    assert!(tar.unwrap().success());
    says(create(&desk.text("device.tar")), 1, &["device.tar", "null", "device node"]);

    // Larger than what this machine has room for while packing.
    let big = desk.path("big");
    fs::create_dir(&big).unwrap();
    fs::write(big.join("noise"), noise(4 << 20)).unwrap();
    let words = ["site", "create", "one", "--domain", "one.test", "--from", &desk.text("big")];
    let before = "mount -t tmpfs -o size=1m kopek-test /mnt && export TMPDIR=/mnt";
    let mut small = behind(before, &words);
    says(refused(small.env("KOPEK_CELL", rack.dir().join("admin"))), 1, &["big holds more than 1.0 MiB"]);

    // Larger than what the server has room for.
    fs::write(big.join("noise"), noise(64 << 20)).unwrap();
    let fill = "fallocate -l $(($(stat -f -c '%a*%S' /var/lib/kopek) - (90<<20))) /var/lib/kopek/filler";
    rack.exec("s1", &["sh", "-c", fill]).await.unwrap();
    let full = || async {
        let server = rack.server("s1").await?;
        Ok((server.disk_free.0 < 100 << 20).then_some(()))
    };
    until("the server to report its full disk", SOON, full).await.unwrap();
    says(create(&desk.text("big")), 1, &["site one needs 128", "s1 has", "free some"]);
    rack.exec("s1", &["rm", "/var/lib/kopek/filler"]).await.unwrap();
    nothing_is_left(&rack).await;
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test]
async fn a_dump_with_an_error_makes_no_site_and_an_interrupted_creation_can_be_repeated() {
    let rack = Rack::up(1).await.unwrap();
    let desk = Desk::new();
    let rows = 4_000;
    let mut dump = "CREATE TABLE t (id INT PRIMARY KEY);\n".to_owned();
    dump.extend((1..=rows).map(|row| format!("INSERT INTO t VALUES ({row});\n")));
    let good = desk.write("good.sql", &dump);
    let bad = desk.write("bad.sql", dump.replace("INSERT INTO t VALUES (3000);", "INSRT 3000;"));
    let (from, password) = (desk.text("site"), desk.text("password"));
    let words = |dump: &str| {
        let words = ["site", "create", "one", "--domain", "one.test", "--from", &from, "--db-user", "one"];
        let more = ["--db-password-file", &password, "--db-dump", dump, "--wait"];
        words.iter().chain(&more).map(|word| (*word).to_owned()).collect::<Vec<String>>()
    };
    let create = |dump: &str| {
        let mut command = on(&rack, &[]);
        command.args(words(dump));
        command
    };
    says(refused(&mut create(&bad)), 1, &["site one was not created", "SQL dump", "line 3001", "INSRT"]);
    nothing_is_left(&rack).await;

    let count = "echo mysqli_connect('localhost', 'one', 'secret', 'one')->query('SELECT COUNT(*) FROM t')->fetch_row()[0];";
    // Packing, sending, waiting for the database, reading the dump, starting: wherever that is on this machine.
    for killed_after_ms in [20, 150, 400, 800, 1_500, 2_500] {
        let mut child = create(&good).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(killed_after_ms)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let output = create(&good).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "killed after {killed_after_ms} ms, then: {said}");
        let counted = rack.run(&["site", "exec", "one", "--", "php", "-r", count]).await.unwrap();
        assert_eq!(counted, rows.to_string(), "killed after {killed_after_ms} ms");
        rack.run(&["site", "delete", "one", "--confirm", "one"]).await.unwrap();
        nothing_is_left(&rack).await;
    }
}

#[tokio::test]
async fn a_creation_that_fails_with_its_database_leaves_nothing_once_the_pool_answers_again() {
    let rack = Rack::up(1).await.unwrap();
    rack.whole().await.unwrap();
    let desk = Desk::new();
    let slow = desk.write("slow.sql", "CREATE TABLE t (id INT);\nSELECT SLEEP(120);\n");
    let good = desk.write("good.sql", "CREATE TABLE t (id INT PRIMARY KEY);\n");
    let (from, password) = (desk.text("site"), desk.text("password"));
    let create = |dump: &str| {
        let mut command = on(&rack, &["site", "create", "one", "--domain", "one.test", "--from", &from]);
        command.args(["--db-user", "one", "--db-password-file", &password, "--db-dump", dump, "--wait"]);
        command
    };
    let mut creating = create(&slow).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the dump to be read", SOON, || async {
        let reading = rack.processes("s1", "mariadb --no-defaults").await?;
        let tables = "test -e /var/lib/kopek/mariadb/data/one/t.ibd && echo there || true";
        let made = rack.exec("s1", &["sh", "-c", tables]).await?;
        Ok((!reading.is_empty() && made.trim() == "there").then_some(()))
    })
    .await
    .unwrap();
    let mut other = create(&good);
    says(
        refused(other.args(["--db-name", "two"])),
        1,
        &["site one", "database one", "`kopek site delete one`"],
    );
    // It can neither be started again nor asked to drop anything.
    rack.exec("s1", &["mount", "--bind", "/dev/null", "/usr/sbin/mariadbd"]).await.unwrap();
    for pid in rack.processes("s1", "mariadbd --defaults").await.unwrap() {
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }
    let ended = creating.wait().unwrap();
    assert_eq!(ended.code(), Some(1));
    let sites: Vec<SiteView> = rack.ask(&["site", "ls"]).await.unwrap();
    assert_eq!(sites.len(), 1, "it cannot be removed without its database");
    rack.exec("s1", &["umount", "/usr/sbin/mariadbd"]).await.unwrap();
    until("the failed site to be gone", SOON, || async {
        let sites: Vec<SiteView> = rack.ask(&["site", "ls"]).await?;
        Ok(sites.is_empty().then_some(()))
    })
    .await
    .unwrap();
    nothing_is_left(&rack).await;
    let created = create(&good).stdin(Stdio::null()).output().unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
}

#[tokio::test]
async fn only_a_token_of_this_cell_lets_a_server_in_and_only_once() {
    let rack = Rack::up(1).await.unwrap();
    let address = rack.status().await.unwrap().servers[0].address;
    let token: kopek_core::api::IssuedToken = rack.ask(&["server", "token"]).await.unwrap();
    // A newcomer: the server's network, and folders that are empty and must stay so.
    let join = |name: &str, token: &str| {
        let script = "mount -t tmpfs kopek-test /etc/kopek; \"$0\" \"$@\"; code=$?; test $code = 0 || ls -A /etc/kopek; exit $code";
        let to = address.to_string();
        let mut command = kopek(&["dev", "exec", "s1", "--dir"]);
        command.arg(rack.dir()).args(["--", "unshare", "--mount", "sh", "-c", script]);
        command.arg(kopek_binary().unwrap()).args(["server", "join", &to, "--token", token, "--name", name]);
        command.args(["--address", "10.74.255.9", "--interface", "eth0"]);
        command
    };
    let changed = |text: &str| {
        let (front, last) = text.split_at(text.len() - 1);
        format!("{front}{}", if last == "0" { "1" } else { "0" })
    };
    says(refused(&mut join("s8", "rubbish")), 1, &["not a join token", "`kopek server token`"]);
    says(
        refused(&mut join("s8", &changed(&token.token))),
        1,
        &["used before or never given", "`kopek server token`"],
    );
    let (front, secret) = token.token.rsplit_once('.').unwrap();
    let stranger = format!("{}.{secret}", changed(front));
    says(refused(&mut join("s8", &stranger)), 1, &["cannot join"]);
    says(refused(&mut join("s1", &token.token)), 1, &["already has a server s1", "--name"]);
    assert_eq!(rack.servers().await.unwrap().len(), 1);

    let joined = join("s8", &token.token).stdin(Stdio::null()).output().unwrap();
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    assert_eq!(rack.servers().await.unwrap().len(), 2);
    says(refused(&mut join("s9", &token.token)), 1, &["used before or never given", "`kopek server token`"]);
    says(refused(&mut on(&rack, &["server", "remove", "s8"])), 1, &["server s8", "drain"]);
}

#[tokio::test]
async fn a_daemon_that_is_missing_is_named_with_its_package_and_starts_when_it_is_there() {
    let rack = Rack::up(1).await.unwrap();
    rack.whole().await.unwrap();
    rack.exec("s1", &["mount", "--bind", "/dev/null", "/usr/sbin/mariadbd"]).await.unwrap();
    for pid in rack.processes("s1", "mariadbd").await.unwrap() {
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(killed.success());
    }
    let told = || async {
        let log = rack.exec("s1", &["cat", "/var/log/kopek/agent.log"]).await?;
        Ok(log.lines().any(|line| line.contains("mariadbd") && line.contains("mariadb-server")).then_some(()))
    };
    until("the agent's log to name the package", SOON, told).await.unwrap();
    rack.exec("s1", &["umount", "/usr/sbin/mariadbd"]).await.unwrap();
    rack.whole().await.unwrap();
}

#[test]
fn a_rack_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = folder.path().join("rack");
    let dir_text = dir.to_str().unwrap();
    let up = ["dev", "up", "--servers", "1", "--dir", dir_text, "--listen", "127.0.0.1:0"];
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let on_port = ["dev", "up", "--servers", "1", "--dir", dir_text, "--listen", &port];
    says(refused(&mut kopek(&on_port)), 1, &[&port, "is in use", "another port"]);
    says(refused(&mut kopek(&["dev", "up", "--servers", "0", "--dir", dir_text])), 1, &["0 servers", "1 to"]);
    let small = format!("mkdir {dir_text} && mount -t tmpfs -o size=64m kopek-test {dir_text}");
    says(refused(&mut behind(&small, &up)), 1, &[dir_text, "64.0 MiB free", "2.0 GiB", "--dir"]);
    fs::remove_dir(&dir).unwrap();
    let meminfo = folder.path().join("meminfo");
    fs::write(&meminfo, "MemTotal: 500000 kB\nMemAvailable: 102400 kB\n").unwrap();
    let little = format!("mount --bind {} /proc/meminfo", meminfo.display());
    says(refused(&mut behind(&little, &up)), 1, &["100.0 MiB of memory", "700.0 MiB", "--servers"]);
    for (program, package) in [("mariadbd", "mariadb-server"), ("keepalived", "keepalived")] {
        let without = format!("mount --bind /dev/null /usr/sbin/{program}");
        says(refused(&mut behind(&without, &up)), 1, &[program, "apt-get install", package]);
    }
    let without_etcd = "mount --bind /dev/null /usr/bin/etcd";
    says(refused(&mut behind(without_etcd, &up)), 1, &["etcd", "apt-get install etcd-server"]);
    assert!(!dir.exists(), "nothing was made");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("mine"), "").unwrap();
    says(refused(&mut kopek(&up)), 1, &[dir_text, "not empty", "--dir"]);
    says(refused(&mut kopek(&["dev", "kill", "s1", "--dir", dir_text])), 1, &[dir_text, "no rack", "dev up"]);
    // The doctor's findings are data, and go to stdout.
    let doctor = behind(without_etcd, &["doctor"]).env("KOPEK_CELL", &dir).output().unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    let findings = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        findings.lines().any(|line| line.starts_with("BAD") && line.contains("etcd-server")),
        "{findings}"
    );
}

#[test]
fn a_configuration_with_a_wrong_key_is_refused_with_its_line() {
    let desk = Desk::new();
    let text = "name = \"s1\"\naddress = \"10.0.0.1\"\ninterface = \"eth0\"\nslotz = 2\n";
    let config = desk.write("bad.toml", text);
    for service in ["agent", "control", "edge", "files", "sql"] {
        let said = refused(&mut kopek(&["run", service, "--config", &config]));
        says(said, 1, &["bad.toml line 4", "\"slotz\"", "\"slots\""]);
    }
    let absent = desk.text("absent.toml");
    says(refused(&mut kopek(&["run", "agent", "--config", &absent])), 1, &["absent.toml", "kopek cell init"]);
    says(refused(&mut kopek(&["site", "ls", "--jsn"])), 2, &["--jsn", "--json"]);
    says(
        refused(&mut kopek(&["--cell", &absent, "site", "ls"])),
        1,
        &["absent.toml", "kopek dev up", "--cell"],
    );
}

#[test]
fn without_root_it_says_so() {
    let desk = Desk::new();
    fs::set_permissions(desk.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = desk.path("kopek");
    fs::copy(kopek_binary().unwrap(), &binary).unwrap();
    let config = desk.write("kopek.toml", "name = \"s1\"\naddress = \"10.0.0.1\"\ninterface = \"eth0\"\n");
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(words);
        refused(&mut command)
    };
    let rack = Path::new("/var/tmp/kopek-nobodys");
    says(as_nobody(&["dev", "up", "--dir", rack.to_str().unwrap()]), 2, &["kopek dev needs root", "sudo"]);
    assert!(!rack.exists());
    let machine = ["--name", "s1", "--address", "10.0.0.1", "--interface", "eth0"];
    for words in [&["cell", "init"][..], &["server", "join", "--token", "x"]] {
        says(as_nobody(&[words, &machine].concat()), 2, &[words[0], "needs root", "sudo"]);
    }
    says(as_nobody(&["image", "build", "php8.2-apache"]), 2, &["needs root", "sudo"]);
    says(as_nobody(&["run", "agent", "--config", &config]), 2, &["kopek run agent needs root", "sudo"]);
    let admin = desk.path("admin");
    fs::create_dir(&admin).unwrap();
    fs::write(admin.join("server.key"), "").unwrap();
    fs::set_permissions(admin.join("server.key"), PermissionsExt::from_mode(0o600)).unwrap();
    says(as_nobody(&["--cell", &desk.text("admin"), "site", "ls"]), 1, &["server.key", "sudo"]);
}
