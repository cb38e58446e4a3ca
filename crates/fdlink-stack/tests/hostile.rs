//! A peer that sends what nobody should: the stack never panics, nothing grows without bound, and
//! honest connections work at the same time.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    End, PATIENCE, PLAIN, Shape, V4, any, at, echo, end, serve, socket_pair, until, within,
};
use fdlink::link::adopt;
use fdlink_stack::{Cidr, NicId, StackConfig, TcpListener, TcpStream, UdpSocket};
use testkit::Peer;
use testkit::packet::{self, Tcp, flag};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BARE: Shape = Shape { ethernet: false, ..PLAIN };
const WINDOW: u16 = 1000;

/// A stack whose peer is this test.
fn victim(config: StackConfig) -> (End, Peer) {
    let (ours, theirs) = socket_pair(false);
    (end(ours, BARE, config, 2), Peer::on_socket(theirs, 0))
}

/// The same, with a second interface to an honest stack.
fn victim_with_friend(config: StackConfig) -> (End, Peer, End) {
    let (victim, peer) = victim(config);
    let (near, far) = socket_pair(false);
    let link = adopt(vec![near], &common::options(PLAIN)).unwrap();
    let address: Cidr = "10.0.0.2/24".parse().unwrap();
    victim.stack.create_nic(NicId(2), Box::new(link), &[address]).unwrap();
    (victim, peer, end(far, PLAIN, StackConfig::new(), 1))
}

fn segment<'a>(source: SocketAddr, port: u16, flags: u8, seq: u32, ack: u32) -> Tcp<'a> {
    let destination = at(V4[1], port);
    Tcp { source, destination, seq, ack, flags, window: WINDOW, options: &[], payload: &[] }
}

/// Sends as fast as the stack takes it; the thread ends with the flag.
fn flood(peer: Peer, mut frame: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    std::thread::spawn(move || {
        for number in 0.. {
            if seen.load(Ordering::Relaxed) || peer.send(&frame(number)).is_err() {
                return;
            }
            // What comes back is thrown away, so that the stack is never waiting for us.
            while peer.recv(Duration::ZERO).is_ok_and(|frame| frame.is_some()) {}
        }
    });
    over
}

fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    u32::try_from(*state >> 32).unwrap()
}

/// Opens a connection by hand, up to its acknowledgement; gives the stack's sequence number.
fn open_by_hand(peer: &Peer, source: SocketAddr, port: u16) -> u32 {
    peer.send(&packet::tcp(segment(source, port, flag::SYN, 1000, 0))).unwrap();
    let syn_ack = reply(peer);
    assert_eq!(syn_ack[33], flag::SYN | flag::ACK);
    let seq = word(&syn_ack, 24).wrapping_add(1);
    peer.send(&packet::tcp(segment(source, port, flag::ACK, 1001, seq))).unwrap();
    seq
}

