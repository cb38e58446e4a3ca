//! Whatever is killed, and whatever fails, nothing is left.

use std::{
    fs,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::runner::{Case, Verdict, Who, text};

pub(crate) const CASES: &[Case] = &[
    ("nothing_survives_the_program", nothing_survives_the_program),
    ("nothing_survives_init", nothing_survives_init),
    ("nothing_survives_the_command", nothing_survives_the_command),
    ("nothing_survives_a_program_that_sets_up", nothing_survives_a_program_that_sets_up),
    ("failures_leave_nothing", failures_leave_nothing),
    ("disabled_namespaces_have_a_cure", disabled_namespaces_have_a_cure),
];

/// A process by number and start time, so that a number used again is somebody else.
type Process = (i32, String);

/// The program, init, the command, and a grandchild in a session of its own.
struct Family {
    program: Child,
    init: i32,
    command: i32,
    all: Vec<Process>,
}

fn stat(pid: i32) -> Option<(i32, Process, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may have anything in it, ends with the last parenthesis.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields[1].parse().ok()?, (pid, fields[19].into()), fields[0] == "Z"))
}

fn children(parent: i32) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(ppid, ..)| ppid == parent)).collect()
}

fn descendants(pid: i32) -> Vec<i32> {
    children(pid).into_iter().flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

fn is_there((pid, start): &Process) -> bool {
    stat(*pid).is_some_and(|(_, (_, now), zombie)| now == *start && !zombie)
}

fn family(who: &Who) -> Family {
    let script = "setsid sleep 999 & (setsid setsid sleep 998 &) ; exec sleep 997";
    let mut command = who.command(&[], &["sh", "-c", script]);
    let program = command.stdin(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(program.id()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        assert!(Instant::now() < deadline, "the processes did not start");
        sleep(Duration::from_millis(50));
        let all = descendants(pid);
        let sleeping = all.iter().filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        if sleeping.count() < 3 {
            continue;
        }
        let init = children(pid)[0];
        let command = children(init);
        let is_command = |pid: &&i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.ends_with(b"997\0")
        };
        let command = *command.iter().find(is_command).unwrap();
        let all = all.iter().filter_map(|pid| Some(stat(*pid)?.1)).collect();
        return Family { program, init, command, all };
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn assert_all_gone(all: &[Process]) {
    assert!(all.len() >= 4, "{all:?}");
    let deadline = Instant::now() + Duration::from_secs(2);
    while all.iter().any(is_there) {
        assert!(Instant::now() < deadline, "left after 2 s: {all:?}");
        sleep(Duration::from_millis(20));
    }
}

fn nothing_survives_the_program(who: &Who) -> Verdict {
    let mut family = family(who);
    kill(i32::try_from(family.program.id()).unwrap());
    family.program.wait().unwrap();
    assert_all_gone(&family.all);
    Verdict::Passed
}

fn nothing_survives_init(who: &Who) -> Verdict {
    let mut family = family(who);
    kill(family.init);
    assert_eq!(family.program.wait().unwrap().code(), Some(125));
    assert_all_gone(&family.all);
    Verdict::Passed
}

fn nothing_survives_the_command(who: &Who) -> Verdict {
    let mut family = family(who);
    kill(family.command);
    assert_eq!(family.program.wait().unwrap().code(), Some(137));
    assert_all_gone(&family.all);
    Verdict::Passed
}

fn nothing_survives_a_program_that_sets_up(who: &Who) -> Verdict {
    // Killed at any moment of its set-up, some 30 ms.
    for delay in 0..30 {
        let mut command = who.command(&[], &["sleep", "999"]);
        let mut program = command.stdin(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(2 * delay));
        let pid = i32::try_from(program.id()).unwrap();
        let all: Vec<_> = descendants(pid).iter().filter_map(|pid| Some(stat(*pid)?.1)).collect();
        kill(pid);
        program.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        while all.iter().any(is_there) {
            assert!(Instant::now() < deadline, "left after 2 s, killed after {delay} ms: {all:?}");
            sleep(Duration::from_millis(10));
        }
    }
    Verdict::Passed
}

fn failures_leave_nothing(who: &Who) -> Verdict {
    // Too few descriptors for: the control socket, init's own files, its packet sockets, those
    // that arrive here.
    for (limit, queues) in [("4", "1"), ("6", "1"), ("8", "8"), ("30", "64"), ("66", "64")] {
        let options = ["--account", "--descriptors", limit, "--queues", queues];
        let output = who.command(&options, &["true"]).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(125), "{limit}: {said}");
        assert!(said.contains("nothing is left"), "{limit}: {said}");
    }
    Verdict::Passed
}

fn disabled_namespaces_have_a_cure(who: &Who) -> Verdict {
    // Switched off in a namespace of our own, for those below it.
    let script = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces; {} run --account -- true",
        who.program()
    );
    let output = who.command(&["--root"], &["sh", "-c", &script]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("namespaces could not be made: No space left"), "{said}");
    assert!(said.contains("cure: as root: sysctl -w user.max_user_namespaces=15000"), "{said}");
    assert!(said.contains("nothing is left"), "{said}");
    Verdict::Passed
}
