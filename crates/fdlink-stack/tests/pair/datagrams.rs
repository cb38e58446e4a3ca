//! UDP between two stacks.

use std::io::ErrorKind;
use std::time::Duration;

use fdlink_stack::{MAX_DATAGRAM, Stack, UdpSocket};

use crate::common::{End, OFFLOAD, PLAIN, Pattern, Shape, V4, V6, any, at, pair, until, within};

fn serve_echo(stack: &Stack) {
    let socket = UdpSocket::bind(stack, any(7)).unwrap();
    tokio::spawn(async move {
        let mut datagram = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            socket.send_to(&datagram[..len], from).await.unwrap();
        }
    });
}

async fn echoes(socket: &UdpSocket, ip: &str, len: usize) {
    let pattern = Pattern::new(5);
    let mut back = vec![0; 1 << 16];
    assert_eq!(socket.send_to(pattern.piece(0, len), at(ip, 7)).await.unwrap(), len);
    let (got, from) = within(socket.recv_from(&mut back)).await.unwrap();
    assert_eq!((got, from), (len, at(ip, 7)));
    assert!(&back[..len] == pattern.piece(0, len));
}

fn clean(end: &End) {
    let stats = end.stack.stats();
    assert_eq!((stats.rx_malformed, stats.rx_bad_checksum, stats.rx_fragments_dropped), (0, 0, 0));
    assert_eq!((stats.tx_no_room, stats.tx_unresolved), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_every_size_echo() {
    let bare = Shape { ethernet: false, mtu: 9000, datagram: true, ..PLAIN };
    for shape in [PLAIN, OFFLOAD, bare] {
        let (a, b) = pair(shape);
        serve_echo(&b.stack);
        let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
        for ip in [V4[1], V6[1]] {
            for len in [0, 1, 512, 1452, 1472, 1473, 1500, 8972, 60_000, MAX_DATAGRAM] {
                echoes(&socket, ip, len).await;
            }
        }
        for end in [&a, &b] {
            clean(end);
            assert!(end.stack.stats().rx_fragments > 20);
            assert_eq!(end.stack.stats().udp_rx, 20);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_nobody_has() {
    let (a, b) = pair(PLAIN);
    let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
    for (sent, ip) in [V4[1], V6[1]].into_iter().enumerate() {
        socket.send_to(b"anybody?", at(ip, 9)).await.unwrap();
        let expected = u64::try_from(sent + 1).unwrap();
        until("port unreachable", || b.stack.stats().icmp_errors == expected).await;
    }
    // 1000 a second, 50 at once: a flood is not answered by one.
    for _ in 0..500 {
        socket.send_to(b"anybody?", at(V4[1], 9)).await.unwrap();
    }
    until("the limit", || b.stack.stats().icmp_errors_limited > 0).await;
    let too_long = socket.send_to(&[0; MAX_DATAGRAM + 1], at(V4[1], 9)).await.unwrap_err();
    assert_eq!(too_long.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_nobody_reads_is_bounded() {
    let (a, b) = pair(Shape { ethernet: false, ..PLAIN });
    let sink = UdpSocket::bind(&b.stack, at(V4[1], 7)).unwrap();
    assert_eq!(UdpSocket::bind(&b.stack, at(V4[1], 7)).unwrap_err().kind(), ErrorKind::AddrInUse);
    let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
    for number in 0..1000_u32 {
        let datagram = [number.to_be_bytes().as_slice(), &[0; 1000]].concat();
        socket.send_to(&datagram, at(V4[1], 7)).await.unwrap();
    }
    until("all arrived", || {
        let stats = b.stack.stats();
        stats.udp_rx + stats.datagram_queue_drops == 1000
    })
    .await;
    assert!(b.stack.stats().datagram_queue_drops > 700);
    let mut datagram = [0; 2000];
    for number in 0..b.stack.stats().udp_rx {
        let (len, _) = within(sink.recv_from(&mut datagram)).await.unwrap();
        assert_eq!((len, datagram[3]), (1004, number.to_le_bytes()[0]), "the oldest are kept");
    }
    // The port is free again.
    drop(sink);
    UdpSocket::bind(&b.stack, at(V4[1], 7)).unwrap();
}

/// Where the link is full, a sender waits and loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_link_is_waited_for() {
    let (a, b) = pair(Shape { buffer: 4_608, datagram: true, ethernet: false, ..PLAIN });
    let sink = UdpSocket::bind(&b.stack, any(7)).unwrap();
    let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
    let sender = tokio::spawn(async move {
        for number in 0..5_000_u32 {
            socket.send_to(&number.to_be_bytes(), at(V4[1], 7)).await.unwrap();
        }
        socket
    });
    let mut datagram = [0; 8];
    let mut next = 0;
    while next < 5_000 {
        let wait = tokio::time::timeout(Duration::from_secs(5), sink.recv_from(&mut datagram));
        let Ok(received) = wait.await else { break };
        assert_eq!(received.unwrap().0, 4);
        let number = u32::from_be_bytes(datagram[..4].try_into().unwrap());
        assert!(number >= next, "out of order");
        next = number + 1;
    }
    within(sender).await.unwrap();
    let lost = b.stack.stats().datagram_queue_drops + a.stack.stats().tx_no_room;
    assert_eq!(b.stack.stats().udp_rx + lost, 5_000, "lost without a count");
    assert_eq!(a.stack.stats().tx_no_room, 0);
    assert!(a.link.tx().would_block > 0, "never full");
}
