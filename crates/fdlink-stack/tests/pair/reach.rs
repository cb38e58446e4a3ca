//! Peers that are not there, or do not want to be talked to.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use fdlink_stack::{Cidr, NicId, TcpStream, UdpSocket};

use crate::common::{PLAIN, Shape, V4, V6, any, at, pair, until, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listens() {
    let (a, b) = pair(PLAIN);
    for ip in [V4[1], V6[1]] {
        let refused = within(TcpStream::connect(&a.stack, at(ip, 9))).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(b.stack.stats().tcp_refused, 2);
    assert_eq!(a.stack.levels().tcp_flows, 0);
}

/// Three requests, a second apart; whoever comes next is told at once, and later it is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_is_not_there() {
    let (a, _b) = pair(PLAIN);
    let start = Instant::now();
    let connect = |ip: &'static str| TcpStream::connect(&a.stack, at(ip, 7));
    let (v4, v6) = within(async { tokio::join!(connect("10.0.0.99"), connect("fd00::99")) }).await;
    assert_eq!(v4.unwrap_err().kind(), ErrorKind::HostUnreachable);
    assert_eq!(v6.unwrap_err().kind(), ErrorKind::HostUnreachable);
    assert!(start.elapsed() > Duration::from_secs(2), "it was asked three times");
    let at_once = Instant::now();
    assert_eq!(within(connect("10.0.0.99")).await.unwrap_err().kind(), ErrorKind::HostUnreachable);
    assert!(at_once.elapsed() < Duration::from_secs(1), "it has just not answered");
    assert_eq!(a.stack.stats().neighbors_failed, 2);
    assert_eq!(a.stack.levels().tcp_flows, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route() {
    let (a, b) = pair(PLAIN);
    for ip in ["192.0.2.1", "2001:db8::1"] {
        let unreachable = TcpStream::connect(&a.stack, at(ip, 7)).await.unwrap_err();
        assert_eq!(unreachable.kind(), ErrorKind::HostUnreachable);
        let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
        assert_eq!(
            socket.send_to(b"x", at(ip, 7)).await.unwrap_err().kind(),
            ErrorKind::HostUnreachable
        );
    }
    assert_eq!(a.stack.stats().tx_no_route, 2);
    // With a route it arrives, and is not for the other.
    assert!(a.stack.add_route(NicId(1), Cidr::ALL_V4, V4[1].parse().unwrap()));
    assert!(!a.stack.add_route(NicId(2), Cidr::ALL_V4, V4[1].parse().unwrap()));
    let stream = tokio::time::timeout(
        Duration::from_millis(200),
        TcpStream::connect(&a.stack, at("192.0.2.1", 7)),
    );
    assert!(stream.await.is_err(), "nobody answers");
    assert!(b.stack.stats().rx_not_ours >= 1);
    until("the dropped attempt is gone", || a.stack.levels().tcp_flows == 0).await;
}

/// A connect that its caller gives up leaves nothing, whether or not its neighbour is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_given_up() {
    for shape in [PLAIN, Shape { ethernet: false, ..PLAIN }] {
        let (a, _b) = pair(shape);
        for ip in ["10.0.0.99", "fd00::99"] {
            let attempt = TcpStream::connect(&a.stack, at(ip, 7));
            assert!(tokio::time::timeout(Duration::from_millis(20), attempt).await.is_err());
        }
        until("all flows gone", || a.stack.levels().tcp_flows == 0).await;
    }
}
