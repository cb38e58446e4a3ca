//! Transparent mode: the second stack takes flows to addresses that nobody has.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::time::Duration;

use common::{End, OFFLOAD, PLAIN, Pattern, Shape, V4, V6, any, at, pair_with, until, within};
use fdlink_stack::{
    Cidr, Incoming, IncomingTcp, NicId, Refusal, StackConfig, TcpListener, TcpStream, Transparent,
    UdpSocket,
};
use testkit::packet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const FOREIGN: [&str; 2] = ["192.0.2.7", "2001:db8::7"];

/// The first stack's way to everywhere is the second, which is transparent.
fn rig(shape: Shape, config: StackConfig) -> (End, End, Transparent) {
    let (a, b) = pair_with(shape, StackConfig::new(), config);
    a.stack.add_route(NicId(1), Cidr::ALL_V4, V4[1].parse().unwrap());
    a.stack.add_route(NicId(1), Cidr::ALL_V6, V6[1].parse().unwrap());
    let transparent = b.stack.transparent().unwrap();
    assert_eq!(b.stack.transparent().unwrap_err().kind(), ErrorKind::AddrInUse);
    (a, b, transparent)
}

async fn next_tcp(transparent: &mut Transparent) -> IncomingTcp {
    match within(transparent.next()).await {
        Incoming::Tcp(tcp) => tcp,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_anywhere_are_accepted() {
    for shape in [OFFLOAD, Shape { ethernet: false, ..PLAIN }] {
        let (a, b, mut transparent) = rig(shape, StackConfig::new());
        for ip in FOREIGN {
            let connect = tokio::spawn({
                let stack = a.stack.clone();
                async move { TcpStream::connect(&stack, at(ip, 80)).await }
            });
            let tcp = next_tcp(&mut transparent).await;
            assert_eq!(tcp.destination(), at(ip, 80));
            let mut far = tcp.accept().unwrap();
            assert_eq!(far.local_addr(), at(ip, 80));
            // At once, though the handshake is not over.
            far.write_all(b"hello").await.unwrap();
            far.shutdown().await.unwrap();
            let mut near = within(connect).await.unwrap().unwrap();
            let mut all = Vec::new();
            within(near.read_to_end(&mut all)).await.unwrap();
            assert_eq!(all, b"hello");
        }
        until("all flows gone", || b.stack.levels().tcp_flows == 0).await;
    }
}

/// Shut down before the handshake is over: the FIN comes, and what the peer writes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_close_in_the_handshake() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let stack = a.stack.clone();
    let connect = tokio::spawn(async move { TcpStream::connect(&stack, at(FOREIGN[0], 80)).await });
    let mut far = next_tcp(&mut transparent).await.accept().unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(far.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut near = within(connect).await.unwrap().unwrap();
    assert_eq!(within(near.read(&mut [0])).await.unwrap(), 0);
    near.write_all(b"still open").await.unwrap();
    near.shutdown().await.unwrap();
    let mut all = Vec::new();
    within(far.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"still open");
    drop((near, far));
    for end in [&a, &b] {
        until("all flows gone", || end.stack.levels().tcp_flows == 0).await;
        assert_eq!(end.stack.levels().tcp_half_open, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_is_told() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let told = [
        (Some(Refusal::Refused), ErrorKind::ConnectionRefused),
        (Some(Refusal::HostUnreachable), ErrorKind::HostUnreachable),
        (Some(Refusal::NetworkUnreachable), ErrorKind::NetworkUnreachable),
        (Some(Refusal::Prohibited), ErrorKind::HostUnreachable),
        // Dropped without an answer.
        (None, ErrorKind::ConnectionRefused),
    ];
    for ip in FOREIGN {
        for (why, kind) in told {
            let connect = TcpStream::connect(&a.stack, at(ip, 80));
            let refuse = async {
                let tcp = next_tcp(&mut transparent).await;
                match why {
                    Some(why) => tcp.refuse(why),
                    None => drop(tcp),
                }
            };
            let (connected, ()) = within(async { tokio::join!(connect, refuse) }).await;
            assert_eq!(connected.unwrap_err().kind(), kind, "{why:?}");
        }
    }
    assert_eq!(b.stack.stats().tcp_refused, 10);
    assert_eq!(b.stack.levels().tcp_flows, 0);
}

/// The request is repeated while its answer takes its time, and is still one flow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let stack = a.stack.clone();
    let connect = tokio::spawn(async move { TcpStream::connect(&stack, at(FOREIGN[0], 80)).await });
    let tcp = next_tcp(&mut transparent).await;
    until("the request is repeated", || b.stack.stats().rx_packets >= 2).await;
    assert_eq!((b.stack.levels().tcp_flows, b.stack.levels().tcp_half_open), (1, 1));
    let far = tcp.accept().unwrap();
    let near = within(connect).await.unwrap().unwrap();
    until("established", || b.stack.levels().tcp_half_open == 0).await;
    assert_eq!((b.stack.levels().tcp_flows, b.stack.stats().tcp_accepted), (1, 1));
    drop((near, far));
}

/// Who dials may give up meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dialer_gives_up() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let connect = TcpStream::connect(&a.stack, at(FOREIGN[0], 80));
    assert!(tokio::time::timeout(Duration::from_millis(50), connect).await.is_err());
    // Its RST takes the flow away, before or after it was handed out.
    match tokio::time::timeout(Duration::from_millis(200), transparent.next()).await {
        Ok(Incoming::Tcp(tcp)) => {
            until("it has given up", || b.stack.levels().tcp_flows == 0).await;
            assert_eq!(tcp.accept().unwrap_err().kind(), ErrorKind::ConnectionAborted);
        }
        Ok(other) => panic!("{other:?}"),
        Err(_) => {}
    }
    until("nothing is left", || b.stack.levels().tcp_flows == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_are_bounded() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new().max_offers(2));
    let connects: Vec<_> = (0..3)
        .map(|port| {
            let stack = a.stack.clone();
            tokio::spawn(async move { TcpStream::connect(&stack, at(FOREIGN[0], port + 80)).await })
        })
        .collect();
    until("one is dropped", || b.stack.stats().tcp_syn_dropped == 1).await;
    // It is repeated, and finds room then.
    for _ in 0..3 {
        next_tcp(&mut transparent).await.refuse(Refusal::Refused);
    }
    for connect in connects {
        let error = within(connect).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_first_but_only_for_our_own_addresses() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let listener = TcpListener::bind(&b.stack, any(80)).unwrap();
    let own = TcpStream::connect(&a.stack, at(V4[1], 80));
    let (own, accepted) = within(async { tokio::join!(own, listener.accept()) }).await;
    drop((own.unwrap(), accepted.unwrap()));
    let stack = a.stack.clone();
    let foreign = tokio::spawn(async move { TcpStream::connect(&stack, at(FOREIGN[0], 80)).await });
    let _far = next_tcp(&mut transparent).await.accept().unwrap();
    within(foreign).await.unwrap().unwrap();
}

/// Bytes are lent, not copied; an error of the closure is passed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_in_place() {
    let (a, _b, mut transparent) = rig(OFFLOAD, StackConfig::new());
    let stack = a.stack.clone();
    let connect = tokio::spawn(async move { TcpStream::connect(&stack, at(FOREIGN[1], 80)).await });
    let far = next_tcp(&mut transparent).await.accept().unwrap();
    let mut near = within(connect).await.unwrap().unwrap();
    near.write_all(b"abcdef").await.unwrap();
    near.shutdown().await.unwrap();
    let failed = within(poll_fn(|cx| far.poll_read_with(cx, |_| Err(ErrorKind::Other.into()))));
    assert_eq!(failed.await.unwrap_err().kind(), ErrorKind::Other);
    let mut all: Vec<u8> = Vec::new();
    while all.len() < 6 {
        let take = |bytes: &[u8]| {
            all.extend(bytes.iter().take(2));
            Ok(bytes.len().min(2))
        };
        let mut take = take;
        let used = within(poll_fn(|cx| far.poll_read_with(cx, &mut take))).await.unwrap();
        assert!(used <= 2);
    }
    assert_eq!(all, b"abcdef");
    let end = within(poll_fn(|cx| far.poll_read_with(cx, |_| panic!("nothing is there"))));
    assert_eq!(end.await.unwrap(), 0);
    let write = |space: &mut [u8]| {
        space[..3].copy_from_slice(b"xyz");
        Ok(3)
    };
    assert_eq!(within(poll_fn(|cx| far.poll_write_with(cx, write))).await.unwrap(), 3);
    far.close_write();
    let mut back = Vec::new();
    within(near.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, b"xyz");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_flows() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let pattern = Pattern::new(6);
    let mut back = vec![0; 1 << 16];
    for ip in FOREIGN {
        let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
        socket.send_to(b"first", at(ip, 53)).await.unwrap();
        let Incoming::Udp(udp) = within(transparent.next()).await else { panic!("no UDP flow") };
        assert_eq!(udp.destination(), at(ip, 53));
        let flow = udp.accept();
        assert_eq!(within(flow.recv(&mut back)).await.unwrap(), 5);
        for len in [0, 1, 1500, 60_000] {
            assert!(flow.send(pattern.piece(0, len)));
            let (got, from) = within(socket.recv_from(&mut back)).await.unwrap();
            assert_eq!((got, from), (len, at(ip, 53)));
            assert!(back[..len] == *pattern.piece(0, len));
            socket.send_to(pattern.piece(7, len), at(ip, 53)).await.unwrap();
            assert_eq!(within(flow.recv(&mut back)).await.unwrap(), len);
        }
        flow.too_big(1400);
        flow.refuse();
        until("the flow is forgotten", || b.stack.levels().datagram_flows == 0).await;
        // Refused, it is offered again with the next datagram.
        for _ in 0..2 {
            socket.send_to(b"again", at(ip, 53)).await.unwrap();
            let Incoming::Udp(udp) = within(transparent.next()).await else { panic!("no flow") };
            udp.refuse(Refusal::Prohibited);
        }
    }
    let stats = b.stack.stats();
    assert_eq!((stats.flows_refused, stats.icmp_errors, stats.datagram_flows), (4, 8, 6));
    assert_eq!(b.stack.levels().datagram_flows, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_flows_are_bounded() {
    let (a, b, transparent) = rig(PLAIN, StackConfig::new().max_datagram_flows(3));
    let socket = UdpSocket::bind(&a.stack, any(0)).unwrap();
    for port in 1..=10 {
        socket.send_to(b"x", at(FOREIGN[0], port)).await.unwrap();
    }
    until("the rest is dropped", || b.stack.stats().flows_over_cap == 7).await;
    assert_eq!(b.stack.levels().datagram_flows, 3);
    drop(transparent);
    until("refused", || b.stack.levels().datagram_flows == 0).await;
    assert_eq!(b.stack.stats().flows_refused, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_flows() {
    let (fd, ours) = common::socket_pair(false);
    let b = common::end(ours, Shape { ethernet: false, ..PLAIN }, StackConfig::new(), 2);
    let mut transparent = b.stack.transparent().unwrap();
    let peer = testkit::Peer::on_socket(fd, 0);
    for (source, foreign) in [(V4[0], FOREIGN[0]), (V6[0], FOREIGN[1])] {
        let (source, foreign) = (source.parse().unwrap(), foreign.parse().unwrap());
        let request = packet::echo_request(source, foreign, (77, 1), b"payload");
        peer.send(&request).unwrap();
        let Incoming::Echo(echo) = within(transparent.next()).await else { panic!("no echo") };
        assert_eq!((echo.destination(), echo.source().port()), (foreign, 77));
        let flow = echo.accept();
        let mut data = [0; 100];
        assert_eq!(within(flow.recv(&mut data)).await.unwrap(), (1, 7));
        flow.reply(1, &data[..7]);
        let reply = peer.recv(common::PATIENCE).unwrap().unwrap();
        let icmp = reply.len() - 15;
        assert_eq!(reply[icmp], if source.is_ipv4() { 0 } else { 129 });
        assert_eq!(&reply[icmp + 4..], &request[icmp + 4..]);
        drop(flow);
        peer.send(&request).unwrap();
        let Incoming::Echo(echo) = within(transparent.next()).await else { panic!("no echo") };
        echo.refuse(Refusal::HostUnreachable);
        let error = peer.recv(common::PATIENCE).unwrap().unwrap();
        let icmp = if source.is_ipv4() { 20 } else { 40 };
        assert_eq!(error[icmp..icmp + 2], if source.is_ipv4() { [3, 1] } else { [1, 3] });
    }
    assert_eq!(b.stack.levels().datagram_flows, 0);
}

/// Off again: what waits is refused, what was accepted goes on, what is new is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transparent_mode_ends() {
    let (a, b, mut transparent) = rig(PLAIN, StackConfig::new());
    let connect = |port| {
        let stack = a.stack.clone();
        tokio::spawn(async move { TcpStream::connect(&stack, at(FOREIGN[0], port)).await })
    };
    let accepted = connect(80);
    let mut far = next_tcp(&mut transparent).await.accept().unwrap();
    let mut near = within(accepted).await.unwrap().unwrap();
    let waiting = connect(81);
    until("it waits", || b.stack.levels().tcp_flows == 2).await;
    drop(transparent);
    assert_eq!(within(waiting).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    near.write_all(b"go on").await.unwrap();
    let mut bytes = [0; 5];
    within(far.read_exact(&mut bytes)).await.unwrap();
    far.write_all(&bytes).await.unwrap();
    within(near.read_exact(&mut bytes)).await.unwrap();
    let new = tokio::time::timeout(Duration::from_millis(100), connect(82)).await;
    assert!(new.is_err(), "nobody answers");
    assert!(b.stack.stats().rx_not_ours > 0);
    // And on again.
    b.stack.transparent().unwrap();
}
