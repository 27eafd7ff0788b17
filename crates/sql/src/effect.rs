//! What a statement means for its session: whether it can be executed once more elsewhere, and what of it
//! stays. Decided from its words alone; in doubt it is taken for one that cannot be repeated. Pure; called by
//! `session` and `transaction`.

use kopek_statement::{Kind, Marks, Reading};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) repeat: Repeat,
    pub(crate) stays: Stays,
    /// Waits for the site's files to be safe.
    pub(crate) needs_files: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Also when it may have been executed already.
    Freely,
    /// Only if it is known not to have been committed.
    Uncommitted,
    /// COMMIT: as the transaction that it ends.
    Commit,
    /// Not at all.
    Never,
}

/// What a session keeps of a statement that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stays {
    Nothing,
    /// Executed again, it brings the same.
    Setting,
    Schema,
    /// What cannot be brought to another member; why, for the log.
    Stuck(&'static str),
}

/// A variable that is set to such a value has another one when it is set again.
const VALUE_OF_THE_MOMENT: Marks = Marks::SUBQUERY
    .union(Marks::UNREPEATABLE)
    .union(Marks::ROW_COUNT)
    .union(Marks::FOUND_ROWS)
    .union(Marks::LAST_INSERT_ID)
    .union(Marks::SETS_ONE_SHOT)
    .union(Marks::UNKNOWN_FUNCTION)
    .union(Marks::DIAGNOSTICS);

pub(crate) fn effect_of(reading: &Reading) -> Effect {
    let marks = reading.marks;
    let effect = |repeat, stays| Effect { repeat, stays, needs_files: repeat != Repeat::Freely };
    let is_hidden = marks.contains(Marks::HIDDEN_TEXT) && reading.kind != Kind::Prepare;
    if is_hidden || marks.intersects(Marks::MULTI | Marks::UNFINISHED) {
        return effect(Repeat::Never, Stays::Stuck("several statements in one, or a text that is not seen"));
    }
    if marks.contains(Marks::LOCK_FUNCTION) {
        return effect(Repeat::Never, Stays::Stuck("a named lock"));
    }
    let assigned = match marks.contains(Marks::ASSIGNS_VARIABLE) {
        true => Stays::Stuck("a user variable that a query has set"),
        false => Stays::Nothing,
    };
    match reading.kind {
        Kind::Empty | Kind::Show | Kind::Begin | Kind::Rollback | Kind::Savepoint => {
            effect(Repeat::Freely, Stays::Nothing)
        }
        Kind::Select | Kind::Do if marks.intersects(Marks::UNKNOWN_FUNCTION | Marks::INTO_OUTFILE) => {
            effect(Repeat::Never, assigned)
        }
        Kind::Select | Kind::Do => effect(Repeat::Freely, assigned),
        Kind::Insert | Kind::Replace | Kind::Update | Kind::Delete => effect(Repeat::Uncommitted, assigned),
        Kind::Commit => effect(Repeat::Commit, Stays::Nothing),
        Kind::SetSession if marks.intersects(VALUE_OF_THE_MOMENT) => {
            effect(Repeat::Never, Stays::Stuck("a variable with a value of the moment"))
        }
        // It may commit.
        Kind::SetSession if marks.contains(Marks::SETS_AUTOCOMMIT) => effect(Repeat::Never, Stays::Setting),
        Kind::SetSession | Kind::SetTransaction | Kind::Prepare | Kind::Deallocate
            if !marks.contains(Marks::SETS_GLOBAL) =>
        {
            effect(Repeat::Freely, Stays::Setting)
        }
        Kind::Use => effect(Repeat::Freely, Stays::Schema),
        Kind::CreateTable | Kind::AlterTable | Kind::OtherDdl | Kind::Account | Kind::Maintenance => {
            effect(Repeat::Never, Stays::Nothing)
        }
        Kind::DropTemporaryTable | Kind::LoadData | Kind::Kill => effect(Repeat::Never, Stays::Nothing),
        Kind::CreateTemporaryTable => effect(Repeat::Never, Stays::Stuck("a temporary table")),
        Kind::LockTables | Kind::UnlockTables => effect(Repeat::Never, Stays::Stuck("locked tables")),
        Kind::Call => effect(Repeat::Never, Stays::Stuck("a procedure that may have left anything")),
        Kind::Handler => effect(Repeat::Never, Stays::Stuck("an open handler")),
        Kind::Xa => effect(Repeat::Never, Stays::Stuck("an XA transaction")),
        Kind::SetSession
        | Kind::SetTransaction
        | Kind::Prepare
        | Kind::Deallocate
        | Kind::SetOther
        | Kind::Execute
        | Kind::Compound
        | Kind::Other => effect(Repeat::Never, Stays::Stuck("a statement that is not understood")),
    }
}

/// Of commands that carry no SQL.
pub(crate) const PLAIN: Effect = Effect { repeat: Repeat::Freely, stays: Stays::Nothing, needs_files: false };
pub(crate) const SCHEMA: Effect = Effect { repeat: Repeat::Freely, stays: Stays::Schema, needs_files: false };
pub(crate) const UNKNOWN: Effect = Effect {
    repeat: Repeat::Never,
    stays: Stays::Stuck("a command that is not understood"),
    needs_files: true,
};

#[cfg(test)]
mod tests {
    use kopek_statement::{Dialect, read};

    use super::*;

    fn of(text: &str) -> (Repeat, Stays) {
        let effect = effect_of(&read(text.as_bytes(), Dialect::default()));
        (effect.repeat, effect.stays)
    }

    #[test]
    fn what_a_page_usually_asks_can_be_repeated_and_carried() {
        for (text, repeat, stays) in [
            ("SELECT option_value FROM wp_options WHERE autoload = 'yes'", Repeat::Freely, Stays::Nothing),
            ("SET NAMES utf8mb4", Repeat::Freely, Stays::Setting),
            ("SET SESSION sql_mode='NO_ENGINE_SUBSTITUTION'", Repeat::Freely, Stays::Setting),
            ("INSERT INTO wp_options VALUES (1, 'a')", Repeat::Uncommitted, Stays::Nothing),
            ("UPDATE wp_posts SET a = NOW()", Repeat::Uncommitted, Stays::Nothing),
            ("START TRANSACTION", Repeat::Freely, Stays::Nothing),
            ("COMMIT", Repeat::Commit, Stays::Nothing),
            ("USE blog", Repeat::Freely, Stays::Schema),
            ("PREPARE s FROM 'SELECT 1'", Repeat::Freely, Stays::Setting),
        ] {
            assert_eq!(of(text), (repeat, stays), "{text}");
        }
    }

    #[test]
    fn what_another_member_could_not_know_is_stuck() {
        for text in [
            "SET @a = (SELECT MAX(id) FROM t)",
            "SET @a = UUID()",
            "SELECT @a := 1",
            "SELECT GET_LOCK('a', 1)",
            "CREATE TEMPORARY TABLE t (a INT)",
            "LOCK TABLES t WRITE",
            "CALL p()",
            "SELECT 1; SELECT 2",
            "EXECUTE s",
            "XA START 'x'",
        ] {
            assert!(matches!(of(text), (_, Stays::Stuck(_))), "{text}");
        }
    }

    #[test]
    fn what_may_have_taken_place_already_is_not_repeated() {
        for text in ["SELECT my_function()", "ALTER TABLE t ADD a INT", "SET autocommit=1", "KILL 7"] {
            assert_eq!(of(text).0, Repeat::Never, "{text}");
        }
    }
}
