//! No text makes `adapted` or `with_row_count` panic; what they give reads as the same kind and needs no more.
#![no_main]

use kopek_statement::{Dialect, Marks, adapted, read, with_row_count};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    for (ansi_quotes, no_backslash_escapes) in [(false, false), (true, true)] {
        let dialect = Dialect { ansi_quotes, no_backslash_escapes };
        let reading = read(text, dialect);
        if let Some(other) = adapted(text, &reading, dialect, "s1:") {
            let again = read(&other, dialect);
            assert_eq!(again.kind, reading.kind, "{}", String::from_utf8_lossy(&other));
            assert_eq!(again.marks & Marks::MULTI, reading.marks & Marks::MULTI);
            assert_eq!(again.marks & Marks::UNFINISHED, reading.marks & Marks::UNFINISHED);
        }
        if let Some(other) = with_row_count(text, dialect, -1) {
            let again = read(&other, dialect);
            assert_eq!(again.kind, reading.kind, "{}", String::from_utf8_lossy(&other));
            assert!(with_row_count(&other, dialect, -1).is_none(), "a ROW_COUNT() is left");
        }
    }
});
