//! No text makes `read` or `normalised` panic, and what they say of it holds.
#![no_main]

use kopek_statement::{Dialect, Kind, Marks, normalised, read};
use libfuzzer_sys::fuzz_target;

/// Of 4 MiB, a normalised text for people is cut here.
const SHOWN_MAX: usize = 200;

fuzz_target!(|text: &[u8]| {
    for (ansi_quotes, no_backslash_escapes) in [(false, false), (false, true), (true, false), (true, true)] {
        let dialect = Dialect { ansi_quotes, no_backslash_escapes };
        let reading = read(text, dialect);
        let shown = normalised(text, dialect, SHOWN_MAX);
        assert!(shown.len() <= SHOWN_MAX, "{shown} is too long");
        if reading.marks.contains(Marks::UNFINISHED) {
            continue;
        }
        // What stands behind a `;` is another statement and changes nothing about the first.
        let more = read(&[text, b"\n;SELECT 1"].concat(), dialect);
        assert!(more.marks.contains(reading.marks), "a mark is lost behind a second statement");
        if !matches!(reading.kind, Kind::Empty | Kind::OtherDdl | Kind::Compound) {
            assert_eq!(more.kind, reading.kind, "the first statement is of another kind");
        }
    }
});