fn reply(peer: &Peer) -> Vec<u8> {
    peer.recv(PATIENCE).unwrap().expect("an answer")
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

async fn still_works(friend: &End) {
    let attempt = async || {
        let mut stream = TcpStream::connect(&friend.stack, at(V4[1], 7)).await?;
        stream.write_all(&[5; 100_000]).await?;
        stream.read_exact(&mut vec![0; 100_000]).await
    };
    // On a busy machine a handshake may come too late: whoever is honest tries again.
    within(async { while attempt().await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_syns_is_bounded_and_honest_ones_get_through() {
    let config = StackConfig::new().tcp_buffer(64 << 10);
    let (victim, peer, friend) = victim_with_friend(config);
    serve(&victim.stack, 7, echo);
    let over = flood(peer, |number| {
        let source = SocketAddr::new(Ipv4Addr::from(0x1400_0000 + number).into(), 999);
        packet::tcp(segment(source, 7, flag::SYN, number, 0))
    });
    for _ in 0..20 {
        still_works(&friend).await;
        assert!(victim.stack.levels().tcp_flows <= 1024 + 21);
    }
    until("100,000 sources", || victim.stack.stats().rx_packets > 100_000).await;
    over.store(true, Ordering::Relaxed);
    let (levels, stats) = (victim.stack.levels(), victim.stack.stats());
    assert!(levels.tcp_half_open <= 1024, "{levels:?}");
    assert!(levels.buffer_bytes <= (1024 + 21 + 16) * (128 << 10), "{levels:?}");
    assert!(stats.tcp_handshakes_evicted > 90_000, "{stats:?}");
    still_works(&friend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_counted_and_nothing_else() {
    let (victim, peer, friend) = victim_with_friend(StackConfig::new());
    serve(&victim.stack, 7, echo);
    let _socket = UdpSocket::bind(&victim.stack, any(7)).unwrap();
    let mut state = 1;
    // Valid packets with some bytes changed and some cut off, and plain noise.
    let over = flood(peer, move |number| {
        let from = SocketAddr::new(V4[0].parse().unwrap(), 1 + (number % 50) as u16);
        let flags = u8::try_from(random(&mut state) & 0x3f).unwrap();
        let (seq, ack) = (random(&mut state), random(&mut state));
        let mut frame = match number % 5 {
            0 => packet::udp(from, at(V4[1], 7), &[1; 100]),
            1 => packet::echo_request(from.ip(), at(V4[1], 0).ip(), (1, 1), &[2; 50]),
            2 => (0..random(&mut state) % 2000)
                .map(|_| random(&mut state).to_le_bytes()[0])
                .collect(),
            _ => packet::tcp(segment(from, 7, flags, seq, ack)),
        };
        for _ in 0..random(&mut state) % 4 {
            let len = frame.len().max(1);
            let place = random(&mut state) as usize % len;
            frame.get_mut(place).into_iter().for_each(|byte| *byte ^= 1 << (seq % 8));
        }
        if number % 7 == 0 {
            frame.truncate(random(&mut state) as usize % 80);
        }
        frame.push(0);
        frame
    });
    until("some of it", || victim.stack.stats().rx_malformed > 10_000).await;
    still_works(&friend).await;
    over.store(true, Ordering::Relaxed);
    assert!(!victim.driver.is_finished());
    assert!(victim.stack.stats().rx_bad_checksum > 100);
    assert!(victim.stack.levels().tcp_flows < 100);
}

/// RSTs, FINs, ACKs of what was never sent, SYNs and data far outside of the window, at a
/// connection that goes on all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_at_an_open_connection() {
    let (victim, peer) = victim(StackConfig::new());
    let listener = TcpListener::bind(&victim.stack, any(7)).unwrap();
    let source = at(V4[0], 4000);
    let ours = open_by_hand(&peer, source, 7);
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let mut state = 2;
    for number in 0..20_000_u32 {
        let kinds = [flag::RST, flag::FIN | flag::ACK, flag::ACK, flag::SYN, flag::RST | flag::ACK];
        let flags = kinds[number as usize % kinds.len()];
        // Half of the sequence space away from the window.
        let seq = 1001_u32.wrapping_add(1 << 30).wrapping_add(random(&mut state) >> 2);
        let ack = ours.wrapping_add(1).wrapping_add(random(&mut state) >> 2);
        peer.send(&packet::tcp(segment(source, 7, flags, seq, ack))).unwrap();
        while peer.recv(Duration::ZERO).unwrap().is_some() {}
    }
    let payload = b"and still it hears";
    let data = Tcp { payload, ..segment(source, 7, flag::ACK | flag::PSH, 1001, ours) };
    peer.send(&packet::tcp(data)).unwrap();
    let mut heard = [0; 18];
    within(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, payload);
    assert_eq!(victim.stack.levels().tcp_flows, 1);
}

/// A window that closes, shrinks and opens again, byte by byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_shrinks() {
    let (victim, peer) = victim(StackConfig::new());
    let listener = TcpListener::bind(&victim.stack, any(7)).unwrap();
    let source = at(V4[0], 4000);
    let start = open_by_hand(&peer, source, 7);
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let sent: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    stream.write_all(&sent).await.unwrap();
    let (mut got, mut next): (Vec<u8>, u32) = (Vec::new(), start);
    let windows = [700, 0, 3, 1, 900, 50, 4000, 0, 2000];
    let mut windows = windows.into_iter().cycle();
    while got.len() < sent.len() {
        if let Some(frame) = peer.recv(Duration::from_millis(20)).unwrap() {
            let (seq, data) = (word(&frame, 24), &frame[20 + usize::from(frame[32] >> 4) * 4..]);
            let known = next.wrapping_sub(seq) as usize;
            if known < data.len() {
                got.extend(&data[known..]);
                next = next.wrapping_add(u32::try_from(data.len() - known).unwrap());
            }
        }
        let window = windows.next().unwrap();
        peer.send(&packet::tcp(Tcp { window, ..segment(source, 7, flag::ACK, 1001, next) }))
            .unwrap();
    }
    assert!(got == sent);
}

/// From ourselves, from groups, from nobody; to groups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_addresses() {
    let (victim, peer) = victim(StackConfig::new());
    serve(&victim.stack, 7, echo);
    let sources = [V4[1], "224.0.0.1", "255.255.255.255", "0.0.0.0"];
    for (count, source) in (1..).zip(sources) {
        let source = SocketAddr::new(source.parse::<IpAddr>().unwrap(), 7);
        peer.send(&packet::tcp(segment(source, 7, flag::SYN, 1, 0))).unwrap();
        peer.send(&packet::udp(source, at(V4[1], 9), b"x")).unwrap();
        until("both are dropped", || victim.stack.stats().rx_malformed == 2 * count).await;
    }
    let to_all =
        Tcp { destination: at("224.0.0.1", 7), ..segment(at(V4[0], 1), 7, flag::SYN, 1, 0) };
    peer.send(&packet::tcp(to_all)).unwrap();
    until("not ours", || victim.stack.stats().rx_not_ours == 1).await;
    assert!(peer.recv(Duration::from_millis(50)).unwrap().is_none(), "no answer to any of it");
    assert_eq!(victim.stack.levels().tcp_flows, 0);
}

/// Fragments that overlap, or never become whole, take bounded memory; whole ones still come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_without_end() {
    let (victim, peer) = victim(StackConfig::new());
    let socket = UdpSocket::bind(&victim.stack, any(9)).unwrap();
    let whole = packet::udp(at(V4[0], 1), at(V4[1], 9), &[7; 3000]);
    let fragment = |ident: u16, from: usize, to: usize, more: bool| {
        let IpAddr::V4(source) = at(V4[0], 0).ip() else { unreachable!() };
        let IpAddr::V4(destination) = at(V4[1], 0).ip() else { unreachable!() };
        let mut packet = packet::ipv4(source, destination, 17, &whole[20 + from..20 + to]);
        packet[4..6].copy_from_slice(&ident.to_be_bytes());
        let field = u16::try_from(from / 8).unwrap() | if more { 0x2000 } else { 0 };
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[10..12].fill(0);
        let sum = packet::checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    for ident in 0..20_000 {
        peer.send(&fragment(ident, 0, 1480, true)).unwrap();
        peer.send(&fragment(ident, 1400, 2880, true)).unwrap();
    }
    until("all came", || victim.stack.stats().rx_fragments == 40_000).await;
    assert!(victim.stack.stats().rx_fragments_dropped >= 20_000);
    for (from, to, more) in [(1480, 2960, true), (2960, 3008, false), (0, 1480, true)] {
        peer.send(&fragment(60_000, from, to, more)).unwrap();
    }
    let mut datagram = vec![0; 4000];
    assert_eq!(within(socket.recv_from(&mut datagram)).await.unwrap().0, 3000);
}

/// A wrong checksum, over whatever it is, is dropped and counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_checksums() {
    let (victim, peer) = victim(StackConfig::new());
    serve(&victim.stack, 7, echo);
    let frames = [
        packet::tcp(segment(at(V4[0], 1), 7, flag::SYN, 1, 0)),
        packet::udp(at(V4[0], 1), at(V4[1], 7), b"datagram"),
        packet::echo_request(at(V4[0], 1).ip(), at(V4[1], 7).ip(), (1, 1), b"echo"),
    ];
    for (count, mut frame) in (1..).zip(frames) {
        *frame.last_mut().unwrap() ^= 1;
        peer.send(&frame).unwrap();
        until("counted", || victim.stack.stats().rx_bad_checksum == count).await;
    }
    assert!(peer.recv(Duration::from_millis(50)).unwrap().is_none());
    assert_eq!(victim.stack.levels().tcp_flows, 0);
}

/// An answer that is told to everyone instead of to us is an answer: what waited goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_tells_everyone() {
    let (ours, theirs) = socket_pair(false);
    let (victim, peer) = (end(ours, PLAIN, StackConfig::new(), 2), Peer::on_socket(theirs, 0));
    let stack = victim.stack.clone();
    let socket = UdpSocket::bind(&stack, any(9)).unwrap();
    let _connecting = tokio::spawn(async move { TcpStream::connect(&stack, at(V4[0], 7)).await });
    let asked = reply(&peer);
    assert_eq!(asked[12..14], packet::ETH_ARP.to_be_bytes());
    socket.send_to(b"waits", at(V4[0], 7)).await.unwrap();
    let IpAddr::V4(sender) = at(V4[0], 0).ip() else { unreachable!() };
    let mac = [2, 0, 0, 0, 0, 7];
    let told =
        packet::Arp { operation: 1, sender_mac: mac, sender, target_mac: [0; 6], target: sender };
    let everyone = packet::ethernet([0xff; 6], mac, packet::ETH_ARP, &packet::arp(told));
    peer.send(&everyone).unwrap();
    let mut protocols = [reply(&peer), reply(&peer)].map(|frame| {
        assert_eq!(frame[..6], mac);
        frame[23]
    });
    protocols.sort_unstable();
    assert_eq!(protocols, [6, 17], "the SYN and the datagram");
}

/// Link addresses that are a group's: nothing is answered to a group, nor to all of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_on_the_link() {
    let (ours, theirs) = socket_pair(false);
    let (victim, peer) = (end(ours, PLAIN, StackConfig::new(), 2), Peer::on_socket(theirs, 0));
    serve(&victim.stack, 7, echo);
    let (station, everyone) = ([2, 0, 0, 0, 0, 7], [0xff; 6]);
    let syn = packet::tcp(segment(at(V4[0], 1), 7, flag::SYN, 1, 0));
    let datagram = packet::udp(at(V4[0], 1), at(V4[1], 9), b"x");
    peer.send(&packet::ethernet_ip(everyone, station, &syn)).unwrap();
    peer.send(&packet::ethernet_ip(everyone, station, &datagram)).unwrap();
    peer.send(&packet::ethernet_ip(everyone, everyone, &syn)).unwrap();
    peer.send(&packet::ethernet_ip([2, 0, 0, 0, 0, 8], station, &syn)).unwrap();
    until("all are dropped", || {
        let stats = victim.stack.stats();
        (stats.rx_malformed, stats.rx_foreign) == (2, 1)
    })
    .await;
    assert!(peer.recv(Duration::from_millis(50)).unwrap().is_none(), "no answer to any of it");
    assert_eq!(victim.stack.levels().tcp_flows, 0);
}

