//! Overrun on purpose: every frame that was sent was delivered or is in some counter, none comes
//! twice, and the order is kept. What came of it is printed as a table.
//!
//! Frames are numbered. The reader starts when the flood is over, or is stuck in a delivery until
//! then; after that it is stopped in the middle of what waits, and attached again.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which prints its table")]

mod common;

use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Kind, PATIENCE, Rig, Way, datagrams, seqpackets};
use fdlink::link::{adopt, open_packet, open_tap, open_tun};
use fdlink::{
    Endpoint, Fill, LinkEndpoint, LinkOptions, Mode, NetworkDispatcher, QueueIndex, RxBatch,
};
use testkit::{Peer, interface, packet};

/// Bytes of numbered payload: frames of nearly 1500.
const PAYLOAD: usize = 1400;

/// Flows, by source address where frames have one.
const FLOWS: u32 = 16;

/// Frames that are sent while the interface does not take their length.
const TOO_LONG: u32 = 100;

/// Batches that a reader takes before it gets stuck.
const BEFORE_STUCK: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Attached after the flood.
    Late,
    /// Attached before it, and stuck in a delivery until its end.
    Stuck,
}

/// One flood.
struct Run {
    kind: Kind,
    name: &'static str,
    options: LinkOptions,
    queues: usize,
    reader: Reader,
    /// Frames; enough to overrun what the kernel keeps.
    frames: u32,
}

/// What became of what was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    sent: u64,
    delivered: u64,
    /// Dropped at the socket (PACKET_STATISTICS).
    kernel: u64,
    /// Dropped by the interface or before it.
    device: u64,
    /// Dropped here, by whatever reason.
    ours: u64,
}

impl Sum {
    fn difference(&self) -> i128 {
        let gone = self.delivered + self.kernel + self.device + self.ours;
        i128::from(self.sent) - i128::from(gone)
    }
}

#[test]
fn packet_sockets() {
    testkit::in_namespace(|| {
        // A small buffer, or a ring of the usual 32 MiB.
        let small = || LinkOptions::new().socket_buffer(256 << 10);
        let modes = [
            ("readv", small().mode(Mode::Readv), 20_000),
            ("recvmmsg", small().mode(Mode::RecvMmsg), 20_000),
            ("packet-mmap V2", Way::RING_V2.options(), 20_000),
            ("packet-mmap V3", Way::RING_V3.options(), 40_000),
        ];
        table(
            modes
                .iter()
                .flat_map(|(name, options, frames)| variants(Kind::Packet, name, options, *frames)),
        );
    });
}

/// Who is always behind finds no queue empty, and sees what the kernel dropped all the same.
#[test]
fn drops_are_told_while_the_queue_is_full() {
    testkit::in_namespace(|| {
        let (mut rig, sent) = (Rig::new(Kind::Packet, Way::READV), 8_000);
        // More visits than between two looks at the counter, each for 1500 bytes and what the kernel
        // adds to them.
        const VISITS: usize = 1_100;
        if rig.properties.rx_queue_bytes < VISITS * 2_304 {
            return testkit::skip("drops_are_told_while_the_queue_is_full", "net.core.rmem_max");
        }
        let frame = rig.kind.frame(1500, 1);
        (0..sent).for_each(|_| rig.peer.send(&frame).unwrap());
        for _ in 0..VISITS {
            assert_eq!(rig.rx.fill().unwrap(), Fill::Frames(1));
        }
        assert!(rig.stats.rx().kernel_drops > 0);
    });
}

#[test]
fn tun_and_tap() {
    testkit::in_namespace(|| {
        if testkit::has_tun("flood: tun_and_tap") {
            let options = LinkOptions::new();
            let run = |kind| variants(kind, "readv", &options, 5_000);
            table([Kind::Tap, Kind::Tun].into_iter().flat_map(run));
        }
    });
}

/// One descriptor and two, with each reader.
fn variants(kind: Kind, name: &'static str, options: &LinkOptions, frames: u32) -> Vec<Run> {
    let mut runs = Vec::new();
    for queues in [1, 2] {
        for reader in [Reader::Late, Reader::Stuck] {
            // Each of two gets enough, as far as the flows are shared evenly.
            let frames = frames * u32::try_from(queues).unwrap();
            runs.push(Run { kind, name, options: options.clone(), queues, reader, frames });
        }
    }
    runs
}

