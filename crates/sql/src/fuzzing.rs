//! What must hold for any bytes: each function here takes some and panics if a promise is broken. Called by
//! crates/sql/fuzz, and by the test below with what was found so far. Not part of what `sql` is.

use tokio::io::AsyncReadExt;

use crate::answer::{Answer, Expected, Next, Said};
use crate::caps::Caps;
use crate::carry::Carry;
use crate::compress::{Compressed, Method};
use crate::handshake::{Greeting, Login, parse_switch, switch_payload};
use crate::inbox::{self, COMMAND_MAX, Passed, WHOLE_MAX};
use crate::packet::{HEADER, ServerError, header};
use crate::threads::killing_actual;
use crate::wire::Wire;

mod make;
use make::{Choices, Made, Pieces, Sink, ends_of_commands, make_answer, make_stream, ready};

/// Whatever a member sends, in whatever pieces it arrives: the answer ends at the same byte and says the same,
/// and what is kept by `sql` of its status stays within it.
pub fn answer(input: &[u8]) {
    let mut choices = Choices(input);
    let (expected, caps) = (choices.expected(), choices.caps());
    let pieces = choices.pieces();
    let bytes = choices.0;
    let whole = scan(expected, caps, bytes, &[bytes.len().max(1)]);
    assert_eq!(whole, scan(expected, caps, bytes, &pieces), "in pieces of {pieces:?}");
    assert_eq!(whole, scan(expected, caps, bytes, &[1]), "byte by byte");
    let mut changed = bytes::BytesMut::from(bytes);
    crate::session::without_status(&mut changed, 1);
    let odd = changed.iter().zip(bytes).filter(|(after, before)| after != before).count();
    assert!(changed.len() == bytes.len() && odd <= 1, "{odd} bytes of an answer were changed");
}

/// An answer as the protocol has it, made from the bytes: it ends where it ends, and is counted as it is.
pub fn protocol(input: &[u8]) {
    let mut choices = Choices(input);
    let caps = choices.caps();
    let pieces = choices.pieces();
    let Made { bytes, expected, said } = make_answer(&mut choices, caps);
    let pieces = fitting(pieces, bytes.len());
    let (at, nexts, found, _) = scan(expected, caps, &[&bytes[..], b"\x01\0\0\0\0"].concat(), &pieces);
    assert_eq!((at, nexts.last()), (bytes.len(), Some(&Next::Done)), "{said:?}");
    assert_eq!(
        (found.rows, found.results, found.error, found.prepared),
        (said.rows, said.results, said.error, said.prepared)
    );
}

/// A client's commands, in whatever pieces they come: each begins where the one before ends, each byte is passed
/// on once, and no more is held than one command of usual size.
pub fn commands(input: &[u8]) {
    let mut choices = Choices(input);
    let pieces = choices.pieces();
    let stream = make_stream(&mut choices);
    let mut client = Wire::new(Pieces::new(stream.clone(), fitting(pieces, stream.len())));
    let mut expected = ends_of_commands(&stream).into_iter();
    let mut passed_on = 0;
    loop {
        let Ok(mut command) = ready(inbox::take(&mut client)) else { break };
        let member = Sink::default();
        let mut wire = Wire::new(member.clone());
        let held = command.packet.clone();
        assert!(held.len() <= HEADER + WHOLE_MAX, "{} bytes are held", held.len());
        assert!(client.input.capacity() <= WHOLE_MAX + (64 << 10), "{} are kept", client.input.capacity());
        let outcome = ready(inbox::pass_rest(&mut command, &mut client, &mut wire));
        let sent = member.0.lock().expect("nobody panics with it").split_off(0);
        let all = [&held[..], &sent].concat();
        assert!(stream[passed_on..].starts_with(&all), "bytes were changed on their way");
        passed_on += all.len();
        match outcome {
            Ok(Passed::Whole) => assert_eq!(Some(passed_on), expected.next(), "it ends elsewhere"),
            Ok(Passed::TooLong) => {
                assert!(stream.len() as u64 > COMMAND_MAX);
                return;
            }
            Ok(Passed::Refused) => unreachable!("our member takes everything"),
            Err(_) => break,
        }
    }
    assert_eq!(expected.next(), None, "a whole command was not seen");
}

