//! What is read from a text.
#![allow(clippy::unwrap_used)]

use kopek_statement::{Dialect, Kind, Marks, adapted, normalised, read, with_row_count};
use proptest::prelude::*;

fn plain() -> Dialect {
    Dialect::default()
}

fn kind(text: &str) -> Kind {
    read(text.as_bytes(), plain()).kind
}

fn marks(text: &str) -> Marks {
    read(text.as_bytes(), plain()).marks
}

#[test]
fn a_statements_kind_is_in_its_first_words() {
    for (text, expected) in [
        ("", Kind::Empty),
        ("  -- nothing\n;", Kind::Empty),
        ("select 1", Kind::Select),
        ("((SELECT 1) UNION (SELECT 2))", Kind::Select),
        ("WITH a AS (SELECT 1) SELECT * FROM a", Kind::Select),
        ("WITH a AS (SELECT 1) UPDATE t SET x=1", Kind::Update),
        (
            "/*!50001 CREATE */ /*!50013 DEFINER=`a`@`b` SQL SECURITY DEFINER */ VIEW v AS SELECT 1",
            Kind::OtherDdl,
        ),
        ("/*!99999 DELETE */ SELECT 1", Kind::Select),
        ("/*!40101 SET NAMES utf8 */", Kind::SetSession),
        ("/*M!999999\\- enable the sandbox mode */", Kind::Empty),
        ("SET @a := 1, SESSION sql_mode = ''", Kind::SetSession),
        ("SET GLOBAL x = 1", Kind::SetOther),
        ("SET @@global.x = 1", Kind::SetOther),
        ("SET PASSWORD = 'x'", Kind::SetOther),
        ("SET SESSION TRANSACTION READ ONLY", Kind::SetTransaction),
        ("SET STATEMENT max_statement_time=1 FOR DELETE FROM t", Kind::Delete),
        ("BEGIN", Kind::Begin),
        ("BEGIN NOT ATOMIC SELECT 1; SELECT 2; END", Kind::Compound),
        ("START TRANSACTION READ ONLY", Kind::Begin),
        ("START SLAVE", Kind::Maintenance),
        ("ROLLBACK TO x", Kind::Savepoint),
        ("RELEASE SAVEPOINT x", Kind::Savepoint),
        ("CREATE OR REPLACE TEMPORARY TABLE t (a INT)", Kind::CreateTemporaryTable),
        ("CREATE DEFINER=a@localhost PROCEDURE p() BEGIN SELECT 1; END", Kind::OtherDdl),
        ("CREATE USER a", Kind::Account),
        ("ANALYZE TABLE t", Kind::Maintenance),
        ("ANALYZE FORMAT=JSON UPDATE t SET a=1", Kind::Update),
        ("DROP TEMPORARY TABLE t", Kind::DropTemporaryTable),
        ("DROP PREPARE s", Kind::Deallocate),
        ("LOAD DATA LOCAL INFILE 'x' INTO TABLE t", Kind::LoadData),
        ("SHOW TABLES", Kind::Show),
        ("DESC t", Kind::Show),
        ("EXPLAIN DELETE FROM t", Kind::Show),
        ("nonsense", Kind::Other),
    ] {
        assert_eq!(kind(text), expected, "{text}");
    }
}

