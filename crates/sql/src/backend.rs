//! A connection of a site to its writer, logged in: to this server's member, or through the `sql` of the
//! writer's server. Called by `warm` and `session`.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kopek_core::SiteName;
use kopek_core::desired::Database;
use kopek_core::part::RoutedWriter;
use kopek_link::{Identity, Preamble, dial_stream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::Following;
use crate::answer::{Answer, Expected, Next, Said};
use crate::caps::{Caps, Status};
use crate::fence::{Entered, Fences};
use crate::handshake::{Facts, Greeting, Login, NATIVE, NONCE, native_proof, parse_switch};
use crate::lease::Lease;
use crate::member::{Reach, join};
use crate::packet::{ServerError, command, command_packet, ok_status, put_packet};
use crate::relay::notice_dead_peers;
use crate::threads::Threads;
use crate::turn::Turns;
use crate::wire::Wire;
use crate::writer;

/// A writer that answers does so in milliseconds; one that does not may already be replaced.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// Of packets before the first command: longer than any greeting, error or attribute list.
pub(crate) const HANDSHAKE_MAX: usize = 64 * 1024;

/// What a connection agreed on when it began, and what it is reset to. Two clients with the same shape can use
/// the same backend one after the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) caps: Caps,
    pub(crate) collation: u16,
    pub(crate) schema: Option<Bytes>,
}

