//! Adapted texts against a real mariadbd: what differs from the same server and the original text.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kopek_statement::{Dialect, adapted, read, with_row_count};
use tempfile::TempDir;

struct Server {
    folder: TempDir,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Server {
    fn new() -> Server {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = format!("--datadir={}", folder.path().join("data").display());
        let installed = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--user=mysql", "--skip-test-db", &data])
            .arg("--auth-root-authentication-method=normal")
            // A mariadbd that starts deletes the temporary tables of others in a folder that they share.
            .env("TMPDIR", folder.path())
            .output()
            .unwrap();
        assert!(installed.status.success(), "{installed:?}");
        let process = Command::new("mariadbd")
            .args([
                "--no-defaults",
                "--user=mysql",
                "--skip-networking",
                "--innodb-buffer-pool-size=16M",
                "--plugin-load-add=ha_archive",
                &data,
            ])
            .arg(format!("--socket={}", folder.path().join("socket").display()))
            .arg(format!("--pid-file={}", folder.path().join("pid").display()))
            .env("TMPDIR", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server { folder, process };
        let started = Instant::now();
        while let Err(complaint) = server.try_run("SELECT 1") {
            assert!(started.elapsed() < Duration::from_secs(30), "mariadbd does not answer: {complaint}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server.run("CREATE DATABASE direct; CREATE DATABASE pool; CREATE DATABASE again");
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--no-defaults", "--default-character-set=utf8mb4", "-uroot", "-S"]).arg(self.socket());
        command
    }

    /// Rows behind a line of column names, or the client's complaint.
    fn try_run(&self, statements: &str) -> Result<String, String> {
        output(self.client("mariadb").args(["-B", "--comments", "-e", statements]))
    }

    fn run(&self, statements: &str) -> String {
        self.try_run(statements).unwrap_or_else(|complaint| panic!("{statements}: {complaint}"))
    }

    /// Rows without column names.
    fn rows(&self, statements: &str) -> String {
        output(self.client("mariadb").args(["-B", "-N", "-e", statements])).unwrap()
    }

    /// Types and names of the columns.
    fn types(&self, statements: &str) -> String {
        let shown =
            self.client("mariadb").args(["-t", "--column-type-info", "-e", statements]).output().unwrap();
        assert!(shown.status.success(), "{statements}: {}", String::from_utf8_lossy(&shown.stderr));
        String::from_utf8(shown.stdout).unwrap()
    }
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn of_site(text: &str, prefix: &str) -> String {
    let reading = read(text.as_bytes(), Dialect::default());
    adapted(text.as_bytes(), &reading, Dialect::default(), prefix)
        .map_or(text.to_owned(), |bytes| String::from_utf8(bytes).unwrap())
}

fn changed(text: &str) -> String {
    of_site(text, "s1:")
}

/// Whether a table gets `kopek_row`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    Own,
    Added,
}

/// Tables as their applications make them. {} stands for the end of the options.
const TABLES: &[(&str, Key, &str)] = &[
    (
        "wp_users",
        Key::Own,
        "CREATE TABLE wp_users (
  ID bigint(20) unsigned NOT NULL auto_increment,
  user_login varchar(60) NOT NULL default '',
  user_registered datetime NOT NULL default '0000-00-00 00:00:00',
  PRIMARY KEY  (ID),
  KEY user_login_key (user_login)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_520_ci",
    ),
    (
        "wp_term_relationships",
        Key::Own,
        "CREATE TABLE IF NOT EXISTS wp_term_relationships (
 object_id bigint(20) unsigned NOT NULL default 0,
 term_taxonomy_id bigint(20) unsigned NOT NULL default 0,
 term_order int(11) NOT NULL default 0,
 PRIMARY KEY  (object_id,term_taxonomy_id),
 KEY term_taxonomy_id (term_taxonomy_id)
) ENGINE=MyISAM",
    ),
    (
        "searchindex",
        Key::Own,
        "CREATE TABLE /*_*/searchindex (
  -- Key to page_id
  si_page int unsigned NOT NULL,
  -- Munged version of title
  si_title varchar(255) NOT NULL default '',
  si_text mediumtext NOT NULL,
  UNIQUE INDEX si_page (si_page),
  FULLTEXT INDEX si_title (si_title),
  FULLTEXT INDEX si_text (si_text)
) ENGINE=MyISAM DEFAULT CHARSET=utf8",
    ),
    (
        "objectcache",
        Key::Own,
        "CREATE TABLE objectcache (keyname VARBINARY(255) DEFAULT '' NOT NULL, value MEDIUMBLOB DEFAULT NULL,
  exptime BINARY(14) NOT NULL, modtoken VARCHAR(17) DEFAULT '00000000000000000' NOT NULL, flags INT UNSIGNED DEFAULT NULL,
  INDEX exptime (exptime), PRIMARY KEY(keyname)) ENGINE=InnoDB, DEFAULT CHARSET=binary",
    ),
    (
        "querycache",
        Key::Added,
        "CREATE TABLE querycache (qc_type VARBINARY(32) NOT NULL, qc_value INT UNSIGNED DEFAULT 0 NOT NULL,
  qc_namespace INT DEFAULT 0 NOT NULL, INDEX qc_type (qc_type, qc_value)) ENGINE=InnoDB",
    ),
    (
        "semaphore",
        Key::Own,
        "CREATE TABLE `semaphore` (`name` VARCHAR(255) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT '' COMMENT 'Primary Key: Unique name.',
  `value` VARCHAR(255) NOT NULL DEFAULT '', `expire` DOUBLE NOT NULL, PRIMARY KEY (`name`), INDEX `value` (`value`)) ENGINE = InnoDB COMMENT 'Table for holding semaphores, locks, flags, etc.'",
    ),
    (
        "comment_only",
        Key::Added,
        "CREATE TABLE comment_only (a INT COMMENT 'the primary key (a)', `primary` INT, `key` INT, KEY (a)) ENGINE='MyISAM'",
    ),
    (
        "jos_session",
        Key::Own,
        "CREATE TABLE `jos_session` (`session_id` varbinary(192) NOT NULL, `client_id` tinyint unsigned DEFAULT NULL,
  `time` int NOT NULL DEFAULT 0, `data` varchar(100), PRIMARY KEY (`session_id`), KEY `time` (`time`) USING HASH) ENGINE=MEMORY DEFAULT CHARSET=utf8mb4",
    ),
    (
        "jos_core_log_searches",
        Key::Added,
        "CREATE TABLE `jos_core_log_searches` (`search_term` varchar(128) NOT NULL DEFAULT '', `hits` int unsigned NOT NULL DEFAULT 0) TYPE_HERE",
    ),
    (
        "phpbb_search_wordmatch",
        Key::Added,
        "CREATE TABLE phpbb_search_wordmatch (
  post_id mediumint(8) UNSIGNED NOT NULL default '0',
  word_id mediumint(8) UNSIGNED NOT NULL default '0',
  title_match tinyint(1) NOT NULL default '0',
  KEY post_id (post_id),
  KEY word_id (word_id)
) ENGINE=`MyISAM` PACK_KEYS=1 DELAY_KEY_WRITE=1 CHECKSUM=1 MAX_ROWS=100000 AVG_ROW_LENGTH=9",
    ),
    (
        "phpbb_search_wordlist",
        Key::Own,
        "CREATE TABLE phpbb_search_wordlist (
  word_text varchar(50) binary NOT NULL default '',
  word_id mediumint(8) UNSIGNED NOT NULL auto_increment,
  word_common tinyint(1) unsigned NOT NULL default '0',
  PRIMARY KEY (word_text),
  KEY word_id (word_id)
) ENGINE=MyISAM",
    ),
    (
        "counted_by_key",
        Key::Own,
        "CREATE TABLE counted_by_key (id INT UNSIGNED AUTO_INCREMENT, v TEXT, KEY (id), UNIQUE KEY u (id)) ENGINE=MyISAM AUTO_INCREMENT=7",
    ),
    (
        "counted_by_plain_key",
        Key::Added,
        "CREATE TABLE counted_by_plain_key (id INT UNSIGNED NOT NULL AUTO_INCREMENT, v VARCHAR(9), KEY k (`id`)) ENGINE=MyISAM",
    ),
    (
        "counted_in_group",
        Key::Own,
        "CREATE TABLE counted_in_group (grp ENUM('fish','mammal') NOT NULL, `i``d` MEDIUMINT NOT NULL AUTO_INCREMENT, name CHAR(30) NOT NULL DEFAULT '', PRIMARY KEY (grp,`i``d`)) ENGINE=MyISAM",
    ),
    (
        "of_fixed_rows",
        Key::Added,
        "CREATE TABLE of_fixed_rows (a CHAR(10), b DECIMAL(10,2)) ENGINE=MyISAM ROW_FORMAT=FIXED COMMENT='old; (table'",
    ),
    (
        "of_pages",
        Key::Own,
        "CREATE TABLE of_pages (a SERIAL, b INT AS (a+1) VIRTUAL) ENGINE=Aria TRANSACTIONAL=1 PAGE_CHECKSUM=0 ROW_FORMAT=PAGE",
    ),
    ("archived", Key::Added, "CREATE TABLE archived (a INT, b TIMESTAMP NOT NULL DEFAULT NOW()) ENGINE=ARCHIVE"),
    ("csv", Key::Added, "CREATE TABLE csv (a INT NOT NULL, b CHAR(5) NOT NULL) ENGINE CSV"),
    ("unique_of_null", Key::Added, "CREATE TABLE unique_of_null (a INT, UNIQUE (a))"),
    ("unique_attribute", Key::Own, "CREATE TABLE unique_attribute (a INT NOT NULL UNIQUE, b INT UNIQUE KEY)"),
    ("key_attribute", Key::Own, "CREATE TABLE key_attribute (a VARCHAR(9) DEFAULT 'x' KEY, b INT)"),
    ("partitioned", Key::Own, "CREATE TABLE partitioned (a INT NOT NULL, PRIMARY KEY (a)) ENGINE=MyISAM PARTITION BY HASH (a) PARTITIONS 2"),
    ("partitioned_by_year", Key::Added, "CREATE TABLE partitioned_by_year (id INT, at DATE NOT NULL, `y` INT NOT NULL, KEY (id)) ENGINE=MyISAM
  PARTITION BY RANGE (YEAR(at)) SUBPARTITION BY HASH(`y`) SUBPARTITIONS 2
  (PARTITION p0 VALUES LESS THAN (2000) ENGINE = MyISAM, PARTITION p1 VALUES LESS THAN MAXVALUE ENGINE = MyISAM)"),
    ("partitioned_by_null", Key::Own, "CREATE TABLE partitioned_by_null (a INT, b INT NOT NULL) PARTITION BY LIST (a) (PARTITION p0 VALUES IN (1, NULL) ENGINE = Aria)"),
    ("checked", Key::Added, "CREATE TABLE checked (a INT CHECK (a IS NOT NULL), b INT, CONSTRAINT c CHECK (b > 0 OR b IS NULL)) ENGINE=MyISAM"),
    ("placed", Key::Own, "CREATE TABLE placed (p POINT NOT NULL, id INT PRIMARY KEY, SPATIAL KEY (p)) ENGINE=MyISAM"),
    ("selected", Key::Added, "CREATE TABLE selected ENGINE=MyISAM AS SELECT 1 a, 'x' b UNION SELECT 2, 'y'"),
    ("selected_in_parentheses", Key::Added, "CREATE TABLE selected_in_parentheses (SELECT 1 a, 2 b)"),
    ("selected_with_columns", Key::Added, "CREATE TABLE selected_with_columns (a INT, KEY (a)) ENGINE=MyISAM SELECT 3 a, 4 b"),
    ("of_values", Key::Added, "CREATE OR REPLACE TABLE of_values VALUES (1, 2)"),
];

