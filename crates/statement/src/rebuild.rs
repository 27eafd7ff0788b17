//! Which tables a statement may rebuild or read from end to end: for as long as that takes, a Galera pool takes no
//! write of anybody. Called by `sql` before such a statement, so that big ones take turns.
//!
//! Counted: ALTER TABLE, CREATE INDEX and OPTIMIZE TABLE. Not counted, because they are done at once at any size:
//! CREATE TABLE, DROP, TRUNCATE, RENAME, and ALTER TABLE with nothing but such clauses as RENAME, COMMENT, DROP
//! INDEX, ALTER … SET DEFAULT, DISABLE KEYS, or with ALGORITHM=INSTANT, which MariaDB refuses where it would have
//! to rebuild. In doubt a table is counted. Not seen: what a procedure or a text in a variable does.

use crate::lex::{Sort, Token};
use crate::rewrite::tokens_of;
use crate::table::{bare, behind_set_statement};
use crate::word::Word;
use crate::{Dialect, Kind, Marks, Reading};

/// Both in lower case, which MariaDB's own catalogue does not tell apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableName {
    /// None: the session's.
    pub schema: Option<String>,
    pub name: String,
}

/// Without allocating for other kinds of statements.
pub fn rebuilt_tables(text: &[u8], reading: &Reading, dialect: Dialect) -> Vec<TableName> {
    let may_be = matches!(reading.kind, Kind::AlterTable | Kind::OtherDdl | Kind::Maintenance)
        || reading.marks.contains(Marks::MULTI);
    if !may_be {
        return Vec::new();
    }
    let tokens = tokens_of(text, dialect).unwrap_or_default();
    let mut tables = Vec::new();
    for statement in tokens.split(|token| token.is(b';')) {
        rebuilt_by(behind_set_statement(statement), text, &mut tables);
    }
    tables
}

fn rebuilt_by(statement: &[Token], text: &[u8], tables: &mut Vec<TableName>) {
    let position = |word: Word| {
        statement.iter().take(8).position(|token| token.sort == Sort::Word && token.word == word)
    };
    match statement.first().map(|token| token.word) {
        Some(Word::Alter) => {
            let Some(table) = position(Word::Table) else { return };
            let is_exists = |token: &&Token| matches!(token.word, Word::If | Word::Exists);
            let at = table + 1 + statement[table + 1..].iter().take_while(is_exists).count();
            if let Some((name, length)) = name_at(&statement[at..], text)
                && !is_quick(&statement[at + length..])
            {
                tables.push(name);
            }
        }
        Some(Word::Create) if position(Word::Index).is_some() => {
            let on = statement.iter().position(|token| token.sort == Sort::Word && token.word == Word::On);
            let name = on.and_then(|on| name_at(&statement[on + 1..], text));
            tables.extend(name.map(|(name, _)| name));
        }
        // LOCAL and NO_WRITE_TO_BINLOG stay on the one member.
        Some(Word::Optimize) if position(Word::Table).or(position(Word::Tables)) == Some(1) => {
            let names = statement[2..].split(|token| token.is(b','));
            tables.extend(names.filter_map(|name| name_at(name, text)).map(|(name, _)| name));
        }
        _ => {}
    }
}

/// A perhaps dotted name, and how many tokens it has.
fn name_at(tokens: &[Token], text: &[u8]) -> Option<(TableName, usize)> {
    let first = tokens.first().filter(|token| token.is_name())?;
    match tokens {
        [_, dot, second, ..] if dot.is(b'.') => {
            let name = TableName { schema: Some(bare(first, text)), name: bare(second, text) };
            Some((name, 3))
        }
        _ => Some((TableName { schema: None, name: bare(first, text) }, 1)),
    }
}

/// The clauses of an ALTER TABLE.
fn is_quick(clauses: &[Token]) -> bool {
    let mut depth = 0;
    let split = clauses.split(|token| {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        depth == 0 && token.is(b',')
    });
    let clauses: Vec<&[Token]> = split.collect();
    let is_instant = |clause: &&[Token]| {
        matches!(clause, [algorithm, .., instant]
            if algorithm.word == Word::Algorithm && instant.word == Word::Instant)
    };
    if clauses.iter().any(is_instant) {
        return true;
    }
    clauses.iter().all(|clause| {
        let words =
            clause.iter().map(|token| if token.sort == Sort::Word { token.word } else { Word::Other });
        let mut words = words.take(2);
        match (words.next(), words.next()) {
            (None, _) => true,
            (Some(Word::Rename | Word::Alter | Word::Comment | Word::AutoIncrement), _) => true,
            (Some(Word::Disable | Word::Enable), Some(Word::Keys)) => true,
            (Some(Word::Drop), Some(word)) => {
                matches!(word, Word::Index | Word::Key | Word::Foreign | Word::Constraint | Word::Check)
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    fn tables(text: &str) -> Vec<String> {
        let (text, dialect) = (text.as_bytes(), Dialect::default());
        let found = rebuilt_tables(text, &read(text, dialect), dialect);
        found
            .into_iter()
            .map(|TableName { schema, name }| {
                schema.map_or(name.clone(), |schema| format!("{schema}.{name}"))
            })
            .collect()
    }

    #[test]
    fn a_statement_that_may_rebuild_a_table_names_it() {
        for (text, expected) in [
            ("ALTER TABLE t ADD COLUMN a INT", vec!["t"]),
            ("alter online ignore table if exists `My Blog`.`T` force", vec!["my blog.t"]),
            ("ALTER TABLE t COMMENT='x', ADD KEY (a)", vec!["t"]),
            ("ALTER TABLE t DROP PRIMARY KEY", vec!["t"]),
            ("ALTER TABLE t DROP COLUMN a", vec!["t"]),
            ("ALTER TABLE t ADD a INT, ALGORITHM=INPLACE", vec!["t"]),
            ("ALTER TABLE t PARTITION BY HASH (a)", vec!["t"]),
            ("CREATE UNIQUE INDEX i USING BTREE ON s.t (a, b)", vec!["s.t"]),
            ("OPTIMIZE TABLE a, s.b", vec!["a", "s.b"]),
            ("SET STATEMENT max_statement_time=9 FOR ALTER TABLE t ENGINE=InnoDB", vec!["t"]),
            (
                "INSERT INTO a VALUES (1); ALTER TABLE t ADD KEY (a); /*!40000 ALTER TABLE u FORCE */",
                vec!["t", "u"],
            ),
        ] {
            assert_eq!(tables(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_done_at_once_names_none() {
        for text in [
            "SELECT 1",
            "CREATE TABLE t (a INT, KEY (a))",
            "DROP TABLE t",
            "TRUNCATE t",
            "RENAME TABLE t TO u",
            "CREATE VIEW v AS SELECT 1",
            "CREATE TRIGGER index_it AFTER INSERT ON t FOR EACH ROW SET @a = 1",
            "ALTER TABLE t",
            "ALTER TABLE t RENAME TO u, COMMENT='x', AUTO_INCREMENT=7",
            "ALTER TABLE t ALTER a SET DEFAULT 1, DROP INDEX b, DROP FOREIGN KEY c",
            "/*!40000 ALTER TABLE `t` DISABLE KEYS */",
            "ALTER TABLE t ADD a INT, ALGORITHM = INSTANT",
            "OPTIMIZE LOCAL TABLE t",
            "ANALYZE TABLE t",
            "ALTER TABLE t ADD a INT COMMENT '",
        ] {
            assert_eq!(tables(text), Vec::<String>::new(), "{text}");
        }
    }
}
