//! How servers speak to each other: the cell's own CA, mutual TLS, stream preambles.
