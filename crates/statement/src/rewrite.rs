//! Texts that must become others.
use crate::Dialect;

pub fn adapted(_text: &[u8], _dialect: Dialect, _lock_prefix: &str) -> Option<Vec<u8>> {
    None
}

pub fn with_row_count(_text: &[u8], _dialect: Dialect, _rows: i64) -> Option<Vec<u8>> {
    None
}
