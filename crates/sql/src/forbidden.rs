//! What no site may set, though MariaDB lets everybody: `wsrep_OSU_method=RSU` makes DDL on one member alone. The
//! next row then fits that member only, and the others leave the group with all their sites. Pure; called by
//! `execute`.
//!
//! It is looked for in every text that can set it, also in what is prepared and in bodies of procedures. What a
//! procedure puts together from pieces and executes is not seen.

use kopek_statement::{Kind, Marks, Reading};

use crate::packet::ServerError;

const OSU_METHOD: &[u8] = b"wsrep_osu_method";

/// MariaDB's words for a variable that one may not set; `None`: nothing is wrong with the text.
pub(crate) fn forbidden(text: &[u8], reading: &Reading) -> Option<ServerError> {
    (can_set(reading) && names(text, OSU_METHOD)).then(|| {
        let words = "Access denied; you need (at least one of) the SUPER privilege(s) for this operation";
        ServerError::new(1227, b"42000", words)
    })
}

/// Not a row that tells of it.
fn can_set(reading: &Reading) -> bool {
    let sets = Marks::MULTI | Marks::HIDDEN_TEXT | Marks::SET_STATEMENT;
    reading.marks.intersects(sets)
        || matches!(
            reading.kind,
            Kind::SetSession
                | Kind::SetOther
                | Kind::SetTransaction
                | Kind::Prepare
                | Kind::Execute
                | Kind::OtherDdl
                | Kind::Compound
                | Kind::Other
        )
}

fn names(text: &[u8], name: &[u8]) -> bool {
    text.windows(name.len()).any(|there| there.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use kopek_statement::{Dialect, read};

    use super::*;

    fn is_forbidden(text: &str) -> bool {
        forbidden(text.as_bytes(), &read(text.as_bytes(), Dialect::default())).is_some()
    }

    #[test]
    fn ddl_on_one_member_alone_is_not_to_be_had_and_rows_may_tell_of_it() {
        for text in [
            "SET wsrep_OSU_method=RSU",
            "SET sql_mode='', @@SESSION.`WSREP_osu_method` = 'RSU'",
            "SELECT 1; SET wsrep_OSU_method=RSU",
            "/* a */ SET /*! wsrep_OSU_method=RSU */",
            "SET STATEMENT wsrep_OSU_method=RSU FOR CREATE TABLE t (a INT)",
            "EXECUTE IMMEDIATE 'SET wsrep_OSU_method=RSU'",
            "PREPARE s FROM 'SET wsrep_OSU_method=RSU'",
            "CREATE PROCEDURE p() SET wsrep_OSU_method=RSU",
            "BEGIN NOT ATOMIC SET wsrep_OSU_method=RSU; END",
        ] {
            assert!(is_forbidden(text), "{text}");
        }
        for text in [
            "SET NAMES utf8mb4",
            "INSERT INTO wp_posts VALUES ('what wsrep_OSU_method is good for')",
            "SELECT @@wsrep_OSU_method",
        ] {
            assert!(!is_forbidden(text), "{text}");
        }
    }
}
