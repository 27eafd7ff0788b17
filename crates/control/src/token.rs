//! Join tokens: `kopek1.FINGERPRINT.SECRET`. The first part lets the new server know the cell's CA before it
//! trusts anything, the second is spent by its use. The store keeps only the secret's hash.

use kopek_core::{Digest, Moment, keys};
use serde::{Deserialize, Serialize};

const VERSION: &str = "kopek1";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// BLAKE3 of the DER of the cell's CA certificate.
    pub fingerprint: Digest,
    secret: String,
}

/// Stored at `/tokens/HASH` until it is used or expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub expires: Moment,
}

impl Issued {
    pub fn has_expired(&self, now: Moment) -> bool {
        self.expires <= now
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token; get one with `kopek server token` on a server of the cell")]
pub struct NotAToken;

impl Token {
    pub fn new(fingerprint: Digest) -> Token {
        let secret: [u8; 32] = rand::random();
        Token { fingerprint, secret: blake3::Hash::from(secret).to_hex().to_string() }
    }

    pub fn parse(text: &str) -> Result<Token, NotAToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [VERSION, fingerprint, secret] = parts[..] else { return Err(NotAToken) };
        let fingerprint = Digest::parse(fingerprint).map_err(|_| NotAToken)?;
        Digest::parse(secret).map_err(|_| NotAToken)?;
        Ok(Token { fingerprint, secret: secret.to_owned() })
    }

    /// Where it is kept in the store.
    pub fn key(&self) -> String {
        format!("{}{}", keys::TOKENS, blake3::hash(self.secret.as_bytes()).to_hex())
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{VERSION}.{}.{}", self.fingerprint, self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_its_key_does_not_show_the_secret() {
        let token = Token::new(Digest::parse(&"ab".repeat(32)).unwrap());
        assert_eq!(Token::parse(&token.to_string()).unwrap(), token);
        assert!(!token.key().contains(&token.secret));
    }

    #[test]
    fn a_token_expires_at_its_hour() {
        let issued = Issued { expires: Moment(1_000) };
        assert_eq!([999, 1_000].map(|now| issued.has_expired(Moment(now))), [false, true]);
    }

    #[test]
    fn other_texts_are_not_tokens() {
        for text in ["", "kopek1", "kopek1.x.y", "kopek2.aa.bb"] {
            assert_eq!(Token::parse(text), Err(NotAToken), "{text:?}");
        }
    }
}
