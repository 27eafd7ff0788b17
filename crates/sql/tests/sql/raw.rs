//! A client that speaks the protocol by hand, so that it can speak it badly.

use std::path::Path;

use mysql_common::scramble::scramble_native;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ground::SOON;

pub struct Raw {
    pub stream: UnixStream,
    nonce: Vec<u8>,
}

/// PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION, MULTI_STATEMENTS, MULTI_RESULTS, PLUGIN_AUTH.
const CAPS: u32 = 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 19;

impl Raw {
    /// Has heard the greeting and said nothing.
    pub async fn greeted(socket: &Path) -> Raw {
        let mut raw = Raw { stream: UnixStream::connect(socket).await.unwrap(), nonce: Vec::new() };
        let (_, greeting) = raw.packet().await.expect("a greeting");
        let version_end = greeting[1..].iter().position(|byte| *byte == 0).unwrap() + 2;
        raw.nonce = greeting[version_end + 4..version_end + 12].to_vec();
        raw.nonce.extend(&greeting[version_end + 31..version_end + 43]);
        raw
    }

    pub async fn logged_in(socket: &Path, user: &str) -> Raw {
        let mut raw = Raw::greeted(socket).await;
        raw.log_in(user, "secret").await;
        let (_, answer) = raw.packet().await.expect("an answer");
        assert_eq!(answer[0], 0, "{}", String::from_utf8_lossy(&answer));
        raw
    }

    pub async fn log_in(&mut self, user: &str, password: &str) {
        let mut login = CAPS.to_le_bytes().to_vec();
        login.extend([0, 0, 0, 1, 45]);
        login.extend([0; 23]);
        login.extend(user.as_bytes());
        login.extend([0, 20]);
        login.extend(scramble_native(&self.nonce, password.as_bytes()).unwrap());
        login.extend(b"mysql_native_password\0");
        self.send(1, &login).await;
    }

    /// One packet. It may be cut off by the other side, which tells in its answer.
    pub async fn send(&mut self, sequence: u8, payload: &[u8]) {
        let mut packet = (payload.len() as u32).to_le_bytes().to_vec();
        packet[3] = sequence;
        packet.extend(payload);
        let _ = self.stream.write_all(&packet).await;
    }

    pub async fn query(&mut self, statement: &str) {
        self.send(0, &[b"\x03", statement.as_bytes()].concat()).await;
    }

    /// `None`: the other side has closed the connection.
    pub async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let reading = async {
            let head = self.stream.read_u32_le().await.ok()?;
            let mut payload = vec![0; (head & 0xff_ffff) as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            Some(((head >> 24) as u8, payload))
        };
        timeout(SOON, reading).await.expect("a packet or the end")
    }

    /// The number of the error that comes next.
    pub async fn error(&mut self) -> Option<u16> {
        let (_, payload) = self.packet().await?;
        assert_eq!(payload[0], 0xff, "{payload:?}");
        Some(u16::from_le_bytes([payload[1], payload[2]]))
    }

    pub async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        // An error is an end too: what was sent had not been read.
        timeout(SOON, self.stream.read_to_end(&mut rest)).await.is_ok()
    }
}
