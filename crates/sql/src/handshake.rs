//! The packets that begin a connection: a server's greeting, a client's answer, and passwords. Written by hand
//! but for the password hashes: `mysql_common`'s types drop capabilities that they do not know and attributes'
//! order, and a relay must not. Source: MariaDB's "Connecting" and MySQL's "Connection Phase" pages.

use bytes::{BufMut, Bytes, BytesMut};
use mysql_common::scramble::{scramble_native, scramble_sha256};

use crate::caps::{Caps, Status};
use crate::packet::{Reader, put_lenenc};

pub(crate) const NATIVE: &[u8] = b"mysql_native_password";
pub(crate) const SHA2: &[u8] = b"caching_sha2_password";
/// Random bytes that a password's hash is mixed with.
pub(crate) const NONCE: usize = 20;

/// What every connection of a member's says at its start, the same each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) version: Bytes,
    pub(crate) caps: Caps,
    pub(crate) collation: u8,
    pub(crate) status: Status,
}

/// A greeting ("Initial Handshake Packet", protocol version 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) facts: Facts,
    pub(crate) thread: u32,
    pub(crate) nonce: [u8; NONCE],
}

impl Greeting {
    pub(crate) fn parse(payload: &[u8]) -> Option<Greeting> {
        let mut rest = Reader::new(payload);
        (rest.u8()? == 10).then_some(())?;
        let version = Bytes::copy_from_slice(rest.zero_ended());
        let thread = rest.u32()?;
        let mut nonce = [0; NONCE];
        nonce[..8].copy_from_slice(rest.take(8)?);
        rest.u8()?;
        let low = rest.u16()?;
        let collation = rest.u8()?;
        let status = Status(rest.u16()?);
        let high = rest.u16()?;
        rest.take(1 + 6)?;
        let extended = rest.u32()?;
        nonce[8..].copy_from_slice(rest.take(12)?);
        let mysql = u64::from(low) | u64::from(high) << 16;
        let extended = if Caps(mysql).has(Caps::MYSQL) { 0 } else { u64::from(extended) << 32 };
        let facts = Facts { version, caps: Caps(mysql | extended), collation, status };
        Some(Greeting { facts, thread, nonce })
    }

    pub(crate) fn payload(&self) -> BytesMut {
        let Facts { version, caps, collation, status } = &self.facts;
        let mut out = BytesMut::with_capacity(128);
        out.put_u8(10);
        out.put_slice(version);
        out.put_u8(0);
        out.put_u32_le(self.thread);
        out.put_slice(&self.nonce[..8]);
        out.put_u8(0);
        out.put_u16_le(caps.0 as u16);
        out.put_u8(*collation);
        out.put_u16_le(status.0);
        out.put_u16_le((caps.0 >> 16) as u16);
        out.put_u8(NONCE as u8 + 1);
        out.put_bytes(0, 6);
        out.put_u32_le((caps.0 >> 32) as u32);
        out.put_slice(&self.nonce[8..]);
        out.put_u8(0);
        out.put_slice(NATIVE);
        out.put_u8(0);
        out
    }
}

/// A client's answer to a greeting ("Handshake Response Packet"), or what it says in COM_CHANGE_USER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) caps: Caps,
    pub(crate) max_packet: u32,
    pub(crate) collation: u16,
    pub(crate) user: Bytes,
    /// The answer to the nonce by `plugin`'s rule.
    pub(crate) proof: Bytes,
    pub(crate) schema: Option<Bytes>,
    pub(crate) plugin: Bytes,
    pub(crate) zstd_level: Option<u8>,
}

/// Its fixed first part; all of it when the client asks for TLS first ("SSLRequest").
pub(crate) const LOGIN_FIXED: usize = 32;

