//! What CREATE TABLE and ALTER TABLE must say on a Galera pool, where only InnoDB's rows replicate and a table
//! without a key makes every member search through it for every changed row. Called by `rewrite.rs`.
//!
//! | engine | becomes |
//! |---|---|
//! | MyISAM, Aria (Maria), ISAM | InnoDB; FULLTEXT keys stay, InnoDB has them |
//! | MEMORY (HEAP) | InnoDB: its rows would be on one member only; they now survive a restart |
//! | ARCHIVE, CSV | InnoDB: their rows would not replicate |
//! | MERGE, BLACKHOLE, FEDERATED, CONNECT, sequences, others | stay: they hold no rows of their own |
//!
//! ROW_FORMAT=FIXED and PAGE, TRANSACTIONAL and PAGE_CHECKSUM go with the engine: InnoDB refuses some of them
//! under innodb_strict_mode. A key on more than 3072 bytes is InnoDB's own error, as on any MariaDB.
//!
//! A table without PRIMARY KEY or NOT NULL UNIQUE gets the invisible column `kopek_row`, a UUID: not an
//! AUTO_INCREMENT, since a table has only one, dumps of phpMyAdmin add theirs in a later ALTER TABLE, and the
//! client would see its value as insert id. ALTER TABLE … ADD PRIMARY KEY drops it again.
//!
//! Left alone: TEMPORARY tables (they do not replicate), CREATE TABLE … LIKE (the original has its key),
//! CREATE TABLE … SELECT without a column list (there is no place for the column), partitioned tables without
//! a key (a primary key must hold the partition's columns), ALTER TABLE … DROP PRIMARY KEY.

use crate::lex::{Sort, Token};
use crate::rewrite::Edit;
use crate::word::Word;

const ROW_KEY: &str = "`kopek_row` UUID NOT NULL DEFAULT UUID() INVISIBLE PRIMARY KEY";

/// `statement`: the tokens of one statement.
pub fn table_edits(statement: &[Token], text: &[u8], edits: &mut Vec<Edit>) {
    let Some(table) = statement.iter().take(8).position(|token| token.word == Word::Table) else { return };
    let head = &statement[..table];
    if head.iter().any(|token| token.word == Word::Temporary) {
        return;
    }
    match head.first().map(|token| token.word) {
        Some(Word::Create) => create(&statement[table + 1..], text, edits),
        Some(Word::Alter) => alter(&statement[table + 1..], edits),
        _ => {}
    }
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
    let rest = tokens.get(at..).unwrap_or(&[]);
    let body = match rest {
        [open, first, ..]
            if open.is(b'(') && !matches!(first.word, Word::Like | Word::Select | Word::With) =>
        {
            let Some(close) = closing(rest) else { return };
            &rest[..=close]
        }
        _ => &[],
    };
    let options = &rest[body.len()..];
    let is_converted = engine(options, edits);
    let [_, inner @ .., close] = body else { return };
    let columns = Columns::of(inner, text);
    let is_partitioned = options.iter().any(|token| token.word == Word::Partition);
    if !columns.has_row_key() && !is_partitioned {
        edits.push(Edit::insert(close.start, format!(", {ROW_KEY}")));
    }
    // MyISAM counts within the first column of a key; InnoDB counts over the table and wants its own key.
    if is_converted && let Some(counted) = columns.counted_without_key() {
        edits.push(Edit::insert(close.start, format!(", KEY ({counted})")));
    }
}

/// Behind ALTER TABLE.
fn alter(tokens: &[Token], edits: &mut Vec<Edit>) {
    engine(tokens, edits);
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.sort {
            Sort::Sign(b'(') => depth += 1,
            Sort::Sign(b')') => depth -= 1,
            Sort::Word if token.word == Word::Add && depth == 0 => {
                let clause = tokens[at..].iter().take_while(|token| !token.is(b',') && !token.is(b'('));
                if clause.into_iter().any(|token| token.word == Word::Primary) {
                    edits.push(Edit::insert(token.start, "DROP COLUMN IF EXISTS `kopek_row`, ".to_owned()));
                    return;
                }
            }
            _ => {}
        }
    }
}

/// The index of the parenthesis that closes the first one.
fn closing(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0;
    tokens.iter().position(|token| {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        depth == 0
    })
}

/// In a table's options, or in the clauses of an ALTER TABLE. True when the engine becomes InnoDB.
fn engine(options: &[Token], edits: &mut Vec<Edit>) -> bool {
    let mut depth = 0;
    let mut converted = Vec::new();
    let mut dropped = Vec::new();
    for (at, token) in options.iter().enumerate() {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        if depth != 0 || token.sort != Sort::Word {
            continue;
        }
        let has_equals = options.get(at + 1).is_some_and(|next| next.is(b'='));
        let Some(value) = options.get(at + 1 + usize::from(has_equals)) else { continue };
        match token.word {
            Word::Select | Word::Partition => break,
            Word::Engine | Word::Type | Word::TableType if replicates_nothing(value) => {
                converted.push(Edit { start: value.start, end: value.end, with: "InnoDB".to_owned() });
            }
            Word::RowFormat if matches!(value.word, Word::Fixed | Word::Page) => {
                dropped.push(Edit { start: value.start, end: value.end, with: "DEFAULT".to_owned() });
            }
            Word::Transactional | Word::PageChecksum => {
                dropped.push(Edit { start: value.start, end: value.end, with: "DEFAULT".to_owned() });
            }
            _ => {}
        }
    }
    let is_converted = !converted.is_empty();
    if is_converted {
        edits.append(&mut converted);
        edits.append(&mut dropped);
    }
    is_converted
}

fn replicates_nothing(engine: &Token) -> bool {
    use Word::*;
    matches!(engine.word, Myisam | Aria | Maria | Isam | Memory | Heap | Archive | Csv)
}

/// What the list of columns and keys says about keys.
#[derive(Default)]
struct Columns {
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
        (!self.led_by.contains(counted)).then(|| format!("`{}`", counted.replace('`', "``")))
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

/// A column's name without quotes and case, which columns have not.
fn bare(name: &Token, text: &[u8]) -> String {
    let spelled = String::from_utf8_lossy(name.of(text)).to_lowercase();
    match name.sort {
        Sort::Quoted => spelled[1..].trim_end_matches(['`', '"']).replace("``", "`"),
        _ => spelled,
    }
}
