//! The ways a connection ends.

use std::io::ErrorKind;

use fdlink_stack::{TcpListener, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{
    End, OFFLOAD, PLAIN, Pattern, V4, V6, any, at, connected, expect_pattern, pair, send_pattern,
    until, within,
};

/// Everything is over, and nobody was told of an error on the way.
async fn nothing_is_left(ends: [&End; 2]) {
    for end in ends {
        until("all flows gone", || end.stack.levels().tcp_flows == 0).await;
        let stats = end.stack.stats();
        assert_eq!((stats.tcp_reset_by_peer, stats.tcp_stray_resets), (0, 0));
    }
}

async fn read_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    within(stream.read_to_end(&mut all)).await.unwrap();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_closes_and_the_other_goes_on() {
    for ip in [V4[1], V6[1]] {
        let (a, b) = pair(OFFLOAD);
        for client_first in [true, false] {
            let (near, far) = connected(&a, &b, ip, 7).await;
            let (mut first, mut second) = if client_first { (near, far) } else { (far, near) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            assert_eq!(read_end(&mut second).await, b"question");
            // Long after the other's FIN, and more than any buffer holds.
            let pattern = Pattern::new(3);
            let write = send_pattern(&mut second, &pattern, 5 << 20);
            within(async { tokio::join!(write, expect_pattern(&mut first, &pattern, 5 << 20)) })
                .await;
            drop((first, second));
        }
        nothing_is_left([&a, &b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_close_at_once() {
    let (a, b) = pair(PLAIN);
    for _ in 0..50 {
        let (mut near, mut far) = connected(&a, &b, V4[1], 7).await;
        near.write_all(b"near").await.unwrap();
        far.write_all(b"far").await.unwrap();
        let _ = tokio::join!(near.shutdown(), far.shutdown());
        assert_eq!(read_end(&mut near).await, b"far");
        assert_eq!(read_end(&mut far).await, b"near");
        let late = far.write(b"more").await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::BrokenPipe);
    }
    nothing_is_left([&a, &b]).await;
}

/// A drop closes in order where everything was read; in every order of the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drops_are_closes() {
    let (a, b) = pair(PLAIN);
    for _ in 0..50 {
        let (near, mut far) = connected(&a, &b, V4[1], 7).await;
        drop(near);
        assert_eq!(read_end(&mut far).await, b"");
        drop(far);
        let (mut near, far) = connected(&a, &b, V6[1], 7).await;
        drop(far);
        assert_eq!(read_end(&mut near).await, b"");
    }
    nothing_is_left([&a, &b]).await;
}

/// What was written before the drop arrives, however late it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_delivers_what_was_written() {
    let (a, b) = pair(OFFLOAD);
    let (mut near, mut far) = connected(&a, &b, V4[1], 7).await;
    let pattern = Pattern::new(4);
    near.write_all(pattern.piece(0, 1_000_000)).await.unwrap();
    drop(near);
    within(expect_pattern(&mut far, &pattern, 1_000_000)).await;
    drop(far);
    nothing_is_left([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_with_unread_bytes_resets() {
    let (a, b) = pair(PLAIN);
    let (mut near, mut far) = connected(&a, &b, V4[1], 7).await;
    near.write_all(b"unread").await.unwrap();
    let mut byte = [0];
    far.read_exact(&mut byte).await.unwrap();
    drop(far);
    let error = within(near.read(&mut byte)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The other way round: what comes after the drop is unread as well.
    let (near, mut far) = connected(&a, &b, V4[1], 7).await;
    drop(near);
    let reset = async {
        loop {
            if let Err(error) = far.write_all(&[0; 1000]).await {
                return error.kind();
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(within(reset).await, ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_is_heard() {
    let (a, b) = pair(PLAIN);
    for ip in [V4[1], V6[1]] {
        let (near, mut far) = connected(&a, &b, ip, 7).await;
        near.reset();
        let error = within(far.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    // A writer that waits for room hears it, too.
    let (near, mut far) = connected(&a, &b, V4[1], 7).await;
    let writer = tokio::spawn(async move { far.write_all(&vec![0; 10 << 20]).await });
    until("a full buffer", || b.stack.stats().tcp_tx_bytes > 1 << 20).await;
    near.reset();
    assert_eq!(within(writer).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(b.stack.stats().tcp_reset_by_peer, 3);
    until("all flows gone", || a.stack.levels().tcp_flows == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_reset_can_be_read() {
    let (a, b) = pair(PLAIN);
    let (mut near, mut far) = connected(&a, &b, V4[1], 7).await;
    near.write_all(b"last words").await.unwrap();
    until("they have arrived", || b.link.rx().frames > 3).await;
    let mut bytes = [0; 10];
    far.read_exact(&mut bytes[..1]).await.unwrap();
    near.reset();
    until("the reset has arrived", || b.stack.stats().tcp_reset_by_peer == 1).await;
    far.read_exact(&mut bytes[1..]).await.unwrap();
    assert_eq!(&bytes, b"last words");
    assert_eq!(far.read(&mut bytes).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_closed_before_accept_is_still_read() {
    let (a, b) = pair(PLAIN);
    let listener = TcpListener::bind(&b.stack, any(7)).unwrap();
    let mut near = within(TcpStream::connect(&a.stack, at(V4[1], 7))).await.unwrap();
    near.write_all(b"and gone").await.unwrap();
    drop(near);
    until("the client is through", || {
        b.stack.levels().tcp_half_open == 0 && b.stack.stats().tcp_accepted == 1
    })
    .await;
    let (mut far, from) = within(listener.accept()).await.unwrap();
    assert_eq!(from.ip().to_string(), V4[0]);
    assert_eq!(read_end(&mut far).await, b"and gone");
    drop(far);
    nothing_is_left([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_listener_resets_those_that_wait() {
    let (a, b) = pair(PLAIN);
    for _ in 0..3 {
        let listener = TcpListener::bind(&b.stack, any(7)).unwrap();
        let mut near = within(TcpStream::connect(&a.stack, at(V4[1], 7))).await.unwrap();
        until("it waits to be accepted", || b.stack.levels().tcp_half_open == 0).await;
        drop(listener);
        let error = within(near.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let again = within(TcpStream::connect(&a.stack, at(V4[1], 7))).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    until("all flows gone", || b.stack.levels().tcp_flows == 0).await;
}
