//! Several AF_PACKET sockets that share what comes in: each way of sharing, groups of several
//! processes on one interface.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, QUIET, recv};
use fdlink::link::{adopt, open_packet};
use fdlink::{Fanout, FanoutMode, Link, LinkOptions, Mode, QueuePair};
use testkit::{Peer, interface, packet};

// An unprivileged user's socket takes all of the short frames, and half of those of 1000 bytes.
const FLOWS: u16 = 40;

/// Rounds over all flows.
const ROUNDS: u8 = 5;

/// Frame `round` of a flow.
fn frame(flow: u16, round: u8, len: usize) -> Vec<u8> {
    let source = ([192, 0, 2, 1], 1000 + flow).into();
    let packet = packet::udp(source, ([192, 0, 2, 2], 9).into(), &vec![round; len]);
    packet::ethernet_ip([2; 6], [4; 6], &packet)
}

/// Sends every frame of every flow.
fn send_all(peer: &Peer, len: usize) {
    for round in 0..ROUNDS {
        for flow in 0..FLOWS {
            peer.send(&frame(flow, round, len)).unwrap();
        }
    }
}

const SENT: usize = FLOWS as usize * ROUNDS as usize;

/// What each queue received, when there are `count` in all and no more come.
fn received(queues: &mut [QueuePair], count: usize) -> Vec<Vec<Vec<u8>>> {
    let mut frames = vec![Vec::new(); queues.len()];
    let end = Instant::now() + PATIENCE;
    loop {
        let complete = frames.iter().map(Vec::len).sum::<usize>() >= count;
        let wait = if complete { QUIET } else { Duration::from_millis(2) };
        for (queue, frames) in queues.iter_mut().zip(&mut frames) {
            frames.extend(recv(&mut **queue.rx.as_mut().unwrap(), usize::MAX, wait));
        }
        if complete || Instant::now() > end {
            return frames;
        }
    }
}

/// Every frame arrived, and none twice.
fn assert_complete(received: &[Vec<Vec<u8>>], len: usize) {
    let mut frames: Vec<_> = received.concat();
    frames.sort();
    let rounds = 0..ROUNDS;
    let mut sent: Vec<_> =
        rounds.flat_map(|round| (0..FLOWS).map(move |flow| frame(flow, round, len))).collect();
    sent.sort();
    assert!(frames == sent, "{} of {} frames", frames.len(), sent.len());
}

#[test]
fn each_way_of_sharing_gives_every_frame_to_one_socket() {
    testkit::in_namespace(|| {
        use rustix::thread::{CpuSet, sched_setaffinity};
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let ways =
            [FanoutMode::Hash, FanoutMode::LoadBalance, FanoutMode::Cpu, FanoutMode::Rollover];
        for (way, mode) in ways.into_iter().flat_map(|way| Mode::NAMED.map(|mode| (way, mode))) {
            let fanout = Fanout { mode: way, defragment: false };
            let options = LinkOptions::new().mode(mode).fanout(fanout);
            // Buffers are to be filled; a ring is larger than all that is sent.
            let small = options.clone().socket_buffer(1);
            let (options, len) =
                if way == FanoutMode::Rollover { (small, 1000) } else { (options, 20) };
            let link = open_packet("a", 3, &options).unwrap();
            for descriptor in &link.report().descriptors {
                assert_eq!(descriptor.fanout, Some(fanout));
                assert_eq!(descriptor.fanout_group, link.report().descriptors[0].fanout_group);
                assert!(descriptor.to_string().contains(way.name()), "{descriptor}");
            }
            let mut queues = Box::new(link).into_queues().unwrap();
            let cpus = if way == FanoutMode::Cpu { 0..2 } else { 0..1 };
            for cpu in cpus {
                let mut one = CpuSet::new();
                one.set(cpu);
                // A machine with one processor has nothing to tell apart.
                if sched_setaffinity(None, &one).is_err() {
                    continue;
                }
                send_all(&peer, len);
                let received = received(&mut queues, SENT);
                assert_complete(&received, len);
                let counts: Vec<_> = received.iter().map(Vec::len).collect();
                let text = format!("{} in {mode}: {counts:?}", way.name());
                match way {
                    FanoutMode::Hash => assert!(counts.iter().all(|n| *n < SENT), "{text}"),
                    FanoutMode::LoadBalance => {
                        assert!(counts.iter().all(|n| n.abs_diff(SENT / 3) <= 1), "{text}");
                    }
                    FanoutMode::Cpu => assert_eq!(counts[cpu % 3], SENT, "{text}"),
                    _ if mode == Mode::PacketMmap => assert!(counts.contains(&SENT), "{text}"),
                    _ => assert!(counts.iter().all(|n| *n < SENT), "{text}"),
                }
            }
        }
    });
}

