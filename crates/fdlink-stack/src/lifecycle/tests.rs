//! Two stacks over a wire in memory, and a clock that is set by hand: what takes minutes.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fdlink::batch::{RxDescriptor, SlotOwner};
use fdlink::offload::vnet::TxOffload;
use fdlink::queue::{Fill, QueuePair, Receive, Sent, Transmit, Wakeup};
use fdlink::{LinkHeader, LinkProperties, RxBatch, TxFrame, TxSlot};

use crate::config::StackConfig;
use crate::nic::{Nic, NicQueue};
use crate::{NicId, Stack, TcpListener, TcpStream};

type Frames = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// The receiving end of a wire.
struct Out {
    wire: Frames,
    memory: Vec<u8>,
    frame: Option<RxDescriptor>,
}

impl Receive for Out {
    fn fill(&mut self) -> io::Result<Fill> {
        self.frame = None;
        let Some(frame) = self.wire.lock().unwrap().pop_front() else { return Ok(Fill::Empty) };
        self.frame = Some(RxDescriptor { offset: 0, len: frame.len(), ..RxDescriptor::default() });
        self.memory = frame;
        Ok(Fill::Frames(1))
    }

    fn batch(&mut self) -> RxBatch<'_> {
        RxBatch::new(&mut self.memory, self.frame.as_slice())
    }

    fn release(&mut self) {
        self.frame = None;
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup::default()
    }
}

/// The sending end.
struct In {
    memory: Vec<u8>,
    owner: Owner,
}

struct Owner {
    wire: Frames,
    committed: Option<usize>,
}

impl SlotOwner for Owner {
    fn commit(&mut self, len: usize, _: TxOffload) {
        self.committed = Some(len);
    }
}

impl Transmit for In {
    fn send(&mut self, _: &[TxFrame<'_>]) -> io::Result<Sent> {
        unreachable!("the stack writes in place")
    }

    fn slot(&mut self, len: usize) -> Option<TxSlot<'_>> {
        self.flush().unwrap();
        Some(TxSlot::new(&mut self.memory[..len], &mut self.owner))
    }

    fn flush(&mut self) -> io::Result<Sent> {
        if let Some(len) = self.owner.committed.take() {
            self.owner.wire.lock().unwrap().push_back(self.memory[..len].to_vec());
        }
        Ok(Sent::default())
    }

    fn queued(&self) -> usize {
        0
    }

    fn wakeup(&self) -> Wakeup<'_> {
        Wakeup::default()
    }
}

/// Both stacks, and the time that they are told.
struct World {
    stacks: [Stack; 2],
    // Dropped, they would stop the stacks.
    _drivers: [crate::Driver; 2],
    wires: [Frames; 2],
    now: Instant,
}

fn at(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], port))
}

impl World {
    fn new(link_header: LinkHeader) -> Self {
        let wires: [Frames; 2] = Default::default();
        let made = [0, 1].map(|me| {
            let (stack, driver) = Stack::new(StackConfig::new());
            let (wire, memory) = (Arc::clone(&wires[me]), vec![0; 2_000]);
            let tx = Box::new(In { memory, owner: Owner { wire, committed: None } });
            let wire = Arc::clone(&wires[1 - me]);
            let rx = Some(Box::new(Out { wire, memory: Vec::new(), frame: None }) as Box<_>);
            let address = format!("10.0.0.{}/24", me + 1).parse().unwrap();
            let queue = NicQueue::from(QueuePair { rx, tx });
            let nic = Nic::new(
                NicId(1),
                &LinkProperties::new(1500, link_header),
                vec![queue],
                vec![address],
            );
            stack.shared.core().nics.push(nic);
            (stack, driver)
        });
        let [(a, x), (b, y)] = made;
        Self { stacks: [a, b], _drivers: [x, y], wires, now: Instant::now() }
    }

    /// Lets both do what is due now, until nothing is.
    fn settle(&mut self) {
        loop {
            let mut busy = false;
            for stack in &self.stacks {
                let mut core = stack.shared.core();
                core.expire(self.now);
                core.transmit(self.now);
                busy |= core.receive(self.now, 0, 0, 16).any;
                busy |= core.has_touched();
            }
            if !busy {
                return;
            }
        }
    }

    /// Lets that much time pass, deadline by deadline. How often somebody had something to do.
    fn pass(&mut self, time: Duration) -> usize {
        let (end, mut steps) = (self.now + time, 0);
        self.settle();
        loop {
            let cores = self.stacks.iter().map(|stack| stack.shared.core().next_deadline());
            match cores.flatten().min().filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
            steps += 1;
            self.settle();
        }
        self.now = end;
        self.settle();
        steps
    }

