//! One try at a command: its answer on the way from the member to the client. Called by `execute`.
//!
//! Promise: the client never sees bytes of two different answers to one command. What it has seen of an answer
//! is hashed; a repetition passes those bytes over if they are the same, and ends the session if not.

use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;

use blake3::Hasher;
use bytes::{Buf, BytesMut};
use tokio::time::{Instant, sleep};

use super::interrupt::{Interrupt, TOO_LONG, tell_too_long};
use super::{CLIENT_STALL, End, GRACE, Session, until};
use crate::answer::{Answer, Expected, Next, Said};
use crate::caps::{Caps, Status};
use crate::inbox;
use crate::transaction::Seen;
use crate::wire::Wire;
use crate::writer::writer_of;

/// Held back at most; an answer to a write is some bytes, but for RETURNING.
const HELD_MAX: usize = 1 << 20;

/// Of further commands that a client sends before it has the answer; the rest waits in its socket.
const AHEAD_MAX: usize = 64 << 10;

/// A member that cannot prove to be in its group is usually relieved in a second; but a change of a big table keeps
/// it, and all others, from proving it as long as it takes.
const HELD_BACK_MAX: Duration = Duration::from_secs(60);

/// How a try ended.
pub(super) enum Ending {
    /// The client has the whole answer.
    Answered(Said),
    /// The client has seen nothing of it.
    Withheld { answer: BytesMut, said: Said },
    /// The member is gone, or is the site's writer no more.
    Lost,
    /// The member has ended the connection while it had the command.
    Broke,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Withhold {
    /// Only an error after which another try may succeed.
    Passing,
    /// The whole answer, if it is not too long.
    All,
}

/// What the client has seen of the answer to the current command.
#[derive(Default)]
pub(super) struct Shown {
    bytes: u64,
    hasher: Hasher,
    /// In a repetition: what has to be the same, as long as it was not reached.
    must: Option<Seen>,
    /// Its last bytes went out unhashed: nothing will be compared with them.
    is_forgotten: bool,
}

/// What an answer's last bytes are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// The answer goes on, or its transaction may be repeated.
    Kept,
    /// The answer is whole and stands alone.
    Needless,
}

impl Shown {
    pub(super) fn seen(&self) -> Seen {
        assert!(!self.is_forgotten, "an answer that stood alone is not kept for a repetition");
        Seen { bytes: self.bytes, hash: self.hasher.finalize() }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.bytes == 0 && self.must.is_none()
    }

    /// For the next try: its first bytes have to be those that were shown.
    pub(super) fn again(&mut self) {
        let seen = self.must.unwrap_or_else(|| self.seen());
        *self = Shown { must: (seen.bytes > 0).then_some(seen), ..Shown::default() };
    }