#[test]
fn a_flow_stays_on_one_socket_and_in_order_by_hash() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        for mode in Mode::NAMED {
            let link = open_packet("a", 4, &LinkOptions::new().mode(mode)).unwrap();
            let mut queues = Box::new(link).into_queues().unwrap();
            send_all(&peer, 20);
            let received = received(&mut queues, SENT);
            assert_complete(&received, 20);
            for flow in 0..FLOWS {
                let of_flow = |frame: &&Vec<u8>| frame[34..36] == (1000 + flow).to_be_bytes();
                let owners: Vec<Vec<u8>> = received
                    .iter()
                    .map(|frames| frames.iter().filter(of_flow).map(|frame| frame[42]).collect())
                    .filter(|rounds: &Vec<u8>| !rounds.is_empty())
                    .collect();
                assert_eq!(owners, [(0..ROUNDS).collect::<Vec<_>>()], "{mode}, flow {flow}");
            }
        }
    });
}

/// Before there is a group each socket has what all have: one's is enough.
#[test]
fn what_waited_on_several_sockets_comes_once() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        for (mode, vnet) in Mode::NAMED.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
            let open = |_| {
                let opened = open_packet("a", 1, &LinkOptions::new()).unwrap().into_fds();
                let plain = testkit::packet_socket("a").unwrap();
                if vnet { opened.into_iter().next().unwrap() } else { plain }
            };
            let fds: Vec<_> = (0..3).map(open).collect();
            (0..5).for_each(|round| peer.send(&frame(1, round, 20)).unwrap());
            let link = adopt(fds, &LinkOptions::new().mode(mode)).unwrap();
            let mut queues = Box::new(link).into_queues().unwrap();
            // A ring starts empty; the kernel throws away what waits.
            let expected = if mode == Mode::PacketMmap { 0 } else { 5 };
            let waited = received(&mut queues, expected.into()).concat();
            assert_eq!(
                waited,
                (0..expected).map(|r| frame(1, r, 20)).collect::<Vec<_>>(),
                "{mode}"
            );
            send_all(&peer, 20);
            assert_complete(&received(&mut queues, SENT), 20);
        }
    });
}

/// Put together or left alone: what was on the link is what comes, unless it is asked otherwise.
#[test]
fn fragments_are_put_together_only_where_it_is_asked() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let whole = packet::udp(([192, 0, 2, 1], 7).into(), ([192, 0, 2, 2], 9).into(), &[5; 792]);
        let fragment = |payload: &[u8], field: u16| {
            let mut packet =
                packet::ipv4([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), 17, payload);
            packet[4..6].copy_from_slice(&[0, 77]);
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            packet[10..12].fill(0);
            let sum = packet::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet::ethernet_ip([2; 6], [4; 6], &packet)
        };
        // More fragments; 400 bytes on, in units of eight.
        let fragments = [fragment(&whole[20..420], 0x2000), fragment(&whole[420..], 50)];
        for defragment in [false, true] {
            let fanout = Fanout { mode: FanoutMode::Hash, defragment };
            let link = open_packet("a", 2, &LinkOptions::new().fanout(fanout)).unwrap();
            let mut queues = Box::new(link).into_queues().unwrap();
            fragments.iter().for_each(|frame| peer.send(frame).unwrap());
            let expected = if defragment { 1 } else { 2 };
            let mut frames = received(&mut queues, expected).concat();
            frames.sort_by_key(|frame| frame[20] == 0);
            if defragment {
                assert_eq!(frames.len(), 1);
                assert_eq!(frames[0][34..], whole[20..]);
            } else {
                assert_eq!(frames, fragments);
            }
        }
    });
}

#[test]
fn one_socket_makes_no_group() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let fanout = LinkOptions::new().fanout(Fanout::default());
        let link = open_packet("a", 1, &fanout).unwrap();
        assert_eq!(link.report().descriptors[0].fanout_group, None);
        assert_eq!(link.report().notes, ["fanout: one descriptor has nothing to share"]);
        let fds = link.into_fds();
        let name = testkit::socket_option(fds[0].as_fd(), 263, 18).unwrap();
        assert_eq!(name, 0);
    });
}

