//! How a run begins and ends: status, streams, signals, reports, and what is left.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::users::{User, as_each_user, has, output, output_with, stats, text, wait_until};

#[test]
fn the_exit_status_is_the_commands() {
    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["fdlink-no-such-command"], 127),
        (&["/etc/passwd"], 126),
    ];
    as_each_user(|user| {
        for (command, code) in cases {
            let output = output(user.run(&[], command));
            assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output));
        }
        let output = output(user.run(&["--stats", "/nonexistent/run.json"], &["echo", "ran"]));
        assert_eq!(output.status.code(), Some(125), "{}", text(&output));
        assert!(output.stdout.is_empty(), "it is said before the command runs");
    });
}

#[test]
fn streams_pass_through() {
    as_each_user(|user| {
        let input: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let output = output_with(user.run(&[], &["sh", "-c", "cat; echo over >&2"]), &input);
        assert!(output.status.success(), "{}", output.status);
        assert!(output.stdout == input);
        assert_eq!(output.stderr, b"over\n");
    });
}

#[test]
fn the_command_gets_no_descriptor_of_ours() {
    as_each_user(|user| {
        let list = ["sh", "-c", "echo /proc/self/fd/*"];
        let inside = output(user.run(&[], &list));
        // Whoever runs the tests may have left some open: those are the command's too.
        let mut direct = Command::new(list[0]);
        direct.args(&list[1..]);
        assert_eq!(inside.stdout, output(direct).stdout, "{}", text(&inside));
    });
}

#[test]
fn the_command_is_who_it_was() {
    as_each_user(|user| {
        let script = "id -u; grep CapEff /proc/self/status";
        let said = |options: &[&str]| {
            String::from_utf8(output(user.run(options, &["sh", "-c", script])).stdout).unwrap()
        };
        let plain = said(&[]);
        assert!(plain.contains("CapEff:\t0000000000000000"), "{plain}");
        assert_eq!(plain.starts_with("0\n"), user.is_root(), "{plain}");
        let root = said(&["--root"]);
        assert!(root.starts_with("0\n") && !root.contains("0000000000000000"), "{root}");
    });
}

/// A run whose command has said that it is ready.
fn ready(
    user: User,
    options: &[&str],
    script: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = user
        .run(options, &["sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, out)
}

#[test]
fn signals_sent_to_us_reach_the_command() {
    let signals = [
        ("TERM", Signal::TERM),
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
    ];
    as_each_user(|user| {
        for (name, signal) in signals {
            let script =
                format!("trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done");
            let (mut child, mut out) = ready(user, &[], &script);
            kill_process(Pid::from_child(&child), signal).unwrap();
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            assert_eq!(line, "got\n", "{name}");
            assert_eq!(child.wait().unwrap().code(), Some(9), "{name}");
        }
        // Without a handler it is the command that dies of it, and that is passed on.
        let (mut child, _out) = ready(user, &[], "echo ready; exec sleep 60");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143));
    });
}

/// How many processes have that word among their arguments.
fn processes(word: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone by now, or a kernel thread.
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.split(|&byte| byte == 0).any(|argument| argument == word.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// A word that only one test uses.
fn marker(user: User, what: u32) -> String {
    format!("98765.{}{what}{}", std::process::id(), u32::from(user.is_root()))
}

#[test]
fn nothing_is_left_when_we_are_killed() {
    as_each_user(|user| {
        let marker = marker(user, 1);
        let script = format!("setsid sleep {marker} & echo ready; exec sleep {marker}");
        let (mut child, _out) = ready(user, &[], &script);
        wait_until("both sleeps", || processes(&marker).len() == 2);
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the end of both", || processes(&marker).is_empty());
    });
}

#[test]
fn we_say_so_when_the_sandbox_is_killed() {
    as_each_user(|user| {
        let marker = marker(user, 2);
        let script = format!("echo ready; exec sleep {marker}");
        let (child, _out) = ready(user, &[], &script);
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let init: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(init).unwrap(), Signal::KILL).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(137), "{}", text(&output));
        assert!(text(&output).contains("fdlink: the sandbox was killed"), "{}", text(&output));
        wait_until("the command's end", || processes(&marker).is_empty());
    });
}

#[test]
fn we_say_so_when_the_link_is_gone() {
    if !has("ip", "we_say_so_when_the_link_is_gone") {
        return;
    }
    as_each_user(|user| {
        let command = ["sh", "-c", "ip link del eth0; exec sleep 60"];
        let output = output(user.run(&["--root"], &command));
        assert_eq!(output.status.code(), Some(125), "{}", text(&output));
        assert!(text(&output).contains("fdlink: the command's link closed: "), "{}", text(&output));
    });
}

#[test]
fn the_report_says_what_was_counted() {
    if !has("python3", "the_report_says_what_was_counted") {
        return;
    }
    as_each_user(|user| {
        let folder = user.folder();
        let file = folder.path().join("run.json");
        let options = ["--stats", file.to_str().unwrap(), "--mode", "recvmmsg", "--queues", "2"];
        let script = "failure(lambda: connect('10.0.2.2', 9)); sys.exit(3)";
        let script = format!(
            "import socket\ndef failure(f):\n try: f()\n except OSError: pass\n\
                              def connect(i, p): socket.create_connection((i, p))\nimport sys\n{script}"
        );
        let output = output(user.run(&options, &["python3", "-c", &script]));
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(output.stderr.is_empty(), "{}", text(&output));

        let stats = stats(&file);
        assert_eq!(stats["exit_status"], 3);
        assert_eq!(stats["command"][0], "python3");
        assert_eq!(stats["link"]["kind"], "packet");
        assert_eq!(stats["link"]["mode"], "recvmmsg");
        assert_eq!(stats["link"]["descriptors"].as_array().unwrap().len(), 2);
        assert_eq!(stats["outbound"]["closed_ports"], 1);
        assert_eq!(stats["stack"]["tcp_refused"], 1);
        let queues = stats["queues"].as_array().unwrap();
        let received: u64 = queues.iter().map(|q| q["rx"]["frames"].as_u64().unwrap()).sum();
        assert!(queues.len() == 2 && received > 0, "{stats}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "and nothing beside it");
    });
}

#[test]
fn verbose_says_what_was_set_up() {
    as_each_user(|user| {
        let output = output(user.run(&["-v", "--mode", "readv", "--mtu", "1000"], &["true"]));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("fdlink: link packet, mode readv, 1 queue\n"), "{said}");
        assert!(said.contains("fdlink: note: "), "no IPv6 below an MTU of 1280: {said}");
        let quiet = crate::users::output(user.run(&["--mtu", "1000"], &["true"]));
        assert!(quiet.stderr.is_empty(), "{}", text(&quiet));
    });
}

#[test]
fn a_closed_output_ends_the_command_as_anywhere() {
    as_each_user(|user| {
        let mut child =
            user.run(&[], &["yes"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        std::thread::sleep(Duration::from_millis(1));
        // SIGPIPE.
        assert_eq!(child.wait().unwrap().code(), Some(141));
    });
}
