//! What is shown while the demo runs, on standard error: a bar on a terminal, else a line for each
//! row.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::row::{Family, Row, Trial};

/// Shows how far the demo is.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    rows: usize,
    /// When the bytes of the row were last looked at, and how many they were.
    last: Cell<(Instant, u64)>,
}

impl Progress {
    /// For that many rows.
    pub(crate) fn new(rows: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{bar:24.cyan/black} {pos:>2}/{len} rows  {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(rows as u64).with_style(style)
        });
        Self { bar, rows, last: Cell::new((Instant::now(), 0)) }
    }

    /// A row begins.
    pub(crate) fn begin(&self, trial: Trial) {
        self.last.set((Instant::now(), 0));
        if let Some(bar) = &self.bar {
            bar.set_message(trial.to_string());
        }
    }

    /// A row has moved so many bytes.
    pub(crate) fn moved(&self, trial: Trial, bytes: u64) {
        let Some(bar) = &self.bar else { return };
        let (then, before) = self.last.replace((Instant::now(), bytes));
        let (seconds, bytes) = (then.elapsed().as_secs_f64(), bytes.saturating_sub(before));
        if seconds > 0.0 && bytes > 0 {
            let rate = bytes as f64 * 8.0 / seconds / 1e9;
            bar.set_message(format!("{trial}: {rate:.1} Gbit/s"));
        }
    }

    /// A row has ended, the `done`th.
    pub(crate) fn end(&self, done: usize, row: &Row) {
        match &self.bar {
            Some(bar) => bar.set_position(done as u64),
            None => {
                // Nobody may be there to read it, which is no reason to stop.
                let _ = writeln!(io::stderr(), "[{done:>2}/{}] {}", self.rows, line(row));
            }
        }
    }

    /// The demo has ended.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A row in a line.
fn line(row: &Row) -> String {
    if let Some(fault) = &row.fault {
        return format!("{}: FAILED: {}", row.trial, fault.lines().next().unwrap_or_default());
    }
    let rates = [Family::V4, Family::V6].into_iter().filter_map(|family| {
        row.gbit_per_second(family).map(|rate| format!("{family} {rate:.1} Gbit/s"))
    });
    format!("{}: {}, verified", row.trial, rates.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::good;
    use super::*;

    #[test]
    fn a_line_says_what_came_out() {
        let trial = Trial::all()[0];
        assert_eq!(line(&good(trial)), "readv, MTU 1500, up: IPv4 20.0 Gbit/s, verified");
        let failed = Row::failed(trial, "no room\n  hint: make some");
        assert_eq!(line(&failed), "readv, MTU 1500, up: FAILED: no room");
    }
}