/// Runs each of them; fails at the end if a sum was wrong.
fn table(runs: impl IntoIterator<Item = Run>) {
    print_head();
    let mut wrong = Vec::new();
    for run in runs {
        let sum = flood(&run);
        let what = format!("{} × {}, {:?} reader", run.name, run.queues, run.reader);
        print_row(run.kind, &what, &sum);
        let dropped = if run.kind == Kind::Packet { sum.kernel } else { sum.device };
        wrong.extend((sum.difference() != 0 || dropped == 0).then_some((run.kind, what, sum)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn print_head() {
    println!(
        "{:10} {:36} {:>7} {:>9} {:>12} {:>12} {:>5} {:>10}",
        "kind", "mode", "sent", "delivered", "kernel drops", "device drops", "ours", "difference"
    );
}

fn print_row(kind: Kind, what: &str, sum: &Sum) {
    let Sum { sent, delivered, kernel, device, ours } = sum;
    let (kind, difference) = (kind.name(), sum.difference());
    println!(
        "{kind:10} {what:36} {sent:>7} {delivered:>9} {kernel:>12} {device:>12} {ours:>5} {difference:>10}"
    );
}

/// Sends numbered frames into a link that does not keep up, and adds up.
fn flood(run: &Run) -> Sum {
    let name = "flood0";
    let (link, far) = match run.kind {
        Kind::Packet => {
            interface::veth(name, "flood1", 1500).unwrap();
            (open_packet(name, run.queues, &run.options).unwrap(), "flood1")
        }
        Kind::Tap => (open_tap(name, run.queues, &run.options).unwrap(), name),
        _ => (open_tun(name, run.queues, &run.options).unwrap(), name),
    };
    interface::up(name).unwrap();
    let mut sender = Sender::new(run, Peer::on_interface(far).unwrap());
    let endpoint = Endpoint::new(link).unwrap();
    let stats = endpoint.stats();
    let numbers = Arc::new(Numbers::new(run.queues));
    let before = interface::counters(name).unwrap();

    if run.reader == Reader::Stuck {
        endpoint.attach(Arc::clone(&numbers) as Arc<dyn NetworkDispatcher>).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            keep_to_one_processor();
            sender.send(run.frames);
        });
    });
    if run.kind == Kind::Packet {
        // Refused before they come to any socket, as those are that find a processor's backlog full.
        interface::set_mtu(name, 1000).unwrap();
        sender.send(TOO_LONG);
        interface::set_mtu(name, 1500).unwrap();
    }
    numbers.flood_is_over();
    if run.reader == Reader::Late {
        endpoint.attach(Arc::clone(&numbers) as Arc<dyn NetworkDispatcher>).unwrap();
    }
    // In the middle of what waits; the rest, and what was dropped meanwhile, must not be forgotten.
    endpoint.stop();
    endpoint.join().unwrap();
    endpoint.attach(Arc::clone(&numbers) as Arc<dyn NetworkDispatcher>).unwrap();
    // When a whole round behind the flood has come, so has everything before it.
    let begin = Instant::now();
    while !numbers.wait_for(sender.send(FLOWS)) {
        assert!(begin.elapsed() < PATIENCE, "the end of the flood did not come");
    }
    let after = interface::counters(name).unwrap();
    // A queue asks for the kernel's drops now and then, and for the last time when it goes.
    drop(endpoint);

    let delivered = numbers.check();
    let rx = stats.rx();
    assert_eq!(rx.frames, delivered);
    let mut sum =
        Sum { sent: sender.accepted, delivered, kernel: rx.kernel_drops, ..Sum::default() };
    sum.ours = rx.truncated + rx.malformed + rx.outgoing;
    if run.kind == Kind::Packet {
        // What the interface or the backlog refused was sent, with an error.
        sum.sent += sender.refused;
        sum.device = after.rx_dropped - before.rx_dropped;
        assert!(sum.device >= TOO_LONG.into());
        interface::remove(name).unwrap();
    } else {
        sum.device = after.tx_dropped - before.tx_dropped;
    }
    sum
}

/// A sender that moved from one processor to the other would overtake itself: each has a backlog.
fn keep_to_one_processor() {
    let mut first = rustix::thread::CpuSet::new();
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    first.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap());
    rustix::thread::sched_setaffinity(None, &first).unwrap();
}

