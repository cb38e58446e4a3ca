//! What rustix has no safe call for.

pub(crate) mod signal;
pub(crate) mod tcp_info;
