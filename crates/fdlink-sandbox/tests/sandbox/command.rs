//! What becomes of the command: its status, its signals, its ids, its capabilities.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Output},
};

use crate::runner::{Case, Verdict, Who, missing, text};

pub(crate) const CASES: &[Case] = &[
    ("exit_status_is_passed_on", exit_status_is_passed_on),
    ("commands_that_cannot_run", commands_that_cannot_run),
    ("standard_streams_are_untouched", standard_streams_are_untouched),
    ("signals_are_forwarded", signals_are_forwarded),
    ("signal_state_is_fresh", signal_state_is_fresh),
    ("nothing_else_is_inherited", nothing_else_is_inherited),
    ("ids_are_kept_and_capabilities_gone", ids_are_kept_and_capabilities_gone),
    ("capabilities_do_not_come_back", capabilities_do_not_come_back),
    ("root_is_root_inside", root_is_root_inside),
    ("namespaces_are_fresh", namespaces_are_fresh),
    ("init_is_out_of_reach", init_is_out_of_reach),
    ("directory_and_environment_are_kept", directory_and_environment_are_kept),
    ("orphans_are_reaped", orphans_are_reaped),
    ("threads_are_refused", threads_are_refused),
    ("a_sandbox_in_a_sandbox", a_sandbox_in_a_sandbox),
];

fn exit_of(who: &Who, command: &[&str]) -> (Option<i32>, Output) {
    let output = who.command(&[], command).output().unwrap();
    (output.status.code(), output)
}

fn exit_status_is_passed_on(who: &Who) -> Verdict {
    let cases = [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
    ];
    for (script, expected) in cases {
        let (code, output) = exit_of(who, &["sh", "-c", script]);
        assert_eq!(code, Some(expected), "{script}: {}", text(&output));
    }
    // Where SIGCHLD is ignored from the start, the kernel would keep no status. (dash does not
    // let it be ignored.)
    if let Some(verdict) = missing("bash") {
        return verdict;
    }
    let script = format!("trap '' CHLD; exec {} run -- sh -c 'exit 7'", who.program());
    let script = format!("exec bash -c \"{script}\"");
    let output = outside_command(who, &script).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    Verdict::Passed
}

fn commands_that_cannot_run(who: &Who) -> Verdict {
    let cases =
        [("no-such-command", 127), ("/no/such/command", 127), ("/etc", 126), ("/etc/passwd", 126)];
    for (command, expected) in cases {
        let (code, output) = exit_of(who, &[command]);
        assert_eq!(code, Some(expected), "{command}: {}", text(&output));
        assert!(text(&output).contains("exec: "), "{}", text(&output));
    }
    // A directory of PATH that cannot be searched must not turn "not found" into "not allowed".
    let mut command = who.command(&[], &["no-such-command"]);
    let output = command.env("PATH", "/root:/proc/1/fd:/usr/bin").output().unwrap();
    assert_eq!(output.status.code(), Some(127), "{}", text(&output));
    Verdict::Passed
}

fn standard_streams_are_untouched(who: &Who) -> Verdict {
    let script = format!("echo in | {} run -- sh -c 'cat; echo err >&2'", who.program());
    let output = outside_command(who, &script).output().unwrap();
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"in\n"[..], &b"err\n"[..]));
    Verdict::Passed
}

/// A shell script without a sandbox, as the same user.
fn outside_command(who: &Who, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir("/");
    if rustix::process::getuid().is_root() {
        command.uid(who.uid()).gid(who.uid());
    }
    command
}

fn outside(who: &Who, script: &str) -> String {
    String::from_utf8(outside_command(who, script).output().unwrap().stdout).unwrap()
}

fn signals_are_forwarded(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    if let Some(verdict) = missing("bash") {
        return verdict;
    }
    // ping's ARP request says that the trap is set. (dash has no traps for real-time signals.)
    let wait = "ping -q -i 0.2 10.0.2.2 >/dev/null & wait";
    for (signal, number) in [("TERM", "15"), ("USR1", "10"), ("RTMIN", "34")] {
        let script = format!("trap 'exit 9' {signal}; {wait}");
        let script = ["bash", "-c", &script];
        let output = who.command(&["--forward", number], &script).output().unwrap();
        assert_eq!(output.status.code(), Some(9), "{signal}: {}", text(&output));
    }
    let output = who.command(&["--forward", "2"], &["ping", "-q", "10.0.2.2"]).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 3), "{}", text(&output));
    Verdict::Passed
}

fn signal_state_is_fresh(who: &Who) -> Verdict {
    let look = "grep -e SigBlk -e SigIgn /proc/self/status";
    let status = who.shell(&[], look);
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    // What our parent ignores stays ignored, as nohup needs it (1 is SIGHUP); SIGPIPE (0x1000),
    // which Rust ignores, does not.
    assert_eq!(status, outside(who, look));
    let inside = format!("trap '' HUP; exec {} run -- {look}", who.program());
    let status = outside(who, &inside);
    assert_eq!(status, outside(who, &format!("trap '' HUP; {look}")));
    assert!(status.trim_end().ends_with('1'), "{status}");
    Verdict::Passed
}

fn nothing_else_is_inherited(who: &Who) -> Verdict {
    let look = "exec 7</dev/null; ls /proc/$$/fd; true";
    assert_eq!(who.shell(&[], look), outside(who, look));
    let handed_on =
        format!("exec 7</dev/null; {} run -- sh -c 'ls /proc/$$/fd; true'", who.program());
    assert_eq!(outside(who, &handed_on), outside(who, look));
    Verdict::Passed
}

