//! Bounds: what happens at them, and that all is well again afterwards.

use std::io::ErrorKind;

use fdlink_stack::{StackConfig, TcpListener, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{PLAIN, V4, V6, any, at, echo, pair, pair_with, serve, until, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backlog_drops_and_then_works_again() {
    let (a, b) = pair_with(PLAIN, StackConfig::new(), StackConfig::new().backlog(2));
    let listener = TcpListener::bind(&b.stack, any(7)).unwrap();
    let connect = || TcpStream::connect(&a.stack, at(V4[1], 7));
    let _first = within(connect()).await.unwrap();
    let _second = within(connect()).await.unwrap();
    until("both wait", || b.stack.levels().tcp_half_open == 0).await;
    let mut third = Box::pin(connect());
    let no = tokio::time::timeout(std::time::Duration::from_millis(100), &mut third).await;
    assert!(no.is_err(), "the backlog is full");
    assert_eq!(b.stack.stats().tcp_syn_dropped, 1);
    assert_eq!(b.stack.stats().tcp_handshakes_evicted, 0, "those that wait are not in a handshake");
    let _ = within(listener.accept()).await.unwrap();
    // It repeats its SYN, which now finds room.
    within(third).await.unwrap();
    until("the third is established", || b.stack.stats().tcp_accepted == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_connections_is_bounded() {
    let few = StackConfig::new().max_tcp_flows(3);
    let (a, b) = pair_with(PLAIN, few, StackConfig::new());
    serve(&b.stack, 7, echo);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(within(TcpStream::connect(&a.stack, at(V4[1], 7))).await.unwrap());
    }
    let over = TcpStream::connect(&a.stack, at(V4[1], 7)).await.unwrap_err();
    assert_eq!(over.kind(), ErrorKind::OutOfMemory);
    assert_eq!(a.stack.stats().flows_over_cap, 1);
    streams.pop();
    until("one has gone", || a.stack.levels().tcp_flows == 2).await;
    within(TcpStream::connect(&a.stack, at(V4[1], 7))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffers_keep_to_their_budget() {
    // Room for 8 full connections; small ones come in when half of it is used.
    let tight = StackConfig::new().buffer_budget(16 << 20);
    let (a, b) = pair_with(PLAIN, tight, StackConfig::new());
    serve(&b.stack, 7, echo);
    let mut streams = Vec::new();
    let error = loop {
        match within(TcpStream::connect(&a.stack, at(V4[1], 7))).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(streams.len() > 50, "{}", streams.len());
    assert!(a.stack.levels().buffer_bytes <= 16 << 20);
    assert!(a.stack.stats().tcp_small_buffers > 40);
    for stream in &mut streams {
        stream.write_all(b"x").await.unwrap();
        within(stream.read_exact(&mut [0])).await.unwrap();
    }
    streams.clear();
    until("all flows gone", || a.stack.levels().tcp_flows == 0).await;
    within(TcpStream::connect(&a.stack, at(V4[1], 7))).await.unwrap();
}

/// Short connections, in every way of ending, leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_short_connections() {
    let (a, b) = pair(PLAIN);
    serve(&b.stack, 7, echo);
    let mut tasks = Vec::new();
    for worker in 0..20 {
        let stack = a.stack.clone();
        tasks.push(tokio::spawn(async move {
            for number in 0..100 {
                let ip = if number % 2 == 0 { V4[1] } else { V6[1] };
                let mut stream = TcpStream::connect(&stack, at(ip, 7)).await.unwrap();
                stream.write_all(b"ping").await.unwrap();
                match (worker + number) % 4 {
                    0 => drop(stream),
                    1 => stream.reset(),
                    way => {
                        if way == 2 {
                            stream.shutdown().await.unwrap();
                        }
                        stream.read_exact(&mut [0; 4]).await.unwrap();
                    }
                }
            }
        }));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    for end in [&a, &b] {
        until("all flows gone", || {
            let levels = end.stack.levels();
            (levels.tcp_flows, levels.tcp_half_open, levels.datagram_flows) == (0, 0, 0)
        })
        .await;
        // What is kept for the next ones.
        assert!(end.stack.levels().buffer_bytes <= 16 * (2 << 20));
    }
    assert_eq!(a.stack.stats().tcp_connected, 2000);
    assert_eq!(b.stack.stats().tcp_syn_dropped, 0);
}
