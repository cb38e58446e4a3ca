//! How a stack ends, and what it costs while nothing happens.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fdlink::Closed;
use fdlink_stack::{StackConfig, TcpListener, TcpStream, UdpSocket};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{
    End, OFFLOAD, PLAIN, V4, any, at, connected, echo, end, pair, serve, socket_pair, until, within,
};

/// Everything that can wait on a stack does; `end` ends it, and all of it fails.
async fn all_who_wait_fail(a: End, b: &End, end: impl FnOnce(), why: Closed) {
    let (mut reading, _keep) = connected(&a, b, V4[1], 7).await;
    let (mut writing, _too) = connected(&a, b, V4[1], 8).await;
    let (mut idle, _three) = connected(&a, b, V4[1], 9).await;
    let stack = a.stack.clone();
    let listener = TcpListener::bind(&stack, any(7)).unwrap();
    let socket = UdpSocket::bind(&stack, any(7)).unwrap();
    let mut tasks = vec![
        tokio::spawn(async move { reading.read(&mut [0]).await.map(|_| ()) }),
        tokio::spawn(async move { writing.write_all(&vec![0; 64 << 20]).await }),
        tokio::spawn(async move { listener.accept().await.map(|_| ()) }),
        tokio::spawn(async move { socket.recv_from(&mut [0]).await.map(|_| ()) }),
    ];
    let sent = b.stack.stats();
    until("a full buffer", || a.stack.stats().tcp_tx_bytes >= sent.tcp_tx_bytes + (1 << 20)).await;
    let connecting = stack.clone();
    tasks.push(tokio::spawn(async move {
        TcpStream::connect(&connecting, at("10.0.0.99", 7)).await.map(|_| ())
    }));
    until("the attempt is made", || stack.levels().tcp_flows == 4).await;
    end();
    assert_eq!(within(a.driver).await.unwrap().unwrap(), why);
    for task in tasks {
        let error = within(task).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    }
    assert_eq!(idle.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(idle.write(&[0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    drop(idle);
    assert_eq!(stack.levels().tcp_flows, 0);
    let late = TcpStream::connect(&stack, at(V4[1], 7)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::ConnectionAborted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_stack_fails_all_who_wait_and_lets_go_of_its_link() {
    let (a, b) = pair(PLAIN);
    let (near, mut far) = connected(&a, &b, V4[1], 70).await;
    let stack = a.stack.clone();
    drop(near);
    assert_eq!(within(far.read(&mut [0])).await.unwrap(), 0);
    drop(far);
    until("the first is gone", || stack.levels().tcp_flows == 0).await;
    all_who_wait_fail(a, &b, || stack.stop(), Closed::Stopped).await;
    // By an RST where there was room for one, and by the end of the link.
    until("the peer has heard", || b.driver.is_finished()).await;
}

/// The wire between two stacks; cut when it is dropped, without a word to either.
struct Wire {
    cut: Arc<AtomicBool>,
    carrier: Option<std::thread::JoinHandle<()>>,
}

impl Wire {
    fn between(ends: [OwnedFd; 2]) -> Self {
        let cut = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cut);
        let carry = move || {
            let mut frame = vec![0; 1 << 17];
            while !seen.load(Ordering::Relaxed) {
                for (from, to) in [(0, 1), (1, 0)] {
                    while let Ok((len @ 1.., _)) =
                        recv(&ends[from], &mut frame, RecvFlags::DONTWAIT)
                    {
                        // Both stacks go on reading, so this waits for a moment only.
                        let _ = send(&ends[to], &frame[..len], SendFlags::NOSIGNAL);
                    }
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        Self { cut, carrier: Some(std::thread::spawn(carry)) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Relaxed);
        self.carrier.take().into_iter().for_each(|carrier| carrier.join().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_peer_fails_all_who_wait() {
    let ((a, near), (far, b)) = (socket_pair(false), socket_pair(false));
    let wire = Wire::between([near, far]);
    let a = end(a, PLAIN, StackConfig::new(), 1);
    let b = end(b, PLAIN, StackConfig::new(), 2);
    all_who_wait_fail(a, &b, move || drop(wire), Closed::PeerClosed).await;
}

/// A stack that was stopped, or whose driver is gone, lets go of its descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_of_a_dropped_driver_sees_its_end() {
    let (a, b) = pair(OFFLOAD);
    let (mut near, mut far) = connected(&a, &b, V4[1], 7).await;
    b.driver.abort();
    let error = within(far.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    let error = within(near.read(&mut [0])).await.unwrap_err();
    assert!([ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted].contains(&error.kind()));
    assert_eq!(within(a.driver).await.unwrap().unwrap(), Closed::PeerClosed);
}

/// Nanoseconds on a processor, and times it was left, of this thread.
fn thread_cost() -> (u64, u64) {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let switches = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
    let time = schedstat.split(' ').next().unwrap().parse().unwrap();
    (time, switches.unwrap().trim().parse().unwrap())
}

/// On one thread, so that its cost is the stacks'.
#[tokio::test(flavor = "current_thread")]
async fn an_idle_stack_costs_nothing() {
    let (a, b) = pair(OFFLOAD);
    serve(&b.stack, 7, echo);
    let mut stream = within(TcpStream::connect(&a.stack, at(V4[1], 7))).await.unwrap();
    stream.write_all(&[1; 100_000]).await.unwrap();
    within(stream.read_exact(&mut [0; 100_000])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = thread_cost();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = thread_cost();
    let (time, switches) = (after.0 - before.0, after.1 - before.1);
    assert!(time < 50_000_000, "{time} ns of work");
    assert!(switches < 50, "{switches} wake-ups");
}

/// Two drivers at full speed on one thread leave others their turn.
#[tokio::test(flavor = "current_thread")]
async fn a_busy_stack_starves_nobody() {
    let (a, b) = pair(OFFLOAD);
    let (mut near, mut far) = connected(&a, &b, V4[1], 7).await;
    tokio::spawn(async move { while near.write_all(&[0; 65_536]).await.is_ok() {} });
    tokio::spawn(async move { while far.read(&mut [0; 65_536]).await.is_ok_and(|len| len > 0) {} });
    let (start, mut longest, mut last) = (Instant::now(), Duration::ZERO, Instant::now());
    while start.elapsed() < Duration::from_millis(300) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    assert!(longest < Duration::from_millis(200), "{longest:?} without a turn");
    assert!(b.stack.stats().tcp_rx_bytes > 1 << 20, "it was busy");
}
