//! Which columns decide the partition of a row: every unique key of a partitioned table must hold them all.
//! Called by `table.rs`.

use crate::lex::{Sort, Token};
use crate::table::{bare, closing};
use crate::word::Word;

/// Those of PARTITION BY and SUBPARTITION BY, each once. None: there are none in the text, as with SYSTEM_TIME, or
/// one may be NULL, and then a key that holds it would not tell rows apart. `options`: behind the list of columns.
///
/// A function with the name of a column is taken for the column, which does no harm: the key gets longer.
pub fn partitioning_columns(
    options: &[Token],
    text: &[u8],
    columns: &[String],
    not_null: &[String],
) -> Option<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let is_by = |two: &[Token]| {
        matches!(two[0].word, Word::Partition | Word::Subpartition)
            && two.iter().all(|token| token.sort == Sort::Word)
            && two[1].word == Word::By
    };
    for (at, _) in options.windows(2).enumerate().filter(|(_, two)| is_by(two)) {
        let open = at + options[at..].iter().position(|token| token.is(b'('))?;
        let close = open + closing(&options[open..])?;
        for token in options[open..close].iter().filter(|token| token.is_name()) {
            let name = bare(token, text);
            if columns.contains(&name) && !found.contains(&name) {
                found.push(name);
            }
        }
    }
    let are_known = !found.is_empty() && found.iter().all(|name| not_null.contains(name));
    are_known.then_some(found)
}