#[test]
fn marks_say_what_a_text_mentions() {
    for (text, expected) in [
        ("SELECT 1; SELECT 2", Marks::MULTI),
        ("SELECT 1;", Marks::empty()),
        ("SELECT ';'", Marks::empty()),
        ("SELECT 'it''s; \\'; '", Marks::empty()),
        ("CREATE PROCEDURE p() BEGIN SELECT 1; END", Marks::SUBQUERY),
        ("SELECT * FROM t FOR UPDATE", Marks::READS_ROWS_LOCKED),
        ("SELECT * FROM t LOCK IN SHARE MODE", Marks::READS_ROWS_LOCKED),
        ("SELECT SQL_CALC_FOUND_ROWS * FROM t", Marks::CALC_FOUND_ROWS),
        ("SELECT FOUND_ROWS()", Marks::FOUND_ROWS),
        ("SHOW COUNT(*) WARNINGS", Marks::DIAGNOSTICS),
        ("SELECT @@session.warning_count", Marks::DIAGNOSTICS | Marks::SYSTEM_VARIABLE),
        ("SELECT LAST_INSERT_ID ( )", Marks::LAST_INSERT_ID),
        ("SELECT @a", Marks::USER_VARIABLE),
        ("SELECT@a:=1", Marks::USER_VARIABLE | Marks::ASSIGNS_VARIABLE),
        ("SELECT 1 INTO @a", Marks::USER_VARIABLE | Marks::ASSIGNS_VARIABLE),
        ("GRANT ALL ON *.* TO root@localhost", Marks::empty()),
        ("DO GET_LOCK('a', 1)", Marks::LOCK_FUNCTION | Marks::UNREPEATABLE),
        ("UPDATE t SET uuid = NOW()", Marks::UNREPEATABLE),
        ("INSERT INTO t (a) VALUES (1)", Marks::empty()),
        ("INSERT INTO d.t (a) VALUES (1) ON DUPLICATE KEY UPDATE a=VALUES(a)", Marks::empty()),
        ("SELECT f(1)", Marks::UNKNOWN_FUNCTION),
        ("COMMIT AND CHAIN", Marks::CHAIN_OR_RELEASE),
        ("ROLLBACK AND NO CHAIN NO RELEASE", Marks::empty()),
        ("SET autocommit=0", Marks::SETS_AUTOCOMMIT),
        ("SET @@sql_mode=''", Marks::SETS_SQL_MODE | Marks::SYSTEM_VARIABLE),
        ("SET NAMES utf8mb4", Marks::SETS_CHARSET),
        ("SELECT 'a", Marks::UNFINISHED),
    ] {
        assert_eq!(marks(text), expected, "{text}");
    }
}

#[test]
fn the_normalised_text_drops_what_changes_between_executions() {
    for (text, expected) in [
        ("select  * from T where a = -5 /* x */ and b='x';", "SELECT * FROM T WHERE a = ? AND b = ?"),
        ("SELECT 1 FROM t WHERE a IN (1, 2,3)", "SELECT ? FROM t WHERE a IN (...)"),
        ("INSERT INTO `t`(a,b) VALUES (1,'x'),(2,NULL) , (3,-1)", "INSERT INTO t(a, b) VALUES (?, ?)"),
        ("SELECT a FROM t WHERE a IS NULL", "SELECT a FROM t WHERE a IS NULL"),
    ] {
        assert_eq!(normalised(text.as_bytes(), plain(), 1000), expected);
    }
}

fn changed(text: &str) -> String {
    let reading = read(text.as_bytes(), plain());
    adapted(text.as_bytes(), &reading, plain(), "s1:")
        .map_or("as it is".into(), |b| String::from_utf8(b).unwrap())
}

#[test]
fn names_of_locks_get_a_prefix_and_the_column_keeps_its_name() {
    assert_eq!(
        changed("SELECT GET_LOCK('a', 1), 2"),
        "SELECT GET_LOCK(CONCAT('s1:',MD5('a')), 1) AS `GET_LOCK('a', 1)`, 2"
    );
    assert_eq!(changed("DO RELEASE_LOCK(?)"), "DO RELEASE_LOCK(CONCAT('s1:',MD5(?)))");
    assert_eq!(
        changed("SELECT IF(GET_LOCK('a',1), 1, 2) x"),
        "SELECT IF(GET_LOCK(CONCAT('s1:',MD5('a')),1), 1, 2) x"
    );
    assert_eq!(changed("SELECT RELEASE_ALL_LOCKS()"), "as it is");
}

