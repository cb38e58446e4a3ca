//! What rustix has no safe call for.

pub(crate) mod signal;