    /// The second stack is cut off: what the first sends is lost.
    fn cut(&mut self) {
        self.stacks[1].shared.core().nics[0].queues[0].rx = None;
    }

    fn connected(&mut self) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(&self.stacks[1], at(2, 7)).unwrap();
        let stack = self.stacks[0].clone();
        let mut connect = Box::pin(TcpStream::connect(&stack, at(2, 7)));
        assert!(poll(|cx| connect.as_mut().poll(cx)).is_pending());
        self.pass(Duration::from_millis(10));
        let Poll::Ready(near) = poll(|cx| connect.as_mut().poll(cx)) else { panic!("pending") };
        let Poll::Ready(far) = poll(|cx| listener.poll_accept(cx)) else { panic!("pending") };
        (near.unwrap(), far.unwrap().0)
    }

    fn flows(&self) -> [usize; 2] {
        [0, 1].map(|me| self.stacks[me].levels().tcp_flows)
    }
}

fn poll<T>(mut step: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    step(&mut Context::from_waker(Waker::noop()))
}

fn write(stream: &TcpStream, len: usize) -> Poll<io::Result<usize>> {
    poll(|cx| stream.poll_write_with(cx, |space| Ok(len.min(space.len()))))
}

fn read(stream: &TcpStream, most: usize) -> Poll<io::Result<usize>> {
    poll(|cx| stream.poll_read_with(cx, |bytes| Ok(bytes.len().min(most))))
}

