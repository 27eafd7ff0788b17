//! The text without what changes from one execution to the next, streamed either into a hash or into a text
//! for people. Both come from one `Normaliser`, so the text is what the digest stands for.
//!
//! A literal or parameter becomes `?`, a list behind IN that holds only such becomes `(...)`, of the rows behind
//! VALUES those go that look like the first. Blanks, comments and the last `;` go. The case of MariaDB's words
//! is folded; that of names is not, since tables `A` and `a` are two.

use crate::Dialect;
use crate::lex::{Lexer, Sort, Token};
use crate::word::{HASH_START, Word, hash_step};

/// Stable over restarts and servers: it names a kind of query in records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Digest(pub u64);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// For people: the normalised text that the digest stands for, at most `max` bytes.
pub fn normalised(text: &[u8], dialect: Dialect, max: usize) -> String {
    let mut normaliser = Normaliser::new(Writing { text: String::new(), max });
    let mut waiting = None;
    for token in Lexer::new(text, dialect) {
        // As in `read`, but between two statements it is shown.
        if token.is(b';') {
            waiting = Some(token);
            continue;
        }
        if let Some(end) = waiting.take()
            && !normaliser.sink.text.is_empty()
        {
            normaliser.sink.put(&Piece::Sign(b';'), &end, text);
        }
        normaliser.take(&token, text);
    }
    let mut shown = normaliser.into_sink().text;
    let whole = (0..=max.min(shown.len())).rev().find(|at| shown.is_char_boundary(*at));
    shown.truncate(whole.unwrap_or(0));
    shown
}

pub enum Piece {
    Literal,
    List,
    Name,
    Keyword,
    Sign(u8),
}

pub trait Sink {
    /// A place to go back to.
    type Mark: Copy;
    fn mark(&self) -> Self::Mark;
    fn rewind(&mut self, mark: Self::Mark);
    fn put(&mut self, piece: &Piece, token: &Token, text: &[u8]);
}

pub struct Hashing(u64);

impl Default for Hashing {
    fn default() -> Self {
        Hashing(HASH_START)
    }
}

impl Hashing {
    pub fn digest(&self) -> Digest {
        // The last steps of splitmix64: each bit of the state reaches each bit of the digest.
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Digest(mixed ^ (mixed >> 31))
    }
}

impl Sink for Hashing {
    type Mark = u64;

    fn mark(&self) -> u64 {
        self.0
    }

    fn rewind(&mut self, mark: u64) {
        self.0 = mark;
    }

    #[inline]
    fn put(&mut self, piece: &Piece, token: &Token, text: &[u8]) {
        self.0 = mix(self.0, hash_of(piece, token, text));
    }
}

#[inline]
fn mix(state: u64, piece: u64) -> u64 {
    (state.rotate_left(23) ^ piece).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[inline]
fn hash_of(piece: &Piece, token: &Token, text: &[u8]) -> u64 {
    match piece {
        Piece::Literal => 1,
        Piece::List => 2,
        Piece::Sign(sign) => 0x100 | u64::from(*sign),
        // Not the number of the word, which changes with the table of words.
        Piece::Keyword => !token.folded,
        Piece::Name if token.sort == Sort::Word => token.hash,
        Piece::Name => bare(token, text).iter().fold(HASH_START, |hash, byte| hash_step(hash, *byte)),
    }
}

/// A name without its quotes, so that `t` and t are one; a variable stays as it is.
fn bare<'a>(token: &Token, text: &'a [u8]) -> &'a [u8] {
    let spelled = token.of(text);
    match (token.sort, spelled) {
        (Sort::Quoted, [_, inner @ .., last]) if *last == spelled[0] => inner,
        (Sort::Quoted, [_, inner @ ..]) => inner,
        _ => spelled,
    }
}

struct Writing {
    text: String,
    max: usize,
}

impl Sink for Writing {
    type Mark = usize;

    fn mark(&self) -> usize {
        self.text.len()
    }

    fn rewind(&mut self, mark: usize) {
        self.text.truncate(mark);
    }

    fn put(&mut self, piece: &Piece, token: &Token, text: &[u8]) {
        if self.text.len() > self.max {
            return;
        }
        let closes = matches!(piece, Piece::Sign(b',' | b')' | b'.' | b';'));
        // Between a name and its parenthesis no blank shows that it may be a function.
        let opens =
            matches!(piece, Piece::Sign(b'(')) && self.text.ends_with(|c: char| c.is_ascii_lowercase());
        if !self.text.is_empty() && !closes && !opens && !self.text.ends_with(['(', '.']) {
            self.text.push(' ');
        }
        match piece {
            Piece::Literal => self.text.push('?'),
            Piece::List => self.text.push_str("..."),
            Piece::Sign(sign) if sign.is_ascii_graphic() => self.text.push(char::from(*sign)),
            Piece::Sign(_) => self.text.push(char::REPLACEMENT_CHARACTER),
            Piece::Keyword => self.text.push_str(&shown(token.of(text), self.max).to_ascii_uppercase()),
            Piece::Name if token.sort == Sort::Quoted && needs_quotes(bare(token, text)) => {
                self.text.push('`');
                self.text.push_str(&shown(bare(token, text), self.max));
                self.text.push('`');
            }
            Piece::Name => self.text.push_str(&shown(bare(token, text), self.max)),
        }
    }
}

fn shown(bytes: &[u8], max: usize) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(max)])
}

fn needs_quotes(name: &[u8]) -> bool {
    !name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80)
        || crate::word::word_of(name) != Word::Other
}