fn ddl(text: &str) -> String {
    text.replace("TYPE_HERE", "ENGINE=MyISAM")
}

/// A row of defaults, where the table has them.
fn row_of(table: &str) -> String {
    let values = match table {
        "placed" => "VALUES (POINT(1, 2), 3)",
        "partitioned_by_null" => "VALUES (1, 2)",
        "checked" => "VALUES (1, NULL)",
        _ => "() VALUES ()",
    };
    format!("INSERT IGNORE INTO {table} {values}")
}

/// Both databases with every table, as its application and as the pool has it.
fn tables() -> Server {
    let server = Server::new();
    // As on Debian's MariaDB but for zero dates, which WordPress takes out of sql_mode itself.
    let mode = "SET sql_mode='STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_CREATE_USER,NO_ENGINE_SUBSTITUTION'";
    for (_, _, text) in TABLES {
        let text = ddl(text);
        server.run(&format!("{mode}; USE direct; {text}"));
        server.run(&format!("{mode}; USE pool; {}", changed(&text)));
    }
    server
}

#[test]
fn tables_of_applications_become_innodb_with_a_key_and_look_as_before() {
    let server = tables();
    for (table, key, _) in TABLES {
        let engine = server.rows(&format!(
            "SELECT engine FROM information_schema.tables WHERE table_schema='pool' AND table_name='{table}'"
        ));
        assert_eq!(engine.trim(), "InnoDB", "{table}");
        let added = server.rows(&format!(
            "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema='pool' AND table_name='{table}'
             AND column_name='kopek_row' AND column_key IN ('PRI', 'MUL') AND extra='INVISIBLE'"
        ));
        assert_eq!(added.trim() == "1", *key == Key::Added, "{table}");
        let columns = |database: &str| {
            server.rows(&format!(
                "SELECT column_name, column_type, is_nullable, column_default, extra FROM information_schema.columns
                 WHERE table_schema='{database}' AND table_name='{table}' AND extra NOT LIKE '%INVISIBLE%'
                 ORDER BY ordinal_position"
            ))
        };
        assert_eq!(columns("pool"), columns("direct"), "{table}");
        let rows = |database: &str| {
            server.run(&format!(
                "SET sql_mode='', timestamp=1e9; USE {database};
                 {}; SELECT LAST_INSERT_ID(), ROW_COUNT();
                 CREATE TABLE copy LIKE {table}; INSERT INTO copy SELECT * FROM {table};
                 SELECT * FROM copy; DROP TABLE copy; SELECT * FROM {table}",
                row_of(table)
            ))
        };
        assert_eq!(rows("pool"), rows("direct"), "{table}");
    }
}

