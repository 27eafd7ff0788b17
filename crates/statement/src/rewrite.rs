//! The few texts that must be others, so that a site works on a pool of Galera members that sites share.
//! Edits lie between tokens of the original; everything else stays byte for byte. Called by `sql` when the
//! marks say that there may be something to do.

use crate::lex::{Lexer, Sort, Token};
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
/// - The name of a user-level lock becomes `CONCAT('prefix',MD5(LOWER(name)))` in GET_LOCK, RELEASE_LOCK,
///   IS_FREE_LOCK and IS_USED_LOCK. A hash, because a name may have 64 characters and the prefix needs some of
///   them; of the lower case, because MariaDB's lock names have no case. The name is evaluated once, also when
///   it is a `?`. Lost: the error for an empty name and for one of more than 64 characters.
///   `lock_prefix`: at most 32 characters, no quote and no backslash.
/// - When such a call is a whole select item without an alias, it gets one: its column name stays.
///
/// Texts above 4 MiB stay as they are.
pub fn adapted(text: &[u8], reading: &Reading, dialect: Dialect, lock_prefix: &str) -> Option<Vec<u8>> {
    if !reading.marks.intersects(Marks::TABLE_DDL | Marks::LOCK_FUNCTION) || text.len() > TEXT_MAX {
        return None;
    }
    assert!(lock_prefix.len() <= 32 && !lock_prefix.contains(['\'', '\\']), "{lock_prefix:?} is no prefix");
    let tokens: Vec<Token> = Lexer::new(text, dialect).collect();
    let mut edits = Vec::new();
    if reading.marks.contains(Marks::TABLE_DDL) {
        for statement in tokens.split(|token| token.is(b';')) {
            table_edits(statement, text, &mut edits);
        }
    }
    if reading.marks.contains(Marks::LOCK_FUNCTION) {
        for call in calls(&tokens, names_a_lock) {
            edits.push(Edit::insert(call.arguments_start, format!("CONCAT('{lock_prefix}',MD5(LOWER(")));
            edits.push(Edit::insert(call.first_argument_end, ")))".to_owned()));
            edits.extend(call.alias(text));
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
    if text.len() > TEXT_MAX {
        return None;
    }
    let tokens: Vec<Token> = Lexer::new(text, dialect).collect();
    let mut edits = Vec::new();
    for call in calls(&tokens, |word| word == Word::RowCount) {
        let with = format!("CAST({rows} AS SIGNED)");
        edits.push(Edit { start: call.start, end: call.end, with });
        edits.extend(call.alias(text));
    }
    apply(text, edits)
}

fn apply(text: &[u8], mut edits: Vec<Edit>) -> Option<Vec<u8>> {
    if edits.is_empty() {
        return None;
    }
    edits.sort_by_key(|edit| edit.start);
    let (mut out, mut at) = (Vec::with_capacity(text.len() + 64 * edits.len()), 0);
    for edit in edits {
        assert!(at <= edit.start, "edits overlap at {at}");
        out.extend_from_slice(&text[at..edit.start]);
        out.extend_from_slice(edit.with.as_bytes());
        at = edit.end;
    }
    out.extend_from_slice(&text[at..]);
    Some(out)
}

struct Call {
    start: usize,
    end: usize,
    arguments_start: usize,
    first_argument_end: usize,
    /// A whole item of a select list, without an alias.
    is_bare_item: bool,
}

impl Call {
    /// The column name that the call had. One that is too long for an alias (256 characters) is lost.
    fn alias(&self, text: &[u8]) -> Option<Edit> {
        let name = std::str::from_utf8(&text[self.start..self.end]).ok()?;
        let fits = self.is_bare_item && name.chars().count() <= 200;
        fits.then(|| Edit::insert(self.end, format!(" AS `{}`", name.replace('`', "``"))))
    }
}

/// The calls of the functions that `wanted` names, in the text's order.
fn calls(tokens: &[Token], wanted: fn(Word) -> bool) -> Vec<Call> {
    let mut found: Vec<Call> = Vec::new();
    // One for each open parenthesis: whether a select list is being read in it, and the call that it is of.
    let mut frames: Vec<(bool, Option<usize>)> = vec![(false, None)];
    for (at, token) in tokens.iter().enumerate() {
        let depth = frames.len();
        let Some((in_list, call)) = frames.last_mut() else { break };
        match (token.sort, token.word) {
            (Sort::Sign(b'('), _) => {
                let name = at.checked_sub(1).map(|before| tokens[before]);
                let name = name.filter(|name| name.sort == Sort::Word && wanted(name.word));
                let call = name.map(|name| {
                    let begins = at < 2 || begins_item(&tokens[at - 2]);
                    found.push(Call {
                        start: name.start,
                        end: 0,
                        arguments_start: token.end,
                        first_argument_end: 0,
                        is_bare_item: *in_list && begins,
                    });
                    found.len() - 1
                });
                frames.push((false, call));
            }
            (Sort::Sign(sign @ (b',' | b')')), _) => {
                if let Some(call) = call {
                    let call = &mut found[*call];
                    if call.first_argument_end == 0 {
                        call.first_argument_end = token.start;
                    }
                    if sign == b')' {
                        call.end = token.end;
                        call.is_bare_item &= tokens.get(at + 1).is_none_or(ends_item);
                    }
                }
                if sign == b')' && depth > 1 {
                    frames.pop();
                }
            }
            (Sort::Sign(b';'), _) => frames = vec![(false, None)],
            (_, Word::Select) => *in_list = true,
            (Sort::Word, word) if ends_list(word) => *in_list = false,
            _ => {}
        }
    }
    // Not closed: MariaDB will refuse it as it is.
    found.retain(|call| call.end != 0);
    found
}

fn begins_item(before: &Token) -> bool {
    use Word::*;
    before.is(b',')
        || matches!(
            before.word,
            Select
                | All
                | Distinct
                | Distinctrow
                | HighPriority
                | StraightJoin
                | SqlSmallResult
                | SqlBigResult
                | SqlCalcFoundRows
        )
}

fn ends_item(after: &Token) -> bool {
    matches!(after.sort, Sort::Sign(b',' | b')' | b';'))
        || (after.sort == Sort::Word && ends_list(after.word))
}

fn ends_list(word: Word) -> bool {
    use Word::*;
    matches!(
        word,
        From | Into
            | Where
            | Group
            | Having
            | Order
            | Limit
            | Procedure
            | For
            | Lock
            | Union
            | Except
            | Intersect
    )
}
