//! Identifiers, each a type of its own so that none can be swapped for another; parsed once at the border.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier. Display names the text and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: {rule}")]
pub struct IdError {
    pub text: String,
    pub kind: &'static str,
    pub rule: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $valid:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn parse(text: &str) -> Result<Self, IdError> {
                if $valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { text: text.to_owned(), kind: $kind, rule: $rule })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// A server's name, for example `s1`.
    ServerId, "server name", is_label, "use 1 to 32 of a-z, 0-9 and -, starting with a letter"
);
id!(
    /// A site's name, for example `blog`.
    SiteName, "site name", is_label, "use 1 to 32 of a-z, 0-9 and -, starting with a letter"
);
id!(
    /// A database pool's name, for example `pool1`.
    PoolName, "pool name", is_label, "use 1 to 32 of a-z, 0-9 and -, starting with a letter"
);
id!(
    /// One run of a site's container: the site's name, a dot, and a number never used again for that site:
    /// `blog.7`.
    InstanceId, "instance id", is_instance, "use SITE.NUMBER as `kopek instance ls` shows it"
);
id!(
    /// An image's name, for example `php8.2-apache`.
    ImageName, "image name", is_image, "use 1 to 64 of a-z, 0-9, dot and -, starting with a letter"
);
id!(
    /// A BLAKE3 hash in lower-case hexadecimal: names an image or a poured tree by its content.
    Digest, "digest", is_digest, "use 64 hexadecimal digits"
);
id!(
    /// A host name as a visitor's `Host` header gives it, lower case and without port; an IPv4 address will do.
    Domain, "domain", is_domain, "use a host name in lower case, of a-z, 0-9, - and dots, at most 253 characters (xn--… for other letters)"
);

impl PoolName {
    /// The pool that every cell has from its beginning.
    pub fn first() -> Self {
        Self("pool1".to_owned())
    }
}

impl InstanceId {
    pub fn new(site: &SiteName, number: u64) -> Self {
        Self(format!("{site}.{number}"))
    }

    pub fn site(&self) -> SiteName {
        let (site, _) = self.0.split_once('.').expect("InstanceId::parse requires a dot");
        SiteName(site.to_owned())
    }

    pub fn number(&self) -> u64 {
        let (_, number) = self.0.split_once('.').expect("InstanceId::parse requires a dot");
        number.parse().expect("InstanceId::parse requires a number")
    }
}

fn is_label(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_instance(text: &str) -> bool {
    text.split_once('.').is_some_and(|(site, number)| {
        is_label(site) && number.parse::<u64>().is_ok_and(|n| n.to_string() == number)
    })
}

fn is_image(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// RFC 1123 section 2.1 host names, which include dotted addresses; trailing dot not allowed.
fn is_domain(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_gives_back_its_site_and_number() {
        let id = InstanceId::parse("my-blog.12").unwrap();
        assert_eq!((id.site().as_str(), id.number()), ("my-blog", 12));
        assert_eq!(id, InstanceId::new(&id.site(), 12));
    }

    #[test]
    fn names_that_could_leave_a_folder_or_a_shell_word_are_refused() {
        for text in ["", "..", "a/b", "A", "1a", "a b", "a;b", "a\n", "-a", ".a", &"a".repeat(65)] {
            assert!(SiteName::parse(text).is_err(), "{text:?}");
            assert!(ServerId::parse(text).is_err(), "{text:?}");
            assert!(ImageName::parse(text).is_err(), "{text:?}");
        }
        for text in ["a.b", &"a".repeat(33)] {
            assert!(SiteName::parse(text).is_err(), "{text:?}");
            assert!(ServerId::parse(text).is_err(), "{text:?}");
        }
        for text in ["blog", "blog.", "blog.x", "blog.01", "../x.1", "blog.1.2", "a/b.1", "A.1", ".1"] {
            assert!(InstanceId::parse(text).is_err(), "{text:?}");
        }
        assert!(SiteName::parse(&"a".repeat(32)).is_ok() && ImageName::parse(&"a".repeat(64)).is_ok());
    }

    #[test]
    fn a_digest_is_64_hexadecimal_digits_in_lower_case() {
        assert!(Digest::parse(&"0a".repeat(32)).is_ok());
        for text in ["0a".repeat(31), "0a".repeat(33), "0A".repeat(32), "0g".repeat(32), "./".repeat(32)] {
            assert!(Digest::parse(&text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_document_with_a_name_that_is_none_is_refused() {
        assert_eq!(serde_json::from_str::<SiteName>("\"blog\"").unwrap().as_str(), "blog");
        for text in ["\"../x\"", "\"\"", "\"A\""] {
            assert!(serde_json::from_str::<SiteName>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_domain_is_a_host_name_without_port() {
        assert!(Domain::parse("www.example.org").is_ok());
        assert!(Domain::parse("10.1.2.3").is_ok());
        let long = vec!["a".repeat(63); 4].join(".");
        assert!(Domain::parse(&long[2..]).is_ok());
        for text in ["", "a..b", "-a.org", "a-.org", "a.org:80", "A.org", "a.org.", &"a".repeat(64), &long] {
            assert!(Domain::parse(text).is_err(), "{text:?}");
        }
    }
}
