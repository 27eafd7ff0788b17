//! Texts within texts: what `PREPARE s FROM '…'` and `EXECUTE IMMEDIATE '…'` will execute, when it stands there as
//! one string. What comes from a variable or is put together is not seen. Called by `rewrite.rs`.

use crate::lex::{Sort, Token};
use crate::read::read;
use crate::rewrite::{Edit, adapted};
use crate::word::Word;
use crate::{Dialect, Marks};

/// `statement`: the tokens of one statement.
pub fn hidden_edits(
    statement: &[Token],
    text: &[u8],
    dialect: Dialect,
    lock_prefix: &str,
    edits: &mut Vec<Edit>,
) {
    let (string, rest) = match statement {
        [prepare, name, from, string, rest @ ..]
            if prepare.word == Word::Prepare && name.is_name() && from.word == Word::From =>
        {
            (string, rest)
        }
        [execute, immediate, string, rest @ ..]
            if execute.word == Word::Execute && immediate.word == Word::Immediate =>
        {
            (string, rest)
        }
        _ => return,
    };
    // 'a' 'b' is one string, and 'a' || 'b' an expression.
    if string.sort != Sort::Text || rest.first().is_some_and(|next| next.word != Word::Using) {
        return;
    }
    let Some(inner) = content(string.of(text), dialect) else { return };
    let mut reading = read(&inner, dialect);
    // MariaDB prepares no PREPARE.
    reading.marks.remove(Marks::HIDDEN_TEXT);
    let Some(other) = adapted(&inner, &reading, dialect, lock_prefix) else { return };
    if let Ok(with) = String::from_utf8(literal(&other, dialect)) {
        edits.push(Edit { start: string.start, end: string.end, with });
    }
}

/// Of a string as it is written. None: one with a prefix, such as N'…' or x'…'.
fn content(written: &[u8], dialect: Dialect) -> Option<Vec<u8>> {
    let [quote @ (b'\'' | b'"'), inner @ .., _] = written else { return None };
    let mut content = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if !dialect.no_backslash_escapes => match bytes.next()? {
                b'0' => content.push(0),
                b'b' => content.push(8),
                b'n' => content.push(b'\n'),
                b'r' => content.push(b'\r'),
                b't' => content.push(b'\t'),
                b'Z' => content.push(26),
                // For LIKE: they keep their backslash.
                wild @ (b'%' | b'_') => content.extend([b'\\', wild]),
                other => content.push(other),
            },
            _ if byte == *quote => content.push(bytes.next()?),
            _ => content.push(byte),
        }
    }
    Some(content)
}

fn literal(content: &[u8], dialect: Dialect) -> Vec<u8> {
    let mut written = Vec::with_capacity(content.len() + 2);
    written.push(b'\'');
    for byte in content {
        match byte {
            b'\'' => written.push(b'\''),
            b'\\' if !dialect.no_backslash_escapes => written.push(b'\\'),
            _ => {}
        }
        written.push(*byte);
    }
    written.push(b'\'');
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_read_as_mariadb_reads_it_and_written_so_that_it_reads_the_same() {
        for (no_backslash_escapes, written, expected) in [
            (false, r"'it''s \'\n\%\\'", "it's '\n\\%\\"),
            (false, r#""a""b'c""#, "a\"b'c"),
            (true, r"'it''s \n'", "it's \\n"),
        ] {
            let dialect = Dialect { no_backslash_escapes, ..Dialect::default() };
            let read = content(written.as_bytes(), dialect).unwrap();
            assert_eq!(String::from_utf8(read.clone()).unwrap(), expected, "{written}");
            assert_eq!(content(&literal(&read, dialect), dialect).unwrap(), read, "{written}");
        }
        assert_eq!(content(b"N'a'", Dialect::default()), None);
    }
}
