//! `fdlink run` from outside: the real program, real clients in it, real servers on the host.
//!
//! As root every case runs twice, as root and as a user without any privilege (with a copy of the
//! program that everybody may execute). What cannot be tried here says `SKIPPED`, which
//! `FDLINK_REQUIRE=1` makes a failure.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

mod datagrams;
mod dns;
mod life;
mod tcp;
mod users;
