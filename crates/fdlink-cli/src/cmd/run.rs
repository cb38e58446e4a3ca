//! `fdlink run`: a command in a network of its own.

use std::future::pending;
use std::io::{self, Write};

use crate::cli::RunArgs;
use crate::failure::Failure;
use crate::plan::RunPlan;
use crate::session::{Ending, Outcome, Session};
use crate::stats::{self, StatsFile};

/// Runs it to its end; the exit status.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    let plan = RunPlan::new(args)?;
    let file = plan.stats.as_deref().map(StatsFile::prepare).transpose()?;
    let session = Session::start(&plan.session)?;
    if plan.verbose {
        // Nobody may be there to read it, which is no reason not to run.
        let _ = say(&session);
    }
    let outcome = session.run(|_| pending::<()>())?;
    if let Some(file) = file {
        let written = file.write(&stats::document(&plan.session, &outcome));
        // The command's own failure is the one to pass on.
        if outcome.ending.code() == 0 {
            written?;
        } else if let Err(failure) = written {
            let _ = writeln!(io::stderr(), "{failure}");
        }
    }
    result(&plan, outcome)
}

/// What was set up, and what was left out.
fn say(session: &Session) -> io::Result<()> {
    let mut err = io::stderr().lock();
    let report = session.report();
    let (kind, queues) = (report.kind.name(), report.descriptors.len());
    writeln!(
        err,
        "fdlink: link {kind}, mode {}, {queues} {}",
        report.mode,
        if queues == 1 { "queue" } else { "queues" }
    )?;
    for note in session.notes() {
        writeln!(err, "fdlink: note: {note}")?;
    }
    Ok(())
}

fn result(plan: &RunPlan, outcome: Outcome) -> Result<u8, Failure> {
    let code = outcome.ending.code();
    let failure = match outcome.ending {
        Ending::Exited(_) => return Ok(code),
        Ending::NotExecuted { error, .. } => {
            let name = plan.session.command.first().map(|name| name.to_string_lossy());
            let what = format!("{} could not be executed", name.unwrap_or_default());
            let hint = (code == 127).then(|| "is it installed, and in PATH?".to_owned());
            Failure::new(what).because(&error).hint(hint)
        }
        ending @ (Ending::InitKilled | Ending::LinkClosed(_)) => Failure::new(ending.to_string()),
    };
    Err(failure.code(code))
}
