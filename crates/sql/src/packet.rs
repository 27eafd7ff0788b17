//! The one MySQL packet that we speak ourselves: the error in place of the server's greeting.
//! Called by `session`.

use kopek_core::SiteName;

/// Why a client is turned away before it spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    NoWriter,
    TooMany,
}

impl TurnedAway {
    /// The packet's bytes: length, sequence number 0, 0xff, error number, text. No SQL state, because the
    /// client has not said yet that it understands one.
    /// <https://mariadb.com/kb/en/err_packet/>
    pub(crate) fn packet(self, site: &SiteName) -> Vec<u8> {
        let (number, text): (u16, String) = match self {
            // ER_UNKNOWN_COM_ERROR, as a Galera member that is not ready says. Not 2003: clients take numbers
            // of the client's own range from no server ("malformed packet").
            TurnedAway::NoWriter => (1047, format!("no database server takes writes for site {site} now")),
            // ER_CON_COUNT_ERROR
            TurnedAway::TooMany => (1040, format!("Too many connections of site {site}")),
        };
        let payload = [&[0xff], &number.to_le_bytes()[..], text.as_bytes()].concat();
        let length = u8::try_from(payload.len()).expect("a site's name has at most 32 bytes");
        [&[length, 0, 0, 0], &payload[..]].concat()
    }
}