/// The far end, which numbers what it sends.
struct Sender {
    peer: Peer,
    kind: Kind,
    /// Frames have IP headers, so that they have flows.
    flows: bool,
    next: u32,
    accepted: u64,
    /// Sends that the interface refused (ENOBUFS).
    refused: u64,
}

impl Sender {
    fn new(run: &Run, peer: Peer) -> Self {
        let flows = run.kind == Kind::Tun || run.queues > 1;
        Self { peer, kind: run.kind, flows, next: 0, accepted: 0, refused: 0 }
    }

    /// Sends that many; returns their numbers.
    fn send(&mut self, count: u32) -> std::ops::Range<u32> {
        let numbers = self.next..self.next + count;
        for number in numbers.clone() {
            match self.peer.send(&self.frame(number)) {
                Ok(()) => self.accepted += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.refused += 1,
                Err(error) => panic!("send: {error}"),
            }
        }
        self.next = numbers.end;
        numbers
    }

    fn frame(&self, number: u32) -> Vec<u8> {
        const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x42], [2, 0, 0, 0, 0, 0x24]];
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(PAYLOAD, 0);
        if !self.flows {
            return packet::ethernet(MACS[0], MACS[1], packet::ETH_EXPERIMENT, &payload);
        }
        let source = [192, 0, 2, u8::try_from(number % FLOWS).unwrap()].into();
        // RFC 3692: protocol 253 is for experiments.
        let packet = packet::ipv4(source, [198, 51, 100, 1].into(), 253, &payload);
        if self.kind == Kind::Tun { packet } else { packet::ethernet_ip(MACS[0], MACS[1], &packet) }
    }
}

/// The numbers that were delivered, by descriptor.
struct Numbers {
    delivered: Mutex<Delivered>,
    changed: Condvar,
}

struct Delivered {
    by_queue: Vec<Vec<u32>>,
    batches: Vec<usize>,
    flood: bool,
}

impl Numbers {
    fn new(queues: usize) -> Self {
        let by_queue = vec![Vec::new(); queues];
        let delivered = Delivered { by_queue, batches: vec![0; queues], flood: true };
        Self { delivered: Mutex::new(delivered), changed: Condvar::new() }
    }

    fn flood_is_over(&self) {
        self.delivered.lock().unwrap().flood = false;
        self.changed.notify_all();
    }

    /// Waits a while until all of these have come; whether they have.
    fn wait_for(&self, numbers: std::ops::Range<u32>) -> bool {
        let missing = |delivered: &mut Delivered| {
            // Those of the last round are the last in each list.
            let last =
                |list: &Vec<u32>| list.iter().rev().take_while(|n| **n >= numbers.start).count();
            delivered.by_queue.iter().map(last).sum::<usize>() < numbers.len()
        };
        let delivered = self.delivered.lock().unwrap();
        let waited =
            self.changed.wait_timeout_while(delivered, Duration::from_millis(500), missing);
        !waited.unwrap().1.timed_out()
    }

    /// Checks order and that none came twice; returns how many came.
    fn check(&self) -> u64 {
        let delivered = self.delivered.lock().unwrap();
        for (queue, numbers) in delivered.by_queue.iter().enumerate() {
            let ascend = numbers.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(ascend, "descriptor {queue}: out of order, or twice");
        }
        let mut all = delivered.by_queue.concat();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "on two descriptors");
        all.len() as u64
    }
}