#[test]
fn rows_without_a_column_list_go_into_a_table_that_got_a_key() {
    let server = Server::new();
    let work = |text: fn(&str) -> String| {
        [
            "CREATE TABLE t (a INT, b VARCHAR(9)) ENGINE=MyISAM",
            "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, NULL)",
            "INSERT INTO t SELECT * FROM t WHERE a = 2",
            "REPLACE t VALUES (3, 'z')",
            "CREATE TABLE u AS SELECT * FROM t",
            "INSERT INTO u SELECT * FROM t LIMIT 1",
            "SELECT *, COUNT(*) FROM u NATURAL JOIN t GROUP BY a, b",
            "DELETE FROM t WHERE a = 1 LIMIT 1",
            "ALTER TABLE t ADD id INT NOT NULL AUTO_INCREMENT PRIMARY KEY FIRST",
            "SELECT * FROM t",
            "SHOW COLUMNS FROM t",
            "SELECT * FROM t UNION ALL SELECT 1, 2, 3",
        ]
        .map(|statement| text(statement) + ";")
        .concat()
    };
    let direct = server.run(&("USE direct;".to_owned() + &work(str::to_owned)));
    assert_eq!(server.run(&("USE pool;".to_owned() + &work(changed))), direct);
    assert!(direct.contains("auto_increment"), "{direct}");
}