impl Shape {
    pub(crate) fn of(login: &Login) -> Shape {
        Shape { caps: login.caps & Caps::SHAPING, collation: login.collation, schema: login.schema.clone() }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Unreachable(String),
    #[error("the connection to the writer broke")]
    Broken(#[from] io::Error),
    #[error("the writer does not answer within {} s", OPEN_LIMIT.as_secs())]
    Late,
    #[error("the writer sent what is no {0}")]
    Odd(&'static str),
    #[error("the writer refuses: {}", .0.text)]
    Refused(ServerError),
}

pub(crate) struct Backend {
    pub(crate) wire: Wire,
    pub(crate) writer: RoutedWriter,
    pub(crate) facts: Rc<Facts>,
    /// The member's number of this connection: CONNECTION_ID().
    pub(crate) thread: u32,
    pub(crate) shape: Shape,
    /// As its login ended: whether new sessions commit by themselves is a setting of the member's.
    pub(crate) status: Status,
    pub(crate) greeted_at: Instant,
    /// Its site's set of waiting ones as it was when this one was last made as new, see `warm`.
    pub(crate) generation: u64,
    nonce: [u8; NONCE],
    /// Where the writer is on this server.
    entered: Option<Entered>,
}

/// What is needed to reach writers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ways {
    pub(crate) identity: Identity,
    pub(crate) part: Following,
    pub(crate) fences: Fences,
    pub(crate) lease: Lease,
    pub(crate) reach: Reach,
    /// For clients that want TLS on their own connection.
    pub(crate) tls: TlsAcceptor,
    pub(crate) threads: Threads,
    pub(crate) turns: Turns,
}

impl Backend {
    /// A session that is as new.
    pub(crate) async fn open(
        ways: &Ways,
        site: &SiteName,
        writer: &RoutedWriter,
        account: &Database,
        shape: &Shape,
    ) -> Result<Backend, OpenError> {
        let opening = async {
            let mut backend = Backend::greeted(ways, site, writer).await?;
            let login = backend.login_of(account, shape);
            backend.send(1, &login.payload()).await?;
            backend.finish_login(account).await?;
            backend.shape = shape.clone();
            Ok(backend)
        };
        timeout(OPEN_LIMIT, opening).await.unwrap_or(Err(OpenError::Late))
    }

    /// A connection whose greeting was read, and nobody has logged in.
    pub(crate) async fn greeted(
        ways: &Ways,
        site: &SiteName,
        writer: &RoutedWriter,
    ) -> Result<Backend, OpenError> {
        let is_here = ways.part.borrow().as_ref().is_some_and(|part| part.server == writer.server);
        let (mut wire, entered) = if is_here {
            let joined = join(ways, site, writer.epoch).await;
            let joined = joined.map_err(OpenError::Unreachable)?;
            (Wire::new(joined.stream), Some(joined.entered))
        } else {
            let want = Preamble::Sql { site: site.clone(), epoch: writer.epoch };
            let stream = dial_stream(&ways.identity, writer.relay, &want, OPEN_LIMIT)
                .await
                .map_err(|error| OpenError::Unreachable(error.to_string()))?;
            notice_dead_peers(stream.get_ref().0)?;
            (Wire::new(stream), None)
        };
        let (_, payload) = wire.packet(HANDSHAKE_MAX).await?;
        let Some(greeting) = Greeting::parse(&payload) else {
            return Err(ServerError::parse(&payload).map_or(OpenError::Odd("greeting"), OpenError::Refused));
        };
        let Greeting { facts, thread, nonce } = greeting;
        let (writer, status, facts) = (writer.clone(), facts.status, Rc::new(facts));
        let shape = Shape { caps: Caps(0), collation: 0, schema: None };
        let greeted_at = Instant::now();
        Ok(Backend { wire, writer, facts, thread, shape, status, greeted_at, generation: 0, nonce, entered })
    }

    /// How the account says who it is, at the beginning and in COM_CHANGE_USER.
    fn login_of(&self, account: &Database, shape: &Shape) -> Login {
        Login {
            caps: shape.caps & self.facts.caps,
            // No answer is held back for its size; the member's own `max_allowed_packet` limits statements.
            max_packet: 1 << 30,
            collation: shape.collation,
            user: Bytes::copy_from_slice(account.user.as_bytes()),
            proof: native_proof(&account.password, &self.nonce),
            schema: shape.schema.clone(),
            plugin: Bytes::from_static(NATIVE),
            zstd_level: None,
        }
    }

    /// Reads the member's answer to a login.
    async fn finish_login(&mut self, account: &Database) -> Result<(), OpenError> {
        loop {
            let (sequence, payload) = self.wire.packet(HANDSHAKE_MAX).await?;
            match payload.first() {
                Some(0x00) => {
                    self.status = ok_status(&payload).unwrap_or(self.status);
                    return Ok(());
                }
                Some(0xfe) => {
                    let (plugin, nonce) = parse_switch(&payload).ok_or(OpenError::Odd("switch"))?;
                    if plugin != NATIVE {
                        return Err(OpenError::Odd("known way to log in"));
                    }
                    self.send(sequence.wrapping_add(1), &native_proof(&account.password, &nonce)).await?;
                }
                _ => {
                    let refused = ServerError::parse(&payload);
                    return Err(refused.map_or(OpenError::Odd("answer to a login"), OpenError::Refused));
                }
            }
        }
    }

    /// As new again, with another shape's schema and collation; the capabilities cannot change.
    pub(crate) async fn change_user(&mut self, account: &Database, shape: &Shape) -> Result<(), OpenError> {
        let login = self.login_of(account, shape);
        let changing = async {
            let packet = command_packet(command::CHANGE_USER, &login.change_payload());
            self.wire.send(&packet).await?;
            self.finish_login(account).await?;
            self.shape = shape.clone();
            Ok(())
        };
        timeout(OPEN_LIMIT, changing).await.unwrap_or(Err(OpenError::Late))
    }

    /// As new again; the schema stays (COM_RESET_CONNECTION keeps it).
    pub(crate) async fn reset(&mut self) -> Result<(), OpenError> {
        let resetting = async {
            let said = self.run(&command_packet(command::RESET_CONNECTION, b""), Expected::Single).await?;
            match said.error {
                None => Ok(()),
                Some(_) => Err(OpenError::Odd("answer to a reset")),
            }
        };
        timeout(OPEN_LIMIT, resetting).await.unwrap_or(Err(OpenError::Late))
    }

    pub(crate) async fn send(&mut self, sequence: u8, payload: &[u8]) -> io::Result<()> {
        let mut out = BytesMut::new();
        put_packet(&mut out, sequence, &[payload]);
        self.wire.send(&out).await
    }

    /// Sends one command of ours and passes over its answer.
    pub(crate) async fn run(&mut self, packet: &[u8], expected: Expected) -> io::Result<Said> {
        self.wire.send(packet).await?;
        self.pass_over(expected).await
    }

    pub(crate) async fn query(&mut self, statement: &str) -> io::Result<Said> {
        self.run(&command_packet(command::QUERY, statement.as_bytes()), Expected::Results).await
    }

    /// Reads an answer that nobody is to see.
    pub(crate) async fn pass_over(&mut self, expected: Expected) -> io::Result<Said> {
        let mut answer = Answer::new(expected, self.shape.caps);
        loop {
            let (count, next) = answer.take(&self.wire.input);
            self.wire.input.advance(count);
            match next {
                Next::Done => return Ok(*answer.said()),
                Next::WantsFile => {
                    // Nothing of ours has a file: an empty one.
                    self.send(answer.sequence().wrapping_add(1), b"").await?;
                }
                Next::More => {
                    if self.wire.fill().await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    /// Reads an answer and keeps it.
    pub(crate) async fn read_whole(
        &mut self,
        expected: Expected,
        max: usize,
    ) -> io::Result<(BytesMut, Said)> {
        let mut answer = Answer::new(expected, self.shape.caps);
        let mut whole = BytesMut::new();
        loop {
            let (count, next) = answer.take(&self.wire.input);
            whole.extend_from_slice(&self.wire.input[..count]);
            self.wire.input.advance(count);
            if next == Next::Done {
                return Ok((whole, *answer.said()));
            }
            if whole.len() > max {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that is too long to keep"));
            }
            if self.wire.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Whether the member is of this server, whose lease it then depends on.
    pub(crate) fn is_leased(&self, ways: &Ways) -> bool {
        self.entered.is_some() && matches!(ways.reach, Reach::Cell)
    }

    /// Whether its epoch was closed on this server.
    pub(crate) fn is_closed(&self) -> bool {
        self.entered.as_ref().is_some_and(Entered::is_closed)
    }

    /// Its connection, and a wait that ends when its writer is the site's writer no more.
    pub(crate) fn split<'a>(
        &'a mut self,
        part: Following,
        site: &'a SiteName,
    ) -> (&'a mut Wire, impl Future<Output = ()> + 'a) {
        let Backend { wire, writer, entered, .. } = self;
        let relieved = async move {
            let closed = async {
                match entered {
                    Some(entered) => entered.closed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = writer::changed_from(part, site, writer) => (),
                () = closed => (),
            }
        };
        (wire, relieved)
    }
}
