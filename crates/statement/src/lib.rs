//! What Kopek must know of one SQL text, from its words, never from a full parse.
//!
//! Pure: no sockets, no clocks. `sql` asks for every statement that a client sends: `read` is on the hot path
//! and does not allocate. A text that MariaDB would refuse gets some kind too; the server says what is wrong.
//!
//! Where the words leave a doubt, a mark is rather set than not: the session tracker then carries less and
//! pins more, which is slower and never wrong.
//!
//! The text's character set must be ASCII-compatible in every byte below 0x80, as utf8, latin1 and ucs-free
//! PHP sites are. In gbk, big5, sjis and cp932 a backslash can be half of a character: `sql` must not ask for
//! sessions in these.

mod changed;
mod digest;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod hidden;
mod item;
mod lex;
mod marks;
mod partition;
mod read;
mod rebuild;
mod rewrite;
mod table;
mod word;

pub use changed::changed_table;
pub use digest::{Digest, normalised};
pub use marks::Marks;
pub use read::{Kind, Reading, read};
pub use rebuild::{TableName, rebuilt_tables};
pub use rewrite::{adapted, with_row_count};

/// How the session's sql_mode changes the lexer.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// ANSI_QUOTES: `"…"` is an identifier.
    pub ansi_quotes: bool,
    /// NO_BACKSLASH_ESCAPES: a backslash in a string is a backslash.
    pub no_backslash_escapes: bool,
}
