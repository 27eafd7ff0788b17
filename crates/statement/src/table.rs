//! What CREATE TABLE and ALTER TABLE must say on a Galera pool, where only InnoDB's rows replicate and a table
//! without a key makes every member search through it for every changed row. Called by `rewrite.rs`.
//!
//! | engine | becomes |
//! |---|---|
//! | MyISAM, Aria (Maria), ISAM | InnoDB; FULLTEXT keys stay, InnoDB has them |
//! | MEMORY (HEAP) | InnoDB: its rows would be on one member only; they now survive a restart |
//! | ARCHIVE, CSV | InnoDB: their rows would not replicate |
//! | MERGE, BLACKHOLE, FEDERATED, CONNECT, sequences, others | stay: they hold no rows of their own, and get no key |
//!
//! A table that names no engine gets InnoDB: `default_storage_engine` is the session's to set, and a table of
//! another engine would have its rows on one member only. So does one with ENGINE='DEFAULT', and each partition.
//!
//! ROW_FORMAT=FIXED and PAGE, TRANSACTIONAL and PAGE_CHECKSUM go with the engine: InnoDB refuses some of them
//! under innodb_strict_mode. A key on more than 3072 bytes is InnoDB's own error, as on any MariaDB.
//!
//! A table without PRIMARY KEY or NOT NULL UNIQUE gets the invisible column `kopek_row`, a UUID: not an
//! AUTO_INCREMENT, since a table has only one, dumps of phpMyAdmin add theirs in a later ALTER TABLE, and the
//! client would see its value as insert id. An ALTER TABLE that makes a primary key drops it again; on a table
//! that has no such column or key this adds notes 1091 to the statement's warnings. A dump that makes `kopek_row`
//! in CREATE TABLE and its key in ALTER TABLE, as phpMyAdmin writes it, is left as it is. In a partitioned table
//! (`partition.rs`) the key is a UNIQUE one of the same name, which holds the partition's columns too.
//!
//! Left alone:
//! - TEMPORARY tables, which do not replicate.
//! - CREATE TABLE … LIKE: the original has its engine and its key, unless it is a temporary table.
//! - Partitioned tables whose partitioning columns may be NULL or are not in the text.
//! - ALTER TABLE … DROP PRIMARY KEY, also of a column that was the key: ALTER TABLE is executed by each member on
//!   its own, and UUID() would give each of them other keys for the same rows (seen on 10.11). Without a key
//!   rows still replicate; each one that is changed is searched for through the table.
//! - TYPE=MyISAM: MariaDB has not known it since 5.5.

use crate::lex::{Sort, Token};
use crate::partition::partitioning_columns;
use crate::rewrite::Edit;
use crate::word::{Word, word_of};

const ROW_KEY_NAME: &str = "kopek_row";
const ROW_COLUMN: &str = "`kopek_row` UUID NOT NULL DEFAULT UUID() INVISIBLE";
const ROW_KEY_GOES: &str = "DROP KEY IF EXISTS `kopek_row`, DROP COLUMN IF EXISTS `kopek_row`, ";
const ENGINE_OF_POOL: &str = " ENGINE=InnoDB";

/// `statement`: the tokens of one statement.
pub fn table_edits(statement: &[Token], text: &[u8], edits: &mut Vec<Edit>) {
    let statement = behind_set_statement(statement);
    let Some(table) = statement.iter().take(8).position(|token| token.word == Word::Table) else { return };
    let head = &statement[..table];
    if head.iter().any(|token| token.word == Word::Temporary) {
        return;
    }
    match head.first().map(|token| token.word) {
        Some(Word::Create) => create(&statement[table + 1..], text, edits),
        Some(Word::Alter) => alter(&statement[table + 1..], text, edits),
        _ => {}
    }
}

/// SET STATEMENT default_storage_engine=MyISAM FOR CREATE TABLE …
pub fn behind_set_statement(statement: &[Token]) -> &[Token] {
    let [set, to_set, ..] = statement else { return statement };
    if set.word != Word::Set || to_set.word != Word::Statement {
        return statement;
    }
    let mut depth = 0;
    let end = statement.iter().position(|token| {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        depth == 0 && token.sort == Sort::Word && token.word == Word::For
    });
    end.map_or(statement, |end| &statement[end + 1..])
}

