//! One pass over a text: which kind of statement it is, what it mentions, its digest. Called by `sql` for
//! every statement of every client, so it allocates nothing.

use crate::digest::{Digest, Hashing, Normaliser};
use crate::lex::{Lexer, Sort, Token, scope};
use crate::word::Word;
use crate::{Dialect, Marks};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Of the first statement, when there are several.
    pub kind: Kind,
    pub marks: Marks,
    pub digest: Digest,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Empty,
    /// SELECT and VALUES, also in parentheses and behind WITH.
    Select,
    /// SHOW, DESCRIBE, EXPLAIN, HELP.
    Show,
    Insert,
    Replace,
    Update,
    Delete,
    Do,
    /// BEGIN [WORK], START TRANSACTION.
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, RELEASE SAVEPOINT, ROLLBACK TO.
    Savepoint,
    /// SET of session variables, user variables, NAMES and CHARACTER SET; nothing else in the same statement.
    SetSession,
    /// SET [SESSION | GLOBAL] TRANSACTION; the latter with SETS_GLOBAL.
    SetTransaction,
    /// Any other SET: GLOBAL, PASSWORD, ROLE, DEFAULT ROLE. SET STATEMENT … FOR is what follows it.
    SetOther,
    Use,
    Call,
    Prepare,
    /// Also EXECUTE IMMEDIATE.
    Execute,
    /// Also DROP PREPARE.
    Deallocate,
    CreateTable,
    /// Also a temporary sequence: what the session keeps is the same.
    CreateTemporaryTable,
    DropTemporaryTable,
    AlterTable,
    OtherDdl,
    LockTables,
    UnlockTables,
    LoadData,
    Xa,
    Kill,
    Handler,
    /// GRANT, REVOKE, and what is done to users and roles.
    Account,
    /// ANALYZE TABLE and relatives, FLUSH, RESET, replication, plugins, BACKUP.
    Maintenance,
    /// BEGIN NOT ATOMIC, IF, LOOP and so on outside a stored program.
    Compound,
    Other,
}

pub fn read(text: &[u8], dialect: Dialect) -> Reading {
    let mut lexer = Lexer::new(text, dialect);
    let mut normaliser = Normaliser::new(Hashing::default());
    let mut reader = Reader::new(text);
    for token in lexer.by_ref() {
        if reader.take(&token) {
            normaliser.take(&token, text);
        }
    }
    reader.marks.set(Marks::UNFINISHED, lexer.unfinished);
    Reading {
        kind: reader.first.unwrap_or(reader.head.kind),
        marks: reader.marks,
        digest: normaliser.into_sink().digest(),
    }
}

struct Reader<'a> {
    text: &'a [u8],
    marks: Marks,
    head: Head,
    /// The kind of the first statement, once a `;` ended it.
    first: Option<Kind>,
    /// The token before, and the word before the (perhaps dotted) name that ends there.
    last: Option<Token>,
    before_name: Word,
}

impl<'a> Reader<'a> {
    fn new(text: &'a [u8]) -> Self {
        Reader {
            text,
            marks: Marks::empty(),
            head: Head::default(),
            first: None,
            last: None,
            before_name: Word::Other,
        }
    }

    /// False for a `;` that ends a statement.
    #[inline]
    fn take(&mut self, token: &Token) -> bool {
        if token.is(b';') && !self.head.runs_to_the_end {
            self.first.get_or_insert(self.head.kind);
            self.head = Head::default();
            self.last = None;
            return false;
        }
        if self.first.is_some() {
            self.marks |= Marks::MULTI;
        }
        let is_head = self.head.kind == Kind::Empty;
        self.head.take(token, self.text, &mut self.marks);
        match token.sort {
            Sort::Word if token.word != Word::Other => self.word(token.word, is_head),
            Sort::Sign(b'(') => self.call(),
            Sort::UserVariable => {
                self.marks |= Marks::USER_VARIABLE;
                if self.last_word() == Word::Into || self.head.may_write_to_variables() {
                    self.marks |= Marks::ASSIGNS_VARIABLE;
                }
            }
            Sort::SystemVariable => self.system_variable(token),
            Sort::Assign if !self.head.is_set() => self.marks |= Marks::ASSIGNS_VARIABLE,
            _ => {}
        }
        self.remember(token);
        true
    }