impl Login {
    /// `None` for what no client of the last 20 years sends.
    pub(crate) fn parse(payload: &[u8]) -> Option<Login> {
        let mut rest = Reader::new(payload);
        let mysql = u64::from(rest.u32()?);
        let max_packet = rest.u32()?;
        let collation = u16::from(rest.u8()?);
        rest.take(19)?;
        let extended = rest.u32()?;
        let extended = if Caps(mysql).has(Caps::MYSQL) { 0 } else { u64::from(extended) << 32 };
        let caps = Caps(mysql | extended);
        caps.has(Caps::PROTOCOL_41).then_some(())?;
        let user = rest.zero_ended();
        let proof = if caps.has(Caps::PLUGIN_AUTH_LENENC) {
            rest.lenenc_bytes()?
        } else if caps.has(Caps::SECURE_CONNECTION) {
            let length = usize::from(rest.u8()?);
            rest.take(length)?
        } else {
            rest.zero_ended()
        };
        let schema = if caps.has(Caps::CONNECT_WITH_DB) { Some(rest.zero_ended()) } else { None };
        let plugin = if caps.has(Caps::PLUGIN_AUTH) { rest.zero_ended() } else { NATIVE };
        if caps.has(Caps::CONNECT_ATTRS) {
            rest.lenenc_bytes();
        }
        let zstd_level = if caps.has(Caps::ZSTD) { rest.u8() } else { None };
        let copy = Bytes::copy_from_slice;
        Some(Login {
            caps,
            max_packet,
            collation,
            user: copy(user),
            proof: copy(proof),
            schema: schema.filter(|schema| !schema.is_empty()).map(copy),
            plugin: copy(plugin),
            zstd_level,
        })
    }

    /// Without connection attributes and without compression.
    pub(crate) fn payload(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(128);
        let with_schema = if self.schema.is_some() { Caps::CONNECT_WITH_DB } else { Caps(0) };
        let ours = Caps::SECURE_CONNECTION | Caps::PLUGIN_AUTH | Caps::PLUGIN_AUTH_LENENC | with_schema;
        let caps = (self.caps & Caps::SHAPING) | ours;
        out.put_u32_le(caps.0 as u32);
        out.put_u32_le(self.max_packet);
        out.put_u8(self.collation as u8);
        out.put_bytes(0, 19);
        out.put_u32_le((caps.0 >> 32) as u32);
        out.put_slice(&self.user);
        out.put_u8(0);
        put_lenenc(&mut out, self.proof.len() as u64);
        out.put_slice(&self.proof);
        if let Some(schema) = &self.schema {
            out.put_slice(schema);
            out.put_u8(0);
        }
        out.put_slice(&self.plugin);
        out.put_u8(0);
        out
    }

    /// What a client says in COM_CHANGE_USER, without the command's byte; the capabilities stay as they were.
    pub(crate) fn parse_change(payload: &[u8], before: &Login) -> Option<Login> {
        let mut rest = Reader::new(payload);
        let user = rest.zero_ended();
        let length = usize::from(rest.u8()?);
        let proof = rest.take(length)?;
        let schema = rest.zero_ended();
        let collation = rest.u16().unwrap_or(before.collation);
        let plugin =
            if before.caps.has(Caps::PLUGIN_AUTH) && !rest.is_empty() { rest.zero_ended() } else { NATIVE };
        let copy = Bytes::copy_from_slice;
        Some(Login {
            user: copy(user),
            proof: copy(proof),
            schema: (!schema.is_empty()).then(|| copy(schema)),
            collation,
            plugin: copy(plugin),
            ..before.clone()
        })
    }

    /// COM_CHANGE_USER's payload behind the command's byte.
    pub(crate) fn change_payload(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(128);
        out.put_slice(&self.user);
        out.put_u8(0);
        out.put_u8(self.proof.len() as u8);
        out.put_slice(&self.proof);
        out.put_slice(self.schema.as_deref().unwrap_or_default());
        out.put_u8(0);
        out.put_u16_le(self.collation);
        out.put_slice(&self.plugin);
        out.put_u8(0);
        out
    }
}

/// "Authentication Switch Request": answer this nonce by that plugin's rule instead.
pub(crate) fn switch_payload(plugin: &[u8], nonce: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(0xfe);
    out.put_slice(plugin);
    out.put_u8(0);
    out.put_slice(nonce);
    out.put_u8(0);
    out
}

/// The plugin and the nonce of an AuthSwitchRequest.
pub(crate) fn parse_switch(payload: &[u8]) -> Option<(Bytes, Bytes)> {
    let mut rest = Reader::new(payload);
    (rest.u8()? == 0xfe).then_some(())?;
    let plugin = Bytes::copy_from_slice(rest.zero_ended());
    let nonce = rest.rest();
    let nonce = nonce.strip_suffix(&[0]).unwrap_or(nonce);
    Some((plugin, Bytes::copy_from_slice(nonce)))
}

