//! Calls of chosen functions, and the select items that they are in: an item without an alias is named by its
//! text, so when its text changes, it gets the old one as alias. Called by `rewrite.rs`.
//!
//! MariaDB names an item by its bytes from the first token to the last, comments too, cut after 255 bytes; it
//! cuts an alias in the same way. In doubt whether the last word is an alias, it is taken for one: then the
//! column's name changes, but the text stays SQL. Lost as well: the name of an item with bytes that are not
//! UTF-8, of one that a `/*!` or its `*/` lies within, of a column of VALUES, which cannot have an alias.

use crate::lex::{Sort, Token};
use crate::rewrite::Edit;
use crate::word::Word;

/// A longer name would be an error in CREATE, where MariaDB makes up another (VIEW) or refuses it as well.
const CREATED_NAME_MAX: usize = 64;

pub struct Call {
    pub start: usize,
    pub end: usize,
    pub arguments_start: usize,
    pub first_argument_end: usize,
    pub has_arguments: bool,
}

#[derive(Default)]
pub struct Found {
    /// In the text's order.
    pub calls: Vec<Call>,
    pub aliases: Vec<Edit>,
}

/// One for each open parenthesis.
#[derive(Default)]
struct Frame {
    /// In a select list: where the item begins, and whether there is a call in it.
    item: Option<(usize, bool)>,
    /// The call that the parenthesis is of.
    call: Option<usize>,
}

/// The calls of the functions that `wanted` names. `statement`: the tokens between two `;`.
pub fn calls(statement: &[Token], text: &[u8], wanted: fn(Word) -> bool) -> Found {
    let mut found = Found::default();
    let mut frames = vec![Frame::default()];
    for (at, token) in statement.iter().enumerate() {
        let depth = frames.len();
        let Some(frame) = frames.last_mut() else { break };
        match (token.sort, token.word) {
            (Sort::Sign(b'('), _) => {
                let name = at.checked_sub(1).map(|before| statement[before]);
                let name = name.filter(|name| name.sort == Sort::Word && wanted(name.word));
                let call = name.map(|name| found.begin(&name, token));
                if call.is_some() {
                    frames.iter_mut().filter_map(|frame| frame.item.as_mut()).for_each(|item| item.1 = true);
                }
                frames.push(Frame { item: None, call });
            }
            (Sort::Sign(sign @ (b',' | b')')), _) => {
                found.end_item(frame, statement, at, text);
                if sign == b',' {
                    frame.item = frame.item.map(|_| (at + 1, false));
                }
                if let Some(call) = frame.call {
                    found.go_on(call, token, &statement[at - 1]);
                }
                if sign == b')' && depth > 1 {
                    frames.pop();
                }
            }
            (Sort::Word, Word::Select | Word::Returning) => {
                found.end_item(frame, statement, at, text);
                frame.item = Some((at + 1, false));
            }
            (Sort::Word, word) if is_select_option(word) => {
                frame.item = frame.item.map(|(start, called)| (start + usize::from(start == at), called));
            }
            (Sort::Word, word) if ends_list(word) => {
                found.end_item(frame, statement, at, text);
                frame.item = None;
            }
            _ => {}
        }
    }
    if let [frame] = &mut frames[..] {
        found.end_item(frame, statement, statement.len(), text);
    }
    // Not closed: MariaDB will refuse it as it is.
    found.calls.retain(|call| call.end != 0);
    found
}

impl Found {
    fn begin(&mut self, name: &Token, open: &Token) -> usize {
        let (start, arguments_start) = (name.start, open.end);
        self.calls.push(Call { start, end: 0, arguments_start, first_argument_end: 0, has_arguments: false });
        self.calls.len() - 1
    }

    /// At a comma or the closing parenthesis of the call.
    fn go_on(&mut self, call: usize, sign: &Token, before: &Token) {
        let call = &mut self.calls[call];
        if call.first_argument_end == 0 {
            call.first_argument_end = sign.start;
            call.has_arguments = !before.is(b'(');
        }
        if sign.is(b')') {
            call.end = sign.end;
        }
    }

    /// `end`: the index of the token behind the item.
    fn end_item(&mut self, frame: &Frame, statement: &[Token], end: usize, text: &[u8]) {
        let Some((start, true)) = frame.item else { return };
        let [first, .., last] = &statement[start..end] else { return };
        let creates = matches!(statement[0].word, Word::Create | Word::Alter);
        let Ok(name) = std::str::from_utf8(&text[first.start..last.end]) else { return };
        if has_alias(&statement[start..end]) || (creates && name.chars().count() > CREATED_NAME_MAX) {
            return;
        }
        // As MariaDB does: its names have no characters beyond the basic plane.
        let name = name.replace(|letter| letter > '\u{ffff}', "?").replace('`', "``");
        self.aliases.push(Edit::insert(last.end, format!(" AS `{name}`")));
    }
}

fn is_select_option(word: Word) -> bool {
    use Word::*;
    matches!(
        word,
        All | Distinct
            | Distinctrow
            | HighPriority
            | StraightJoin
            | SqlBigResult
            | SqlBufferResult
            | SqlCache
            | SqlCalcFoundRows
            | SqlNoCache
            | SqlSmallResult
    )
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
            | Offset
            | Fetch
            | Procedure
            | For
            | Lock
            | On
            | Union
            | Except
            | Intersect
    )
}

/// `… AS x`, or `… x` and `… 'x'` behind what an expression can end with.
fn has_alias(item: &[Token]) -> bool {
    let mut depth = 0;
    let (mut cases, mut intervals) = (0, 0);
    for token in item {
        depth += i32::from(token.is(b'(')) - i32::from(token.is(b')'));
        if depth != 0 || token.sort != Sort::Word {
            continue;
        }
        match token.word {
            Word::As => return true,
            Word::Case => cases += 1,
            Word::End => cases -= 1,
            Word::Interval => intervals += 1,
            word if is_unit(word) => intervals -= 1,
            _ => {}
        }
    }
    let [.., before, last] = item else { return false };
    match last.sort {
        Sort::Word if last.word == Word::End && cases >= 0 => false,
        Sort::Word if is_unit(last.word) && intervals >= 0 => false,
        Sort::Word | Sort::Quoted => ends_operand(before),
        // 'a' 'b' is one string.
        Sort::Text => ends_operand(before) && before.sort != Sort::Text,
        _ => false,
    }
}

fn ends_operand(token: &Token) -> bool {
    use Word::*;
    match token.sort {
        Sort::Sign(sign) => sign == b')',
        Sort::Assign => false,
        Sort::Word => !matches!(
            token.word,
            And | Or
                | Xor
                | Not
                | Is
                | Like
                | Rlike
                | Regexp
                | Between
                | In
                | Div
                | Mod
                | Collate
                | Escape
                | Binary
                | Over
                | Interval
                | When
                | Then
                | Else
                | Case
        ),
        _ => true,
    }
}

fn is_unit(word: Word) -> bool {
    use Word::*;
    matches!(
        word,
        Day | DayHour
            | DayMicrosecond
            | DayMinute
            | DaySecond
            | Hour
            | HourMicrosecond
            | HourMinute
            | HourSecond
            | Microsecond
            | Minute
            | MinuteMicrosecond
            | MinuteSecond
            | Month
            | Quarter
            | Second
            | SecondMicrosecond
            | Week
            | Year
            | YearMonth
    )
}