impl NetworkDispatcher for Numbers {
    fn deliver(&self, queue: QueueIndex, batch: &mut RxBatch<'_>) {
        let mut delivered = self.delivered.lock().unwrap();
        for frame in batch {
            let bytes = frame.bytes();
            let number = bytes[bytes.len() - PAYLOAD..].first_chunk().unwrap();
            delivered.by_queue[queue.0].push(u32::from_be_bytes(*number));
        }
        delivered.batches[queue.0] += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(delivered, |delivered| {
            delivered.flood && delivered.batches[queue.0] > BEFORE_STUCK
        }));
    }
}

#[test]
fn unix_sockets() {
    print_head();
    for kind in [Kind::Seqpacket, Kind::Datagram] {
        for way in kind.ways() {
            let (sum, full) = unix_flood(kind, *way);
            print_row(kind, &format!("{way}, would block {full} times"), &sum);
            assert_eq!(sum.difference(), 0, "{kind:?} {way}");
            assert!(full > 0, "{kind:?} {way}: the flood fitted");
        }
    }
}

/// What a UDP socket has no room for is dropped, and told by the socket.
#[test]
fn udp_sockets() {
    print_head();
    for way in Kind::Udp.ways() {
        let (ours, far) = common::udp_sockets();
        let peer = Peer::on_socket(far, 0);
        // What was dropped before there was a link is not the link's.
        let send = |number: u32| {
            let mut message = number.to_be_bytes().to_vec();
            message.resize(PAYLOAD, 0);
            peer.send(&message).unwrap();
        };
        const FRAMES: u32 = 20_000;
        (0..FRAMES).for_each(send);
        let kept = ours.try_clone().unwrap();
        let endpoint = Endpoint::new(adopt(vec![ours], &way.options()).unwrap()).unwrap();
        let mut waiting = vec![0; PAYLOAD];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        while rustix::net::recv(&kept, waiting.as_mut_slice(), flags).is_ok() {}
        let numbers = Arc::new(Numbers::new(1));
        numbers.flood_is_over();
        (0..FRAMES).for_each(send);
        endpoint.attach(Arc::clone(&numbers) as Arc<dyn NetworkDispatcher>).unwrap();
        // The reader has taken all that waited once something comes that was sent after that.
        let mut sent = FRAMES;
        while !numbers.wait_for(sent - 1..sent) {
            send(sent);
            sent += 1;
        }
        endpoint.stop();
        endpoint.join().unwrap();
        let rx = endpoint.stats().rx();
        let ours = rx.truncated + rx.malformed + rx.outgoing;
        let (delivered, kernel) = (numbers.check(), rx.kernel_drops);
        let sum = Sum { sent: sent.into(), delivered, kernel, device: 0, ours };
        print_row(Kind::Udp, &way.to_string(), &sum);
        assert_eq!(sum.difference(), 0, "{way}");
        assert!(sum.kernel > 0, "{way}: the flood fitted");
    }
}

/// A unix socket drops nothing: who sends too much is told, which is the second of what this
/// returns.
fn unix_flood(kind: Kind, way: Way) -> (Sum, u64) {
    const FRAMES: u32 = 20_000;
    let (ours, far) = if kind == Kind::Seqpacket { seqpackets() } else { datagrams() };
    let peer = Peer::on_socket(far, 0);
    rustix::io::ioctl_fionbio(peer.as_fd(), true).unwrap();
    let endpoint = Endpoint::new(adopt(vec![ours], &way.options()).unwrap()).unwrap();
    let numbers = Arc::new(Numbers::new(1));
    numbers.flood_is_over();
    let (mut sent, mut full) = (0, 0_u64);
    while sent < FRAMES {
        let mut message = sent.to_be_bytes().to_vec();
        message.resize(PAYLOAD, 0);
        match peer.send(&message) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                if full == 0 {
                    endpoint.attach(Arc::clone(&numbers) as Arc<dyn NetworkDispatcher>).unwrap();
                }
                full += 1;
                std::thread::yield_now();
            }
        }
    }
    assert!(numbers.wait_for(FRAMES - 1..FRAMES), "the last message did not come");
    let rx = endpoint.stats().rx();
    let ours = rx.truncated + rx.malformed + rx.outgoing;
    let (delivered, kernel) = (numbers.check(), rx.kernel_drops);
    (Sum { sent: sent.into(), delivered, kernel, device: 0, ours }, full)
}
