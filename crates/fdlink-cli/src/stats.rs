//! `--stats`: what was counted, as JSON in a file that is either whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fdlink::Report;
use fdlink_stack::StackLevels;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::file;
use crate::plan::SessionPlan;
use crate::session::Outcome;

/// The file, found writable before the command runs.
#[derive(Debug)]
pub(crate) enum StatsFile {
    /// A file that is written next to its place and then moved there.
    Replaced(PathBuf),
    /// A terminal, a pipe, a device: written to as it is.
    Stream(PathBuf, File),
}

impl StatsFile {
    /// Checks that `path` can be written, so that nobody learns otherwise after hours.
    pub(crate) fn prepare(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &io::Error| {
            Failure::new(format!("--stats {}: the file cannot be written", path.display()))
                .because(error)
        };
        // A link stays what it is: the file behind it is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&target) {
            Ok(old) if old.is_dir() => Err(failed(&io::ErrorKind::IsADirectory.into())),
            Ok(old) if !old.is_file() => {
                let opened = OpenOptions::new().write(true).open(&target);
                Ok(Self::Stream(target, opened.map_err(|error| failed(&error))?))
            }
            // A new file beside it can be made, and goes again at once: nothing is left where this
            // program is killed while the command runs.
            _ => {
                let probe = file::beside(&target).map_err(|error| failed(&error))?;
                let made = File::create_new(&probe).and_then(|_| fs::remove_file(&probe));
                made.map_err(|error| failed(&error))?;
                Ok(Self::Replaced(target))
            }
        }
    }

    /// Writes it.
    pub(crate) fn write(self, document: &Value) -> Result<(), Failure> {
        let text = text(document);
        let (path, result) = match self {
            Self::Replaced(path) => {
                let result = text.and_then(|text| file::replace(&path, &text));
                (path, result)
            }
            Self::Stream(path, mut file) => {
                let result = text.and_then(|text| file.write_all(&text));
                (path, result)
            }
        };
        result.map_err(|error| {
            Failure::new(format!("--stats {}: the file could not be written", path.display()))
                .because(&error)
        })
    }
}

fn text(document: &Value) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    Ok(text)
}

/// Everything there is to say about a run.
pub(crate) fn document(plan: &SessionPlan, outcome: &Outcome) -> Value {
    let command: Vec<_> = plan.command.iter().map(|word| word.to_string_lossy()).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "command": command,
        "ending": outcome.ending.to_string(),
        "exit_status": outcome.ending.code(),
        "seconds": outcome.duration.as_secs_f64(),
        "mtu": plan.mtu,
        "link": link(&outcome.report),
        "queues": queues(outcome),
        "stack": counters(outcome.stack.named()),
        "levels_at_end": levels(outcome.levels),
        "outbound": counters(outcome.outbound.named()),
        "denied": counters(outcome.denied.iter().copied()),
        "notes": outcome.notes,
    })
}

fn link(report: &Report) -> Value {
    #[derive(Serialize)]
    struct Descriptor {
        vnet_header_len: usize,
        receive_buffer: usize,
        send_buffer: usize,
        ring: usize,
        fanout_group: Option<u16>,
    }
    let descriptors: Vec<_> = report
        .descriptors
        .iter()
        .map(|descriptor| Descriptor {
            vnet_header_len: descriptor.vnet_header_len,
            receive_buffer: descriptor.receive_buffer,
            send_buffer: descriptor.send_buffer,
            ring: descriptor.ring,
            fanout_group: descriptor.fanout_group,
        })
        .collect();
    json!({
        "kind": report.kind.name(),
        "asked_mode": report.asked_mode.name(),
        "mode": report.mode.name(),
        "descriptors": descriptors,
    })
}

fn queues(outcome: &Outcome) -> Vec<Value> {
    let queues = outcome.queues.iter();
    queues
        .map(|(rx, tx)| json!({ "rx": counters(rx.named()), "tx": counters(tx.named()) }))
        .collect()
}

fn levels(levels: StackLevels) -> Value {
    json!({
        "tcp_flows": levels.tcp_flows,
        "tcp_half_open": levels.tcp_half_open,
        "datagram_flows": levels.datagram_flows,
        "buffer_bytes": levels.buffer_bytes,
    })
}

fn counters(named: impl Iterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    named.map(|(name, value)| (name.to_owned(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = std::env::temp_dir().join(format!("fdlink-stats-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (path, link) = (folder.join("run.json"), folder.join("link.json"));
        std::os::unix::fs::symlink("run.json", &link).unwrap();
        fs::write(&path, "old").unwrap();
        let file = StatsFile::prepare(&link).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old", "untouched until there is something new");
        file.write(&json!({ "a": 1 })).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"a\": 1\n}\n");
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_said_before() {
        for path in ["/nonexistent/run.json", "/tmp", "/proc/run.json", ""] {
            assert!(StatsFile::prepare(Path::new(path)).is_err(), "{path}");
        }
        let device = StatsFile::prepare(Path::new("/dev/null")).unwrap();
        assert!(matches!(device, StatsFile::Stream(..)));
        device.write(&json!({})).unwrap();
    }
}
