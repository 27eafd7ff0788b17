//! A client's login: greeting, TLS if it asks for it, its proof. The site's own account is known here, and its
//! login is answered without asking anybody; any other account is the member's to judge. Called by `session`.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kopek_core::desired::Database;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::backend::{Backend, HANDSHAKE_MAX};
use crate::caps::Caps;
use crate::compress::{Compressed, Method};
use crate::handshake::{
    Facts, Greeting, LOGIN_FIXED, Login, NATIVE, SHA2, new_nonce, parse_switch, proves, switch_payload,
};
use crate::packet::{ServerError, command, command_packet, ok_status, put_packet};
use crate::wire::{Resumed, Wire};

/// `connect_timeout` of MariaDB.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("the client broke off")]
    Broken(#[from] io::Error),
    #[error("the client did not log in within {} s", LOGIN_LIMIT.as_secs())]
    Late,
    #[error("the client does not speak the protocol")]
    Odd,
    #[error("the site has as many connections as it may have")]
    TooMany,
    #[error("access denied for {user:?}")]
    Denied { user: String },
    #[error("the member turns {user:?} away with error {code}")]
    TurnedAway { user: String, code: u16 },
}

/// A client that has said who it is.
pub(crate) struct Arrived {
    pub(crate) wire: Wire,
    pub(crate) login: Login,
    /// Number of the next packet to it.
    pub(crate) sequence: u8,
    pub(crate) nonce: [u8; crate::handshake::NONCE],
}

/// Greets a client in the name of its member and hears who it is.
pub(crate) async fn greet(
    mut wire: Wire,
    facts: &Facts,
    thread: u32,
    tls: &TlsAcceptor,
) -> Result<Arrived, LoginError> {
    let greeting = async {
        let nonce = new_nonce();
        let facts = Facts { caps: offered(facts.caps), ..facts.clone() };
        send(&mut wire, 0, &Greeting { facts: facts.clone(), thread, nonce }.payload()).await?;
        let (mut sequence, mut payload) = match wire.packet(HANDSHAKE_MAX).await {
            // Longer than any login.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                wire.send(&bad_handshake().packet(2)).await?;
                return Err(LoginError::Odd);
            }
            packet => packet?,
        };
        if payload.len() == LOGIN_FIXED
            && Caps(u64::from(payload[0]) | u64::from(payload[1]) << 8).has(Caps::SSL)
        {
            let (stream, first) = wire.into_parts();
            let tls = tls.accept(Resumed::new(first, stream)).await?;
            wire = Wire::new(tls);
            (sequence, payload) = wire.packet(HANDSHAKE_MAX).await?;
        }
        let Some(mut login) = Login::parse(&payload) else {
            wire.send(&bad_handshake().packet(sequence.wrapping_add(1))).await?;
            return Err(LoginError::Odd);
        };
        // What we did not offer nobody can use.
        login.caps = Caps(login.caps.0 & (facts.caps.0 | Caps::OURS.0));
        Ok(Arrived { wire, login, sequence: sequence.wrapping_add(1), nonce })
    };
    timeout(LOGIN_LIMIT, greeting).await.map_err(|_| LoginError::Late)?
}

/// MySQL's words for what is no login.
fn bad_handshake() -> ServerError {
    ServerError::new(1043, b"08S01", "Bad handshake")
}

/// A member's capabilities without those that we do not pass on, and with those that are ours.
fn offered(member: Caps) -> Caps {
    let ours = Caps::CONNECT_WITH_DB
        | Caps::COMPRESS
        | Caps::ZSTD
        | Caps::SSL
        | Caps::SECURE_CONNECTION
        | Caps::PLUGIN_AUTH
        | Caps::CONNECT_ATTRS
        | Caps::PLUGIN_AUTH_LENENC;
    Caps((member.0 & Caps::SHAPING.0) | ours.0)
}

impl Arrived {
    /// Whether the client knows the account's password. One that answered by another plugin is asked again.
    pub(crate) async fn is_proved(&mut self, account: &Database) -> Result<bool, LoginError> {
        if self.login.plugin != NATIVE && self.login.plugin != SHA2 {
            let proof = self.ask_again(NATIVE, &self.nonce.clone()).await?;
            self.login.proof = proof;
            self.login.plugin = Bytes::from_static(NATIVE);
        }
        let proved = proves(&self.login.plugin, &self.login.proof, &account.password, &self.nonce);
        if proved && self.login.plugin == SHA2 && !account.password.is_empty() {
            // "Fast authentication success"; an OK packet follows.
            self.send(&[1, 3]).await?;
        }
        Ok(proved)
    }