#[test]
fn an_item_that_holds_a_call_is_named_by_its_old_text() {
    let lock = "GET_LOCK('a',1)";
    let new = "GET_LOCK(CONCAT('s1:',MD5('a')),1)";
    let named = |text: &str| changed(&text.replace("LOCK", lock)).replace(new, "LOCK").replace(lock, "lock");
    for (text, expected) in [
        ("SELECT 1 + LOCK, 2", "SELECT 1 + LOCK AS `1 + lock`, 2"),
        ("SELECT (LOCK) = 1 FROM t", "SELECT (LOCK) = 1 AS `(lock) = 1` FROM t"),
        ("SELECT DISTINCT SQL_NO_CACHE LOCK LIMIT 1", "SELECT DISTINCT SQL_NO_CACHE LOCK AS `lock` LIMIT 1"),
        ("SELECT `a` + LOCK", "SELECT `a` + LOCK AS ```a`` + lock`"),
        ("SELECT (SELECT LOCK)", "SELECT (SELECT LOCK AS `lock`) AS `(SELECT lock)`"),
        ("SELECT LOCK x, LOCK AS y, LOCK 'z', LOCK + 1 value", ""),
        (
            "SELECT CASE WHEN LOCK THEN 1 END",
            "SELECT CASE WHEN LOCK THEN 1 END AS `CASE WHEN lock THEN 1 END`",
        ),
        ("SELECT LOCK end", ""),
        ("SELECT LOCK day", ""),
        ("SELECT a + INTERVAL LOCK DAY", "SELECT a + INTERVAL LOCK DAY AS `a + INTERVAL lock DAY`"),
        ("SELECT a + INTERVAL LOCK DAY day", ""),
        ("SELECT LOCK LIKE 'x'", "SELECT LOCK LIKE 'x' AS `lock LIKE 'x'`"),
        ("SELECT LOCK /* c */ IS NULL", "SELECT LOCK /* c */ IS NULL AS `lock /* c */ IS NULL`"),
        ("SELECT 'a' 'b', LOCK + 'a' 'b'", "SELECT 'a' 'b', LOCK + 'a' 'b' AS `lock + 'a' 'b'`"),
        ("SELECT LOCK + '\u{1f600}'", "SELECT LOCK + '\u{1f600}' AS `lock + '?'`"),
        (
            "INSERT INTO t (a) VALUES (1) RETURNING LOCK",
            "INSERT INTO t (a) VALUES (1) RETURNING LOCK AS `lock`",
        ),
        ("SELECT 1; SELECT LOCK; SELECT 2", "SELECT 1; SELECT LOCK AS `lock`; SELECT 2"),
        ("UPDATE t SET a = LOCK WHERE LOCK", ""),
    ] {
        let expected = if expected.is_empty() { text } else { expected };
        assert_eq!(named(text), expected);
    }
}

#[test]
fn row_count_becomes_a_literal_under_its_own_name() {
    let with =
        |text: &str| with_row_count(text.as_bytes(), plain(), 3).map(|b| String::from_utf8(b).unwrap());
    assert_eq!(
        with("SELECT ROW_COUNT()").unwrap(),
        "SELECT CAST('                    3' AS SIGNED) AS `ROW_COUNT()`"
    );
    assert_eq!(
        with("SELECT row_count() AS n").unwrap(),
        "SELECT CAST('                    3' AS SIGNED) AS n"
    );
    assert_eq!(with("SELECT 'ROW_COUNT()'"), None);
    assert_eq!(with("SELECT ROW_COUNT(ROW_COUNT())"), None);
    assert_eq!(with("SELECT ROW_COUNT(- TABLE t)"), None);
    assert_eq!(with("SELECT ROW_COUNT() + `a"), None);
}

const ROW: &str = ", `kopek_row` UUID NOT NULL DEFAULT UUID() INVISIBLE PRIMARY KEY";