    fn last_word(&self) -> Word {
        self.last.as_ref().map_or(Word::Other, |last| last.word)
    }

    #[inline]
    fn remember(&mut self, token: &Token) {
        let dotted = self.last.as_ref().is_some_and(|last| last.is(b'.'));
        if token.is_name() && !dotted {
            self.before_name = self.last_word();
        }
        self.last = Some(*token);
    }

    #[inline]
    fn word(&mut self, word: Word, is_head: bool) {
        self.marks |= match word {
            Word::CurrentTimestamp
            | Word::CurrentDate
            | Word::CurrentTime
            | Word::Localtime
            | Word::Localtimestamp
            | Word::UtcDate
            | Word::UtcTime
            | Word::UtcTimestamp => Marks::UNREPEATABLE,
            Word::SqlCalcFoundRows => Marks::CALC_FOUND_ROWS,
            Word::Returning => Marks::RETURNING,
            Word::Outfile | Word::Dumpfile if self.last_word() == Word::Into => Marks::INTO_OUTFILE,
            Word::Update | Word::Share if self.last_word() == Word::For => Marks::READS_ROWS_LOCKED,
            Word::In if self.last_word() == Word::Lock => Marks::READS_ROWS_LOCKED,
            Word::Value if self.last_word() == Word::Next => Marks::UNREPEATABLE | Marks::SEQUENCE,
            Word::Value if self.last_word() == Word::Previous => Marks::SEQUENCE,
            Word::Select if !is_head => Marks::SUBQUERY,
            _ => return,
        };
    }

    /// At a `(`: what stands before it may be a function.
    #[inline]
    fn call(&mut self) {
        let Some(last) = self.last.filter(Token::is_name) else { return };
        self.marks |= match last.word {
            Word::FoundRows => Marks::FOUND_ROWS,
            Word::RowCount => Marks::ROW_COUNT,
            Word::LastInsertId => Marks::LAST_INSERT_ID,
            Word::GetLock
            | Word::ReleaseLock
            | Word::ReleaseAllLocks
            | Word::IsFreeLock
            | Word::IsUsedLock => Marks::LOCK_FUNCTION | Marks::UNREPEATABLE,
            Word::Nextval => Marks::SEQUENCE | Marks::UNREPEATABLE,
            Word::Lastval | Word::Setval => Marks::SEQUENCE,
            Word::Now
            | Word::Sysdate
            | Word::Curdate
            | Word::Curtime
            | Word::UnixTimestamp
            | Word::Rand
            | Word::RandomBytes
            | Word::Uuid
            | Word::UuidShort
            | Word::SysGuid
            | Word::ConnectionId
            | Word::Sleep
            | Word::Benchmark
            | Word::LoadFile
            | Word::MasterPosWait
            | Word::MasterGtidWait
            | Word::Encrypt
            | Word::DesEncrypt => Marks::UNREPEATABLE,
            Word::Other if !names_columns(self.before_name) => Marks::UNKNOWN_FUNCTION,
            _ => return,
        };
    }

    fn system_variable(&mut self, token: &Token) {
        self.marks |= Marks::SYSTEM_VARIABLE;
        self.marks |= match token.word {
            Word::WarningCount | Word::ErrorCount => Marks::DIAGNOSTICS,
            Word::LastInsertId | Word::Identity | Word::InsertId => Marks::LAST_INSERT_ID,
            Word::Timestamp | Word::RandSeed1 | Word::RandSeed2 => Marks::UNREPEATABLE,
            _ => Marks::empty(),
        };
    }
}

