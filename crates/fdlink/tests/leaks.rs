//! An endpoint that is gone leaves nothing behind: descriptors, threads, mappings and heap are the
//! same before and after many rounds of building, attaching, traffic both ways and dropping.
//!
//! FDLINK_LEAK_ROUNDS says how many rounds (200). That many are made over sockets other than AF_PACKET; where the
//! kernel takes its time to close a descriptor (25 to 41 ms for each packet socket, and as much for
//! a device), a row makes a part of them, which the table says.
//!
//! One test, in a process of its own: whatever else ran there would be counted, too.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which prints its table")]

mod common;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use common::{Kind, PATIENCE, datagrams, seqpackets, udp_sockets};
use fdlink::link::{FramePrefix, adopt, adopt_framed, open_packet, open_tap, open_tun};
use fdlink::{
    Endpoint, FdLink, LinkEndpoint, LinkOptions, Mode, NetworkDispatcher, QueueIndex, RxBatch,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use testkit::process::{Footprint, STEADY_MAPPINGS};
use testkit::{CountingAllocator, Peer, interface};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator::new();

/// Rounds that are not looked at: caches fill, lazily made things are made.
const WARM_UP: usize = 20;

/// One way to build an endpoint, and how often it is tried.
struct Row {
    name: String,
    rounds: usize,
    round: Box<dyn FnMut()>,
}

/// What was held before and after the rounds of a row.
struct Outcome {
    name: String,
    rounds: usize,
    held: [(Footprint, usize); 2],
}

#[test]
fn leaks() {
    testkit::in_namespace_with(&[STEADY_MAPPINGS], || {
        let asked = std::env::var("FDLINK_LEAK_ROUNDS").map(|text| text.parse().unwrap());
        let rounds = asked.unwrap_or(200);
        let mut makers: Vec<fn(usize) -> Vec<Row>> = vec![socket_rows, packet_rows];
        if testkit::has_tun("leaks, TUN and TAP") {
            makers.push(device_rows);
        }
        let outcomes: Vec<_> = makers.iter().flat_map(|make| make(rounds)).map(watch).collect();
        print_table(&outcomes);
        for Outcome { name, held: [before, after], .. } in &outcomes {
            assert_eq!(before, after, "{name}");
        }
    });
}

/// Goes through the rounds of a row and looks before and after.
fn watch(mut row: Row) -> Outcome {
    (0..WARM_UP).for_each(|_| (row.round)());
    let before = held(None);
    (0..row.rounds).for_each(|_| (row.round)());
    let after = held(Some(before));
    Outcome { name: row.name, rounds: row.rounds, held: [before, after] }
}

/// What this process holds, with the bytes of its heap.
fn held(expected: Option<(Footprint, usize)>) -> (Footprint, usize) {
    let begin = Instant::now();
    loop {
        // A thread that was joined is for a moment still to be seen in /proc.
        std::thread::sleep(Duration::from_millis(20));
        let held = (Footprint::now().unwrap(), HEAP.live());
        if expected.is_none_or(|expected| expected == held) || begin.elapsed() > PATIENCE {
            return held;
        }
    }
}

fn print_table(outcomes: &[Outcome]) {
    println!(
        "{:39} {:>6}  {:>9} {:>9} {:>9} {:>21} {:>17}",
        "before/after", "rounds", "fds", "threads", "mappings", "mapped KiB", "heap bytes"
    );
    for Outcome { name, rounds, held: [(before, heap), (after, heap_after)] } in outcomes {
        let pair = |a: usize, b: usize| format!("{a}/{b}");
        println!(
            "{name:39} {rounds:>6}  {:>9} {:>9} {:>9} {:>21} {:>17}",
            pair(before.descriptors, after.descriptors),
            pair(before.threads, after.threads),
            pair(before.mappings, after.mappings),
            pair(before.mapped >> 10, after.mapped >> 10),
            pair(*heap, *heap_after),
        );
    }
}

/// Says on a channel how many frames came.
struct Count(SyncSender<usize>);

impl NetworkDispatcher for Count {
    fn deliver(&self, _: QueueIndex, batch: &mut RxBatch<'_>) {
        self.0.send(batch.count()).unwrap();
    }
}

fn counter() -> (Arc<dyn NetworkDispatcher>, Receiver<usize>) {
    let (give, take) = sync_channel(64);
    (Arc::new(Count(give)), take)
}

/// How an endpoint's life ends.
#[derive(Clone, Copy)]
enum End {
    /// It is dropped while its threads wait.
    Drop,
    /// Stopped, joined, then dropped.
    Stop,
}

/// The life of one endpoint: frames both ways, and its end.
fn live(link: FdLink, peers: &[&Peer], frame: &[u8], end: End) {
    let endpoint = Endpoint::new(link).unwrap();
    let (dispatcher, arrived) = counter();
    endpoint.attach(dispatcher).unwrap();
    for peer in peers {
        for _ in 0..3 {
            peer.send(frame).unwrap();
        }
        let mut count = 0;
        while count < 3 {
            count += arrived.recv_timeout(PATIENCE).expect("what the far end sent");
        }
    }
    // Without addresses in it every frame has the same flow, and so the same way out.
    endpoint.write_raw(frame).unwrap();
    let begin = Instant::now();
    let received = || peers.iter().any(|p| p.recv(Duration::ZERO).unwrap().is_some());
    while !received() {
        assert!(begin.elapsed() < PATIENCE, "what the endpoint sent");
    }
    if matches!(end, End::Stop) {
        endpoint.stop();
        endpoint.join().unwrap();
    }
}

fn socket_rows(rounds: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, pair) in [
        (Kind::Seqpacket, seqpackets as fn() -> (OwnedFd, OwnedFd)),
        (Kind::Datagram, datagrams),
        (Kind::Udp, udp_sockets),
    ] {
        for way in kind.ways() {
            let options = way.options();
            let over = move |count: usize, end: End| {
                let (ours, far): (Vec<_>, Vec<_>) = (0..count).map(|_| pair()).unzip();
                let far: Vec<_> = far.into_iter().map(|fd| Peer::on_socket(fd, 0)).collect();
                let far: Vec<_> = far.iter().collect();
                live(adopt(ours, &options).unwrap(), &far, b"a message", end);
            };
            let name = format!("{} {way}", kind.name());
            let (one, left) = (over.clone(), over.clone());
            rows.extend([
                row(&name, rounds, move || one(1, End::Stop)),
                row(&format!("{name}, no stop"), rounds, move || left(1, End::Drop)),
                row(&format!("{name}, 3 descriptors"), rounds, move || over(3, End::Stop)),
            ]);
        }
    }
    for (kind, way) in [Kind::Seqpacket, Kind::Datagram]
        .into_iter()
        .flat_map(|kind| kind.ways().iter().map(move |way| (kind, *way)))
    {
        let pair = if kind == Kind::Seqpacket { seqpackets } else { datagrams };
        for (stamps, what) in [(false, "gifts"), (true, "gifts with a stamp")] {
            rows.push(row(&format!("{} {way}, {what}", kind.name()), rounds, move || {
                let (ours, far) = pair();
                give_descriptors(&far);
                let link = adopt(vec![ours], &way.options().timestamps(stamps)).unwrap();
                let endpoint = Endpoint::new(link).unwrap();
                let (dispatcher, arrived) = counter();
                endpoint.attach(dispatcher).unwrap();
                give_descriptors(&far);
                let mut count = 0;
                while count < 2 {
                    count += arrived.recv_timeout(PATIENCE).expect("what the far end sent");
                }
            }));
        }
    }
    for (what, end) in [("", End::Stop), (", no stop", End::Drop)] {
        rows.push(row(&format!("framed readv{what}"), rounds, move || {
            let (ours, far) = UnixStream::pair().unwrap();
            let options = LinkOptions::new();
            let link = adopt_framed(ours.into(), FramePrefix::Be32, &options).unwrap();
            live(link, &[&Peer::on_stream(far.into(), 0)], b"a message", end);
        }));
    }
    rows.push(row("refused: two kinds", rounds, || {
        let (ours, other) = (seqpackets().0, datagrams().0);
        drop(adopt(vec![ours, other], &LinkOptions::new()).unwrap_err());
    }));
    rows
}

