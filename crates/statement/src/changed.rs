//! Which table a change of definition is about. Called by `sql`, which looks at the table before and after.

use crate::Dialect;
use crate::lex::{Lexer, Sort, Token};

/// A text has a change's name in its first words.
const HEAD_MAX: usize = 64 << 10;
/// What leaves the table's definition as it was and would do something else when it is done twice; and what brings
/// rows, which the definition does not show.
const MORE_THAN_DEFINITION: [&[u8]; 6] =
    [b"SELECT", b"PARTITION", b"TABLESPACE", b"TRUNCATE", b"TEMPORARY", b"REPLACE"];

/// The name, as it is written, of the one table that the statement makes, alters or drops, and whose definition shows
/// whether it was done. None for any other statement, and where the words leave a doubt.
pub fn changed_table(text: &[u8], dialect: Dialect) -> Option<&[u8]> {
    if text.len() > HEAD_MAX {
        return None;
    }
    let mut lexer = Lexer::new(text, dialect);
    let tokens: Vec<Token> = lexer.by_ref().collect();
    let is_one = |token: &Token| {
        token.sort == Sort::Word && MORE_THAN_DEFINITION.iter().any(|word| is(token, text, word))
    };
    if lexer.unfinished || tokens.iter().any(is_one) {
        return None;
    }
    let mut words = Words { text, rest: &tokens };
    match words.one_of(&[b"CREATE", b"ALTER", b"DROP"])? {
        b"CREATE" => {
            if words.skip(&[b"TABLE"]) {
                if words.skip(&[b"IF"]) && words.skip(&[b"NOT"]) {
                    words.skip(&[b"EXISTS"]);
                }
                return words.name();
            }
            let _ = words.one_of(&[b"UNIQUE", b"FULLTEXT", b"SPATIAL"]);
            words.skip(&[b"INDEX"]).then(|| words.behind_on())?
        }
        b"ALTER" => {
            while words.one_of(&[b"ONLINE", b"IGNORE"]).is_some() {}
            if !words.skip(&[b"TABLE"]) {
                return None;
            }
            if words.skip(&[b"IF"]) {
                words.skip(&[b"EXISTS"]);
            }
            words.name()
        }
        _ => {
            if words.skip(&[b"INDEX"]) {
                return words.behind_on();
            }
            if !words.skip(&[b"TABLE"]) {
                return None;
            }
            if words.skip(&[b"IF"]) {
                words.skip(&[b"EXISTS"]);
            }
            let name = words.name()?;
            // Several tables have several fates.
            words.rest.iter().all(|token| !token.is(b',')).then_some(name)
        }
    }
}

struct Words<'a, 'b> {
    text: &'a [u8],
    rest: &'b [Token],
}

impl<'a> Words<'a, '_> {
    fn one_of(&mut self, words: &[&'static [u8]]) -> Option<&'static [u8]> {
        let (first, rest) = self.rest.split_first()?;
        let found = words.iter().find(|word| first.sort == Sort::Word && is(first, self.text, word))?;
        self.rest = rest;
        Some(found)
    }

    fn skip(&mut self, words: &[&'static [u8]]) -> bool {
        self.one_of(words).is_some()
    }

    /// With its schema, if it is given.
    fn name(&mut self) -> Option<&'a [u8]> {
        let first = self.rest.first().filter(|token| token.is_name())?;
        let mut at = 0;
        while self.rest.get(at + 1).is_some_and(|token| token.is(b'.')) {
            at += 2;
        }
        let last = self.rest.get(at)?;
        self.rest = &self.rest[at + 1..];
        Some(&self.text[first.start..last.end])
    }

    /// CREATE INDEX name USING BTREE ON table, DROP INDEX name ON table.
    fn behind_on(&mut self) -> Option<&'a [u8]> {
        let on =
            self.rest.iter().position(|token| token.sort == Sort::Word && is(token, self.text, b"ON"))?;
        self.rest = &self.rest[on + 1..];
        self.name()
    }
}

fn is(token: &Token, text: &[u8], word: &[u8]) -> bool {
    token.of(text).eq_ignore_ascii_case(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<&str> {
        let found = changed_table(text.as_bytes(), Dialect::default());
        found.map(|name| std::str::from_utf8(name).unwrap())
    }

    #[test]
    fn the_table_of_a_change_is_known_as_it_is_written() {
        for (text, name) in [
            ("CREATE TABLE wp_posts (ID bigint)", "wp_posts"),
            ("create table if not exists `my``table`(a int)", "`my``table`"),
            ("/* installer */ CREATE TABLE `wiki`.`page` (a int) ENGINE=InnoDB;", "`wiki`.`page`"),
            ("ALTER TABLE wp_posts ADD INDEX (a), ALGORITHM=COPY", "wp_posts"),
            ("ALTER ONLINE IGNORE TABLE blog . t DROP COLUMN c", "blog . t"),
            ("DROP TABLE IF EXISTS t CASCADE", "t"),
            ("CREATE UNIQUE INDEX i USING BTREE ON t (a)", "t"),
            ("DROP INDEX `on` ON t", "t"),
        ] {
            assert_eq!(of(text), Some(name), "{text}");
        }
    }

    #[test]
    fn what_a_definition_does_not_tell_has_no_such_table() {
        for text in [
            "CREATE TEMPORARY TABLE t (a int)",
            "CREATE OR REPLACE TABLE t (a int)",
            "CREATE TABLE t AS SELECT 1",
            "ALTER TABLE t EXCHANGE PARTITION p WITH TABLE u",
            "ALTER TABLE t DISCARD TABLESPACE",
            "DROP TABLE a, b",
            "DROP DATABASE a",
            "TRUNCATE TABLE t",
            "RENAME TABLE a TO b",
            "CREATE VIEW v AS VALUES (1)",
            "CREATE TABLE `t",
            "INSERT INTO t VALUES (1)",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