pub struct Normaliser<S: Sink> {
    pub sink: S,
    last: Last,
    /// Before the `+` or `-` that came last, when it can be a literal's sign.
    before_sign: Option<(S::Mark, u64)>,
    list: Option<List<S::Mark>>,
    rows: Rows<S::Mark>,
    row_hash: u64,
}

/// What the last token was, as far as the next one's meaning hangs on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// A name, a literal, a closing parenthesis.
    Operand,
    Keyword(Word),
    Sign(u8),
}

struct List<M> {
    /// Behind the opening parenthesis.
    mark: M,
    row_hash: u64,
    depth: u32,
}

enum Rows<M> {
    None,
    First { depth: u32 },
    After { first: u64, mark: M },
    Comma { first: u64, mark: M },
    In { first: u64, mark: M, depth: u32 },
}

impl<S: Sink> Normaliser<S> {
    pub fn new(sink: S) -> Self {
        let last = Last::Sign(0);
        Normaliser { sink, last, before_sign: None, list: None, rows: Rows::None, row_hash: 0 }
    }

    pub fn into_sink(self) -> S {
        self.sink
    }

    #[inline]
    pub fn take(&mut self, token: &Token, text: &[u8]) {
        let piece = self.piece(token);
        if let Piece::Literal = piece
            && let Some((mark, row_hash)) = self.before_sign.take()
        {
            self.sink.rewind(mark);
            self.row_hash = row_hash;
        }
        self.before_sign = match piece {
            Piece::Sign(b'+' | b'-') if self.last != Last::Operand => Some((self.sink.mark(), self.row_hash)),
            _ => None,
        };
        if let Piece::Sign(b')') = piece {
            self.close_list(token, text);
        }
        self.put(&piece, token, text);
        if !matches!(self.rows, Rows::None) || matches!(self.last, Last::Keyword(Word::Values | Word::Value))
        {
            self.row(&piece);
        }
        match piece {
            Piece::Sign(b'(') => match &mut self.list {
                Some(list) => list.depth += 1,
                None if self.last == Last::Keyword(Word::In) => {
                    self.list = Some(List { mark: self.sink.mark(), row_hash: self.row_hash, depth: 1 });
                }
                None => {}
            },
            Piece::Literal | Piece::Sign(b',' | b')' | b'+' | b'-') => {}
            _ => self.list = None,
        }
        self.last = match piece {
            Piece::Keyword => Last::Keyword(token.word),
            Piece::Sign(sign) if sign != b')' => Last::Sign(sign),
            _ => Last::Operand,
        };
    }

    #[inline]
    fn piece(&self, token: &Token) -> Piece {
        match token.sort {
            Sort::Text | Sort::Number | Sort::Parameter => Piece::Literal,
            Sort::Word => match token.word {
                Word::Other => Piece::Name,
                // NULL and the truth values are literals but where they belong to a type or to IS.
                Word::Null | Word::True | Word::False
                    if !matches!(self.last, Last::Keyword(Word::Is | Word::Not | Word::Default)) =>
                {
                    Piece::Literal
                }
                _ => Piece::Keyword,
            },
            Sort::Quoted | Sort::UserVariable | Sort::Host | Sort::SystemVariable => Piece::Name,
            Sort::Assign => Piece::Sign(b':'),
            Sort::Sign(sign) => Piece::Sign(sign),
        }
    }

    #[inline]
    fn put(&mut self, piece: &Piece, token: &Token, text: &[u8]) {
        self.sink.put(piece, token, text);
        if !matches!(self.rows, Rows::None) {
            self.row_hash = mix(self.row_hash, hash_of(piece, token, text));
        }
    }

    /// At a `)`, not yet put.
    fn close_list(&mut self, token: &Token, text: &[u8]) {
        let Some(list) = &mut self.list else { return };
        list.depth -= 1;
        if list.depth == 0 {
            self.sink.rewind(list.mark);
            self.row_hash = list.row_hash;
            self.list = None;
            self.put(&Piece::List, token, text);
        }
    }

    /// The piece is put; of a row that is as the first, nothing stays.
    fn row(&mut self, piece: &Piece) {
        let opens = matches!(piece, Piece::Sign(b'('));
        let closes = matches!(piece, Piece::Sign(b')'));
        match &mut self.rows {
            Rows::None => {
                if opens {
                    self.rows = Rows::First { depth: 1 };
                    self.row_hash = 0;
                }
            }
            Rows::First { depth } | Rows::In { depth, .. } if opens => *depth += 1,
            Rows::First { depth } | Rows::In { depth, .. } if closes && *depth > 1 => *depth -= 1,
            Rows::First { .. } if closes => {
                self.rows = Rows::After { first: self.row_hash, mark: self.sink.mark() };
            }
            Rows::First { .. } => {}
            Rows::After { first, mark } => {
                self.rows = match piece {
                    Piece::Sign(b',') => Rows::Comma { first: *first, mark: *mark },
                    _ => Rows::None,
                };
            }
            Rows::Comma { first, mark } => {
                self.rows =
                    if opens { Rows::In { first: *first, mark: *mark, depth: 1 } } else { Rows::None };
                self.row_hash = 0;
            }
            Rows::In { first, mark, .. } if closes => {
                let (first, mut mark) = (*first, *mark);
                if self.row_hash == first {
                    self.sink.rewind(mark);
                } else {
                    mark = self.sink.mark();
                }
                self.rows = Rows::After { first, mark };
            }
            Rows::In { .. } => {}
        }
    }
}