/// What tells a process of this test that it is one of the several.
const MEMBER: &str = "FDLINK_TEST_MEMBER";

#[test]
fn processes_in_one_namespace_have_groups_of_their_own() {
    testkit::in_namespace(|| {
        if std::env::var_os(MEMBER).is_some() {
            return be_a_member();
        }
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let mut members: Vec<_> = (0..4).map(|_| start_member()).collect();
        let mut groups: Vec<_> = members.iter_mut().map(|(_, out)| word(out, "group")).collect();
        groups.sort();
        groups.dedup();
        assert_eq!(groups.len(), 4, "{groups:?}");
        send_all(&peer, 20);
        for (mut child, mut out) in members {
            drop(child.stdin.take());
            assert_eq!(word(&mut out, "received"), SENT.to_string());
            // To the end, or it would be killed by what it prints last.
            out.read_to_end(&mut Vec::new()).unwrap();
            assert!(child.wait().unwrap().success());
        }
    });
}

fn start_member() -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["processes_in_one_namespace_have_groups_of_their_own", "--exact", "--nocapture"]);
    command.env(MEMBER, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// The word behind `name` on the line that starts with it.
fn word(out: &mut impl BufRead, name: &str) -> String {
    let mut lines = out.lines().map_while(Result::ok);
    let line = lines.find(|line| line.starts_with(name)).expect("the member's line");
    line[name.len()..].trim().to_owned()
}

/// Joins a group of two, says which, and says at the end how much it received.
fn be_a_member() {
    let say = |name: &str, value: usize| {
        writeln!(std::io::stdout().lock(), "{name} {value}").unwrap();
    };
    let link = open_packet("a", 2, &LinkOptions::new()).unwrap();
    say("group", link.report().descriptors[0].fanout_group.unwrap().into());
    let mut queues = Box::new(link).into_queues().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let count = received(&mut queues, SENT).iter().map(Vec::len).sum();
    say("received", count);
}

#[test]
fn what_came_before_the_group_is_the_first_ones_alone() {
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let peer = Peer::on_interface("b").unwrap();
        let sockets: Vec<_> = (0..2).map(|_| testkit::packet_socket("a").unwrap()).collect();
        for socket in &sockets {
            // SOL_SOCKET, SO_RCVBUF: the least there is.
            testkit::set_socket_option(socket.as_fd(), 1, 8, 1).unwrap();
        }
        (0..50).for_each(|round| peer.send(&frame(1, round, 1000)).unwrap());
        let link = adopt(sockets, &LinkOptions::new()).unwrap();
        let stats = link.stats();
        let mut queues = Box::new(link).into_queues().unwrap();
        let mut counted = Vec::new();
        for (queue, counters) in queues.iter_mut().zip(stats.queues()) {
            let rx = &mut **queue.rx.as_mut().unwrap();
            recv(rx, usize::MAX, QUIET);
            rx.update_stats();
            let counters = counters.rx.snapshot();
            counted.push(counters.frames + counters.kernel_drops);
        }
        assert_eq!(counted, [50, 0]);
    });
}

#[test]
fn no_frame_comes_twice_while_links_are_made_and_go() {
    const LINKS: usize = 20;
    testkit::in_namespace(|| {
        interface::veth("a", "b", 1500).unwrap();
        let (stop, peer) = (AtomicBool::new(false), Peer::on_interface("b").unwrap());
        let mut twice = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut serial = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let source = ([192, 0, 2, 1], 1000 + u16::try_from(serial % 40).unwrap());
                    let payload = serial.to_ne_bytes();
                    let packet = packet::udp(source.into(), ([192, 0, 2, 2], 9).into(), &payload);
                    peer.send(&packet::ethernet_ip([2; 6], [4; 6], &packet)).unwrap();
                    serial += 1;
                }
            });
            for mode in Mode::NAMED.into_iter().cycle().take(LINKS) {
                let options = LinkOptions::new().mode(mode).ring_bytes(8 << 20);
                let mut queues =
                    Box::new(open_packet("a", 2, &options).unwrap()).into_queues().unwrap();
                let mut frames = Vec::new();
                for queue in &mut queues {
                    frames.extend(recv(&mut **queue.rx.as_mut().unwrap(), 20_000, QUIET));
                }
                let count = frames.len();
                frames.sort();
                frames.dedup();
                twice += count - frames.len();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(twice, 0);
    });
}