/// Sends a message that carries descriptors (SCM_RIGHTS), for which nobody has asked.
fn give_descriptors(far: &OwnedFd) {
    let gift = std::fs::File::open("/dev/null").unwrap();
    let gifts = [gift.as_fd(); 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&gifts)));
    let parts = [IoSlice::new(b"a message")];
    rustix::net::sendmsg(far, &parts, &mut control, SendFlags::empty()).unwrap();
}

fn packet_rows(rounds: usize) -> Vec<Row> {
    interface::veth("leak", "leak-far", 1500).unwrap();
    let peer = Arc::new(Peer::on_interface("leak-far").unwrap());
    let frame = Kind::Packet.frame(500, 1);
    let mut rows = Vec::new();
    for way in Kind::Packet.ways() {
        for (what, queues, end, part) in [
            ("", 1, End::Stop, 2),
            (", no stop", 1, End::Drop, 4),
            (", fanout of 2", 2, End::Stop, 4),
        ] {
            let (peer, frame) = (Arc::clone(&peer), frame.clone());
            let options = way.options();
            rows.push(row(&format!("packet {way}{what}"), rounds / part, move || {
                live(open_packet("leak", queues, &options).unwrap(), &[&peer], &frame, end);
            }));
        }
    }
    let to_all = Kind::Cooked.frame(500, 1);
    for way in Kind::Cooked.ways() {
        let (peer, frame, options) = (Arc::clone(&peer), to_all.clone(), way.options());
        rows.push(row(&format!("cooked {way}"), rounds / 4, move || {
            let socket = testkit::cooked_packet_socket("leak").unwrap();
            live(adopt(vec![socket], &options).unwrap(), &[&peer], &frame, End::Stop);
        }));
    }
    let options = LinkOptions::new().mode(Mode::PacketMmap);
    let in_a_group = open_packet("leak", 2, &options).unwrap().into_fds();
    rows.push(row("refused: the second has a group", rounds / 4, move || {
        let mut fds: Vec<OwnedFd> = open_packet("leak", 1, &options).unwrap().into_fds();
        fds.push(in_a_group[0].try_clone().unwrap());
        drop(adopt(fds, &options).unwrap_err());
    }));
    rows
}

fn device_rows(rounds: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in [Kind::Tap, Kind::Tun] {
        let open = if kind == Kind::Tap { open_tap } else { open_tun };
        let frame = kind.frame(500, 1);
        for (what, queues, end) in
            [("", 1, End::Stop), (", no stop", 1, End::Drop), (", 2 queues", 2, End::Stop)]
        {
            let frame = frame.clone();
            rows.push(row(&format!("{}{what}", kind.name()), rounds / 8, move || {
                let link = open("leak-tun", queues, &LinkOptions::new()).unwrap();
                interface::up("leak-tun").unwrap();
                let peer = Peer::on_interface("leak-tun").unwrap();
                live(link, &[&peer], &frame, end);
            }));
        }
    }
    rows
}

fn row(name: &str, rounds: usize, round: impl FnMut() + 'static) -> Row {
    Row { name: name.to_owned(), rounds: rounds.max(1), round: Box::new(round) }
}