/// What a link's owner declares about handing it over decides about segments that nobody knows.
#[tokio::test]
async fn strays_are_reset_unless_they_may_be_restored() {
    for (save_restore, disconnect_ok, spared) in
        [(false, false, false), (true, true, false), (true, false, true)]
    {
        let (ours, theirs) = socket_pair(false);
        let options = common::options(BARE).save_restore(save_restore).disconnect_ok(disconnect_ok);
        let link = adopt(vec![ours], &options).unwrap();
        let (stack, driver) = fdlink_stack::Stack::new(StackConfig::new());
        let address: Cidr = "10.0.0.2/24".parse().unwrap();
        stack.create_nic(NicId(1), Box::new(link), &[address]).unwrap();
        tokio::spawn(driver.run());
        let peer = Peer::on_socket(theirs, 0);
        peer.send(&packet::tcp(segment(at(V4[0], 5), 6, flag::ACK, 1, 1))).unwrap();
        let count = || (stack.stats().tcp_stray_resets, stack.stats().tcp_strays_spared);
        until("the stray", || count() != (0, 0)).await;
        assert_eq!(count(), if spared { (0, 1) } else { (1, 0) });
        let wait = if spared { Duration::from_millis(30) } else { PATIENCE };
        let answer = tokio::task::spawn_blocking(move || peer.recv(wait).unwrap()).await.unwrap();
        assert_eq!(answer.is_some_and(|reset| reset[33] & flag::RST != 0), !spared);
    }
}

