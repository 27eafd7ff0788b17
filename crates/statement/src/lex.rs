//! Cuts a text into the tokens that MariaDB's lexer would see. Never fails and never allocates: what is not
//! finished ends with the text. Called by everything else here.

use crate::Dialect;
use crate::word::{HASH_START, Word, hash_step, lookup, word_of};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sort {
    /// An unquoted identifier or keyword.
    Word,
    /// `…` or, with ANSI_QUOTES, "…": never a keyword.
    Quoted,
    /// A string, also N'…', _utf8'…', x'…' and b'…'.
    Text,
    Number,
    /// The ? of a prepared statement.
    Parameter,
    /// @x in every spelling.
    UserVariable,
    /// The @host of an account.
    Host,
    /// @@x with its scope; the word is the variable's name.
    SystemVariable,
    /// :=
    Assign,
    /// Any other byte.
    Sign(u8),
}

#[derive(Clone, Copy, Debug)]
pub struct Token {
    pub sort: Sort,
    pub word: Word,
    pub start: usize,
    pub end: usize,
    /// Of a word as it is written, and in lower case.
    pub hash: u64,
    pub folded: u64,
}

impl Token {
    pub fn is(&self, sign: u8) -> bool {
        self.sort == Sort::Sign(sign)
    }

    pub fn is_name(&self) -> bool {
        matches!(self.sort, Sort::Word | Sort::Quoted)
    }

    pub fn of<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.start..self.end]
    }
}

/// The newest server whose /*!…*/ we read as it does: MariaDB 10.11, the pool's.
const SERVER_VERSION: u32 = 10_11_99;
/// MariaDB leaves these numbers to MySQL 5.7 and later (sql_lex.cc), but for /*M!…*/.
const MYSQL_ONLY: std::ops::RangeInclusive<u32> = 5_07_00..=9_99_99;

const NAME: u8 = 1;
const SPACE: u8 = 2;
const DIGIT: u8 = 4;

static CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b'0'..=b'9' => NAME | DIGIT,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' | 0x80.. => NAME,
            b' ' | b'\t'..=b'\r' => SPACE,
            _ => 0,
        };
        byte += 1;
    }
    class
};

fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