#[test]
fn tables_become_innodb_and_have_a_key() {
    for (text, expected) in [
        ("CREATE TABLE t (a INT PRIMARY KEY)", "CREATE TABLE t (a INT PRIMARY KEY) ENGINE=InnoDB".to_owned()),
        ("CREATE TABLE t (a INT PRIMARY KEY) ENGINE=InnoDB", "as it is".to_owned()),
        ("CREATE TABLE t (a INT NOT NULL, UNIQUE (a)) ENGINE=InnoDB", "as it is".to_owned()),
        (
            "CREATE TABLE t (a INT, UNIQUE (a))",
            format!("CREATE TABLE t (a INT, UNIQUE (a){ROW}) ENGINE=InnoDB"),
        ),
        (
            "CREATE TABLE t (a INT PRIMARY KEY) ENGINE='MyISAM', ROW_FORMAT=FIXED",
            "CREATE TABLE t (a INT PRIMARY KEY) ENGINE=InnoDB, ROW_FORMAT=DEFAULT".to_owned(),
        ),
        (
            "CREATE TABLE t (a INT PRIMARY KEY) ENGINE `memory`",
            "CREATE TABLE t (a INT PRIMARY KEY) ENGINE InnoDB".to_owned(),
        ),
        ("CREATE TABLE t (a INT) ENGINE=CONNECT TABLE_TYPE=CSV", "as it is".to_owned()),
        (
            "CREATE TABLE t (a INT PRIMARY KEY) TYPE=MyISAM",
            "CREATE TABLE t (a INT PRIMARY KEY) ENGINE=InnoDB TYPE=MyISAM".to_owned(),
        ),
        (
            "CREATE TABLE t (a INT NOT NULL, b INT) PARTITION BY HASH (a) (PARTITION p ENGINE MyISAM)",
            "CREATE TABLE t (a INT NOT NULL, b INT, `kopek_row` UUID NOT NULL DEFAULT UUID() INVISIBLE, \
             UNIQUE KEY `kopek_row` (`kopek_row`, `a`)) PARTITION BY HASH (a) (PARTITION p ENGINE InnoDB)"
                .to_owned(),
        ),
        ("CREATE TABLE t ENGINE=InnoDB PARTITION BY HASH (a) SELECT 1 a", "as it is".to_owned()),
        (
            "SET STATEMENT max_statement_time=(1) FOR CREATE TABLE t (a INT KEY) ENGINE=DEFAULT",
            "SET STATEMENT max_statement_time=(1) FOR CREATE TABLE t (a INT KEY) ENGINE=InnoDB".to_owned(),
        ),
        (
            "CREATE TABLE d.t ENGINE=Aria SELECT 1",
            format!("CREATE TABLE d.t ({}) ENGINE=InnoDB SELECT 1", &ROW[2..]),
        ),
        (
            "CREATE TABLE t (g INT, a INT AUTO_INCREMENT, PRIMARY KEY (g, a)) ENGINE MyISAM",
            "CREATE TABLE t (g INT, a INT AUTO_INCREMENT, PRIMARY KEY (g, a), KEY (`a`)) ENGINE InnoDB"
                .to_owned(),
        ),
        ("CREATE TABLE t (a INT, `kopek_row` UUID NOT NULL) ENGINE=InnoDB", "as it is".to_owned()),
        ("CREATE TABLE t LIKE u", "as it is".to_owned()),
        ("CREATE TABLE t (LIKE u)", "as it is".to_owned()),
        ("CREATE TABLE t (SELECT 1)", format!("CREATE TABLE t ({}) ENGINE=InnoDB (SELECT 1)", &ROW[2..])),
        ("CREATE TEMPORARY TABLE t (a INT) ENGINE=MEMORY", "as it is".to_owned()),
        ("CREATE SEQUENCE t", "as it is".to_owned()),
        ("ALTER TABLE t ENGINE=MyISAM TRANSACTIONAL ADD PRIMARY KEY (a)", "as it is".to_owned()),
        ("ALTER TABLE t ENGINE=MyISAM", "ALTER TABLE t ENGINE=InnoDB".to_owned()),
        (
            "ALTER TABLE t ADD PRIMARY KEY (a), ADD KEY (b)",
            "ALTER TABLE t DROP KEY IF EXISTS `kopek_row`, DROP COLUMN IF EXISTS `kopek_row`, \
             ADD PRIMARY KEY (a), ADD KEY (b)"
                .to_owned(),
        ),
    ] {
        assert_eq!(changed(text), expected, "{text}");
    }
}

