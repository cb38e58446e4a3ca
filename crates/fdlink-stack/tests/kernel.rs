//! A stack and a real kernel, in a network namespace of their own: AF_PACKET on a veth pair in every
//! mode, TAP, TUN.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::Command;
use std::time::Duration;

use common::{
    End, PATIENCE, Pattern, V4, V6, any, at, echo, expect_pattern, send_pattern, until, within,
};
use fdlink::link::{open_packet, open_tap, open_tun};
use fdlink::{Closed, FdLink, Link, LinkOptions, Mode};
use fdlink_stack::{NicId, Stack, StackConfig, TcpListener, TcpStream, UdpSocket};
use testkit::{Peer, has_tun, in_namespace, interface, packet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BULK: usize = 32 << 20;

/// Runs `test` with the stack as 10.0.0.2 and fd00::2 and the kernel, on `interface`, as .1 and ::1.
fn with_kernel<F: Future<Output = ()>>(link: FdLink, interface: &str, test: impl FnOnce(End) -> F) {
    interface::up(interface).unwrap();
    interface::add_address(interface, V4[0].parse().unwrap(), 24).unwrap();
    interface::add_address(interface, V6[0].parse().unwrap(), 64).unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let stats = link.stats();
        let (stack, driver) = Stack::new(StackConfig::new());
        let addresses = ["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        stack.create_nic(NicId(1), Box::new(link), &addresses).unwrap();
        test(End { stack, driver: tokio::spawn(driver.run()), link: stats }).await;
    });
}

fn on_veth(mode: Mode) -> FdLink {
    interface::veth("kernel0", "stack0", 1500).unwrap();
    open_packet("stack0", 1, &LinkOptions::new().mode(mode)).unwrap()
}

/// Everything that a kernel does with a host on its network.
async fn everything(end: End) {
    for ip in [V4[1], V6[1]] {
        let before = (end.link.rx().super_frames, end.link.tx().super_frames);
        bulk_accepted(&end.stack, ip).await;
        let after = (end.link.rx().super_frames, end.link.tx().super_frames);
        assert!(after.0 > before.0 && after.1 > before.1, "{ip}: {before:?} {after:?}");
    }
    for ip in [V4[0], V6[0]] {
        bulk_connected(&end.stack, ip).await;
        refused(&end.stack, ip).await;
    }
    half_closes(&end.stack).await;
    datagrams(&end.stack).await;
    pings().await;
    assert_eq!(end.stack.stats().rx_bad_checksum, 0);
    until("all flows gone", || end.stack.levels().tcp_flows == 0).await;
}