/// Behind CREATE TABLE.
fn create(tokens: &[Token], text: &[u8], edits: &mut Vec<Edit>) {
    let is_exists = |token: &&Token| matches!(token.word, Word::If | Word::Not | Word::Exists);
    let skipped = tokens.iter().take_while(is_exists).count();
    let name = tokens[skipped..].iter().take_while(|token| token.is_name() && token.word != Word::Like);
    let mut at = skipped + name.take(1).count();
    while tokens.get(at).is_some_and(|token| token.is(b'.')) {
        at += 2;
    }
    let Some(rest) = tokens.get(at..).filter(|_| at > skipped) else { return };
    let body = match rest {
        [open, first, ..] if open.is(b'(') && first.word == Word::Like => return,
        [open, first, ..] if open.is(b'(') && !begins_query(first) => {
            let Some(close) = closing(rest) else { return };
            &rest[..=close]
        }
        _ => &[],
    };
    let options = &rest[body.len()..];
    let engine = engine(options, text, edits);
    let is_partitioned =
        options.iter().any(|token| token.sort == Sort::Word && token.word == Word::Partition);
    let [_, inner @ .., close] = body else {
        let is_query = options.iter().any(begins_query);
        if is_query
            && engine != Engine::Other
            && let Some(name) = tokens[..at].last()
        {
            if !is_partitioned {
                edits.push(Edit::insert(name.end, format!(" ({ROW_COLUMN} PRIMARY KEY)")));
            }
            name_engine(engine, name.end, edits);
        }
        return;
    };
    let columns = Columns::of(inner, text);
    let gets_key = engine != Engine::Other
        && !columns.has_row_key()
        && !columns.names.iter().any(|name| name == ROW_KEY_NAME);
    if gets_key && is_partitioned {
        if let Some(names) = partitioning_columns(options, text, &columns.names, &columns.not_null) {
            let quoted: Vec<String> = names.iter().map(|name| quoted(name)).collect();
            let key = format!("UNIQUE KEY `kopek_row` (`kopek_row`, {})", quoted.join(", "));
            edits.push(Edit::insert(close.start, format!(", {ROW_COLUMN}, {key}")));
        }
    } else if gets_key {
        edits.push(Edit::insert(close.start, format!(", {ROW_COLUMN} PRIMARY KEY")));
    }
    name_engine(engine, close.end, edits);
    // MyISAM counts within the first column of a key; InnoDB counts over the table and wants its own key.
    if engine == Engine::Converted
        && let Some(counted) = columns.counted_without_key()
    {
        edits.push(Edit::insert(close.start, format!(", KEY ({counted})")));
    }
}

/// Where the table's options begin.
fn name_engine(engine: Engine, at: usize, edits: &mut Vec<Edit>) {
    if engine == Engine::Unnamed {
        edits.push(Edit::insert(at, ENGINE_OF_POOL.to_owned()));
    }
}

fn begins_query(token: &Token) -> bool {
    token.sort == Sort::Word && matches!(token.word, Word::Select | Word::With | Word::Values)
}

/// Behind ALTER TABLE.
fn alter(tokens: &[Token], text: &[u8], edits: &mut Vec<Edit>) {
    engine(tokens, text, edits);
    let mut depth = 0;
    let clauses = tokens.split(|token| {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        depth == 0 && token.is(b',')
    });
    for clause in clauses {
        let is_verb = |token: &Token| {
            token.sort == Sort::Word && matches!(token.word, Word::Add | Word::Modify | Word::Change)
        };
        let Some(verb) = clause.iter().position(is_verb) else { continue };
        let is_row_key = |token: &Token| token.is_name() && bare(token, text) == ROW_KEY_NAME;
        if makes_primary_key(&clause[verb..]) && !clause.iter().any(is_row_key) {
            edits.push(Edit::insert(clause[verb].start, ROW_KEY_GOES.to_owned()));
            return;
        }
    }
}

/// KEY is reserved: as a word it is nothing but a key's. It is a primary one behind PRIMARY, and when it is said
/// of a column.
fn makes_primary_key(clause: &[Token]) -> bool {
    use Word::*;
    clause.windows(2).any(|two| {
        let [before, token] = two else { return false };
        token.word == Key
            && !before.is(b'(')
            && !before.is(b',')
            && !matches!(before.word, Add | Unique | Foreign | Fulltext | Spatial | By)
    })
}

