//! Running cases and counting them, in the words of the ordinary harness.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Command, ExitCode, Output},
    time::Instant,
};

/// A case's own verdict; a failure is a panic.
pub(crate) enum Verdict {
    Passed,
    /// It cannot be run here, and why.
    Skipped(String),
}

/// Something to be tested.
pub(crate) type Case = (&'static str, fn(&Who) -> Verdict);

/// Whom the program of a case runs as.
pub(crate) struct Who {
    pub(crate) name: &'static str,
    /// The user to become, for a runner who is root.
    change_to: Option<u32>,
    program: PathBuf,
}

/// What a user without privilege is called.
const NOBODY: u32 = 65534;

impl Who {
    pub(crate) fn uid(&self) -> u32 {
        self.change_to.unwrap_or_else(|| rustix::process::getuid().as_raw())
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid() == 0
    }

    pub(crate) fn program(&self) -> &str {
        self.program.to_str().unwrap()
    }

    /// The program with options and a command.
    pub(crate) fn command(&self, options: &[&str], command: &[&str]) -> Command {
        let mut program = Command::new(&self.program);
        program.arg("run").args(options).arg("--").args(command).current_dir("/");
        if let Some(id) = self.change_to {
            program.uid(id).gid(id);
        }
        program
    }

    /// Runs a shell script in a sandbox; what it printed. It must succeed.
    pub(crate) fn shell(&self, options: &[&str], script: &str) -> String {
        let output = self.command(options, &["sh", "-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A program's status and all that it said.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Whether a tool is installed; otherwise the verdict.
pub(crate) fn missing(tool: &str) -> Option<Verdict> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|directory| directory.join(tool).exists());
    (!found).then(|| Verdict::Skipped(format!("{tool} is not installed")))
}

pub(crate) fn run(filter: &str, groups: &[&[Case]]) -> ExitCode {
    let require = env::var_os("FDLINK_REQUIRE").is_some_and(|value| value == "1");
    // A copy that every user may execute: a build directory often is not.
    let directory = env::temp_dir().join(format!("fdlink-sandbox-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let program = directory.join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    for path in [&directory, &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let whos = if rustix::process::getuid().is_root() {
        vec![
            Who { name: "root", change_to: None, program: program.clone() },
            Who { name: "nobody", change_to: Some(NOBODY), program },
        ]
    } else {
        vec![Who { name: "user", change_to: None, program }]
    };

    let started = Instant::now();
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for (name, case) in groups.iter().copied().flatten() {
        for who in &whos {
            let name = format!("{name}::{}", who.name);
            if !name.contains(filter) {
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| case(who))) {
                Ok(Verdict::Passed) => {
                    passed += 1;
                    println!("test {name} ... ok");
                }
                Ok(Verdict::Skipped(why)) => {
                    println!("SKIPPED {name}: {why}");
                    if require {
                        println!("test {name} ... FAILED");
                        failed.push(name);
                    } else {
                        skipped += 1;
                        println!("test {name} ... ignored, {why}");
                    }
                }
                Err(_) => {
                    println!("test {name} ... FAILED");
                    failed.push(name);
                }
            }
        }
    }
    fs::remove_dir_all(&directory).unwrap();
    for name in &failed {
        println!("failed: {name}");
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {skipped} ignored; 0 measured; 0 filtered \
         out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        started.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