#[test]
fn a_dump_of_adapted_tables_loads_again() {
    let server = tables();
    for (table, ..) in TABLES {
        server.run(&format!("SET sql_mode=''; USE pool; {}", row_of(table)));
    }
    let checksum = |database: &str| {
        // By name: CHECKSUM TABLE reads the invisible column too, so this says that the keys survive.
        let names: Vec<String> = TABLES.iter().map(|(name, ..)| format!("{database}.{name}")).collect();
        server.rows(&format!("CHECKSUM TABLE {}", names.join(","))).replace(&format!("{database}."), "")
    };
    for options in [
        &["--skip-comments", "--hex-blob"][..],
        &["--complete-insert", "--hex-blob", "--skip-opt", "--create-options"][..],
    ] {
        let dump = output(server.client("mariadb-dump").args(options).arg("pool")).unwrap();
        server.run("DROP DATABASE again; CREATE DATABASE again");
        let file = server.folder.path().join("dump.sql");
        std::fs::write(&file, changed(&dump)).unwrap();
        let mut load = server.client("mariadb");
        load.arg("again").stdin(std::fs::File::open(&file).unwrap());
        let loaded = load.output().unwrap();
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        assert_eq!(checksum("again"), checksum("pool"), "{options:?}");
    }
}

#[test]
fn a_dump_that_makes_keys_in_a_later_alter_table_loads() {
    let server = Server::new();
    let dump = "CREATE TABLE `a` (`id` int(11) NOT NULL, `v` text DEFAULT NULL) ENGINE=MyISAM DEFAULT CHARSET=utf8mb4;
        INSERT INTO `a` (`id`, `v`) VALUES (1, 'x'), (2, 'y');
        CREATE TABLE `b` (`v` int(11) DEFAULT NULL, `kopek_row` uuid NOT NULL DEFAULT uuid()) ENGINE=InnoDB;
        INSERT INTO `b` (`v`, `kopek_row`) VALUES (1, 'b8f4c1de-0000-11ee-be56-0242ac120002');
        ALTER TABLE `a` ADD PRIMARY KEY (`id`);
        ALTER TABLE `b` ADD PRIMARY KEY (`kopek_row`);
        ALTER TABLE `a` MODIFY `id` int(11) NOT NULL AUTO_INCREMENT, AUTO_INCREMENT=3;";
    server.run(&format!("USE direct; {dump}"));
    server.run(&format!("USE pool; {}", changed(dump)));
    for table in ["a", "b"] {
        let shown = |database: &str| {
            server.run(&format!("USE {database}; SHOW COLUMNS FROM {table}; SELECT * FROM {table}"))
        };
        assert_eq!(shown("pool"), shown("direct"));
    }
}

