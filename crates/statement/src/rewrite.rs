//! The few texts that must be others, so that a site works on a pool of Galera members that sites share.
//! Edits lie between tokens of the original; everything else stays byte for byte. Called by `sql` when the
//! marks say that there may be something to do.

use crate::hidden::hidden_edits;
use crate::item::calls;
use crate::lex::{Lexer, Token};
use crate::table::table_edits;
use crate::word::Word;
use crate::{Dialect, Marks, Reading};

/// A longer text is no DDL that people write, and its tokens would take a multiple of its memory.
const TEXT_MAX: usize = 4 << 20;

/// Replaces these bytes of the text.
#[derive(Debug)]
pub struct Edit {
    pub start: usize,
    pub end: usize,
    pub with: String,
}

impl Edit {
    pub fn insert(at: usize, with: String) -> Edit {
        Edit { start: at, end: at, with }
    }
}

/// What must be another text so that it works on a pool of Galera members shared by sites. None: as it is.
///
/// - `CREATE TABLE` and `ALTER TABLE`: see `table.rs`.
/// - The name of a user-level lock becomes `CONCAT('prefix',MD5(name))` in GET_LOCK, RELEASE_LOCK, IS_FREE_LOCK
///   and IS_USED_LOCK. A hash, because a name may have 192 bytes and the prefix needs some of them. It tells
///   apart what 10.11 tells apart: MariaDB compares lock names byte by byte, also A and a, whatever its
///   documentation says. The name is evaluated once, also when it is a `?`. Lost: an empty name is NULL and a
///   longer one or a number an error; here they are names.
///   `lock_prefix`: at most 32 characters, no quote and no backslash.
/// - The texts of PREPARE and EXECUTE IMMEDIATE likewise, where they can be seen: see `hidden.rs`.
/// - Select items with such a call keep their column names: see `item.rs`.
///
/// Texts above 4 MiB stay as they are, and so do unfinished ones.
pub fn adapted(text: &[u8], reading: &Reading, dialect: Dialect, lock_prefix: &str) -> Option<Vec<u8>> {
    if !reading.marks.intersects(Marks::TABLE_DDL | Marks::LOCK_FUNCTION | Marks::HIDDEN_TEXT) {
        return None;
    }
    assert!(lock_prefix.len() <= 32 && !lock_prefix.contains(['\'', '\\']), "{lock_prefix:?} is no prefix");
    let tokens = tokens_of(text, dialect)?;
    let mut edits = Vec::new();
    for statement in tokens.split(|token| token.is(b';')) {
        if reading.marks.contains(Marks::TABLE_DDL) {
            table_edits(statement, text, &mut edits);
        }
        if reading.marks.contains(Marks::LOCK_FUNCTION) {
            let found = calls(statement, text, names_a_lock);
            for call in found.calls {
                let before = format!("CONCAT('{lock_prefix}',MD5(");
                edits.push(Edit::insert(call.arguments_start, before));
                edits.push(Edit::insert(call.first_argument_end, "))".to_owned()));
            }
            edits.extend(found.aliases);
        }
        if reading.marks.contains(Marks::HIDDEN_TEXT) {
            hidden_edits(statement, text, dialect, lock_prefix, &mut edits);
        }
    }
    apply(text, edits)
}

fn names_a_lock(word: Word) -> bool {
    matches!(word, Word::GetLock | Word::ReleaseLock | Word::IsFreeLock | Word::IsUsedLock)
}

/// `SELECT ROW_COUNT()` etc. after our own COMMIT: each call becomes a literal of the same type, with the same
/// column name. None: there is no such call.
pub fn with_row_count(text: &[u8], dialect: Dialect, rows: i64) -> Option<Vec<u8>> {
    let tokens = tokens_of(text, dialect)?;
    let mut edits = Vec::new();
    for statement in tokens.split(|token| token.is(b';')) {
        let found = calls(statement, text, |word| word == Word::RowCount);
        // MariaDB refuses it as it is, and what stands there may be anything.
        if found.calls.iter().any(|call| call.has_arguments) {
            return None;
        }
        for call in found.calls {
            // As wide as ROW_COUNT() is: MariaDB takes the type, here BIGINT(21), from the string's length.
            let with = format!("CAST('{rows:>21}' AS SIGNED)");
            edits.push(Edit { start: call.start, end: call.end, with });
        }
        edits.extend(found.aliases);
    }
    apply(text, edits)
}

/// What stands behind an edit must be read as before, so nothing may be open at the end.
pub fn tokens_of(text: &[u8], dialect: Dialect) -> Option<Vec<Token>> {
    let mut lexer = Lexer::new(text, dialect);
    let tokens = (text.len() <= TEXT_MAX).then(|| lexer.by_ref().collect())?;
    (!lexer.unfinished).then_some(tokens)
}

fn apply(text: &[u8], mut edits: Vec<Edit>) -> Option<Vec<u8>> {
    if edits.is_empty() {
        return None;
    }
    edits.sort_by_key(|edit| edit.start);
    let (mut out, mut at) = (Vec::with_capacity(text.len() + 64 * edits.len()), 0);
    for edit in edits {
        // As in ENGINE=MyISAM TRANSACTIONAL ADD PRIMARY KEY: only what MariaDB refuses can make two meet.
        if edit.start < at {
            return None;
        }
        out.extend_from_slice(&text[at..edit.start]);
        out.extend_from_slice(edit.with.as_bytes());
        at = edit.end;
    }
    out.extend_from_slice(&text[at..]);
    Some(out)
}
