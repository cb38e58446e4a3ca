//! Help and errors, as snapshots: the words are the interface.

#![expect(clippy::unwrap_used, reason = "this is a test")]

use std::process::{Command, Stdio};

/// What the program says, and its exit status.
fn say(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_fdlink"))
        .args(arguments)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let mut said = format!("$ fdlink {}\n", arguments.join(" "));
    for (name, text) in [("stdout", out.unwrap()), ("stderr", err.unwrap())] {
        if !text.is_empty() {
            said += &format!("--- {name}\n{text}");
        }
    }
    said + &format!("--- exit status {}\n", output.status.code().unwrap())
}

/// What several calls say, one after the other.
fn say_all(calls: &[&[&str]]) -> String {
    calls.iter().map(|arguments| say(arguments)).collect::<Vec<_>>().join("\n")
}

#[test]
fn help() {
    insta::assert_snapshot!(say(&["--help"]));
}

#[test]
fn help_run() {
    insta::assert_snapshot!(say(&["run", "--help"]));
}

#[test]
fn short_help_run() {
    insta::assert_snapshot!(say(&["run", "-h"]));
}

#[test]
fn usage_errors() {
    insta::assert_snapshot!(say_all(&[
        &[],
        &["fly"],
        &["run"],
        &["run", "--speed", "high", "--", "true"],
        &["run", "--mode", "mmap", "--", "true"],
        &["run", "--link", "wire", "--", "true"],
        &["run", "--mtu", "many", "--", "true"],
    ]));
}

#[test]
fn impossible_plans() {
    insta::assert_snapshot!(say_all(&[
        &["run", "--mtu", "67", "--", "true"],
        &["run", "--mtu", "65521", "--", "true"],
        &["run", "--queues", "0", "--", "true"],
        &["run", "--queues", "65", "--", "true"],
        &["run", "--mode", "packet-mmap", "--link", "tap", "--", "true"],
        &["run", "--mode", "recvmmsg", "--link", "tap", "--", "true"],
        &["run", "--dns", "dns.example", "--", "true"],
        &["run", "--stats", "/nonexistent/run.json", "--", "true"],
        &["run", "--stats", "/", "--", "true"],
    ]));
}

#[test]
fn commands_that_are_none() {
    insta::assert_snapshot!(say_all(&[
        &["run", "--", "fdlink-no-such-command"],
        &["run", "--", "/etc/passwd"],
    ]));
}