/// Both ways at once, from the kernel's side; every byte compared.
fn exchange(stream: std::net::TcpStream) {
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let pattern = Pattern::new(1);
        let mut sent = 0;
        while sent < BULK {
            let piece = pattern.piece(sent, (BULK - sent).min(200_000));
            writer.write_all(piece).unwrap();
            sent += piece.len();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (mut reader, pattern, mut got) = (stream, Pattern::new(2), 0);
    let mut chunk = vec![0; 200_000];
    loop {
        let len = reader.read(&mut chunk).unwrap();
        let mut rest = &chunk[..len];
        while !rest.is_empty() {
            let piece = pattern.piece(got, rest.len());
            assert!(rest.starts_with(piece), "other bytes at {got}");
            (rest, got) = (&rest[piece.len()..], got + piece.len());
        }
        if len == 0 {
            break;
        }
    }
    assert_eq!(got, BULK);
    sender.join().unwrap();
}

async fn exchange_here(stream: TcpStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (send, expect) = (Pattern::new(2), Pattern::new(1));
    tokio::join!(
        send_pattern(&mut writer, &send, BULK),
        expect_pattern(&mut reader, &expect, BULK)
    );
}

async fn bulk_accepted(stack: &Stack, ip: &'static str) {
    let listener = TcpListener::bind(stack, any(1000)).unwrap();
    let kernel = tokio::task::spawn_blocking(move || {
        exchange(std::net::TcpStream::connect(at(ip, 1000)).unwrap());
    });
    let (stream, from) = within(listener.accept()).await.unwrap();
    assert_eq!(from.is_ipv4(), ip == V4[1]);
    within(exchange_here(stream)).await;
    within(kernel).await.unwrap();
}

async fn bulk_connected(stack: &Stack, ip: &str) {
    let listener = std::net::TcpListener::bind(at(ip, 1000)).unwrap();
    let kernel = tokio::task::spawn_blocking(move || exchange(listener.accept().unwrap().0));
    let stream = within(TcpStream::connect(stack, at(ip, 1000))).await.unwrap();
    within(exchange_here(stream)).await;
    within(kernel).await.unwrap();
}

async fn refused(stack: &Stack, ip: &str) {
    let here = within(TcpStream::connect(stack, at(ip, 9))).await.unwrap_err();
    assert_eq!(here.kind(), ErrorKind::ConnectionRefused);
    let there = if ip == V4[0] { V4[1] } else { V6[1] };
    let there = at(there, 9);
    let kernel = tokio::task::spawn_blocking(move || std::net::TcpStream::connect(there));
    let kernel = within(kernel).await.unwrap().unwrap_err();
    assert_eq!(kernel.kind(), ErrorKind::ConnectionRefused);
}

/// The kernel closes first and reads on; the stack closes first and reads on; a reset.
async fn half_closes(stack: &Stack) {
    let listener = TcpListener::bind(stack, any(2000)).unwrap();
    let connect = || {
        let kernel = || std::net::TcpStream::connect(at(V4[1], 2000)).unwrap();
        tokio::task::spawn_blocking(kernel)
    };
    let (kernel, accepted) = tokio::join!(connect(), within(listener.accept()));
    let (mut kernel, mut stream) = (kernel.unwrap(), accepted.unwrap().0);
    kernel.write_all(b"first").unwrap();
    kernel.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    within(stream.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"first");
    let reader = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        kernel.read_to_end(&mut all).map(|_| all)
    });
    stream.write_all(&[3; 5 << 20]).await.unwrap();
    drop(stream);
    assert_eq!(within(reader).await.unwrap().unwrap(), vec![3; 5 << 20]);

    let (kernel, accepted) = tokio::join!(connect(), within(listener.accept()));
    let (mut kernel, mut stream) = (kernel.unwrap(), accepted.unwrap().0);
    stream.shutdown().await.unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        assert_eq!(kernel.read(&mut [0]).unwrap(), 0);
        kernel.write_all(&[4; 5 << 20]).unwrap();
    });
    let mut all = Vec::new();
    within(stream.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, vec![4; 5 << 20]);
    within(writer).await.unwrap();

    let (kernel, accepted) = tokio::join!(connect(), within(listener.accept()));
    let (mut kernel, stream) = (kernel.unwrap(), accepted.unwrap().0);
    stream.reset();
    let read = tokio::task::spawn_blocking(move || kernel.read(&mut [0]));
    assert_eq!(within(read).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn datagrams(stack: &Stack) {
    let socket = UdpSocket::bind(stack, any(7)).unwrap();
    for (near, far) in [(V4[0], V4[1]), (V6[0], V6[1])] {
        let kernel = tokio::net::UdpSocket::bind(at(near, 0)).await.unwrap();
        kernel.connect(at(far, 7)).await.unwrap();
        for len in [1, 1500, 60_000] {
            let sent = vec![u8::try_from(len % 251).unwrap(); len];
            let (mut there, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            kernel.send(&sent).await.unwrap();
            let (got, from) = within(socket.recv_from(&mut there)).await.unwrap();
            assert!(there[..got] == sent && from == kernel.local_addr().unwrap());
            socket.send_to(&sent, from).await.unwrap();
            let got = within(kernel.recv(&mut back)).await.unwrap();
            assert!(back[..got] == sent);
        }
        // Nobody listens there: the kernel's socket is told.
        let unheard = tokio::net::UdpSocket::bind(at(near, 0)).await.unwrap();
        unheard.connect(SocketAddr::new(at(far, 0).ip(), 9)).await.unwrap();
        unheard.send(b"x").await.unwrap();
        let error = within(unheard.recv(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

async fn pings() {
    for ip in [V4[1], V6[1]] {
        for size in ["0", "56", "3000", "60000"] {
            let ping = tokio::task::spawn_blocking(move || {
                Command::new("ping")
                    .args(["-n", "-c", "2", "-i", "0.2", "-W", "5", "-s", size, ip])
                    .output()
            });
            match within(ping).await.unwrap() {
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stdout);
                    assert!(output.status.success() && text.contains(" 0% packet loss"), "{text}");
                }
                Err(error) => testkit::skip("pings", &format!("ping: {error}")),
            }
        }
    }
}

#[test]
fn packet_with_readv() {
    in_namespace(|| with_kernel(on_veth(Mode::Readv), "kernel0", everything));
}

#[test]
fn packet_with_recvmmsg() {
    in_namespace(|| with_kernel(on_veth(Mode::RecvMmsg), "kernel0", everything));
}

#[test]
fn packet_with_packet_mmap() {
    in_namespace(|| with_kernel(on_veth(Mode::PacketMmap), "kernel0", everything));
}

#[test]
fn tap() {
    in_namespace(|| {
        if has_tun("tap") {
            let link = open_tap("tap0", 1, &LinkOptions::new()).unwrap();
            with_kernel(link, "tap0", everything);
        }
    });
}

#[test]
fn tun() {
    in_namespace(|| {
        if has_tun("tun") {
            let link = open_tun("tun0", 1, &LinkOptions::new()).unwrap();
            with_kernel(link, "tun0", everything);
        }
    });
}

/// Frames that nobody verified, from the wire: wrong ones are dropped and counted.
#[test]
fn wrong_checksums_from_the_wire() {
    in_namespace(|| {
        let link = on_veth(Mode::Readv);
        let mac = link.properties().address.unwrap().0;
        with_kernel(link, "kernel0", async |end: End| {
            let _socket = UdpSocket::bind(&end.stack, any(7)).unwrap();
            let peer = Peer::on_interface("kernel0").unwrap();
            for (count, (near, far)) in (1..).zip([(V4[0], V4[1]), (V6[0], V6[1])]) {
                let mut datagram = packet::udp(at(near, 1), at(far, 7), b"datagram");
                let good = packet::ethernet_ip(mac, [2, 0, 0, 0, 0, 9], &datagram);
                *datagram.last_mut().unwrap() ^= 1;
                let wrong = packet::ethernet_ip(mac, [2, 0, 0, 0, 0, 9], &datagram);
                peer.send(&good).unwrap();
                peer.send(&wrong).unwrap();
                until("one of two", || {
                    let stats = end.stack.stats();
                    (stats.udp_rx, stats.rx_bad_checksum) == (count, count)
                })
                .await;
            }
        });
    });
}

/// The interface is taken down and comes back; then it is removed, which ends the stack.
#[test]
fn an_interface_that_goes() {
    in_namespace(|| {
        with_kernel(on_veth(Mode::Readv), "kernel0", async |end: End| {
            common::serve(&end.stack, 7, echo);
            interface::down("stack0").unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            interface::up("stack0").unwrap();
            interface::wait_running("stack0").unwrap();
            let once = || {
                let mut kernel = std::net::TcpStream::connect_timeout(&at(V4[1], 7), PATIENCE)?;
                kernel.write_all(b"x")?;
                kernel.read_exact(&mut [0])
            };
            within(tokio::task::spawn_blocking(once)).await.unwrap().unwrap();
            interface::remove("stack0").unwrap();
            assert_eq!(within(end.driver).await.unwrap().unwrap(), Closed::Removed);
        });
    });
}