#[derive(Clone)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    dialect: Dialect,
    in_executable_comment: bool,
    /// Whether `@` directly after the last token is an account's.
    may_be_account: bool,
    after_dot: bool,
    pub unfinished: bool,
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        let before = self.at;
        self.skip_blank();
        let glued = before == self.at;
        let start = self.at;
        let Some(&first) = self.text.get(start) else {
            self.unfinished |= self.in_executable_comment;
            return None;
        };
        let after_dot = std::mem::take(&mut self.after_dot);
        let may_be_account = std::mem::take(&mut self.may_be_account) && glued;
        let mut token = Token { sort: Sort::Word, word: Word::Other, start, end: 0, hash: 0, folded: 0 };
        if is(first, NAME) {
            if is(first, DIGIT) && !after_dot && self.number() {
                token.sort = Sort::Number;
            } else {
                self.word(&mut token, after_dot);
            }
        } else {
            token.sort = self.sign(first, may_be_account, &mut token.word);
        }
        token.end = self.at;
        Some(token)
    }
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a [u8], dialect: Dialect) -> Self {
        Lexer {
            text,
            at: 0,
            dialect,
            in_executable_comment: false,
            may_be_account: false,
            after_dot: false,
            unfinished: false,
        }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    #[inline]
    fn skip_blank(&mut self) {
        while let Some(&byte) = self.text.get(self.at) {
            if is(byte, SPACE) {
                self.at += 1;
                continue;
            }
            let skipped = match byte {
                b'#' => {
                    self.skip_line();
                    true
                }
                // MariaDB wants a white space or control character behind the two; the end is one.
                b'-' if self.peek(1) == b'-' && (self.peek(2) <= b' ' || self.peek(2) == 0x7f) => {
                    self.skip_line();
                    true
                }
                b'/' if self.peek(1) == b'*' => {
                    self.open_comment();
                    true
                }
                b'*' if self.in_executable_comment && self.peek(1) == b'/' => {
                    self.in_executable_comment = false;
                    self.at += 2;
                    true
                }
                _ => false,
            };
            if !skipped {
                return;
            }
        }
    }

    fn skip_line(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1);
    }

    /// At `/*`. What MariaDB would execute is left to be read.
    fn open_comment(&mut self) {
        let own = self.peek(2) == b'M' && self.peek(3) == b'!';
        if !own && self.peek(2) != b'!' {
            self.at = self.end_of_comment(self.at + 2);
            return;
        }
        let body = self.at + if own { 4 } else { 3 };
        let digits = self.text[body.min(self.text.len())..].iter().take(6).take_while(|b| b.is_ascii_digit());
        let (count, number) = digits
            .fold((0, 0u32), |(count, number), digit| (count + 1, number * 10 + u32::from(digit - b'0')));
        // Fewer than five are no version; MariaDB then reads them as SQL.
        let (count, number) = if count < 5 { (0, 0) } else { (count, number) };
        if number > SERVER_VERSION || (!own && MYSQL_ONLY.contains(&number)) {
            self.at = self.end_of_skipped_version(body + count);
        } else {
            self.in_executable_comment = true;
            self.at = body + count;
        }
    }

    fn end_of_comment(&mut self, from: usize) -> usize {
        let rest = self.text.get(from..).unwrap_or(&[]);
        match rest.windows(2).position(|two| two == b"*/") {
            Some(at) => from + at + 2,
            None => {
                self.unfinished = true;
                self.text.len()
            }
        }
    }

    /// One level of plain comments may lie within (sql_lex.cc, consume_comment).
    fn end_of_skipped_version(&mut self, mut from: usize) -> usize {
        loop {
            let rest = self.text.get(from..).unwrap_or(&[]);
            match rest.windows(2).position(|two| two == b"*/" || two == b"/*") {
                Some(at) if rest[at] == b'*' => return from + at + 2,
                Some(at) => from = self.end_of_comment(from + at + 2),
                None => {
                    self.unfinished = true;
                    return self.text.len();
                }
            }
        }
    }

    #[inline]
    fn word(&mut self, token: &mut Token, after_dot: bool) {
        let start = self.at;
        let (mut hash, mut folded) = (HASH_START, HASH_START);
        while let Some(&byte) = self.text.get(self.at) {
            if !is(byte, NAME) {
                break;
            }
            hash = hash_step(hash, byte);
            folded = hash_step(folded, byte.to_ascii_lowercase());
            self.at += 1;
        }
        (token.hash, token.folded) = (hash, folded);
        let name = &self.text[start..self.at];
        if self.introduces_string(name) {
            token.sort = Sort::Text;
            self.may_be_account = true;
            return;
        }
        if !after_dot {
            token.word = lookup(name, folded);
        }
        self.may_be_account = token.word == Word::Other;
    }

    /// N'…', x'…', b'…', _utf8'…': then the string belongs to the word and is read too.
    #[inline]
    fn introduces_string(&mut self, name: &[u8]) -> bool {
        match name {
            [b'n' | b'N' | b'x' | b'X' | b'b' | b'B'] if self.peek(0) == b'\'' => {}
            [b'_', _, ..] => {
                let spaces = self.text[self.at..].iter().take_while(|byte| is(**byte, SPACE)).count();
                match self.peek(spaces) {
                    b'\'' => {}
                    b'"' if !self.dialect.ansi_quotes => {}
                    _ => return false,
                }
                self.at += spaces;
            }
            _ => return false,
        }
        self.string(self.peek(0));
        true
    }

    /// At a digit, or at a dot before one. False (and nowhere else) when it is a name that begins with digits.
    fn number(&mut self) -> bool {
        let digits = |from: usize| self.text[from..].iter().take_while(|byte| is(**byte, DIGIT)).count();
        let from = self.at;
        if self.peek(0) == b'0' && matches!(self.peek(1), b'x' | b'b') {
            let body = &self.text[from + 2..];
            let length = body.iter().take_while(|byte| is(**byte, NAME)).count();
            let valid = |byte: &u8| match self.peek(1) {
                b'x' => byte.is_ascii_hexdigit(),
                _ => matches!(byte, b'0' | b'1'),
            };
            if length > 0 && body[..length].iter().all(valid) {
                self.at += 2 + length;
                return true;
            }
            return false;
        }
        let mut at = from + digits(from);
        let is_integer = self.text.get(at) != Some(&b'.');
        if !is_integer {
            at += 1 + digits(at + 1);
        }
        if matches!(self.text.get(at), Some(b'e' | b'E')) {
            let signed = usize::from(matches!(self.text.get(at + 1), Some(b'+' | b'-')));
            let exponent = at + 1 + signed;
            if self.text.get(exponent).is_some_and(|byte| is(*byte, DIGIT)) {
                self.at = exponent + digits(exponent);
                return true;
            }
        }
        if is_integer && self.text.get(at).is_some_and(|byte| is(*byte, NAME)) {
            return false;
        }
        self.at = at;
        true
    }

    fn sign(&mut self, first: u8, may_be_account: bool, word: &mut Word) -> Sort {
        match first {
            b'\'' => {
                self.string(first);
                self.may_be_account = true;
                Sort::Text
            }
            b'"' => {
                if self.dialect.ansi_quotes {
                    self.quoted(first);
                } else {
                    self.string(first);
                }
                self.may_be_account = true;
                if self.dialect.ansi_quotes { Sort::Quoted } else { Sort::Text }
            }
            b'`' => {
                self.quoted(first);
                self.may_be_account = true;
                Sort::Quoted
            }
            b'@' if self.peek(1) == b'@' => {
                self.at += 2;
                *word = self.system_variable();
                Sort::SystemVariable
            }
            b'@' => {
                self.at += 1;
                self.variable_name();
                if may_be_account { Sort::Host } else { Sort::UserVariable }
            }
            b'.' if is(self.peek(1), DIGIT) && !self.follows_name() => {
                self.number();
                Sort::Number
            }
            // \N is NULL.
            b'\\' if self.peek(1) == b'N' => {
                self.at += 2;
                Sort::Text
            }
            b':' if self.peek(1) == b'=' => {
                self.at += 2;
                Sort::Assign
            }
            b'?' => {
                self.at += 1;
                Sort::Parameter
            }
            _ => {
                self.after_dot = first == b'.' && is(self.peek(1), NAME);
                self.at += 1;
                Sort::Sign(first)
            }
        }
    }

    /// `t.5` is a column: the dot follows a name without a blank.
    fn follows_name(&self) -> bool {
        self.at > 0 && (is(self.text[self.at - 1], NAME) || self.text[self.at - 1] == b'`')
    }

    /// At the opening quote of a string.
    fn string(&mut self, quote: u8) {
        let escapes = !self.dialect.no_backslash_escapes;
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            if byte == b'\\' && escapes {
                self.at += 1;
            } else if byte == quote {
                if self.peek(0) != quote {
                    return;
                }
                self.at += 1;
            }
        }
        self.at = self.text.len();
        self.unfinished = true;
    }

    /// At the opening quote of an identifier: no backslash escapes here.
    fn quoted(&mut self, quote: u8) {
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            if byte == quote {
                if self.peek(0) != quote {
                    return;
                }
                self.at += 1;
            }
        }
        self.unfinished = true;
    }

    fn variable_name(&mut self) {
        match self.peek(0) {
            quote @ (b'\'' | b'"') => self.string(quote),
            b'`' => self.quoted(b'`'),
            _ => {
                let name = self.text[self.at..].iter().take_while(|byte| is(**byte, NAME) || **byte == b'.');
                self.at += name.count();
            }
        }
    }

    /// After @@: `[scope.][part.]name`; the word is the last part's.
    fn system_variable(&mut self) -> Word {
        loop {
            let start = self.at;
            let name = if self.peek(0) == b'`' {
                self.quoted(b'`');
                &self.text[(start + 1).min(self.at)..self.at.max(start + 2) - 1]
            } else {
                self.at += self.text[self.at..].iter().take_while(|byte| is(**byte, NAME)).count();
                &self.text[start..self.at]
            };
            if self.peek(0) != b'.' {
                return word_of(name);
            }
            self.at += 1;
        }
    }
}

/// The first part of a system variable's spelling: global, session or local, if it is there.
pub fn scope(token: &Token, text: &[u8]) -> Word {
    let parts = &token.of(text)[2..];
    let first = parts.split(|byte| *byte == b'.').next().unwrap_or(&[]);
    let bare = first.strip_prefix(b"`").and_then(|rest| rest.strip_suffix(b"`")).unwrap_or(first);
    match word_of(bare) {
        scope @ (Word::Global | Word::Session | Word::Local) if bare.len() < parts.len() => scope,
        _ => Word::Other,
    }
}
