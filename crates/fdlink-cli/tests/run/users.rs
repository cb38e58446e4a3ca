//! Whom the program runs as, and what it is given to run.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The user without any privilege.
const NOBODY: u32 = 65_534;

/// A user to run the program as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    /// To become, for a runner who is root.
    id: Option<u32>,
    pub(crate) name: &'static str,
}

/// Runs a case as each user there is.
pub(crate) fn as_each_user(case: impl Fn(User)) {
    if rustix::process::getuid().is_root() {
        for user in [User { id: None, name: "root" }, User { id: Some(NOBODY), name: "nobody" }] {
            eprintln!("as {}", user.name);
            case(user);
        }
    } else {
        case(User { id: None, name: "this user" });
    }
}

impl User {
    pub(crate) fn is_root(self) -> bool {
        self.name == "root"
    }

    /// `fdlink run OPTIONS -- COMMAND`.
    pub(crate) fn run(self, options: &[&str], command: &[&str]) -> Command {
        let mut run = Command::new(program());
        run.arg("run").args(options).arg("--").args(command).current_dir("/");
        if let Some(id) = self.id {
            run.uid(id).gid(id);
        }
        run
    }

    /// Runs a Python script in it, which must succeed; what it printed.
    pub(crate) fn python(self, options: &[&str], script: &str) -> String {
        let script = format!("{PRELUDE}\n{script}");
        let output = output(self.run(options, &["python3", "-c", &script]));
        assert!(output.status.success(), "as {}: {}", self.name, text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A folder that this user may write to.
    pub(crate) fn folder(self) -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fdlink-run-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Folder(path)
    }
}

/// What the scripts share: a connection, and the name of the errno of a failure.
const PRELUDE: &str = "
import errno, hashlib, socket, struct, sys, time
def connect(ip, port):
    return socket.create_connection((ip, port), timeout=20)
def failure(action):
    try:
        action()
        return 'none'
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def read_all(s):
    got = b''
    while chunk := s.recv(1 << 20):
        got += chunk
    return got
";

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The program, where every user may execute it: build folders often are private.
fn program() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_fdlink"));
        let name = format!("fdlink-under-test-{}", rustix::process::getuid().as_raw());
        let copy = std::env::temp_dir().join(name);
        // Written apart and moved: another test process may be executing the old one.
        let fresh = copy.with_extension(std::process::id().to_string());
        fs::copy(built, &fresh).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &copy).unwrap();
        copy
    })
}

/// Runs it to its end, which must come within half a minute.
pub(crate) fn output(command: Command) -> Output {
    output_with(command, b"")
}

/// The same, with something to read.
pub(crate) fn output_with(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command need not read it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let pid = rustix::process::Pid::from_child(&child);
    let (done, finished) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let timed_out = finished
            .recv_timeout(Duration::from_secs(30))
            .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout);
        if timed_out {
            eprintln!("a run took more than half a minute");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    writer.join().unwrap();
    output
}

/// A program's status and all that it said.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Whether a tool is installed; says so where it is not, and fails where everything must be tried.
pub(crate) fn has(tool: &str, case: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(tool).exists());
    if !found {
        skip(case, &format!("{tool} is not installed"));
    }
    found
}

/// Says that a case cannot be tried here.
pub(crate) fn skip(case: &str, why: &str) {
    eprintln!("SKIPPED {case}: {why}");
    let required = std::env::var_os("FDLINK_REQUIRE").is_some_and(|value| value == "1");
    assert!(!required, "SKIPPED {case}: {why}");
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The statistics of a run that was given `--stats`.
pub(crate) fn stats(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
