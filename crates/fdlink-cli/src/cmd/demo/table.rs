//! The demo's result as text.

use std::fmt::Write;

use super::row::{Counted, Family, Row};

const HEAD: [&str; 2] = [
    "                              Gbit/s             MB      re-  calls frames/batch",
    "mode          MTU  way    IPv4   IPv6   moved  linked   sent per MB    rx    tx  hash",
];
const FOOT: &str = "\
up: from the sandbox to the host; down: from the host to the sandbox
moved: what arrived, hashed at both ends; linked: bytes of frames that the endpoint counted that way
resent: TCP segments, by the sandbox's kernel and by the stack; calls: to receive and to send frames
";
/// What stands where there is nothing to say.
const NOTHING: &str = "-";

/// The table, and below it why rows failed.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = HEAD.map(|line| format!("{line}\n")).concat();
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line(row));
    }
    text.push('\n');
    text.push_str(FOOT);
    text.push_str(&faults(rows));
    text
}

fn line(row: &Row) -> String {
    let trial = &row.trial;
    let rate = |family| or_nothing(row.gbit_per_second(family).map(|rate| format!("{rate:.1}")));
    let counted = |what: fn(&Row, &Counted) -> String| {
        or_nothing(row.counted.as_ref().map(|counted| what(row, counted)))
    };
    let moved = match row.transfers.is_empty() {
        true => NOTHING.to_owned(),
        false => mega(row.payload()),
    };
    format!(
        "{:<11} {:>5}  {:<4} {:>6} {:>6} {:>7} {:>7} {:>6} {:>6} {:>5} {:>5}  {}",
        trial.mode,
        trial.mtu,
        trial.direction.name(),
        rate(Family::V4),
        rate(Family::V6),
        moved,
        counted(|row, counted| mega(counted.bytes(row.trial.direction))),
        counted(|row, _| row.retransmits().to_string()),
        counted(calls_per_mb),
        counted(|_, counted| ratio(counted.rx_frames, counted.rx_batches)),
        counted(|_, counted| ratio(counted.tx_frames, counted.tx_calls)),
        if row.verified() { "ok" } else { "FAILED" },
    )
}

fn or_nothing(text: Option<String>) -> String {
    text.unwrap_or_else(|| NOTHING.to_owned())
}

fn mega(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / 1e6)
}

fn calls_per_mb(row: &Row, counted: &Counted) -> String {
    let mega = row.payload() as f64 / 1e6;
    match mega > 0.0 {
        true => format!("{:.1}", (counted.rx_calls + counted.tx_calls) as f64 / mega),
        false => NOTHING.to_owned(),
    }
}

fn ratio(of: u64, to: u64) -> String {
    match to {
        0 => NOTHING.to_owned(),
        to => format!("{:.1}", of as f64 / to as f64),
    }
}

/// Each fault once, with the rows that have it.
fn faults(rows: &[Row]) -> String {
    let mut faults: Vec<(&str, Vec<String>)> = Vec::new();
    for row in rows {
        let Some(fault) = &row.fault else { continue };
        match faults.iter_mut().find(|(known, _)| known == fault) {
            Some((_, rows)) => rows.push(row.trial.to_string()),
            None => faults.push((fault, vec![row.trial.to_string()])),
        }
    }
    let mut text = String::new();
    for (fault, failed) in faults {
        let which = match failed.len() {
            all if all == rows.len() && all > 1 => "every row".to_owned(),
            _ => failed.join("; "),
        };
        let _ = write!(text, "\nFAILED: {which}:\n  {fault}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::row::Trial;
    use super::super::row::tests::good;
    use super::*;

    #[test]
    fn every_row_is_a_line_and_the_columns_stand_below_each_other() {
        let rows: Vec<_> = Trial::all().into_iter().map(good).collect();
        let text = table(&rows);
        let lines: Vec<_> = text.lines().collect();
        for (row, line) in rows.iter().zip(&lines[2..]) {
            assert!(line.starts_with(row.trial.mode.name()), "{line}");
            assert!(line.ends_with("  ok"), "{line}");
            let hash = lines[1].find("hash").unwrap();
            assert_eq!(&line[hash - 2..], "  ok", "{line}");
            assert!(line.len() <= 88);
        }
        assert!(!text.contains("FAILED"));
    }

    #[test]
    fn numbers_are_where_they_belong() {
        let trial = Trial::all()[0];
        let line = line(&good(trial));
        let words: Vec<_> = line.split_whitespace().collect();
        let expected =
            ["readv", "1500", "up", "20.0", "-", "3000", "4000", "7", "16.7", "7.0", "2.0", "ok"];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_fault_is_told_once() {
        let trials = Trial::all();
        let failed = |trial| Row::failed(trial, "no rights\n  hint: ask");
        let every: Vec<_> = trials.iter().copied().map(failed).collect();
        let text = table(&every);
        assert_eq!(text.matches("no rights").count(), 1);
        assert!(text.contains("FAILED: every row:\n  no rights\n  hint: ask\n"), "{text}");
        let some = [failed(trials[0]), good(trials[1]), failed(trials[2])];
        let text = table(&some);
        assert!(text.contains("FAILED: readv, MTU 1500, up; readv, MTU 65520, up:"), "{text}");
        assert!(text.lines().nth(2).unwrap().ends_with("FAILED"));
    }
}