fn ids_are_kept_and_capabilities_gone(who: &Who) -> Verdict {
    let status = who.shell(&[], "cat /proc/self/status");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
    }
    let id = who.uid();
    assert!(status.contains(&format!("Uid:\t{id}\t{id}\t{id}\t{id}")), "{status}");
    assert_eq!(who.shell(&[], "id -u; id -g"), format!("{id}\n{id}\n"));
    Verdict::Passed
}

fn capabilities_do_not_come_back(who: &Who) -> Verdict {
    // Neither by being user 0, nor by set-user-id, nor by file capabilities; and what has some can
    // still be executed.
    let refused = "mount -t tmpfs none /mnt 2>/dev/null || echo no mount; \
                   ip link set lo down 2>/dev/null || echo no link; \
                   ip link set eth0 mtu 1400 2>/dev/null || echo no mtu; \
                   ip route add 192.0.2.0/24 dev eth0 2>/dev/null || echo no route";
    if let Some(verdict) = missing("ip") {
        return verdict;
    }
    assert_eq!(who.shell(&[], refused), "no mount\nno link\nno mtu\nno route\n");
    // In a user namespace of its own it is mighty, over nothing of ours.
    // (A user 0 without CAP_SETFCAP cannot map itself, so it is not.)
    if !who.is_root() {
        let script = "unshare -Ur sh -c 'ip link set eth0 down 2>/dev/null || echo no link'";
        assert_eq!(who.shell(&[], script), "no link\n");
    }
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    assert!(who.shell(&[], "ping -V; grep Cap /proc/self/status").contains("ping"));
    Verdict::Passed
}

fn root_is_root_inside(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ip") {
        return verdict;
    }
    let script = "id -u; id -g; ip link set lo down && mount -t tmpfs none /mnt && \
                  touch /mnt/x && ls /mnt; cat /proc/self/uid_map";
    let output = who.shell(&["--root"], script);
    let id = who.uid();
    let lines: Vec<_> = output.split_whitespace().collect();
    assert_eq!(lines, ["0", "0", "x", "0", &id.to_string(), "1"], "{output}");
    let status = who.shell(&["--root"], "grep CapEff /proc/self/status");
    assert!(!status.contains("0000000000000000"), "{status}");
    Verdict::Passed
}

fn namespaces_are_fresh(who: &Who) -> Verdict {
    for kind in ["user", "net", "mnt", "pid"] {
        let path = format!("/proc/self/ns/{kind}");
        let inside = who.shell(&[], &format!("readlink {path}"));
        let outside = std::fs::read_link(&path).unwrap();
        assert_ne!(inside.trim(), outside.to_str().unwrap(), "{kind}");
    }
    let processes = who.shell(&[], "ls -d /proc/[0-9]*");
    assert!(processes.lines().count() < 6 && processes.contains("/proc/1\n"), "{processes}");
    Verdict::Passed
}

fn init_is_out_of_reach(who: &Who) -> Verdict {
    let script = "readlink /proc/1/fd/0 || echo no descriptors; \
                  cat /proc/1/mem >/dev/null 2>&1 || echo no memory; \
                  kill -9 1; kill -TERM 1; echo alive";
    assert_eq!(who.shell(&[], script), "no descriptors\nno memory\nalive\n");
    Verdict::Passed
}

fn directory_and_environment_are_kept(who: &Who) -> Verdict {
    for directory in ["/", "/usr/lib", "/etc", "/proc", "/sys/class/net"] {
        let mut command = who.command(&[], &["sh", "-c", "/bin/pwd; ls -d .; echo $FDLINK_X"]);
        let output = command.env("FDLINK_X", "y").current_dir(directory).output().unwrap();
        assert_eq!(text(&output), format!("exit status: 0\n{directory}\n.\ny\n"));
    }
    // Not the one of the host's that is hidden below.
    let mut command = who.command(&[], &["ls", "eth0/address"]);
    let output = command.current_dir("/sys/class/net").output().unwrap();
    assert_eq!(text(&output), "exit status: 0\neth0/address\n");
    let mut command = who.command(&[], &["ls", "-d", "1", "2"]);
    let output = command.current_dir("/proc").output().unwrap();
    assert_eq!(text(&output), "exit status: 0\n1\n2\n");
    Verdict::Passed
}

fn orphans_are_reaped(who: &Who) -> Verdict {
    let script = "for i in 1 2 3 4 5; do (sleep 0.1 & ) ; done; sleep 0.5; \
                  grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    assert_eq!(who.shell(&[], script).trim(), "0");
    Verdict::Passed
}

fn threads_are_refused(who: &Who) -> Verdict {
    let output = who.command(&["--thread", "--account"], &["true"]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("2 threads") && said.contains("nothing is left"), "{said}");
    Verdict::Passed
}

fn a_sandbox_in_a_sandbox(who: &Who) -> Verdict {
    let inner = [who.program(), "run", "--", "sh", "-c", "exit 7"];
    let output = who.command(&[], &inner).output().unwrap();
    let said = text(&output);
    if who.is_root() {
        // User 0 without CAP_SETFCAP may not map itself, and no command has it.
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains("cure: root without CAP_SETFCAP cannot map itself"), "{said}");
    } else {
        assert_eq!(output.status.code(), Some(7), "{said}");
    }
    let output = who.command(&["--root"], &inner).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    Verdict::Passed
}
