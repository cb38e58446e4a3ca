//! A program with one sandbox: P. Its exit status is the command's, or 125 for its own failures.

use std::{
    error::Error as _,
    ffi::OsString,
    fs,
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use fdlink_sandbox::{Config, Event, LinkChoice, Sandbox};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, Rlimit, WaitOptions, setrlimit, wait},
};

use crate::network::{Gateway, Watch};

/// What the program does while the command runs.
#[derive(Default)]
struct Behaviour {
    /// Answers ARP and ping on the outer end.
    gateway: bool,
    /// Prints each frame of the outer end.
    print_frames: bool,
    /// Starts a thread before the sandbox.
    thread: bool,
    /// Forwards this signal once the command has said that it is ready, by an ARP request.
    forward: Option<i32>,
    /// How many descriptors it may have.
    descriptors: Option<u64>,
    /// Counts what is left after a failure.
    account: bool,
}

pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let (config, behaviour) = parse(arguments);
    if behaviour.thread {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(5)));
    }
    if let Some(limit) = behaviour.descriptors {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(Resource::Nofile, limit).unwrap();
    }
    let before = open_descriptors();
    let started = Sandbox::start(&config);
    let mut sandbox = match started {
        Ok(sandbox) => sandbox,
        Err(error) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            report(&format!("error: {error}: {cause}\ncure: {}", error.cure().unwrap_or_default()));
            if behaviour.account {
                assert_eq!(open_descriptors(), before, "descriptors are left");
                let child = wait(WaitOptions::NOHANG);
                assert_eq!(child.err(), Some(rustix::io::Errno::CHILD), "a child is left");
                report("nothing is left");
            }
            return ExitCode::from(125);
        }
    };
    for note in sandbox.notes() {
        report(&format!("note: {note}"));
    }
    let outer = sandbox.take_descriptors();
    assert_eq!(outer.len(), config.queues);
    assert!(sandbox.take_descriptors().is_empty());
    assert!(sandbox.forward_signal(15).is_err(), "there is no command yet");
    assert!(sandbox.next_event().unwrap().is_none());
    sandbox.run_command().unwrap();
    assert!(sandbox.run_command().is_err(), "only once");
    let event = serve(&mut sandbox, &outer, &config, &behaviour);
    match event {
        Event::Exited(exit) => ExitCode::from(exit.code()),
        Event::ExecFailed { error, code } => {
            report(&format!("exec: {error}"));
            ExitCode::from(code)
        }
        _ => {
            report("init is gone");
            ExitCode::from(125)
        }
    }
}

fn serve(
    sandbox: &mut Sandbox,
    outer: &[OwnedFd],
    config: &Config,
    behaviour: &Behaviour,
) -> Event {
    let mut gateway = Gateway::new(config);
    let mut watch = Watch::new(config);
    let mut forward = behaviour.forward;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "the command takes too long");
        if let Some(event) = sandbox.next_event().unwrap() {
            return event;
        }
        let control = sandbox.control();
        let mut ready = vec![PollFd::new(&control, PollFlags::IN)];
        ready.extend(outer.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        let readable: Vec<_> = ready.iter().map(|r| r.revents().contains(PollFlags::IN)).collect();
        for (fd, _) in outer.iter().zip(&readable[1..]).filter(|(_, readable)| **readable) {
            let mut frame = vec![0; 65536 + 14];
            let Ok(len) = rustix::io::read(fd, &mut frame[..]) else { continue };
            // A TAP's frames have a virtio-net header before them.
            let header = if config.link == LinkChoice::Tap { 10 } else { 0 };
            let frame = &frame[header..len];
            if behaviour.print_frames {
                report(&watch.describe(frame));
            }
            if let Some(signal) = forward.take_if(|_| frame[12..14] == [8, 6]) {
                sandbox.forward_signal(signal).unwrap();
            }
            if let Some(reply) = gateway.reply(frame).filter(|_| behaviour.gateway) {
                rustix::io::write(fd, &[vec![0; header], reply].concat()).unwrap();
            }
        }
    }
}

fn parse(arguments: &[OsString]) -> (Config, Behaviour) {
    let (mut config, mut behaviour) = (Config::default(), Behaviour::default());
    let mut arguments = arguments.iter();
    while let Some(option) = arguments.next() {
        let mut number = || arguments.next().unwrap().to_str().unwrap().parse::<u32>().unwrap();
        match option.to_str().unwrap() {
            "--root" => config.root = true,
            "--tap" => config.link = LinkChoice::Tap,
            "--mtu" => config.mtu = number(),
            "--queues" => config.queues = usize::try_from(number()).unwrap(),
            "--gateway" => behaviour.gateway = true,
            "--print-frames" => behaviour.print_frames = true,
            "--thread" => behaviour.thread = true,
            "--account" => behaviour.account = true,
            "--forward" => behaviour.forward = Some(i32::try_from(number()).unwrap()),
            "--descriptors" => behaviour.descriptors = Some(number().into()),
            "--" => break,
            other => panic!("{other}"),
        }
    }
    config.command = arguments.cloned().collect();
    (config, behaviour)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn report(line: &str) {
    eprintln!("{line}");
}