fn failure<T: std::fmt::Debug>(result: Poll<io::Result<T>>) -> io::ErrorKind {
    match result {
        Poll::Ready(Err(error)) => error.kind(),
        other => panic!("{other:?}"),
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn an_idle_connection_lives() {
    let mut world = World::new(LinkHeader::None);
    let (near, far) = world.connected();
    let steps = world.pass(24 * HOUR);
    assert!(steps < 20, "{steps} steps in a day without traffic");
    assert!(matches!(write(&near, 100), Poll::Ready(Ok(100))));
    world.settle();
    assert!(matches!(read(&far, 100), Poll::Ready(Ok(100))));
    // And closes in order, late as it is.
    world.pass(HOUR);
    near.close_write();
    world.settle();
    assert!(matches!(read(&far, 1), Poll::Ready(Ok(0))));
}

#[test]
fn a_peer_that_vanishes_times_out() {
    let mut world = World::new(LinkHeader::None);
    let (near, _far) = world.connected();
    world.cut();
    assert!(matches!(write(&near, 100), Poll::Ready(Ok(100))));
    world.pass(Duration::from_secs(100));
    assert!(read(&near, 1).is_pending());
    assert!(world.stacks[0].stats().tcp_retransmits > 2);
    world.pass(Duration::from_secs(30));
    assert_eq!(failure(read(&near, 1)), io::ErrorKind::TimedOut);
    assert_eq!(world.stacks[0].stats().tcp_timed_out, 1);
    drop(near);
    assert_eq!(world.flows()[0], 0);
}

#[test]
fn a_connect_that_nobody_answers_times_out() {
    let mut world = World::new(LinkHeader::None);
    world.cut();
    let stack = world.stacks[0].clone();
    let mut connect = Box::pin(TcpStream::connect(&stack, at(2, 7)));
    assert!(poll(|cx| connect.as_mut().poll(cx)).is_pending());
    world.pass(Duration::from_secs(60));
    assert!(poll(|cx| connect.as_mut().poll(cx)).is_pending());
    world.pass(Duration::from_secs(70));
    assert_eq!(failure(poll(|cx| connect.as_mut().poll(cx))), io::ErrorKind::TimedOut);
    drop(connect);
    assert_eq!(world.flows()[0], 0);
}

#[test]
fn a_handshake_that_nobody_ends_is_given_up() {
    let mut world = World::new(LinkHeader::None);
    let _listener = TcpListener::bind(&world.stacks[1], at(2, 7)).unwrap();
    let stack = world.stacks[0].clone();
    let mut connect = Box::pin(TcpStream::connect(&stack, at(2, 7)));
    assert!(poll(|cx| connect.as_mut().poll(cx)).is_pending());
    world.stacks[0].shared.core().transmit(world.now);
    // The SYN is on the wire; the one who sent it hears no answer.
    world.stacks[0].shared.core().nics[0].queues[0].rx = None;
    world.pass(Duration::from_secs(30));
    assert_eq!(world.stacks[1].levels().tcp_half_open, 1);
    drop(connect);
    world.wires[0].lock().unwrap().clear();
    world.pass(Duration::from_secs(120));
    assert_eq!(world.flows(), [0, 0]);
    assert!(world.stacks[1].shared.core().listeners.iter().all(|(_, l)| l.backlog == 0));
}

#[test]
fn an_abandoned_connection_does_not_wait_for_ever() {
    let mut world = World::new(LinkHeader::None);
    let (near, far) = world.connected();
    // FIN-WAIT-2: the other end never closes.
    drop(near);
    world.pass(Duration::from_secs(50));
    assert_eq!(world.flows(), [1, 1]);
    world.pass(Duration::from_secs(20));
    assert_eq!(world.flows()[0], 0);
    // It is told, and had been told of the end of the bytes before.
    assert!(matches!(read(&far, 1), Poll::Ready(Ok(0))));
    assert_eq!(failure(write(&far, 1)), io::ErrorKind::ConnectionReset);
}

#[test]
fn what_was_written_before_a_drop_has_time() {
    let mut world = World::new(LinkHeader::None);
    let (near, far) = world.connected();
    let mut written = 0;
    for _ in 0..5 {
        while let Poll::Ready(Ok(len)) = write(&near, 1 << 20) {
            written += len;
        }
        world.settle();
    }
    assert!(written > 1 << 20, "more than the other's buffer");
    drop(near);
    let mut got = 0;
    while got < written {
        // A slow reader: a quarter of an hour in all.
        world.pass(Duration::from_secs(20));
        let Poll::Ready(Ok(len)) = read(&far, 50_000) else { panic!("after {got} bytes") };
        got += len;
    }
    world.settle();
    assert!(matches!(read(&far, 1), Poll::Ready(Ok(0))));
    drop(far);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.flows(), [0, 0]);
}

/// Abandoned, with a peer that never reads: that ends, too.
#[test]
fn an_abandoned_connection_without_progress_ends() {
    let mut world = World::new(LinkHeader::None);
    let (near, _far) = world.connected();
    for _ in 0..5 {
        while let Poll::Ready(Ok(_)) = write(&near, 1 << 20) {}
        world.settle();
    }
    drop(near);
    world.pass(Duration::from_secs(200));
    assert_eq!(world.flows()[0], 0);
}

/// With the window closed and the application there, it waits as long as the peer answers.
#[test]
fn a_closed_window_is_waited_for() {
    let mut world = World::new(LinkHeader::None);
    let (near, far) = world.connected();
    for _ in 0..5 {
        while let Poll::Ready(Ok(_)) = write(&near, 1 << 20) {}
        world.settle();
    }
    world.pass(HOUR);
    // Probes of a byte each may have got through to the last bytes of room.
    assert!(matches!(write(&near, 1), Poll::Pending | Poll::Ready(Ok(1))));
    assert!(matches!(read(&far, 1 << 20), Poll::Ready(Ok(1..))));
    world.pass(Duration::from_secs(1));
    assert!(matches!(write(&near, 1), Poll::Ready(Ok(1))));
}

#[test]
fn a_neighbour_that_does_not_answer_is_no_host() {
    let mut world = World::new(LinkHeader::Ethernet);
    let stack = world.stacks[0].clone();
    let mut connect = Box::pin(TcpStream::connect(&stack, at(99, 7)));
    assert!(poll(|cx| connect.as_mut().poll(cx)).is_pending());
    world.pass(Duration::from_secs(2));
    assert!(poll(|cx| connect.as_mut().poll(cx)).is_pending());
    world.pass(Duration::from_secs(2));
    assert_eq!(failure(poll(|cx| connect.as_mut().poll(cx))), io::ErrorKind::HostUnreachable);
    drop(connect);
    assert_eq!(world.flows()[0], 0);
}

/// Ended flows leave entries in the heap of timers; not more than there may be.
#[test]
fn timers_are_bounded() {
    let mut world = World::new(LinkHeader::None);
    for _ in 0..3_000 {
        let (near, far) = world.connected();
        drop((near, far));
        world.settle();
    }
    assert_eq!(world.flows(), [0, 0]);
    for stack in &world.stacks {
        assert!(stack.shared.core().timers.len() <= super::super::core::STALE_TIMERS);
    }
}