/// The proof that goes with a password; empty for an empty one.
pub(crate) fn native_proof(password: &str, nonce: &[u8]) -> Bytes {
    scramble_native(nonce, password.as_bytes())
        .map_or_else(Bytes::new, |proof| Bytes::copy_from_slice(&proof))
}

/// Whether the proof shows that its sender knows the password. Both rules prove the password itself, so a
/// comparison tells an eavesdropper nothing that the proof had not told.
pub(crate) fn proves(plugin: &[u8], proof: &[u8], password: &str, nonce: &[u8]) -> bool {
    let expected = match plugin {
        NATIVE => native_proof(password, nonce),
        SHA2 => scramble_sha256(nonce, password.as_bytes())
            .map_or_else(Bytes::new, |proof| Bytes::copy_from_slice(&proof)),
        _ => return false,
    };
    // caching_sha2_password says "no password" with one zero byte.
    let proof = if plugin == SHA2 && proof == [0] { &[] } else { proof };
    expected.len() == proof.len() && expected.iter().zip(proof).fold(0, |odd, (a, b)| odd | (a ^ b)) == 0
}

/// 20 random bytes, none of them zero nor `$`, as MariaDB makes them.
pub(crate) fn new_nonce() -> [u8; NONCE] {
    std::array::from_fn(|_| {
        loop {
            let byte = rand::random::<u8>() & 0x7f;
            if byte != 0 && byte != b'$' {
                return byte;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting() -> Greeting {
        let facts = Facts {
            version: Bytes::from_static(b"5.5.5-10.11.6-MariaDB"),
            caps: Caps(0xf_81fe_f7fe),
            collation: 45,
            status: Status::AUTOCOMMIT,
        };
        Greeting { facts, thread: 77, nonce: new_nonce() }
    }

    #[test]
    fn a_greeting_and_a_login_are_read_as_they_were_written() {
        let greeting = greeting();
        assert_eq!(Greeting::parse(&greeting.payload()), Some(greeting.clone()));
        let caps = (greeting.facts.caps & Caps::SHAPING)
            | Caps::SECURE_CONNECTION
            | Caps::PLUGIN_AUTH
            | Caps::PLUGIN_AUTH_LENENC;
        let mut login = Login {
            caps: caps | Caps::CONNECT_WITH_DB,
            max_packet: 1 << 24,
            collation: 45,
            user: Bytes::from_static(b"blog"),
            proof: native_proof("secret", &greeting.nonce),
            schema: Some(Bytes::from_static(b"blog")),
            plugin: Bytes::from_static(NATIVE),
            zstd_level: None,
        };
        assert_eq!(Login::parse(&login.payload()), Some(login.clone()));
        assert_eq!(Login::parse_change(&login.change_payload(), &login), Some(login.clone()));
        login.schema = None;
        login.caps = caps;
        assert_eq!(Login::parse(&login.payload()), Some(login.clone()));
        for cut in 0..login.payload().len() {
            let _ = Login::parse(&login.payload()[..cut]);
        }
    }

    #[test]
    fn only_the_right_password_is_proved() {
        let nonce = new_nonce();
        let proof = native_proof("secret", &nonce);
        assert!(proves(NATIVE, &proof, "secret", &nonce));
        assert!(!proves(NATIVE, &proof, "Secret", &nonce));
        assert!(!proves(NATIVE, &proof, "secret", &new_nonce()));
        assert!(!proves(NATIVE, b"", "secret", &nonce));
        assert!(proves(NATIVE, b"", "", &nonce));
        assert!(!proves(NATIVE, b"x", "", &nonce));
        assert!(!proves(b"unknown", b"", "", &nonce));
        let proof = scramble_sha256(&nonce, b"secret").unwrap();
        assert!(proves(SHA2, &proof, "secret", &nonce));
        assert!(!proves(SHA2, &proof, "other", &nonce));
        assert!(proves(SHA2, &[0], "", &nonce));
    }

    #[test]
    fn a_switch_is_read_as_it_was_written() {
        let nonce = new_nonce();
        let (plugin, read) = parse_switch(&switch_payload(NATIVE, &nonce)).unwrap();
        assert_eq!((&plugin[..], &read[..]), (NATIVE, &nonce[..]));
    }
}
