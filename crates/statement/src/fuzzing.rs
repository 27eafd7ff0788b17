//! What must hold for any text: each function here takes some bytes and panics if a promise is broken. Called by
//! crates/statement/fuzz, and by the test below with what was found so far.

use crate::{Dialect, Kind, Marks, adapted, normalised, read, with_row_count};

/// Of 4 MiB, a normalised text for people is cut here.
const SHOWN_MAX: usize = 200;

/// No text makes `read` or `normalised` panic, and what they say of it holds.
pub fn reading(text: &[u8]) {
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
}

/// No text makes `adapted` or `with_row_count` panic; what they give reads as the same kind and needs no more.
pub fn adapting(text: &[u8]) {
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
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Target = fn(&[u8]);

    /// Of each kept input.
    const MUTATIONS: usize = 400;

    /// What `make fuzz` does for hours, in a few seconds and the same each time.
    #[test]
    fn what_was_found_and_what_lies_near_it_is_borne() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let targets: [(&str, Target); 2] = [("read", reading), ("adapted", adapting)];
        for (name, target) in targets {
            let mut texts: Vec<Vec<u8>> = std::fs::read_dir(corpus.join(name))
                .unwrap()
                .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
                .collect();
            assert!(!texts.is_empty(), "{name} has no corpus");
            texts.sort();
            let mut random = SmallRng::seed_from_u64(3);
            for text in &texts {
                target(text);
                for _ in 0..MUTATIONS {
                    target(&mutated(text, &texts, &mut random));
                }
            }
        }
    }

    /// Signs that open and close, bytes of anything, and the rest of another text.
    fn mutated(text: &[u8], others: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
        let mut text = text.to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..=text.len());
            let sign = b"'\"`\\;()/*!-#@:,. \n"[random.random_range(0..18)];
            match random.random_range(0..5) {
                0 => text.insert(at, sign),
                1 => text.truncate(at),
                2 => {
                    let other = &others[random.random_range(0..others.len())];
                    text.truncate(at);
                    text.extend(&other[random.random_range(0..=other.len())..]);
                }
                _ if at == text.len() => text.push(sign),
                3 => text[at] = sign,
                _ => text[at] ^= 1 << random.random_range(0..8),
            }
        }
        text
    }
}