    /// Shows bytes to the client, but for those that it has seen.
    async fn show(&mut self, client: &mut Wire, bytes: &[u8], memory: Memory) -> Result<(), End> {
        let mut new = bytes;
        if let Some(must) = self.must {
            let left = usize::try_from(must.bytes - self.bytes).unwrap_or(usize::MAX);
            let (known, rest) = bytes.split_at(left.min(bytes.len()));
            self.hasher.update(known);
            self.bytes += known.len() as u64;
            new = rest;
            if self.bytes == must.bytes {
                if self.hasher.finalize() != must.hash {
                    return Err(End::Lost { why: "what the client had seen is different now".to_owned() });
                }
                self.must = None;
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        match memory {
            Memory::Kept => drop(self.hasher.update(new)),
            Memory::Needless => self.is_forgotten = true,
        }
        self.bytes += new.len() as u64;
        client.send_within(CLIENT_STALL, new).await.map_err(|_| End::Stalled)??;
        Ok(())
    }
}

/// Errors after which the whole transaction is gone at the member and may succeed when it is done again:
/// deadlock, also as the word for a write-set that failed certification.
pub(super) fn is_passing(code: u16) -> bool {
    code == 1213
}

/// Errors of a member that serves nobody any more: no primary component (1047), shutting down (1053), a commit
/// that the group did not take (1180), connection killed by the provider's end (1927 comes with KILL too and is
/// none of them).
pub(super) fn is_leaving(code: u16) -> bool {
    matches!(code, 1047 | 1053 | 1180)
}

/// Errors by which a member refuses an account or its schema. Others are about the member's own state, such as too
/// many connections (1040), and no other way to log in helps.
pub(super) fn is_of_account(code: u16) -> bool {
    // Denied for the schema, denied, unknown schema, host not allowed, denied without a password.
    matches!(code, 1044 | 1045 | 1049 | 1130 | 1698)
}

impl Session {
    /// Of the site's own statements; another account's could not be interrupted by the site's.
    fn longest_query(&self, expected: Expected) -> Option<Duration> {
        let limit = self.metered.meter.limits().longest_query_ms.map(Duration::from_millis);
        let is_statement = matches!(expected, Expected::Results | Expected::ResultsOrCursor);
        limit.filter(|_| is_statement && !self.is_foreign)
    }

    /// Passes one answer from the member on. Nothing is read ahead of it. A statement whose connection was killed
    /// is no lost one: it must not be repeated.
    pub(super) async fn pass_answer(
        &mut self,
        expected: Expected,
        withhold: Withhold,
        shown: &mut Shown,
    ) -> Result<Ending, End> {
        if let Some(ending) = self.pass_unless_closed(expected, withhold, shown).await? {
            return Ok(ending);
        }
        match self.backend.take() {
            Some(old) if self.lives_on_without(&old).await => Err(End::ClosedByMember),
            _ => Ok(Ending::Broke),
        }
    }

    /// `None`: the member closed the connection in good order. (Through the relay of another server's `sql`, TLS
    /// tells that from a relay that died.)
    async fn pass_unless_closed(
        &mut self,
        expected: Expected,
        withhold: Withhold,
        shown: &mut Shown,
    ) -> Result<Option<Ending>, End> {
        let part = self.sites.part();
        let longest = self.longest_query(expected);
        let Session { client, backend, site, sites, metered, login, .. } = self;
        let Some(backend) = backend else { return Ok(Some(Ending::Lost)) };
        // What is read from a compressing client numbers our next frames.
        let watches_client = !login.caps.has(Caps::COMPRESS) && !login.caps.has(Caps::ZSTD);
        let mut interrupt = Interrupt::new(longest, backend);
        let mut answer = Answer::new(expected, backend.shape.caps);
        let was = (backend.writer.server.clone(), backend.writer.epoch);
        let lease = backend.is_leased(&sites.ways).then(|| sites.ways.lease.clone());
        let (member, relieved) = backend.split(part.clone(), site);
        let mut relieved = pin!(relieved);
        let mut leave_at: Option<Instant> = None;
        let mut held = BytesMut::new();
        let mut holds = withhold == Withhold::All;
        let mut held_begins = 0;
        loop {
            if held.is_empty() {
                held_begins = answer.passing();
            }
            let (count, next) = answer.take(&member.input);
            let passing_error = next == Next::Done
                && shown.is_nothing()
                && answer.said().error.is_some_and(|code| is_passing(code) || is_leaving(code));
            // What says that the member leaves its group is not shown, and needs no proof that it is in it.
            if count > 0
                && !passing_error
                && let Some(lease) = &lease
                && !lease.is_valid()
            {
                tokio::select! {
                    () = lease.valid() => {}
                    () = &mut relieved, if leave_at.is_none() => return Ok(Some(Ending::Lost)),
                    () = sleep(HELD_BACK_MAX) => return Ok(Some(Ending::Lost)),
                }
            }
            let stands_alone = next == Next::Done
                && answer.said().status.is_some_and(|status| !status.has(Status::IN_TRANSACTION));
            let memory = if stands_alone { Memory::Needless } else { Memory::Kept };
            if (holds || interrupt.was_sent()) && held.len() + count > HELD_MAX {
                holds = false;
                shown.show(client, &held, Memory::Kept).await?;
                held.clear();
            }
            if holds || passing_error || interrupt.was_sent() {
                held.extend_from_slice(&member.input[..count]);
            } else if count > 0 {
                shown.show(client, &member.input[..count], memory).await?;
            }
            member.input.advance(count);
            let mut said = *answer.said();
            if next == Next::Done && interrupt.was_sent() {
                interrupt.settled().await;
                if tell_too_long(&mut held, held_begins) {
                    said.error = Some(TOO_LONG);
                    metered.meter.count(|counts| counts.interrupted_statements += 1);
                }
                if !holds && !passing_error {
                    shown.show(client, &held, Memory::Kept).await?;
                }
            }
            match next {
                Next::Done if holds || passing_error => {
                    return Ok(Some(Ending::Withheld { answer: held, said }));
                }
                Next::Done => return Ok(Some(Ending::Answered(said))),
                Next::WantsFile => {
                    if inbox::pass_file(client, member, answer.sequence()).await? != inbox::Passed::Whole {
                        return Ok(Some(Ending::Lost));
                    }
                    continue;
                }
                Next::More => {}
            }
            tokio::select! {
                biased;
                read = member.fill() => match read {
                    Ok(0) => return Ok(None),
                    Err(_) => return Ok(Some(Ending::Broke)),
                    Ok(_) => {}
                },
                // Who leaves takes the statement along, as the member would notice by itself (in SLEEP(), GET_LOCK()).
                // A write of which we hold the answer is finished: it would be rolled back without our COMMIT.
                read = client.fill(), if watches_client && !holds && client.input.len() < AHEAD_MAX => match read {
                    Ok(0) => return Err(End::Client(ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {}
                    Err(error) => return Err(End::Client(error)),
                },
                () = &mut relieved, if leave_at.is_none() => {
                    // A former writer that lives may finish what it does.
                    let now = writer_of(&part.borrow(), site).and_then(|writer| writer.former.clone());
                    if now.is_none_or(|former| (former.server, former.epoch) != was) {
                        return Ok(Some(Ending::Lost));
                    }
                    leave_at = Some(Instant::now() + GRACE);
                }
                () = until(leave_at), if leave_at.is_some() => return Ok(Some(Ending::Lost)),
                () = interrupt.due(), if interrupt.waits() => interrupt.send(&sites.warm, site),
            }
        }
    }
}