/// Statements whose session, text or spelling hides the engine.
const HIDDEN_ENGINES: &[(&str, &str)] = &[
    ("by_session", "SET default_storage_engine=MyISAM; CREATE TABLE by_session (a INT)"),
    ("by_old_name", "SET SESSION storage_engine='Aria'; CREATE TABLE by_old_name (a INT) COMMENT='x'"),
    ("by_default", "SET @@default_storage_engine=MEMORY; CREATE TABLE by_default (a INT) ENGINE='DEFAULT'"),
    (
        "by_statement",
        "SET STATEMENT default_storage_engine=MyISAM, sort_buffer_size=1048576 FOR CREATE TABLE by_statement (a INT)",
    ),
    ("by_query", "SET default_storage_engine=MyISAM; CREATE TABLE by_query SELECT 1 a, 2 b"),
    ("by_both", "SET default_storage_engine=MyISAM; CREATE TABLE by_both (c INT) SELECT 1 a"),
    ("by_part", "CREATE TABLE by_part (a INT NOT NULL) PARTITION BY HASH (a) (PARTITION p ENGINE=MyISAM)"),
    ("versioned", "/*!40101 CREATE TABLE versioned (a INT) */ /*!50100 ENGINE=MyISAM */"),
    (
        "prepared",
        r"PREPARE s FROM 'CREATE TABLE prepared (a CHAR(9) DEFAULT \'it''''s\') ENGINE=MyISAM'; EXECUTE s",
    ),
    ("at_once", r#"EXECUTE IMMEDIATE "CREATE TABLE at_once (a INT) ENGINE='Aria'""#),
    (
        "altered",
        "CREATE TABLE altered (a INT, b TEXT, FULLTEXT (b)); ALTER TABLE altered ADD c INT, ENGINE = MyISAM",
    ),
    ("alike", "CREATE TABLE base (a INT) ENGINE=MyISAM; CREATE TABLE alike LIKE base"),
];

#[test]
fn a_table_becomes_innodb_with_a_key_however_its_engine_was_chosen() {
    let server = Server::new();
    for (table, text) in HIDDEN_ENGINES {
        server.run(&format!("USE direct; {text}"));
        server.run(&format!("USE pool; {}", changed(text)));
        let engine = |database: &str| {
            let rows = server.rows(&format!(
                "SELECT engine FROM information_schema.tables WHERE table_schema='{database}' AND table_name='{table}'"
            ));
            rows.trim().to_owned()
        };
        assert_ne!(engine("direct"), "InnoDB", "{text}: proves nothing");
        assert_eq!(engine("pool"), "InnoDB", "{text}");
        let keys = server.rows(&format!(
            "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema='pool' AND table_name='{table}'
             AND column_name='kopek_row'"
        ));
        assert_eq!(keys.trim(), "1", "{text}");
    }
}

#[test]
fn temporary_tables_and_texts_that_cannot_be_seen_stay_as_they_are() {
    for text in [
        "CREATE TEMPORARY TABLE t (a INT) ENGINE=MEMORY",
        "CREATE OR REPLACE TEMPORARY TABLE t ENGINE=MyISAM SELECT 1",
        "PREPARE s FROM 'CREATE TEMPORARY TABLE t (a INT) ENGINE=MyISAM'",
        "PREPARE s FROM 'SELECT 1'",
        "PREPARE s FROM @text",
        "PREPARE s FROM CONCAT('CREATE TABLE t (a INT) ENGINE=', 'MyISAM')",
        "EXECUTE IMMEDIATE 'CREATE TABLE t (a INT) ' 'ENGINE=MyISAM'",
        "CREATE TABLE t LIKE u",
        "CREATE TABLE t (LIKE u)",
        "ALTER TABLE t DROP PRIMARY KEY",
    ] {
        assert_eq!(changed(text), text);
    }
}

/// As phpMyAdmin writes it.
#[test]
fn a_partitioned_table_gets_its_primary_key_later() {
    let server = Server::new();
    let make =
        "CREATE TABLE p (a INT NOT NULL, b INT NOT NULL) ENGINE=InnoDB PARTITION BY KEY (a) PARTITIONS 2;
        INSERT INTO p VALUES (1, 1), (1, 2); ALTER TABLE p ADD PRIMARY KEY (a, b)";
    server.run(&format!("USE direct; {make}"));
    server.run(&format!("USE pool; {}", changed(make)));
    let shown = |database: &str| {
        server.run(&format!("USE {database}; SHOW COLUMNS FROM p; SELECT * FROM p ORDER BY b"))
    };
    assert_eq!(shown("pool"), shown("direct"));
}

#[test]
fn a_table_that_never_had_a_row_key_gets_a_note_when_its_primary_key_comes() {
    let server = Server::new();
    server.run("CREATE TABLE pool.old (a INT NOT NULL)");
    let alter = changed("ALTER TABLE pool.old ADD PRIMARY KEY (a)");
    let notes = server.rows(&format!("{alter}; SHOW WARNINGS"));
    assert_eq!(notes.lines().filter(|note| note.starts_with("Note\t1091")).count(), 2, "{notes}");
    let again = server.try_run(&alter).unwrap_err();
    assert!(again.contains("ERROR 1068"), "as without us: {again}");
}

#[test]
fn locks_answer_under_the_same_column_names_and_are_the_sites_own() {
    let server = Server::new();
    let long = format!("SELECT GET_LOCK('{}', 0)", "n".repeat(64));
    let wide = format!("SELECT GET_LOCK('{}', 0)", "é".repeat(64));
    let cut = format!("SELECT GET_LOCK('x', 0) + {}", ["1"; 300].join("+"));
    let cut_wide = format!("SELECT GET_LOCK('x', 0) + LENGTH('{}')", "é".repeat(200));
    for text in [
        "SELECT GET_LOCK('Name', 0), IS_FREE_LOCK('NAME'), IS_FREE_LOCK('Name'), RELEASE_LOCK('name')",
        "SELECT get_lock('a' , 0)  ,  1 ; SELECT RELEASE_LOCK( 'a' ); SELECT RELEASE_LOCK('a')",
        "SELECT GET_LOCK('a', 0) AS got, GET_LOCK('b', 0) got_too, IS_USED_LOCK('a') = CONNECTION_ID() mine",
        "SELECT 1 + GET_LOCK('a', 0) , IF(GET_LOCK('b',0), 'yes', 'no') FROM DUAL WHERE 1",
        "SELECT GET_LOCK('a', 0) = 1 /* c */ AND 1, NOT IS_FREE_LOCK('a') -- end\n FROM DUAL",
        "SELECT GET_LOCK('`a`', 0), GET_LOCK(CONCAT('x','\\n'), 0)",
        "SELECT IS_FREE_LOCK('\u{1f600}'), IS_FREE_LOCK('é') day",
        "SELECT (SELECT GET_LOCK('a', 0)), EXISTS(SELECT RELEASE_LOCK('a'))",
        "SELECT * FROM (SELECT GET_LOCK('a', 0), 2) x",
        "SELECT GET_LOCK('a', 0) UNION ALL SELECT RELEASE_LOCK('a') LIMIT 2",
        "SELECT CASE WHEN GET_LOCK('a', 0) THEN 1 ELSE 2 END, GET_LOCK('a', 0) end",
        "SELECT DISTINCT SQL_NO_CACHE GET_LOCK('a', 0) ORDER BY 1",
        "SELECT GET_LOCK(NULL, 0), RELEASE_LOCK(NULL), RELEASE_ALL_LOCKS()",
        "SET @n = 'v'; SELECT @g := GET_LOCK(@n, 0); SELECT @g, IS_FREE_LOCK('v')",
        "PREPARE p FROM 'SELECT GET_LOCK(?, 0)'; SET @n = 'v'; EXECUTE p USING @n; SELECT IS_FREE_LOCK('v')",
        "DO GET_LOCK('a', 0); SELECT IS_FREE_LOCK('a')",
        &long,
        &wide,
        &cut,
        &cut_wide,
    ] {
        assert_eq!(server.run(&changed(text)), server.run(text), "{text}");
        let answers = text.matches("SELECT GET_LOCK").count() == 1 && !text.contains("PREPARE");
        assert!(!answers || changed(text) != text, "{text}");
    }

    let mut holder = server.client("mariadb");
    holder.args(["-e", &changed("DO GET_LOCK('cron', 0), SLEEP(60)")]);
    let mut holder = holder.stdout(Stdio::null()).spawn().unwrap();
    let ask = "SELECT IS_FREE_LOCK('cron')";
    let started = Instant::now();
    while server.rows(&changed(ask)).trim() == "1" {
        assert!(started.elapsed() < Duration::from_secs(10), "the holder never gets its lock");
    }
    assert_eq!(server.rows(&changed("SELECT GET_LOCK('cron', 0)")).trim(), "0");
    assert_eq!(server.rows(&of_site("SELECT GET_LOCK('cron', 0)", "s2:")).trim(), "1");
    assert_eq!(server.rows(ask).trim(), "1", "under its own name nobody holds it");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_row_count_that_is_told_looks_like_one_that_is_asked() {
    let server = Server::new();
    server.run("CREATE TABLE direct.t (a INT); INSERT INTO direct.t VALUES (1),(2),(3)");
    let before = "SET NAMES utf8mb4; UPDATE direct.t SET a = a + 1;";
    for text in [
        "SELECT ROW_COUNT()",
        "SELECT row_count ( ) AS n, 1",
        "SELECT ROW_COUNT() n FROM DUAL",
        "SELECT ROW_COUNT() > 0, ROW_COUNT() IS NULL, -ROW_COUNT()",
        "SELECT IF(ROW_COUNT() = 3, 'three', 'other')",
        "SELECT * FROM (SELECT ROW_COUNT()) x",
    ] {
        let told = with_row_count(text.as_bytes(), Dialect::default(), 3).unwrap();
        let told = String::from_utf8(told).unwrap();
        assert_eq!(
            server.types(&format!("{before}{told}")),
            server.types(&format!("{before}{text}")),
            "{text}"
        );
    }
    // In a UNION the display width is 22 instead of 21; the type is the same.
    let told = with_row_count(b"SELECT ROW_COUNT() UNION SELECT 1", Dialect::default(), 3).unwrap();
    let told = server.types(&format!("{before}{}", String::from_utf8(told).unwrap()));
    let asked = server.types(&format!("{before}SELECT ROW_COUNT() UNION SELECT 1"));
    assert_eq!(told.replace("Length:     22", "Length:     21"), asked);
    let told = with_row_count(b"SELECT ROW_COUNT()", Dialect::default(), -1).unwrap();
    assert_eq!(
        server.rows(&String::from_utf8(told).unwrap()),
        server.rows("SELECT ROW_COUNT()").replace('0', "-1")
    );
}