/// A client's file: all of it is passed on, numbered for the member, up to the empty packet and not further.
pub fn file(input: &[u8]) {
    let mut choices = Choices(input);
    let pieces = choices.pieces();
    let stream = choices.0.to_vec();
    let (mut at, mut sequence, mut numbered) = (0, 1u8, stream.clone());
    let end = loop {
        let Some((length, _)) = stream.get(at..).and_then(header) else { break None };
        sequence = sequence.wrapping_add(1);
        numbered[at + HEADER - 1] = sequence;
        at += HEADER + length;
        if length == 0 {
            break Some(at);
        }
    };
    let (mut client, member) = (Wire::new(Pieces::new(stream.clone(), pieces)), Sink::default());
    let outcome = ready(inbox::pass_file(&mut client, &mut Wire::new(member.clone()), 1));
    let sent = member.0.lock().expect("nobody panics with it");
    assert_eq!(outcome.is_ok(), end.is_some());
    assert!(end.is_none_or(|end| sent.len() == end) && numbered.starts_with(&sent));
}

/// Compressed frames, in whatever pieces they come: the same bytes or the same end, and what was packed by us is
/// unpacked as it was.
pub fn frames(input: &[u8]) {
    let mut choices = Choices(input);
    let pieces = choices.pieces();
    let method = if choices.next().is_multiple_of(2) { Method::Zlib } else { Method::Zstd { level: 3 } };
    let whole = unpack(method, choices.0, vec![choices.0.len().max(1)]);
    let again = unpack(method, choices.0, pieces.clone());
    // Before a frame that is found to be broken, more or less of it may have come out.
    let is_same = whole == again || (!whole.1 && !again.1 && one_begins_the_other(&whole.0, &again.0));
    assert!(is_same, "in pieces of {pieces:?}: {whole:?}, {again:?}");
    let packed = Sink::default();
    let mut packing = Compressed::new(packed.clone(), method);
    ready(tokio::io::AsyncWriteExt::write_all(&mut packing, choices.0)).expect("the sink takes everything");
    ready(tokio::io::AsyncWriteExt::flush(&mut packing)).expect("the sink takes everything");
    let packed = packed.0.lock().expect("nobody panics with it").clone();
    let (unpacked, is_whole) = unpack(method, &packed, pieces);
    assert_eq!(
        (unnumbered(unpacked), is_whole),
        (unnumbered(choices.0.to_vec()), true),
        "packed and unpacked"
    );
}

/// Packets without their numbers, which go on from those of frames when they are packed.
fn unnumbered(mut packets: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some((length, _)) = packets.get(at..).and_then(header) {
        packets[at + HEADER - 1] = 0;
        at += HEADER + length;
    }
    packets
}

/// Packets of a beginning connection: nothing panics, and what was understood is written so that it is
/// understood as the same.
pub fn login(input: &[u8]) {
    if let Some(login) = Login::parse(input) {
        let again = Login::parse(&login.payload()).expect("what we write is a login");
        let facts = |login: &Login| {
            let Login { max_packet, collation, user, proof, schema, plugin, .. } = login.clone();
            (login.caps & Caps::SHAPING, max_packet, collation, user, proof, schema, plugin)
        };
        assert_eq!(facts(&again), facts(&login));
        if let Some(changed) = Login::parse_change(input, &login) {
            let again = Login::parse_change(&changed.change_payload(), &login);
            let plugin = again.as_ref().map(|again| again.plugin.clone());
            assert_eq!(again, Some(Login { plugin: plugin.expect("understood"), ..changed }));
        }
    }
    if let Some(greeting) = Greeting::parse(input) {
        assert_eq!(Greeting::parse(&greeting.payload()), Some(greeting));
    }
    if let Some((plugin, nonce)) = parse_switch(input)
        && nonce.last() != Some(&0)
    {
        assert_eq!(parse_switch(&switch_payload(&plugin, &nonce)), Some((plugin, nonce)));
    }
    if let Some(error) = ServerError::parse(input)
        && error.text.len() < 1 << 10
    {
        assert_eq!(ServerError::parse(&error.packet(1)[HEADER..]), Some(error));
    }
    let _ = killing_actual(input, |given| Some(!given));
    addressed(input);
}

