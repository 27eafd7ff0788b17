//! kopek-tests