#[test]
fn the_row_key_goes_when_the_table_gets_its_own() {
    for clause in [
        "ADD PRIMARY KEY (a)",
        "ADD CONSTRAINT x PRIMARY KEY (a)",
        "ADD c DECIMAL(5,2) PRIMARY KEY",
        "ADD c INT KEY",
        "ADD (b INT, c INT PRIMARY KEY)",
        "ADD COLUMN (c INT, PRIMARY KEY (c))",
        "MODIFY a INT NOT NULL AUTO_INCREMENT PRIMARY KEY",
        "CHANGE a b ENUM('x','y') PRIMARY KEY FIRST",
    ] {
        let expected = format!(
            "ALTER TABLE t DROP b, DROP KEY IF EXISTS `kopek_row`, DROP COLUMN IF EXISTS `kopek_row`, {clause}, \
             ADD KEY (d)"
        );
        assert_eq!(changed(&format!("ALTER TABLE t DROP b, {clause}, ADD KEY (d)")), expected);
    }
    for clause in [
        "ADD KEY (a)",
        "ADD KEY k (a)",
        "ADD UNIQUE KEY (a)",
        "ADD c INT UNIQUE KEY",
        "ADD FULLTEXT KEY (a)",
        "ADD FOREIGN KEY (a) REFERENCES u (a)",
        "ADD c INT COMMENT 'PRIMARY KEY'",
        "ADD `primary` INT",
        "ADD PRIMARY KEY (`kopek_row`)",
        "DROP PRIMARY KEY",
        "PARTITION BY KEY (a)",
    ] {
        assert_eq!(changed(&format!("ALTER TABLE t {clause}")), "as it is", "{clause}");
    }
}

fn ansi() -> Dialect {
    Dialect { ansi_quotes: true, no_backslash_escapes: false }
}

fn no_escapes() -> Dialect {
    Dialect { ansi_quotes: false, no_backslash_escapes: true }
}

#[test]
fn ansi_quotes_make_a_double_quoted_text_a_name() {
    let kind_of = |text: &str| read(text.as_bytes(), ansi()).kind;
    let marks_of = |text: &str| read(text.as_bytes(), ansi()).marks;
    let shown = |text: &str, dialect| normalised(text.as_bytes(), dialect, 1000);
    assert_eq!(shown("SELECT \"a\" FROM \"t\"", ansi()), "SELECT a FROM t");
    assert_eq!(shown("SELECT \"a\"", plain()), "SELECT ?");
    assert_eq!(shown("SELECT \"select\", `x y`", ansi()), "SELECT `select`, `x y`");
    assert_eq!(shown("SELECT _utf8\"a\"", plain()), "SELECT ?");
    // A name knows no backslash, a string does.
    assert_eq!(marks_of("SELECT \"a\\\"; SELECT 2"), Marks::MULTI);
    assert_eq!(marks("SELECT \"a\\\"; SELECT 2"), Marks::UNFINISHED);
    assert_eq!(marks_of("SELECT \"f\"(1)"), Marks::UNKNOWN_FUNCTION);
    assert_eq!(kind_of("\"DELETE\" FROM t"), Kind::Other);
    let changed = |text: &str| {
        let reading = read(text.as_bytes(), ansi());
        let bytes = adapted(text.as_bytes(), &reading, ansi(), "s1:")?;
        Some(String::from_utf8(bytes).unwrap())
    };
    assert_eq!(
        changed("CREATE TABLE t (\"PRIMARY\" INT)").unwrap(),
        format!("CREATE TABLE t (\"PRIMARY\" INT{ROW}) ENGINE=InnoDB")
    );
    assert_eq!(
        changed("CREATE TABLE \"d\".\"t\" (\"a\"\"b\" INT NOT NULL, UNIQUE (`a\"b`)) ENGINE=\"MyISAM\"")
            .unwrap(),
        "CREATE TABLE \"d\".\"t\" (\"a\"\"b\" INT NOT NULL, UNIQUE (`a\"b`)) ENGINE=InnoDB"
    );
    assert_eq!(
        changed("SELECT GET_LOCK('a',1) \"x\", GET_LOCK('a',1)").unwrap(),
        "SELECT GET_LOCK(CONCAT('s1:',MD5('a')),1) \"x\", GET_LOCK(CONCAT('s1:',MD5('a')),1) AS `GET_LOCK('a',1)`"
    );
    assert_eq!(changed("ALTER TABLE t ADD \"c\" INT, ADD CONSTRAINT \"PRIMARY\" UNIQUE (a)"), None);
}