    async fn ask_again(&mut self, plugin: &[u8], nonce: &[u8]) -> Result<Bytes, LoginError> {
        self.send(&switch_payload(plugin, nonce)).await?;
        self.hear().await
    }

    async fn hear(&mut self) -> Result<Bytes, LoginError> {
        let packet = timeout(LOGIN_LIMIT, self.wire.packet(HANDSHAKE_MAX)).await;
        let (sequence, payload) = packet.map_err(|_| LoginError::Late)??;
        self.sequence = sequence.wrapping_add(1);
        Ok(payload.freeze())
    }

    pub(crate) async fn send(&mut self, payload: &[u8]) -> Result<(), LoginError> {
        send(&mut self.wire, self.sequence, payload).await?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    pub(crate) async fn refuse(&mut self, error: &ServerError) -> Result<(), LoginError> {
        self.wire.send(&error.packet(self.sequence)).await?;
        Ok(())
    }

    /// Tells it why the member takes nobody, and gives what is to be logged.
    pub(crate) async fn turned_away(&mut self, error: &ServerError) -> Result<LoginError, LoginError> {
        self.refuse(error).await?;
        let user = String::from_utf8_lossy(&self.login.user).into_owned();
        Ok(LoginError::TurnedAway { user, code: error.code })
    }

    /// Lets the member itself judge who this is. It asks by the account's own plugin, with a nonce of its own.
    pub(crate) async fn relay_to(&mut self, member: &mut Backend) -> Result<(), LoginError> {
        let login = Login { caps: self.login.caps & member.facts.caps, ..self.without_proof() };
        member.send(1, &login.payload()).await?;
        member.shape.caps = login.caps & Caps::SHAPING;
        self.relay_judgement(member).await
    }

    /// The same in the middle of a connection: COM_CHANGE_USER.
    pub(crate) async fn relay_change_to(&mut self, member: &mut Backend) -> Result<(), LoginError> {
        let packet = command_packet(command::CHANGE_USER, &self.without_proof().change_payload());
        member.wire.send(&packet).await?;
        self.relay_judgement(member).await
    }

    /// By a plugin that no account has: so the member asks for what it wants to see.
    fn without_proof(&self) -> Login {
        Login { proof: Bytes::new(), plugin: Bytes::from_static(b"kopek_relay"), ..self.login.clone() }
    }

    /// Until the member has said yes or no.
    pub(crate) async fn relay_judgement(&mut self, member: &mut Backend) -> Result<(), LoginError> {
        loop {
            let (sequence, payload) = member.wire.packet(HANDSHAKE_MAX).await?;
            if let Some((_, nonce)) = parse_switch(&payload)
                && let Ok(nonce) = (&nonce[..]).try_into()
            {
                // The last one that a client was shown is the one that it uses in COM_CHANGE_USER.
                self.nonce = nonce;
            }
            self.send(&payload).await?;
            match payload.first() {
                Some(0x00) => {
                    member.status = ok_status(&payload).unwrap_or(member.status);
                    return Ok(());
                }
                Some(0xff) => {
                    let user = String::from_utf8_lossy(&self.login.user).into_owned();
                    return Err(LoginError::Denied { user });
                }
                _ => {
                    let answer = self.hear().await?;
                    member.send(sequence.wrapping_add(1), &answer).await?;
                }
            }
        }
    }

    /// From the first command on both sides speak compressed, if they agreed on it.
    pub(crate) fn compressed(self) -> (Wire, Login) {
        let Arrived { wire, login, .. } = self;
        let method = if login.caps.has(Caps::ZSTD) && !login.caps.has(Caps::COMPRESS) {
            Method::Zstd { level: i32::from(login.zstd_level.unwrap_or(3)) }
        } else if login.caps.has(Caps::COMPRESS) {
            Method::Zlib
        } else {
            return (wire, login);
        };
        let (stream, first) = wire.into_parts();
        (Wire::new(Compressed::new(Resumed::new(first, stream), method)), login)
    }
}

async fn send(wire: &mut Wire, sequence: u8, payload: &[u8]) -> io::Result<()> {
    let mut out = BytesMut::new();
    put_packet(&mut out, sequence, &[payload]);
    wire.send(&out).await
}
