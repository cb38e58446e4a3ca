//! Two stacks back to back in one process, over a socket pair: no privilege, no kernel TCP.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../common/mod.rs"]
mod common;

mod closing;
mod datagrams;
mod ends;
mod limits;
mod reach;
mod streams;