#[test]
fn without_escapes_a_backslash_ends_no_string_later() {
    let marks_of = |text: &str| read(text.as_bytes(), no_escapes()).marks;
    assert_eq!(marks_of("SELECT 'a\\'; SELECT 'b'"), Marks::MULTI);
    assert_eq!(marks("SELECT 'a\\'; SELECT 'b'"), Marks::UNFINISHED);
    assert_eq!(marks_of("SELECT 'a\\'' ; SELECT 1'"), Marks::empty());
    assert_eq!(marks_of("SELECT \"C:\\\", @'x\\', NOW()"), Marks::USER_VARIABLE | Marks::UNREPEATABLE);
    let text = b"SELECT GET_LOCK('a\\',1), '\\'";
    let reading = read(text, no_escapes());
    assert_eq!(
        String::from_utf8(adapted(text, &reading, no_escapes(), "s1:").unwrap()).unwrap(),
        "SELECT GET_LOCK(CONCAT('s1:',MD5('a\\')),1) AS `GET_LOCK('a\\',1)`, '\\'"
    );
    let both = Dialect { ansi_quotes: true, no_backslash_escapes: true };
    assert_eq!(normalised(b"SELECT \"a\\\", '\\', \"b\"", both, 100), "SELECT `a\\`, ?, b");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_and_an_adapted_one_is_of_the_same_kind(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        words in proptest::collection::vec(prop_oneof![
            Just("CREATE"), Just("TABLE"), Just("("), Just(")"), Just(","), Just("SELECT"), Just("GET_LOCK"), Just("'a'"),
            Just("`"), Just("KEY"), Just("t"), Just("AUTO_INCREMENT"), Just("ENGINE=MyISAM"), Just("/*!"), Just("*/"),
            Just(";"), Just("ALTER"), Just("ADD"), Just("PRIMARY"), Just("ROW_COUNT"), Just("."), Just("@"), Just("SET"),
        ], 0..25),
        ansi_quotes in any::<bool>(),
        no_backslash_escapes in any::<bool>(),
    ) {
        let dialect = Dialect { ansi_quotes, no_backslash_escapes };
        for text in [bytes, words.join(" ").into_bytes()] {
            let reading = read(&text, dialect);
            normalised(&text, dialect, 50);
            with_row_count(&text, dialect, 1);
            if let Some(other) = adapted(&text, &reading, dialect, "p") {
                prop_assert_eq!(read(&other, dialect).kind, reading.kind);
            }
        }
    }

    #[test]
    fn literals_blanks_and_comments_change_no_digest(number in any::<i64>(), string in "[a-z;#/* -]*", count in 1usize..9) {
        let list = vec![number.to_string(); count].join(" ,/* x */ ");
        let text = format!("select a\n FROM t -- x\n WHERE b={number} AND c = '{string}' and d IN ({list})");
        let same = "SELECT a FROM t WHERE b = 1 AND c = '' AND d IN (1)";
        prop_assert_eq!(read(text.as_bytes(), plain()), read(same.as_bytes(), plain()));
    }
}
