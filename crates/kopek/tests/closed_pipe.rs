//! What the command line does when nobody reads what it writes.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

/// No cell is there: the doctor says so and goes on.
fn kopek(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kopek"));
    command.args(words).env("KOPEK_CELL", "/nonexistent").stdin(Stdio::null());
    command
}

fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn said(output: &Output) -> (Option<i32>, &str) {
    (output.status.code(), std::str::from_utf8(&output.stderr).unwrap())
}

#[test]
fn a_reader_that_has_enough_ends_a_command_without_a_word() {
    for words in [&["doctor"][..], &["--json", "doctor"], &["completion", "bash"], &["--help"]] {
        let output = kopek(words).stdout(closed_pipe()).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(said(&output), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn messages_that_nobody_reads_change_nothing() {
    let mut command = kopek(&["doctor"]);
    let output = command.stdout(Stdio::piped()).stderr(closed_pipe()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "the findings are what counts");
    assert!(String::from_utf8_lossy(&output.stdout).contains("BAD  cell"));
    let output = kopek(&["site", "ls", "--jsn"]).stderr(closed_pipe()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_full_disk_is_an_error_of_its_own() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = kopek(&["completion", "bash"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(
        said(&output),
        (Some(1), "kopek: cannot write to stdout: No space left on device (os error 28)\n")
    );
}
