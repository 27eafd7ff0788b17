//! Capability flags of the MySQL protocol: what a client and a server agreed on in their handshake.
//! The lower 32 bits are MySQL's, the upper 32 MariaDB's own (sent in bytes that MySQL reserves).
//! Source: MariaDB's "Connection" protocol page, `include/mysql_com.h`.

use std::ops::{BitAnd, BitOr};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Caps(pub(crate) u64);

impl Caps {
    /// Set by MySQL, cleared by MariaDB: whose upper 32 bits mean something only then.
    pub(crate) const MYSQL: Caps = Caps(1);
    pub(crate) const FOUND_ROWS: Caps = Caps(1 << 1);
    pub(crate) const LONG_FLAG: Caps = Caps(1 << 2);
    pub(crate) const CONNECT_WITH_DB: Caps = Caps(1 << 3);
    pub(crate) const NO_SCHEMA: Caps = Caps(1 << 4);
    pub(crate) const COMPRESS: Caps = Caps(1 << 5);
    pub(crate) const ODBC: Caps = Caps(1 << 6);
    pub(crate) const LOCAL_FILES: Caps = Caps(1 << 7);
    pub(crate) const IGNORE_SPACE: Caps = Caps(1 << 8);
    pub(crate) const PROTOCOL_41: Caps = Caps(1 << 9);
    pub(crate) const INTERACTIVE: Caps = Caps(1 << 10);
    pub(crate) const SSL: Caps = Caps(1 << 11);
    pub(crate) const TRANSACTIONS: Caps = Caps(1 << 13);
    pub(crate) const SECURE_CONNECTION: Caps = Caps(1 << 15);
    pub(crate) const MULTI_STATEMENTS: Caps = Caps(1 << 16);
    pub(crate) const MULTI_RESULTS: Caps = Caps(1 << 17);
    pub(crate) const PS_MULTI_RESULTS: Caps = Caps(1 << 18);
    pub(crate) const PLUGIN_AUTH: Caps = Caps(1 << 19);
    pub(crate) const CONNECT_ATTRS: Caps = Caps(1 << 20);
    pub(crate) const PLUGIN_AUTH_LENENC: Caps = Caps(1 << 21);
    /// Such a client may log in with an expired password, to set another one.
    pub(crate) const EXPIRED_PASSWORDS: Caps = Caps(1 << 22);
    pub(crate) const SESSION_TRACK: Caps = Caps(1 << 23);
    pub(crate) const DEPRECATE_EOF: Caps = Caps(1 << 24);
    /// Compression by zstd (MySQL 8.0.18); the level follows in the client's answer.
    pub(crate) const ZSTD: Caps = Caps(1 << 26);
    pub(crate) const BULK: Caps = Caps(1 << 34);
    pub(crate) const EXTENDED_TYPES: Caps = Caps(1 << 35);

    /// What changes how a server behaves or writes its answers: a client's backend must have agreed on just
    /// the same ones.
    pub(crate) const SHAPING: Caps = Caps(
        Caps::FOUND_ROWS.0
            | Caps::LONG_FLAG.0
            | Caps::NO_SCHEMA.0
            | Caps::ODBC.0
            | Caps::LOCAL_FILES.0
            | Caps::IGNORE_SPACE.0
            | Caps::PROTOCOL_41.0
            | Caps::INTERACTIVE.0
            | Caps::TRANSACTIONS.0
            | Caps::MULTI_STATEMENTS.0
            | Caps::MULTI_RESULTS.0
            | Caps::PS_MULTI_RESULTS.0
            | Caps::EXPIRED_PASSWORDS.0
            | Caps::SESSION_TRACK.0
            | Caps::DEPRECATE_EOF.0
            | Caps::BULK.0
            | Caps::EXTENDED_TYPES.0,
    );

    /// What concerns a client's own connection to us and nobody else.
    pub(crate) const OURS: Caps = Caps(
        Caps::CONNECT_WITH_DB.0
            | Caps::COMPRESS.0
            | Caps::SSL.0
            | Caps::SECURE_CONNECTION.0
            | Caps::PLUGIN_AUTH.0
            | Caps::CONNECT_ATTRS.0
            | Caps::PLUGIN_AUTH_LENENC.0
            | Caps::ZSTD.0,
    );

    pub(crate) fn has(self, flag: Caps) -> bool {
        self.0 & flag.0 == flag.0
    }
}

impl BitOr for Caps {
    type Output = Caps;
    fn bitor(self, other: Caps) -> Caps {
        Caps(self.0 | other.0)
    }
}

impl BitAnd for Caps {
    type Output = Caps;
    fn bitand(self, other: Caps) -> Caps {
        Caps(self.0 & other.0)
    }
}

/// The status flags in OK and EOF packets (`SERVER_STATUS_*`, `include/mysql_com.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Status(pub(crate) u16);

impl Status {
    pub(crate) const IN_TRANSACTION: Status = Status(1);
    pub(crate) const AUTOCOMMIT: Status = Status(1 << 1);
    pub(crate) const MORE_RESULTS: Status = Status(1 << 3);
    pub(crate) const CURSOR_EXISTS: Status = Status(1 << 6);
    pub(crate) const NO_BACKSLASH_ESCAPES: Status = Status(1 << 9);
    /// MariaDB's own.
    pub(crate) const ANSI_QUOTES: Status = Status(1 << 15);

    pub(crate) fn has(self, flag: Status) -> bool {
        self.0 & flag.0 == flag.0
    }
}
