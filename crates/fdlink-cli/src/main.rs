//! `fdlink`: fast user-space networking on file descriptors, without root.
//!
//! From what was typed (`cli`) to what is meant (`plan`) to what is done (`cmd`). `session` puts a
//! command into a network of its own; `outbound` is the way out of it.

mod cli;
mod cmd;
mod failure;
mod file;
mod outbound;
mod plan;
mod session;
mod stats;
mod sys;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::say(&error),
    };
    let result = match cli.command {
        Command::Run(args) => cmd::run::run(args),
        Command::Demo(args) => cmd::demo::run(&args),
        Command::DemoRow(args) => cmd::demo::process::run(&args).map(|()| 0),
        Command::DemoClient(args) => cmd::demo::client::run(&args).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.code)
        }
    }
}
