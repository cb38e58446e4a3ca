//! Bytes through connections, over every shape of link.

use fdlink::Mode;
use fdlink_stack::TcpStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{
    End, OFFLOAD, PLAIN, Pattern, Shape, V4, V6, at, connected, echo, expect_pattern, pair,
    send_pattern, serve, within,
};

fn shapes() -> impl Iterator<Item = Shape> {
    let kinds = [(false, Mode::Readv), (false, Mode::RecvMmsg), (true, Mode::RecvMmsg)];
    let links = [(true, 1500), (false, 1500), (true, 9000), (false, 68)];
    kinds.into_iter().flat_map(move |(datagram, mode)| {
        links.into_iter().flat_map(move |(ethernet, mtu)| {
            [0, 10, 12].map(|vnet| Shape { datagram, ethernet, mtu, vnet, mode, buffer: 0 })
        })
    })
}

async fn echoes(stack: &fdlink_stack::Stack, ip: &str, len: usize) {
    let pattern = Pattern::new(1);
    let mut stream = TcpStream::connect(stack, at(ip, 7)).await.unwrap();
    assert_eq!(stream.peer_addr(), at(ip, 7));
    stream.write_all(pattern.piece(0, len)).await.unwrap();
    let mut back = vec![0; len];
    stream.read_exact(&mut back).await.unwrap();
    assert!(back == pattern.piece(0, len));
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut back).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_of_link_echoes() {
    for shape in shapes() {
        let (a, b) = pair(shape);
        serve(&b.stack, 7, echo);
        // An IPv6 packet's headers leave too little of an MTU of 68.
        let families = if shape.mtu < 1280 { &[V4[1]][..] } else { &[V4[1], V6[1]] };
        for ip in families {
            within(echoes(&a.stack, ip, 1)).await;
            within(echoes(&a.stack, ip, 100_000)).await;
        }
        for end in [&a, &b] {
            let stats = end.stack.stats();
            assert_eq!((stats.rx_malformed, stats.rx_bad_checksum), (0, 0), "{shape:?}");
            // With a vnet header, only what asks for neighbours carries a checksum.
            assert_eq!(stats.rx_verified < 20, shape.vnet > 0, "{shape:?}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn one_thread_is_enough() {
    let (a, b) = pair(OFFLOAD);
    serve(&b.stack, 7, echo);
    within(echoes(&a.stack, V4[1], 1_000_000)).await;
    bulk(&a, &b, V6[1], 2, 4 << 20).await;
}

/// Both ways at once over that many connections, every byte compared.
async fn bulk(a: &End, b: &End, ip: &'static str, streams: u16, total: usize) {
    let mut tasks = Vec::new();
    for number in 0..streams {
        let (near, far) = connected(a, b, ip, 1000 + number).await;
        for (stream, send, expect) in [(near, 1, 2), (far, 2, 1)] {
            tasks.push(tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                let (send, expect) = (Pattern::new(send), Pattern::new(expect));
                tokio::join!(
                    send_pattern(&mut writer, &send, total),
                    expect_pattern(&mut reader, &expect, total)
                );
            }));
        }
    }
    for task in tasks {
        within(task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_in_super_frames() {
    for (ip, mtu) in [(V4[1], 1500), (V6[1], 1500), (V6[1], 9000)] {
        let (a, b) = pair(Shape { mtu, ..OFFLOAD });
        bulk(&a, &b, ip, 1, 64 << 20).await;
        for end in [&a, &b] {
            assert!(end.link.rx().super_frames > 100 && end.link.tx().super_frames > 100, "{ip}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_in_single_segments() {
    let (a, b) = pair(Shape { mtu: 9000, datagram: true, mode: Mode::RecvMmsg, ..PLAIN });
    bulk(&a, &b, V4[1], 1, 64 << 20).await;
    assert_eq!(a.link.tx().super_frames, 0);
    assert!(a.stack.stats().rx_verified > 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_connections_at_once() {
    for (shape, ip) in [(OFFLOAD, V6[1]), (Shape { ethernet: false, ..PLAIN }, V4[1])] {
        let (a, b) = pair(shape);
        bulk(&a, &b, ip, 16, 2 << 20).await;
    }
}

/// A socket that takes a few frames at a time: the stacks wait for room, and lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_sockets_are_waited_for() {
    for (datagram, vnet) in [(false, 0), (true, 0), (false, 10)] {
        // A super-frame of 64 KiB takes 80 KB of buffer.
        let buffer = if vnet > 0 { 100_000 } else { 4_608 };
        let (a, b) = pair(Shape { datagram, vnet, buffer, ..PLAIN });
        bulk(&a, &b, V4[1], 4, 2 << 20).await;
        let full = a.link.tx().would_block + b.link.tx().would_block;
        assert!(full > 0, "never full");
        for end in [&a, &b] {
            assert_eq!(end.stack.stats().tx_no_room, 0, "segments were dropped");
        }
    }
}