/// `INSERT INTO t (a)`: after these, a name with a parenthesis is no call.
fn names_columns(before: Word) -> bool {
    use Word::*;
    matches!(
        before,
        Into | Insert
            | Replace
            | Ignore
            | Delayed
            | LowPriority
            | HighPriority
            | Table
            | Exists
            | References
            | Key
            | Index
            | Unique
            | Fulltext
            | Spatial
            | Constraint
            | On
            | As
            | With
            | Recursive
            | Partition
            | Using
            | View
            | Procedure
            | Function
    )
}

/// Decides the kind of one statement by its first words.
#[derive(Clone, Copy)]
struct Head {
    kind: Kind,
    step: Step,
    /// Of parentheses, where a step looks at it.
    depth: u32,
    /// A stored program's body follows: `;` ends nothing.
    runs_to_the_end: bool,
    temporary: bool,
    last: Word,
}

impl Default for Head {
    fn default() -> Self {
        Head {
            kind: Kind::Empty,
            step: Step::Start,
            depth: 0,
            runs_to_the_end: false,
            temporary: false,
            last: Word::Other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Start,
    /// Behind WITH, until a statement begins outside parentheses.
    With,
    /// Behind ANALYZE: a table's or a statement's.
    Analyze,
    Begin,
    StartTransaction,
    /// Behind COMMIT or ROLLBACK.
    End,
    Release,
    Create,
    Definer,
    DefinerName,
    Alter,
    Drop,
    Rename,
    Lock,
    Load,
    Show,
    Get,
    Execute,
    Kill,
    Flush,
    Label,
    /// Behind SET: is it SET STATEMENT or SET … TRANSACTION?
    SetFirst,
    /// At the head of an assignment.
    SetName,
    /// In an assignment's name or value, until a comma outside parentheses.
    SetValue,
    SetTransaction,
    /// SET STATEMENT …, until FOR.
    SetStatement,
    Decided,
}

impl Head {
    fn is_set(&self) -> bool {
        matches!(self.kind, Kind::SetSession | Kind::SetTransaction | Kind::SetOther)
    }

    /// CALL p(@x), EXECUTE s USING @x: the parameter may be OUT.
    fn may_write_to_variables(&self) -> bool {
        matches!(self.kind, Kind::Call | Kind::Execute | Kind::LoadData | Kind::Compound)
            || self.step == Step::Get
    }

    fn decide(&mut self, kind: Kind) {
        self.kind = kind;
        self.step = Step::Decided;
    }

    fn go(&mut self, kind: Kind, step: Step) {
        self.kind = kind;
        self.step = step;
    }

    fn program(&mut self, kind: Kind) {
        self.decide(kind);
        self.runs_to_the_end = true;
    }

    #[inline]
    fn take(&mut self, token: &Token, text: &[u8], marks: &mut Marks) {
        if self.step != Step::Decided {
            self.step(token, text, marks);
            self.last = token.word;
        }
    }

    fn step(&mut self, token: &Token, text: &[u8], marks: &mut Marks) {
        let word = token.word;
        match self.step {
            Step::Start => self.start(token, marks),
            Step::With => match token.sort {
                Sort::Sign(b'(') => self.depth += 1,
                Sort::Sign(b')') => self.depth = self.depth.saturating_sub(1),
                Sort::Word if self.depth == 0 => match word {
                    Word::Select | Word::Values => self.decide(Kind::Select),
                    Word::Update => self.decide(Kind::Update),
                    Word::Delete => self.decide(Kind::Delete),
                    Word::Insert => self.decide(Kind::Insert),
                    Word::Replace => self.decide(Kind::Replace),
                    _ => {}
                },
                _ => {}
            },
            Step::Analyze => match word {
                Word::Table | Word::Tables => self.decide(Kind::Maintenance),
                Word::Select | Word::Update | Word::Delete | Word::Insert | Word::Replace | Word::With => {
                    *marks |= Marks::ANALYZE;
                    self.start(token, marks);
                }
                _ => {}
            },
            Step::Begin if word == Word::Not => self.program(Kind::Compound),
            Step::Begin => self.decide(Kind::Begin),
            Step::StartTransaction => self.start_transaction(word, marks),
            Step::End => match word {
                Word::To => self.decide(Kind::Savepoint),
                Word::Chain | Word::Release if self.last != Word::No => *marks |= Marks::CHAIN_OR_RELEASE,
                _ => {}
            },
            Step::Release if word == Word::Savepoint => self.decide(Kind::Savepoint),
            Step::Release => self.decide(Kind::Other),
            Step::Create => self.create(word, marks),
            Step::Definer if token.is(b'=') => self.step = Step::DefinerName,
            Step::Definer => {
                self.step = Step::Create;
                self.create(word, marks);
            }
            Step::DefinerName => self.step = Step::Create,
            Step::Alter => self.alter(word, marks),
            Step::Drop => self.drop_object(word),
            Step::Rename if word == Word::User => self.decide(Kind::Account),
            Step::Rename => self.decide(Kind::OtherDdl),
            Step::Lock => self.decide(Kind::LockTables),
            Step::Load => match word {
                Word::Local => *marks |= Marks::LOCAL,
                Word::Index => self.decide(Kind::Maintenance),
                Word::Infile => self.decide(Kind::LoadData),
                _ => {}
            },
            Step::Show => {
                if matches!(word, Word::Warnings | Word::Errors | Word::Count) {
                    *marks |= Marks::DIAGNOSTICS;
                }
                self.step = Step::Decided;
            }
            Step::Get => {
                if word == Word::Diagnostics {
                    *marks |= Marks::DIAGNOSTICS;
                }
            }
            Step::Execute => {
                if word == Word::Immediate {
                    *marks |= Marks::EXECUTES_IMMEDIATELY;
                }
                self.step = Step::Decided;
            }
            Step::Kill => match word {
                Word::Query => {
                    *marks |= Marks::KILL_QUERY;
                    self.step = Step::Decided;
                }
                Word::Hard | Word::Soft | Word::Connection => {}
                _ => self.step = Step::Decided,
            },
            Step::Flush => {
                if matches!((self.last, word), (Word::With, Word::Read) | (_, Word::Export | Word::Stage))
                    || (self.last == Word::Backup && word == Word::Lock)
                {
                    *marks |= Marks::HOLDS_TABLES;
                }
            }
            Step::Label if token.is(b':') => self.program(Kind::Compound),
            Step::Label => self.decide(Kind::Other),
            Step::SetFirst => match word {
                Word::Statement => {
                    *marks |= Marks::SET_STATEMENT;
                    self.go(Kind::Empty, Step::SetStatement);
                }
                _ => {
                    self.step = Step::SetName;
                    self.set_name(token, text, marks);
                }
            },
            Step::SetName => self.set_name(token, text, marks),
            Step::SetValue => self.set_value(token, marks),
            Step::SetTransaction => self.start_transaction(word, marks),
            Step::SetStatement => match token.sort {
                Sort::Sign(b'(') => self.depth += 1,
                Sort::Sign(b')') => self.depth = self.depth.saturating_sub(1),
                Sort::Word if word == Word::For && self.depth == 0 => self.go(Kind::Empty, Step::Start),
                Sort::Word => *marks |= set_marks(word),
                _ => {}
            },
            Step::Decided => {}
        }
    }

    fn start(&mut self, token: &Token, marks: &mut Marks) {
        use Word::*;
        match token.word {
            _ if token.is(b'(') => {}
            Select | Values => self.decide(Kind::Select),
            With => self.go(Kind::Select, Step::With),
            Insert => self.decide(Kind::Insert),
            Update => self.decide(Kind::Update),
            Delete => self.decide(Kind::Delete),
            Replace => self.decide(Kind::Replace),
            Do => self.decide(Kind::Do),
            Set => self.go(Kind::SetSession, Step::SetFirst),
            Show => self.go(Kind::Show, Step::Show),
            Describe | Desc | Explain | Help => self.decide(Kind::Show),
            Begin => self.go(Kind::Begin, Step::Begin),
            Start => self.go(Kind::Maintenance, Step::StartTransaction),
            Commit => self.go(Kind::Commit, Step::End),
            Rollback => self.go(Kind::Rollback, Step::End),
            Savepoint => self.decide(Kind::Savepoint),
            Release => self.go(Kind::Other, Step::Release),
            Use => self.decide(Kind::Use),
            Call => self.decide(Kind::Call),
            Prepare => self.prepare(marks),
            Execute => {
                *marks |= Marks::HIDDEN_TEXT;
                self.go(Kind::Execute, Step::Execute);
            }
            Deallocate => self.decide(Kind::Deallocate),
            Create => self.go(Kind::OtherDdl, Step::Create),
            Alter => self.go(Kind::OtherDdl, Step::Alter),
            Drop => self.go(Kind::OtherDdl, Step::Drop),
            Truncate => self.decide(Kind::OtherDdl),
            Rename => self.go(Kind::OtherDdl, Step::Rename),
            Grant | Revoke => self.decide(Kind::Account),
            Lock => self.go(Kind::LockTables, Step::Lock),
            Unlock => self.decide(Kind::UnlockTables),
            Load => self.go(Kind::LoadData, Step::Load),
            Xa => self.decide(Kind::Xa),
            Kill => self.go(Kind::Kill, Step::Kill),
            Handler => self.decide(Kind::Handler),
            Analyze => self.go(Kind::Maintenance, Step::Analyze),
            Flush | Backup => self.go(Kind::Maintenance, Step::Flush),
            Optimize | Repair | Check | Checksum | Reset | Cache | Install | Uninstall | Purge | Change
            | Binlog | Shutdown | Stop => self.decide(Kind::Maintenance),
            Get => self.go(Kind::Other, Step::Get),
            If | Loop | While | Repeat | For | Case | Declare => self.program(Kind::Compound),
            Other if token.is_name() => self.go(Kind::Other, Step::Label),
            _ => self.decide(Kind::Other),
        }
    }

    fn prepare(&mut self, marks: &mut Marks) {
        *marks |= Marks::HIDDEN_TEXT;
        self.decide(Kind::Prepare);
    }

    /// Also behind SET TRANSACTION.
    fn start_transaction(&mut self, word: Word, marks: &mut Marks) {
        match word {
            Word::Transaction => self.kind = Kind::Begin,
            Word::Only if self.last == Word::Read => *marks |= Marks::READ_ONLY,
            Word::Snapshot => *marks |= Marks::CONSISTENT_SNAPSHOT,
            _ => {}
        }
    }

    fn create(&mut self, word: Word, marks: &mut Marks) {
        match word {
            Word::Temporary => self.temporary = true,
            Word::Definer => self.step = Step::Definer,
            Word::Table | Word::Sequence if self.temporary => {
                *marks |= Marks::TABLE_DDL;
                self.decide(Kind::CreateTemporaryTable);
            }
            Word::Table => {
                *marks |= Marks::TABLE_DDL;
                self.decide(Kind::CreateTable);
            }
            Word::User | Word::Role => self.decide(Kind::Account),
            Word::Procedure | Word::Function | Word::Trigger | Word::Event | Word::Package => {
                self.program(Kind::OtherDdl);
            }
            Word::View
            | Word::Index
            | Word::Database
            | Word::Schema
            | Word::Sequence
            | Word::Server
            | Word::Tablespace
            | Word::Logfile => self.decide(Kind::OtherDdl),
            _ => {}
        }
    }

    fn alter(&mut self, word: Word, marks: &mut Marks) {
        match word {
            Word::Table => {
                *marks |= Marks::TABLE_DDL;
                self.decide(Kind::AlterTable);
            }
            Word::User | Word::Role => self.decide(Kind::Account),
            Word::Procedure | Word::Function | Word::Event | Word::Package => self.program(Kind::OtherDdl),
            Word::View | Word::Database | Word::Schema | Word::Sequence | Word::Server => {
                self.decide(Kind::OtherDdl);
            }
            Word::Definer => self.step = Step::Definer,
            _ => {}
        }
    }

    fn drop_object(&mut self, word: Word) {
        match word {
            Word::Temporary => self.temporary = true,
            Word::Table | Word::Tables | Word::Sequence if self.temporary => {
                self.decide(Kind::DropTemporaryTable);
            }
            Word::User | Word::Role => self.decide(Kind::Account),
            Word::Prepare => self.decide(Kind::Deallocate),
            _ => self.decide(Kind::OtherDdl),
        }
    }

    fn set_name(&mut self, token: &Token, text: &[u8], marks: &mut Marks) {
        match (token.sort, token.word) {
            (Sort::UserVariable, _) => self.step = Step::SetValue,
            (Sort::SystemVariable, name) => {
                *marks |= set_marks(name);
                if scope(token, text) == Word::Global {
                    self.sets_other(marks);
                }
                self.step = Step::SetValue;
            }
            (_, Word::Session | Word::Local) => {}
            (_, Word::Global) => self.sets_other(marks),
            (_, Word::Transaction) => {
                *marks |= Marks::SETS_ISOLATION;
                self.go(Kind::SetTransaction, Step::SetTransaction);
            }
            (_, Word::Names | Word::Character | Word::Charset | Word::Char) => {
                *marks |= Marks::SETS_CHARSET;
                self.step = Step::SetValue;
            }
            (Sort::Quoted, _) => self.quoted_name(token, text, marks),
            (_, Word::Password | Word::Role | Word::Default) => {
                self.sets_other(marks);
                self.step = Step::SetValue;
            }
            (Sort::Word, name) => {
                *marks |= set_marks(name);
                self.step = Step::SetValue;
            }
            _ => self.go(Kind::SetOther, Step::SetValue),
        }
    }

    /// SET `sql_mode` = …
    fn quoted_name(&mut self, token: &Token, text: &[u8], marks: &mut Marks) {
        let spelled = token.of(text);
        let bare = spelled.get(1..spelled.len().max(2) - 1).unwrap_or(&[]);
        *marks |= set_marks(crate::word::word_of(bare));
        self.step = Step::SetValue;
    }

    fn sets_other(&mut self, marks: &mut Marks) {
        *marks |= Marks::SETS_GLOBAL;
        self.kind = Kind::SetOther;
    }

    fn set_value(&mut self, token: &Token, marks: &mut Marks) {
        match token.sort {
            Sort::Sign(b'(') => self.depth += 1,
            Sort::Sign(b')') => self.depth = self.depth.saturating_sub(1),
            Sort::Sign(b',') if self.depth == 0 => self.step = Step::SetName,
            // SET cache.key_buffer_size: a structured variable is global.
            Sort::Sign(b'.') if self.depth == 0 && self.last == Word::Other => self.sets_other(marks),
            _ => {}
        }
    }
}

/// What it means that this variable is set.
fn set_marks(name: Word) -> Marks {
    match name {
        Word::Autocommit => Marks::SETS_AUTOCOMMIT,
        Word::SqlMode => Marks::SETS_SQL_MODE,
        Word::CharacterSetClient
        | Word::CharacterSetConnection
        | Word::CharacterSetResults
        | Word::CollationConnection => Marks::SETS_CHARSET,
        Word::TxIsolation | Word::TransactionIsolation | Word::TxReadOnly | Word::TransactionReadOnly => {
            Marks::SETS_ISOLATION
        }
        Word::Timestamp
        | Word::InsertId
        | Word::LastInsertId
        | Word::Identity
        | Word::RandSeed1
        | Word::RandSeed2
        | Word::PseudoThreadId => Marks::SETS_ONE_SHOT,
        _ => Marks::empty(),
    }
}
