//! What holds is said at `kopek_sql::fuzzing::commands`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kopek_sql::fuzzing::commands(input));
