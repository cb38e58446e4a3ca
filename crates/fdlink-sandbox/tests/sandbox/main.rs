//! The sandbox from outside: every case runs a program that has one sandbox, and looks.
//!
//! `Sandbox::start` needs a process with one thread, so this binary is both: without arguments it
//! runs the cases, with `run` as the first one it is such a program ([`program`]). As root every
//! case runs twice, as root and as nobody. A case that this machine cannot run says why
//! (`SKIPPED`), which `FDLINK_REQUIRE=1` makes a failure.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "this is a test")]

use std::process::ExitCode;

mod command;
mod files;
mod network;
mod program;
mod runner;
mod survivors;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "run") {
        return program::main(&arguments[1..]);
    }
    let filter = arguments.iter().find_map(|a| a.to_str().filter(|a| !a.starts_with('-')));
    runner::run(
        filter.unwrap_or_default(),
        &[command::CASES, network::CASES, files::CASES, survivors::CASES],
    )
}