/// A frame with a wrong checksum is taken where the link's owner declared that somebody else has
/// looked, and nowhere else.
#[tokio::test]
async fn unverified_frames_are_verified_unless_they_are_trusted() {
    for trusted in [false, true] {
        let (ours, theirs) = socket_pair(false);
        let options = common::options(BARE).rx_checksum_trusted(trusted);
        let link = adopt(vec![ours], &options).unwrap();
        let (stack, driver) = fdlink_stack::Stack::new(StackConfig::new());
        let address: Cidr = "10.0.0.2/24".parse().unwrap();
        stack.create_nic(NicId(1), Box::new(link), &[address]).unwrap();
        tokio::spawn(driver.run());
        let socket = UdpSocket::bind(&stack, any(7)).unwrap();
        let peer = Peer::on_socket(theirs, 0);
        let good = packet::udp(at(V4[0], 5), at(V4[1], 7), b"good");
        let mut bad = packet::udp(at(V4[0], 5), at(V4[1], 7), b"bad!");
        bad[26] ^= 1;
        peer.send(&bad).unwrap();
        peer.send(&good).unwrap();
        let mut message = [0; 16];
        let (len, _) = within(socket.recv_from(&mut message)).await.unwrap();
        let first: &[u8] = if trusted { b"bad!" } else { b"good" };
        assert_eq!(&message[..len], first);
    }
}
