//! What holds is said at `kopek_statement::fuzzing::reading`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| kopek_statement::fuzzing::reading(text));
