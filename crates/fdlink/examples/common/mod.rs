//! How the examples say what went wrong: an error, its cause, and the cause of that.

use std::error::Error;
use std::process::ExitCode;

/// Prints the error, if it is one, and makes the exit status of it.
pub(crate) fn tell(result: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprint!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}