/// A command that names a prepared statement keeps all of its bytes but the id, and gets the types at most.
fn addressed(input: &[u8]) {
    let mut choices = Choices(input);
    let parameters = u16::from(choices.next()) % 20;
    let mut carry = Carry::default();
    let reading = kopek_statement::read(b"SELECT ?", kopek_statement::Dialect::default());
    carry.prepared(7, parameters, b"", reading);
    let packet = choices.0;
    if let Some(other) = carry.addressed(packet) {
        assert!((packet.len()..=packet.len() + 2 * usize::from(parameters)).contains(&other.len()));
    }
}

/// How far an answer goes, what came next each time, what it says, and the number of its last packet.
fn scan(expected: Expected, caps: Caps, bytes: &[u8], pieces: &[usize]) -> (usize, Vec<Next>, Said, u8) {
    let mut answer = Answer::new(expected, caps);
    let (mut from, mut shown, mut nexts) = (0, 0, Vec::new());
    let mut pieces = pieces.iter().cycle();
    loop {
        let (taken, next) = answer.take(&bytes[from..shown]);
        assert!(taken <= shown - from, "more was taken than was there");
        from += taken;
        match next {
            Next::More if shown == bytes.len() => break,
            Next::More => shown = (shown + pieces.next().expect("there is one")).min(bytes.len()),
            Next::WantsFile => nexts.push(next),
            Next::Done => {
                nexts.push(next);
                break;
            }
        }
    }
    (from, nexts, *answer.said(), answer.sequence())
}

/// Millions of pieces would only take long.
fn fitting(pieces: Vec<usize>, length: usize) -> Vec<usize> {
    pieces.into_iter().map(|piece| piece.max(length / 4096)).collect()
}

/// What comes out, and whether it ended with its last frame.
fn unpack(method: Method, bytes: &[u8], pieces: Vec<usize>) -> (Vec<u8>, bool) {
    let mut unpacking = Compressed::new(Pieces::new(bytes.to_vec(), pieces), method);
    let mut plain = Vec::new();
    let mut piece = [0; 300];
    loop {
        match ready(unpacking.read(&mut piece)) {
            Ok(0) => return (plain, true),
            Ok(count) => plain.extend(&piece[..count]),
            Err(_) => return (plain, false),
        }
        // Frames of some bytes can hold 16 MiB; how that is bounded is compress.rs' own test.
        if plain.len() > 1 << 20 {
            return (plain, true);
        }
    }
}

fn one_begins_the_other(one: &[u8], other: &[u8]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Target = fn(&[u8]);

    /// Of each kept input; all of them take some seconds.
    const MUTATIONS: usize = 40;

    /// What `make fuzz` does for hours, in a few seconds and the same each time.
    #[test]
    fn what_was_found_and_what_lies_near_it_is_borne() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let targets: [(&str, Target); 6] = [
            ("answer", answer),
            ("protocol", protocol),
            ("commands", commands),
            ("file", file),
            ("frames", frames),
            ("login", login),
        ];
        for (name, target) in targets {
            let mut inputs: Vec<Vec<u8>> = std::fs::read_dir(corpus.join(name))
                .unwrap()
                .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
                .collect();
            assert!(!inputs.is_empty(), "{name} has no corpus");
            inputs.sort();
            let mut random = SmallRng::seed_from_u64(3);
            for input in inputs {
                target(&input);
                // Packets of 16 MiB take their time.
                let mutations = if name == "commands" || name == "protocol" { 4 } else { MUTATIONS };
                for _ in 0..mutations {
                    target(&mutated(input.clone(), &mut random));
                }
            }
        }
    }

    fn mutated(mut input: Vec<u8>, random: &mut SmallRng) -> Vec<u8> {
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..=input.len());
            match random.random_range(0..4) {
                0 => input.insert(at, random.random()),
                1 => input.truncate(at),
                _ if at == input.len() => input.push(random.random()),
                2 => input[at] ^= 1 << random.random_range(0..8),
                _ => {
                    input[at] = *[0, 1, 0x7f, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]
                        .get(random.random_range(0..9usize))
                        .unwrap_or(&0)
                }
            }
        }
        input
    }
}
