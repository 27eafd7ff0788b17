//! What a text mentions, whatever its kind is. Over the whole text: of several statements in one, any of them.

use bitflags::bitflags;

bitflags! {
    #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
    pub struct Marks: u64 {
        /// Another statement follows a `;` at the top level.
        const MULTI = 1;
        /// LOAD DATA LOCAL: the server will ask the client for a file.
        const LOCAL = 1 << 1;
        /// FOR UPDATE, FOR SHARE, LOCK IN SHARE MODE.
        const READS_ROWS_LOCKED = 1 << 2;
        /// SQL_CALC_FOUND_ROWS.
        const CALC_FOUND_ROWS = 1 << 3;
        /// FOUND_ROWS().
        const FOUND_ROWS = 1 << 4;
        /// ROW_COUNT().
        const ROW_COUNT = 1 << 5;
        /// Reads the diagnostics area: SHOW WARNINGS, SHOW ERRORS, SHOW COUNT(*) of them, GET DIAGNOSTICS,
        /// @@warning_count, @@error_count.
        const DIAGNOSTICS = 1 << 6;
        /// LAST_INSERT_ID() with or without an argument, @@last_insert_id, @@identity, insert_id.
        const LAST_INSERT_ID = 1 << 7;
        /// Reads or writes any @x.
        const USER_VARIABLE = 1 << 8;
        /// `:=`, or INTO @x, outside a SET; also an EXECUTE … USING or CALL that may write to its @x.
        const ASSIGNS_VARIABLE = 1 << 9;
        /// GET_LOCK, RELEASE_LOCK, RELEASE_ALL_LOCKS, IS_FREE_LOCK, IS_USED_LOCK.
        const LOCK_FUNCTION = 1 << 10;
        /// A value that may be another when the statement is executed again: NOW, RAND, UUID, NEXTVAL, …
        const UNREPEATABLE = 1 << 11;
        /// RETURNING: rows come back from a write.
        const RETURNING = 1 << 12;
        /// INTO OUTFILE, INTO DUMPFILE.
        const INTO_OUTFILE = 1 << 13;
        /// COMMIT or ROLLBACK with AND CHAIN or RELEASE.
        const CHAIN_OR_RELEASE = 1 << 14;
        /// A SELECT inside something that is not one, or inside another SELECT.
        const SUBQUERY = 1 << 15;
        /// A SET that names autocommit.
        const SETS_AUTOCOMMIT = 1 << 16;
        /// A SET that names sql_mode.
        const SETS_SQL_MODE = 1 << 17;
        /// A SET of something global, or of something that is not a session variable (PASSWORD, ROLE).
        const SETS_GLOBAL = 1 << 18;
        /// A SET of what decides how later texts are read: NAMES, CHARACTER SET, character_set_client,
        /// character_set_connection, collation_connection.
        const SETS_CHARSET = 1 << 19;
        /// A SET of transaction isolation or access mode: SET TRANSACTION, tx_isolation,
        /// transaction_isolation, tx_read_only, transaction_read_only.
        const SETS_ISOLATION = 1 << 20;
        /// A SET of what the next statement uses up: timestamp, insert_id, last_insert_id, identity,
        /// rand_seed1, rand_seed2, pseudo_thread_id.
        const SETS_ONE_SHOT = 1 << 21;
        /// SET STATEMENT … FOR: the kind is the inner statement's.
        const SET_STATEMENT = 1 << 22;
        /// @@x or @@session.x is read or set by that spelling.
        const SYSTEM_VARIABLE = 1 << 23;
        /// Calls a function, or what looks like one, that is not MariaDB's own as far as we know: a stored
        /// function may do anything.
        const UNKNOWN_FUNCTION = 1 << 24;
        /// READ ONLY: START TRANSACTION READ ONLY, SET TRANSACTION READ ONLY.
        const READ_ONLY = 1 << 25;
        /// WITH CONSISTENT SNAPSHOT.
        const CONSISTENT_SNAPSHOT = 1 << 26;
        /// CREATE TABLE and ALTER TABLE, which `adapted` looks into.
        const TABLE_DDL = 1 << 28;
        /// EXECUTE IMMEDIATE or PREPARE: the text that runs is not here, so any mark may be missing.
        const HIDDEN_TEXT = 1 << 30;
        /// KILL QUERY rather than KILL [CONNECTION].
        const KILL_QUERY = 1 << 31;
        /// The text ends inside a string, an identifier or a comment.
        const UNFINISHED = 1 << 32;
        /// ANALYZE SELECT, ANALYZE UPDATE, …: executes, and answers with rows about how.
        const ANALYZE = 1 << 33;
        /// EXECUTE IMMEDIATE rather than EXECUTE name.
        const EXECUTES_IMMEDIATELY = 1 << 34;
        /// FLUSH TABLES WITH READ LOCK or FOR EXPORT, BACKUP STAGE, BACKUP LOCK: the session holds tables.
        const HOLDS_TABLES = 1 << 35;
        /// NEXTVAL, LASTVAL, SETVAL and their other spellings: a sequence has a last value in the session.
        const SEQUENCE = 1 << 36;
    }
}
