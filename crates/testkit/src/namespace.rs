//! Tests in a network namespace of their own.
//!
//! A test process has threads, and a process with threads can neither unshare its user namespace
//! nor safely go on after a fork. So the test's own binary is started once more, in the namespaces,
//! with the order to run just this test; that process sees by an environment variable that it has
//! arrived.

use std::io::ErrorKind;
use std::process::Command;

use crate::skip;
use crate::sys::unshare::unshare_network;

const ARRIVED: &str = "FDLINK_TESTKIT_NAMESPACE";

/// What the inner process prints when the test has come to its end. A name that the harness does
/// not know would run nothing and succeed.
const DONE: &str = "testkit: the test has run in its namespace";

/// Runs the body of a test in a fresh network namespace, as its root, with the loopback interface
/// up and IPv6 silent on interfaces made later. To be the whole body of a `#[test]` function:
/// what stands before or after it runs in the outer process, too.
///
/// # Panics
///
/// Where the test fails.
pub fn in_namespace<F: FnOnce()>(body: F) {
    in_namespace_with(&[], body);
}

/// The same, with more in the environment of the process that the body runs in.
///
/// # Panics
///
/// Where the test fails.
pub fn in_namespace_with<F: FnOnce()>(environment: &[(&str, &str)], body: F) {
    if std::env::var_os(ARRIVED).is_some() {
        // The harness has begun a line.
        println("");
        set_up();
        body();
        println(DONE);
        return;
    }
    let name = test_name::<F>();
    let binary = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(binary);
    command.args([name.as_str(), "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ARRIVED, &name).envs(environment.iter().copied());
    unshare_network(&mut command);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return skip(&name, &format!("no namespace: {error}"));
        }
        Err(error) => return skip(&name, &format!("cannot start it in a namespace: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    text.lines().for_each(forward);
    assert!(output.status.success(), "{name} failed in its namespace: {errors}");
    assert!(text.contains(DONE), "{name} did not run in its namespace: {text}{errors}");
}

/// The harness's name of the test whose closure `F` is: `file::test::{{closure}}` without both.
fn test_name<F>() -> String {
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    name.trim_end_matches("::{{closure}}").to_owned()
}

fn set_up() {
    // Router solicitations and the like would disturb exact counts.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    crate::interface::up("lo").expect("lo up, in a namespace of our own");
}

/// Passes on what the inner process printed, without what its harness says: this one says it, too.
fn forward(line: &str) {
    let of_the_harness = ["running 1 ", "test "].iter().any(|start| line.starts_with(start));
    if line.starts_with("SKIPPED ") {
        println(line);
    } else if !of_the_harness && !["", "ok", DONE].contains(&line) {
        capture(line);
    }
}

/// Into the harness's capture, to be seen if the test fails or --nocapture is given.
#[expect(clippy::print_stdout, reason = "what a test prints is for the harness to show or not")]
fn capture(line: &str) {
    std::println!("{line}");
}

/// Past the harness's capture.
fn println(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Runs `body` on a thread in another fresh network namespace, and gives back what it made there.
/// Within [`in_namespace`].
///
/// # Panics
///
/// Where there can be no such namespace, or the body panics.
pub fn in_second_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let thread = || {
        crate::sys::unshare::unshare_this_thread()
            .expect("a second namespace, as root of the first");
        set_up();
        body()
    };
    std::thread::scope(|scope| scope.spawn(thread).join()).expect("what the body made")
}
