//! What is done again after the loss of a writer, and what became of a commit whose answer was lost.
//! Called by `session` and `execute`.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info};

use super::{End, RETRY_AFTER, Session, WAIT_LIMIT};
use crate::answer::Expected;
use crate::backend::Backend;
use crate::packet::{HEADER, command, command_packet};
use crate::token::Token;
use crate::transaction::{Done, pinned};
use crate::writer::is_same;

/// Answers of statements in a transaction that is repeated: what is longer was not kept in the client either.
const ANSWER_MAX: usize = 64 << 20;
/// Until a connection that was killed has really ended.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Of a transaction whose COMMIT got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    NotCommitted,
}

/// Who was lost.
pub(super) struct Former {
    pub(super) writer: kopek_core::part::RoutedWriter,
    pub(super) thread: u32,
}

impl Session {
    /// Does the open transaction once more on the backend that was just attached. False: the backend was lost
    /// again.
    pub(super) async fn repeat_transaction(&mut self) -> Result<bool, End> {
        let Session { backend, carry, transaction, site, .. } = self;
        let Some(backend) = backend else { return Ok(false) };
        let mut is_pinned = false;
        for (number, done) in transaction.done().iter().enumerate() {
            let addressed = carry.addressed(&done.packet);
            let packet = addressed.as_deref().unwrap_or(&done.packet);
            let is_first = number == 0;
            match repeat_one(backend, packet, done, is_first).await {
                Ok(true) => is_pinned |= !is_first,
                Ok(false) => {
                    info!(%site, statement = number + 1, "a transaction went another way when it was repeated");
                    return Err(End::RolledBack);
                }
                Err(error) => {
                    debug!(%site, %error, "a backend was lost in a repetition");
                    return Ok(false);
                }
            }
        }
        if is_pinned && backend.query("SET timestamp=DEFAULT").await.is_err() {
            return Ok(false);
        }
        info!(%site, statements = transaction.done().len(), server = %backend.writer.server, "transaction repeated");
        self.metered.meter.count(|counts| counts.repeated_transactions += 1);
        Ok(true)
    }

    /// What became of the transaction with this token, by the word of the next writer.
    pub(super) async fn fate_of(&mut self, token: Token, former: &Former) -> Result<Fate, End> {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            let found = timeout_at(deadline, self.find()).await;
            let mut backend = found.unwrap_or(Err(End::NoWriter)).map_err(|end| End::Lost {
                why: format!("whether its COMMIT took place could not be asked: {end}"),
            })?;
            let writer = backend.writer.clone();
            let relieved = super::relieved_for_good(self.sites.part(), &self.site, &writer);
            let answer = tokio::select! {
                answer = ask(&mut backend, token, former) => answer,
                () = relieved => Err(std::io::ErrorKind::TimedOut.into()),
            };
            match answer {
                Ok(fate) => {
                    info!(site = %self.site, ?fate, server = %backend.writer.server, "the fate of a commit is known");
                    self.sites.warm.give_back(&self.site, backend, crate::warm::Left::Usual);
                    return Ok(fate);
                }
                Err(error) => {
                    debug!(site = %self.site, %error, "asking for a commit's fate failed; trying on")
                }
            }
            sleep(RETRY_AFTER).await;
        }
    }
}

/// Whether the answer was the one that the client has seen.
async fn repeat_one(
    backend: &mut Backend,
    packet: &[u8],
    done: &Done,
    is_first: bool,
) -> std::io::Result<bool> {
    // The first one opens the transaction and has no time.
    if !is_first {
        backend.query(&pinned(done)).await?;
    }
    backend.wire.send(packet).await?;
    let (answer, _) = backend.read_whole(Expected::of(packet[HEADER]), ANSWER_MAX).await?;
    Ok(answer.len() as u64 == done.seen.bytes && blake3::hash(&answer) == done.seen.hash)
}

async fn ask(backend: &mut Backend, token: Token, former: &Former) -> std::io::Result<Fate> {
    // The same member in the same life: its session of before may still be about to commit.
    if is_same(&backend.writer, &former.writer) && backend.thread > former.thread {
        end_session(backend, former.thread).await?;
    }
    let said = backend.query(&token.ask()).await?;
    match said.error {
        None if said.rows > 0 => Ok(Fate::Committed),
        None => Ok(Fate::NotCommitted),
        Some(code) => Err(std::io::Error::other(format!("the member answers with error {code}"))),
    }
}

async fn end_session(backend: &mut Backend, thread: u32) -> std::io::Result<()> {
    let kill = command_packet(command::QUERY, format!("KILL CONNECTION {thread}").as_bytes());
    // An error says that it has ended already.
    backend.run(&kill, Expected::Results).await?;
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let look = format!("SELECT 1 FROM information_schema.processlist WHERE id={thread}");
        if backend.query(&look).await?.rows == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// An OK or the end of rows with these status bits cleared: what a transaction of ours shows and a statement
/// alone would not.
pub(crate) fn without_status(answer: &mut BytesMut, cleared: u16) {
    let mut at = 0;
    let mut last = None;
    while let Some((length, _)) = crate::packet::header(&answer[at..]) {
        last = Some((at + HEADER, length));
        at += HEADER + length;
        if at >= answer.len() {
            break;
        }
    }
    let Some((start, length)) = last else { return };
    let Some(payload) = answer.get_mut(start..start + length) else { return };
    let lenenc = |at: usize| match payload.get(at) {
        Some(0xfc) => 3,
        Some(0xfd) => 4,
        Some(0xfe) => 9,
        _ => 1,
    };
    let status = match payload.first() {
        Some(0xfe) if length < 6 => 3,
        Some(0x00 | 0xfe) => {
            let after_affected = 1 + lenenc(1);
            after_affected + lenenc(after_affected)
        }
        _ => return,
    };
    if let Some(bytes) = payload.get_mut(status..status + 2) {
        let value = u16::from_le_bytes([bytes[0], bytes[1]]) & !cleared;
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::put_packet;

    #[test]
    fn a_status_is_cleared_where_it_stands() {
        for (payload, at) in [
            (&[0u8, 1, 0, 3, 0, 0, 0][..], 3),
            (&[0, 0xfc, 0, 1, 0xfd, 1, 1, 1, 3, 0, 0, 0], 8),
            (&[0xfe, 0, 0, 3, 0], 3),
            (&[0xfe, 0, 0, 3, 0, 0, 0], 3),
        ] {
            let mut answer = BytesMut::new();
            put_packet(&mut answer, 1, &[b"before"]);
            put_packet(&mut answer, 2, &[payload]);
            let mut expected = answer.clone();
            let from = expected.len() - payload.len() + at;
            expected[from] = 2;
            without_status(&mut answer, 1);
            assert_eq!(answer, expected);
        }
    }
}