/// The index of the parenthesis that closes the first one.
pub fn closing(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0;
    tokens.iter().position(|token| {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        depth == 0
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Unnamed,
    /// InnoDB as it is.
    Innodb,
    /// Becomes InnoDB.
    Converted,
    /// Has no rows of its own here.
    Other,
}

/// In a table's options, or in the clauses of an ALTER TABLE.
fn engine(options: &[Token], text: &[u8], edits: &mut Vec<Edit>) -> Engine {
    let (mut depth, mut in_partitions) = (0, false);
    let mut engine = Engine::Unnamed;
    let mut converted = Vec::new();
    let mut dropped = Vec::new();
    for (at, token) in options.iter().enumerate() {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        if token.sort != Sort::Word || (depth != 0 && !in_partitions) {
            continue;
        }
        let has_equals = options.get(at + 1).is_some_and(|next| next.is(b'='));
        let Some(value) = options.get(at + 1 + usize::from(has_equals)) else { continue };
        let becomes = |with: &str| Edit { start: value.start, end: value.end, with: with.to_owned() };
        match token.word {
            Word::Select => break,
            Word::Partition => in_partitions = true,
            Word::Engine => {
                let named = engine_of(value, text);
                if named == Engine::Converted {
                    converted.push(becomes("InnoDB"));
                }
                // All partitions have the table's.
                if !in_partitions || engine == Engine::Unnamed {
                    engine = named;
                }
            }
            _ if in_partitions => {}
            Word::RowFormat if matches!(value.word, Word::Fixed | Word::Page) => {
                dropped.push(becomes("DEFAULT"));
            }
            Word::Transactional | Word::PageChecksum => dropped.push(becomes("DEFAULT")),
            _ => {}
        }
    }
    if !converted.is_empty() {
        edits.append(&mut converted);
        edits.append(&mut dropped);
    }
    engine
}

/// `value`: a word, `…` or a string.
fn engine_of(value: &Token, text: &[u8]) -> Engine {
    let word = match (value.sort, value.of(text)) {
        (Sort::Quoted | Sort::Text, [_, inner @ .., _]) => word_of(inner),
        _ => value.word,
    };
    match word {
        Word::Myisam
        | Word::Aria
        | Word::Maria
        | Word::Isam
        | Word::Memory
        | Word::Heap
        | Word::Archive
        | Word::Csv
        // What the session has set.
        | Word::Default => Engine::Converted,
        Word::Innodb => Engine::Innodb,
        _ => Engine::Other,
    }
}

/// What the list of columns and keys says about keys.
#[derive(Default)]
struct Columns {
    names: Vec<String>,
    has_primary: bool,
    not_null: Vec<String>,
    /// The columns of each UNIQUE.
    unique: Vec<Vec<String>>,
    /// The first column of each key.
    led_by: Vec<String>,
    counted: Option<String>,
}

impl Columns {
    fn of(inner: &[Token], text: &[u8]) -> Columns {
        let mut columns = Columns::default();
        let mut depth = 0;
        let elements = inner.split(|token| {
            depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
            depth == 0 && token.is(b',')
        });
        for element in elements {
            match element.first() {
                Some(first) if begins_key(first) => columns.key(element, text),
                Some(name) if name.is_name() => columns.column(bare(name, text), &element[1..]),
                _ => {}
            }
        }
        columns
    }

    fn key(&mut self, element: &[Token], text: &[u8]) {
        let open = element.iter().position(|token| token.is(b'(')).unwrap_or(element.len());
        let (head, list) = element.split_at(open);
        let says = |word| head.iter().any(|token| token.word == word);
        let mut depth = 0;
        let names: Vec<String> = list
            .iter()
            .take(closing(list).unwrap_or(list.len()))
            .filter(|token| {
                depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
                depth == 1 && token.is_name() && !matches!(token.word, Word::Asc | Word::Desc)
            })
            .map(|token| bare(token, text))
            .collect();
        if says(Word::Foreign) || says(Word::Check) || says(Word::Fulltext) || says(Word::Spatial) {
            return;
        }
        self.has_primary |= says(Word::Primary);
        self.led_by.extend(names.first().cloned());
        // A key on a column's prefix counts too: what is unique in its prefix is unique.
        if says(Word::Unique) {
            self.unique.push(names);
        }
    }

    fn column(&mut self, name: String, words: &[Token]) {
        self.names.push(name.clone());
        let mut before = Word::Other;
        let mut depth = 0;
        let mut is_unique = false;
        for token in words {
            depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
            if depth != 0 || token.sort != Sort::Word {
                continue;
            }
            match token.word {
                Word::Null if before == Word::Not => self.not_null.push(name.clone()),
                Word::Unique => is_unique = true,
                Word::Key if before != Word::Unique => self.has_primary = true,
                Word::AutoIncrement => {
                    self.counted = Some(name.clone());
                    self.not_null.push(name.clone());
                }
                Word::Serial => {
                    self.counted = Some(name.clone());
                    self.not_null.push(name.clone());
                    is_unique = true;
                }
                Word::References => break,
                _ => {}
            }
            before = token.word;
        }
        if is_unique {
            self.unique.push(vec![name.clone()]);
            self.led_by.push(name.clone());
        } else if self.has_primary && self.led_by.is_empty() {
            self.led_by.push(name);
        }
    }

    fn has_row_key(&self) -> bool {
        let holds =
            |names: &Vec<String>| !names.is_empty() && names.iter().all(|name| self.not_null.contains(name));
        self.has_primary || self.unique.iter().any(holds)
    }

    /// The AUTO_INCREMENT column that leads no key, as it is written in SQL.
    fn counted_without_key(&self) -> Option<String> {
        let counted = self.counted.as_ref()?;
        (!self.led_by.contains(counted)).then(|| quoted(counted))
    }
}

fn begins_key(first: &Token) -> bool {
    use Word::*;
    first.sort == Sort::Word
        && matches!(
            first.word,
            Primary | Unique | Key | Index | Fulltext | Spatial | Constraint | Foreign | Check
        )
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A column's name without quotes and case, which columns have not.
pub fn bare(name: &Token, text: &[u8]) -> String {
    let spelled = String::from_utf8_lossy(name.of(text)).to_lowercase();
    let mut letters = spelled.chars();
    match (name.sort, letters.next()) {
        (Sort::Quoted, Some(quote)) => {
            let inner = letters.as_str();
            let doubled = String::from_iter([quote, quote]);
            inner.strip_suffix(quote).unwrap_or(inner).replace(&doubled, &String::from(quote))
        }
        _ => spelled,
    }
}
