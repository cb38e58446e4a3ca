//! `fdlink demo` from outside, some rows of it: as this user and, if that is root, as nobody.
//!
//! What cannot be tried here says `SKIPPED`, which `FDLINK_REQUIRE=1` makes a failure.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "this is a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A folder with a copy of the program in it, which everybody may execute, and by which its
/// processes are known.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("fdlink-demo-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let place = Self(path);
        // Not by `fs::copy`: a test on another thread that forks while the copy is open for
        // writing would make it "text file busy".
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_fdlink")).arg(place.program());
        assert!(copy.status().unwrap().success());
        place.allow(0o777);
        place
    }

    fn program(&self) -> PathBuf {
        self.0.join("fdlink")
    }

    fn allow(&self, mode: u32) {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(self.program(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn demo(&self, user: User, options: &str) -> Command {
        let demo = format!("cd '{}' && exec ./fdlink demo {options}", self.0.display());
        let mut command = match user {
            User::Nobody => Command::new("su"),
            User::This => Command::new("sh"),
        };
        if user == User::Nobody {
            command.args(["nobody", "-s", "/bin/sh"]);
        }
        command.arg("-c").arg(demo).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The processes of this copy.
    fn processes(&self) -> usize {
        let program = self.program();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter(|entry| is_running(&entry.path(), &program)).count()
    }

    fn is_empty_soon(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.processes() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.processes() == 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_running(process: &Path, program: &Path) -> bool {
    fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum User {
    This,
    Nobody,
}

/// Runs a case as each user there is, where the machine lets users make namespaces.
fn as_each_user(test: &str, case: impl Fn(User)) {
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    if !works("unshare", &["-Urnm", "true"]) {
        return testkit::skip(test, "no user namespaces here");
    }
    case(User::This);
    if rustix::process::getuid().is_root() {
        if works("su", &["nobody", "-s", "/bin/sh", "-c", "unshare -Urnm true"]) {
            eprintln!("as nobody");
            case(User::Nobody);
        } else {
            testkit::skip(test, "no user nobody, or no user namespaces for it");
        }
    }
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{out}\n{err}", output.status)
}

#[test]
fn rows_in_both_directions_are_verified() {
    as_each_user("rows_in_both_directions_are_verified", |user| {
        let place = Place::new();
        let output = place.demo(user, "--rows 2 --seconds 0.3 --json").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let demo: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(demo["verified"], true);
        let rows = demo["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        for (row, (direction, way)) in rows.iter().zip([("up", "rx_bytes"), ("down", "tx_bytes")]) {
            assert_eq!((&row["mode"], &row["direction"]), (&"readv".into(), &direction.into()));
            let transfers = row["transfers"].as_array().unwrap();
            let moved: u64 = transfers.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
            assert!(transfers.iter().all(|t| t["verified"] == true && t["bytes"] != 0), "{row}");
            assert!(row["counted"][way].as_u64().unwrap() >= moved, "{row}");
        }
        let picture = fs::read_to_string(place.0.join("fdlink-demo.svg")).unwrap();
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("[ 2/2] readv, MTU 1500, down"));
        // The program, the picture, and nothing else.
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 2);
        assert!(place.is_empty_soon());
    });
}

#[test]
fn a_chart_that_cannot_be_written_is_no_reason_to_hide_the_table() {
    let test = "a_chart_that_cannot_be_written_is_no_reason_to_hide_the_table";
    as_each_user(test, |user| {
        let place = Place::new();
        place.allow(0o755);
        // Root may write anywhere, but not to where there is nothing.
        let options = match user {
            User::Nobody => "",
            User::This => "--chart nowhere/demo.svg",
        };
        let options = format!("--rows 1 --seconds 0.1 {options}");
        let output = place.demo(user, &options).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(125), "{text}");
        assert!(text.contains("1 of 1 rows verified"), "{text}");
        let cause = match user {
            User::Nobody => "could not be written to fdlink-demo.svg: Permission denied",
            User::This => "could not be written to nowhere/demo.svg: No such file or directory",
        };
        assert!(text.contains(cause) && text.contains("hint: "), "{text}");
    });
}

/// A demo that has begun to move data.
fn begun(place: &Place, user: User) -> (Child, Pid) {
    let child = place.demo(user, "--rows 1 --seconds 30").spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    // The demo, its row, init, and the client.
    while place.processes() < 4 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(place.processes(), 4);
    let program = place.program();
    let running = |entry: &fs::DirEntry| is_running(&entry.path(), &program);
    let ids = fs::read_dir("/proc").unwrap().flatten().filter(running);
    // The first of them; ids may have wrapped, but not in these seconds.
    let first = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).min();
    (child, Pid::from_raw(first.unwrap()).unwrap())
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    as_each_user("an_interrupted_demo_leaves_nothing", |user| {
        let place = Place::new();
        let (child, demo) = begun(&place, user);
        kill_process(demo, Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", text(&output));
        assert!(text(&output).contains("fdlink: interrupted"));
        assert!(place.is_empty_soon());
        assert!(!place.0.join("fdlink-demo.svg").exists());
    });
}

#[test]
fn a_killed_demo_leaves_nothing() {
    as_each_user("a_killed_demo_leaves_nothing", |user| {
        let place = Place::new();
        let (child, demo) = begun(&place, user);
        kill_process(demo, Signal::KILL).unwrap();
        assert!(!child.wait_with_output().unwrap().status.success());
        assert!(place.is_empty_soon());
    });
}

#[test]
fn help_teaches() {
    let mut help = Command::new(env!("CARGO_BIN_EXE_fdlink"));
    let output = help.args(["demo", "--help"]).env_remove("COLUMNS").output().unwrap();
    assert!(output.status.success());
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}
