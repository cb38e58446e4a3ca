//! Cooked AF_PACKET sockets: the Ethernet header that frames have here and that the kernel takes
//! off and makes, both ways.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};

use common::{PATIENCE, QUIET, closed, recv};
use fdlink::batch::{PacketType, ethernet_header};
use fdlink::link::adopt;
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, RxChecksum, TxOffload};
use fdlink::stats::LinkStats;
use fdlink::{
    Closed, Endpoint, EtherType, FdLink, Fill, Frame, Link, LinkEndpoint, LinkHeader, LinkKind,
    LinkOptions, MacAddr, Mode, NetworkDispatcher, Offload, QueueIndex, QueuePair, RxBatch, Sent,
    SetupError, TxFrame, TxPacket,
};
use testkit::{Peer, interface, packet};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const MODES: [Mode; 2] = [Mode::Readv, Mode::RecvMmsg];

/// A veth pair whose near end has the address [`OWN`] and whose far end is the peer's.
fn veth() -> Peer {
    interface::veth("near", "far", 1500).unwrap();
    interface::set_address("near", OWN).unwrap();
    Peer::on_interface("far").unwrap()
}

fn link(options: &LinkOptions) -> Result<FdLink, SetupError> {
    adopt(vec![testkit::cooked_packet_socket("near").unwrap()], options)
}

fn queues(options: &LinkOptions) -> (QueuePair, LinkStats) {
    let link = link(options).unwrap();
    let stats = link.stats();
    (Box::new(link).into_queues().unwrap().pop().unwrap(), stats)
}

fn addresses() -> (SocketAddr, SocketAddr) {
    ("192.0.2.1:5".parse().unwrap(), "192.0.2.2:6".parse().unwrap())
}

/// A TCP packet that carries so many bytes and the pseudo-header's sum only.
fn partial_tcp(payload: &[u8]) -> Vec<u8> {
    let (source, destination) = addresses();
    let (seq, ack, window, flags) = (1, 1, 1000, packet::flag::ACK);
    let tcp = packet::Tcp { source, destination, seq, ack, window, flags, options: &[], payload };
    let mut packet = packet::tcp(tcp);
    let sum = packet::pseudo_header_sum(source.ip(), destination.ip(), 6, packet.len() - 20);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_cooked_link_says_what_it_is() {
    testkit::in_namespace(|| {
        let _peer = veth();
        let link = link(&LinkOptions::new()).unwrap();
        let properties = link.properties();
        assert_eq!(
            (properties.kind, properties.kind.name()),
            (LinkKind::PacketCooked, "cooked packet")
        );
        assert_eq!((properties.mode, link.interface()), (Mode::Readv, Some("near")));
        assert_eq!(
            (properties.link_header, properties.max_frame_len),
            (LinkHeader::Ethernet, 1514)
        );
        assert_eq!(properties.address, Some(MacAddr(OWN)));
        assert!(properties.capabilities.resolution_required && properties.rx_queue_bytes > 0);
        assert_eq!((properties.capabilities.tx_checksum, properties.gso_max_size), (false, 0));
        assert_eq!(link.report().descriptors[0].vnet_header_len, 0);
    });
}

#[test]
fn what_a_cooked_socket_cannot_have_is_refused() {
    testkit::in_namespace(|| {
        let _peer = veth();
        let new = LinkOptions::new;
        let cases = [
            (
                new().mode(Mode::PacketMmap),
                "mode: expected an AF_PACKET SOCK_RAW socket for packet-mmap",
            ),
            (new().offload(Offload::Required), "found a cooked packet without a vnet header"),
            (new().in_band_vnet_header(10), "found 10 bytes on a cooked packet"),
            (new().ethernet(false), "ethernet: expected true, as a cooked packet has it"),
            (
                new().address(MacAddr(OTHER)),
                "address: expected 02:00:00:00:00:01, the interface's own",
            ),
        ];
        for (options, reason) in cases {
            let text = link(&options).unwrap_err().to_string();
            assert!(text.contains(reason), "{text}");
        }
        let ring = link(&new().mode(Mode::PacketMmap).fallback(true)).unwrap();
        assert_eq!((ring.report().mode, ring.report().notes.len()), (Mode::Readv, 1));
        link(&new().address(MacAddr(OWN)).ethernet(true).offload(Offload::Off)).unwrap();
        let raw = testkit::packet_socket("near").unwrap();
        let cooked = testkit::cooked_packet_socket("near").unwrap();
        let text = adopt(vec![raw, cooked], &new()).unwrap_err().to_string();
        assert!(text.contains("descriptor 1 is a cooked packet on near"), "{text}");
    });
}

#[test]
fn frames_come_with_the_header_that_they_had() {
    testkit::in_namespace(|| {
        let peer = veth();
        let (source, destination) = addresses();
        let v4 = packet::udp(source, destination, b"v4");
        let v6 = packet::udp(
            "[2001:db8::1]:5".parse().unwrap(),
            "[ff02::1:ff00:2]:6".parse().unwrap(),
            b"v6",
        );
        let group = packet::udp(source, "239.129.2.3:6".parse().unwrap(), b"group");
        let arp = packet::arp(packet::Arp {
            operation: 1,
            sender_mac: OTHER,
            sender: [192, 0, 2, 2].into(),
            target_mac: [0; 6],
            target: [192, 0, 2, 1].into(),
        });
        let llc = [&[0xaa, 0xaa, 3][..], &[7; 40]].concat();
        let cases = [
            (OWN, 0x0800, &v4, PacketType::Host),
            (OWN, packet::ETH_EXPERIMENT, &llc, PacketType::Host),
            ([0xff; 6], 0x0806, &arp, PacketType::Broadcast),
            ([1, 0, 0x5e, 1, 2, 3], 0x0800, &group, PacketType::Multicast),
            ([0x33, 0x33, 0xff, 0, 0, 2], 0x86dd, &v6, PacketType::Multicast),
            // A length in place of the type, with IEEE 802.2 behind it.
            (OWN, 43, &llc, PacketType::Host),
        ];
        for mode in MODES {
            let (mut pair, stats) = queues(&LinkOptions::new().mode(mode).timestamps(true));
            let rx = pair.rx.as_mut().unwrap();
            let frames = cases
                .map(|(to, protocol, packet, _)| packet::ethernet(to, OTHER, protocol, packet));
            frames.iter().for_each(|frame| peer.send(frame).unwrap());
            let mut arrived = Vec::new();
            while arrived.len() < frames.len() {
                rx.fill().unwrap();
                let told = |frame: Frame<'_>| {
                    assert_eq!(frame.meta().original_len as usize, frame.bytes().len());
                    assert!(frame.meta().timestamp.is_some());
                    (frame.bytes().to_vec(), frame.meta().packet_type)
                };
                arrived.extend(rx.batch().map(told));
            }
            for ((arrived, frame), case) in arrived.iter().zip(&frames).zip(&cases) {
                assert_eq!(arrived, &(frame.clone(), case.3), "{mode}");
            }
            // To a group that cannot be told, and to somebody else, of whom only the sender is known.
            peer.send(&packet::ethernet([1, 0x80, 0xc2, 0, 0, 0xe], OTHER, 0x88cc, b"lldp"))
                .unwrap();
            peer.send(&packet::ethernet([2, 0, 0, 0, 0, 9], OTHER, 0x0800, &v4)).unwrap();
            let strangers = recv(&mut **rx, 2, PATIENCE);
            assert_eq!(strangers[0], packet::ethernet([1, 0, 0, 0, 0, 0], OTHER, 0x88cc, b"lldp"));
            assert_eq!(strangers[1], packet::ethernet([0; 6], OTHER, 0x0800, &v4));
            let (rx, bytes) = (stats.rx(), frames.iter().map(Vec::len).sum::<usize>());
            assert_eq!(rx.frames, frames.len() as u64 + 2);
            assert_eq!(rx.bytes, (bytes + strangers[0].len() + strangers[1].len()) as u64);
        }
    });
}

#[test]
fn frames_leave_with_the_header_that_they_were_given() {
    testkit::in_namespace(|| {
        let peer = veth();
        let (mut pair, stats) = queues(&LinkOptions::new());
        let (source, destination) = addresses();
        let v4 = packet::udp(source, destination, &[4; 1400]);
        let frames = [
            packet::ethernet(OTHER, OWN, 0x0800, &v4),
            packet::ethernet([0xff; 6], OWN, 0x0806, &[1; 28]),
            packet::ethernet([0x33, 0x33, 0, 0, 0, 1], OWN, 0x86dd, &[6; 60]),
            packet::ethernet(OTHER, OWN, packet::ETH_EXPERIMENT, &[]),
            // A length in place of the type.
            packet::ethernet(OTHER, OWN, 46, &[0xaa; 46]),
            packet::ethernet(OTHER, OWN, packet::ETH_EXPERIMENT, &[9; 1500]),
        ];
        for cut in [0, 1, 6, 13, 14] {
            let parts = frames.each_ref().map(|frame| {
                let (first, rest) = frame.split_at(cut);
                [IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(rest)]
            });
            let list = parts.each_ref().map(|parts| TxFrame::new(parts));
            assert_eq!(pair.tx.send(&list).unwrap(), Sent { taken: 6, sent: 6 });
            frames
                .iter()
                .for_each(|frame| assert_eq!(&peer.recv(PATIENCE).unwrap().unwrap(), frame));
        }
        // With the header apart, and written in place: one slot, and several.
        for frame in &frames {
            let (header, packet) = frame.split_first_chunk::<14>().unwrap();
            let parts = [IoSlice::new(packet)];
            pair.tx.send(&[TxFrame::new(&parts).with_link_header(*header)]).unwrap();
            assert_eq!(&peer.recv(PATIENCE).unwrap().unwrap(), frame);
        }
        for count in [1, 6] {
            for frame in &frames[..count] {
                let mut slot = pair.tx.slot(frame.len()).unwrap();
                slot.bytes_mut().copy_from_slice(frame);
                slot.commit(frame.len(), TxOffload::default());
            }
            assert_eq!(pair.tx.flush().unwrap(), Sent { taken: count, sent: count });
            frames[..count]
                .iter()
                .for_each(|frame| assert_eq!(&peer.recv(PATIENCE).unwrap().unwrap(), frame));
        }
        // The source is the interface's, whatever the frame says.
        let forged = packet::ethernet(OTHER, [2, 9, 9, 9, 9, 9], 0x0800, &v4);
        pair.tx.send(&[TxFrame::new(&[IoSlice::new(&forged)])]).unwrap();
        assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), frames[0]);
        let tx = stats.tx();
        assert_eq!(tx.frames, 5 * 6 + 6 + 7 + 1);
        assert_eq!(tx.frames, peer_counts(&tx));
    });
}

/// Frames sent, if nothing was dropped for any reason.
fn peer_counts(tx: &fdlink::stats::TxStats) -> u64 {
    assert_eq!((tx.invalid, tx.too_long, tx.other_errors, tx.no_buffers), (0, 0, 0, 0));
    tx.frames
}

#[test]
fn a_frame_without_a_whole_header_drops_alone() {
    testkit::in_namespace(|| {
        let peer = veth();
        let (mut pair, stats) = queues(&LinkOptions::new());
        let good = packet::ethernet(OTHER, OWN, packet::ETH_EXPERIMENT, b"good");
        let long = packet::ethernet(OTHER, OWN, packet::ETH_EXPERIMENT, &[1; 1501]);
        let (good, runt, long) =
            ([IoSlice::new(&good)], [IoSlice::new(&good[..13])], [IoSlice::new(&long)]);
        let list = [&good, &runt, &good, &long, &good].map(|parts| TxFrame::new(parts));
        assert_eq!(pair.tx.send(&list).unwrap(), Sent { taken: 5, sent: 3 });
        for len in [18, 13, 18] {
            let mut slot = pair.tx.slot(18).unwrap();
            slot.bytes_mut().copy_from_slice(&good[0]);
            slot.commit(len, TxOffload::default());
        }
        assert_eq!(pair.tx.flush().unwrap(), Sent { taken: 3, sent: 2 });
        for _ in 0..5 {
            assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), good[0].to_vec());
        }
        let tx = stats.tx();
        assert_eq!((tx.frames, tx.invalid, tx.too_long), (5, 2, 1));
    });
}

#[test]
fn super_frames_come_whole_and_leave_cut() {
    testkit::in_namespace(|| {
        let peer = veth();
        let packet = partial_tcp(&[3; 45 * 1400]);
        let checksum = ChecksumField { start: 34, offset: 16 };
        let gso = Gso { kind: GsoKind::TcpV4, size: 1400, header_len: 54, ecn: false };
        for mode in MODES {
            let (mut pair, stats) = queues(&LinkOptions::new().mode(mode));
            let rx = pair.rx.as_mut().unwrap();
            // NEEDS_CSUM, TCPV4.
            let words = [54_u16, 1400, 34, 16].map(u16::to_ne_bytes);
            let vnet = [&[1, 1][..], words.as_flattened()].concat();
            let frame = packet::ethernet(OWN, OTHER, 0x0800, &packet);
            peer.send_with(vnet[..].try_into().unwrap(), &frame).unwrap();
            while rx.fill().unwrap() == Fill::Empty {}
            let arrived = rx.batch().next().unwrap();
            assert!(arrived.bytes() == frame);
            // A cooked socket has no vnet header, so nobody says how it would be cut.
            assert_eq!(arrived.meta().checksum, RxChecksum::Partial(checksum));
            assert_eq!(arrived.meta().gso, None);

            let frame = packet::ethernet(OTHER, OWN, 0x0800, &packet);
            let parts = [IoSlice::new(&frame[..9]), IoSlice::new(&frame[9..])];
            let offload = TxOffload { checksum: Some(checksum), gso: Some(gso) };
            let sent = pair.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
            assert_eq!((sent, stats.tx().segmented), (Sent { taken: 1, sent: 1 }, 1));
            for _ in 0..45 {
                let segment = peer.recv(PATIENCE).unwrap().unwrap();
                assert_eq!((segment.len(), &segment[..14]), (1454, &frame[..14]));
                let sliced = etherparse::SlicedPacket::from_ethernet(&segment).unwrap();
                let (
                    Some(etherparse::NetSlice::Ipv4(ip)),
                    Some(etherparse::TransportSlice::Tcp(tcp)),
                ) = (sliced.net, sliced.transport)
                else {
                    panic!("no TCP segment");
                };
                let sum =
                    tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), tcp.payload());
                assert_eq!(tcp.checksum(), sum.unwrap());
            }
            // A checksum alone is completed before the frame leaves.
            let short = packet::ethernet(OTHER, OWN, 0x0800, &partial_tcp(b"short"));
            let parts = [IoSlice::new(&short)];
            let offload = TxOffload { checksum: Some(checksum), gso: None };
            pair.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
            let arrived = peer.recv(PATIENCE).unwrap().unwrap();
            assert_ne!(arrived[50..52], short[50..52]);
        }
    });
}

#[test]
fn own_transmissions_and_vlan_tags() {
    testkit::in_namespace(|| {
        let peer = veth();
        for mode in MODES {
            let (mut pair, stats) = queues(&LinkOptions::new().mode(mode));
            let rx = pair.rx.as_mut().unwrap();
            let neighbour = Peer::on_interface("near").unwrap();
            let frame = packet::ethernet(OTHER, OWN, packet::ETH_EXPERIMENT, b"out");
            neighbour.send(&frame).unwrap();
            pair.tx.send(&[TxFrame::new(&[IoSlice::new(&frame)])]).unwrap();
            assert_eq!(recv(&mut **rx, 1, QUIET), Vec::<Vec<u8>>::new());
            assert_eq!(stats.rx().frames, 0);
            let plain = packet::ethernet(OWN, OTHER, packet::ETH_EXPERIMENT, b"tagged");
            let mut tagged = plain.clone();
            tagged.splice(12..12, [0x81, 0, 0x20, 7]);
            peer.send(&tagged).unwrap();
            while rx.fill().unwrap() == Fill::Empty {}
            let arrived = rx.batch().next().unwrap();
            let tag = arrived.meta().vlan.unwrap();
            assert_eq!((arrived.bytes(), tag.tpid, tag.tci), (&plain[..], 0x8100, 0x2007));
            while peer.recv(QUIET).unwrap().is_some() {}
        }
    });
}

#[test]
fn several_cooked_sockets_share_an_interface() {
    testkit::in_namespace(|| {
        let peer = veth();
        let fds = (0..3).map(|_| testkit::cooked_packet_socket("near").unwrap()).collect();
        let link = adopt(fds, &LinkOptions::new()).unwrap();
        assert!(link.report().descriptors[0].fanout_group.is_some());
        let mut queues = Box::new(link).into_queues().unwrap();
        for port in 1..=60_u16 {
            let packet = packet::udp(([192, 0, 2, 2], port).into(), addresses().0, b"x");
            peer.send(&packet::ethernet(OWN, OTHER, 0x0800, &packet)).unwrap();
        }
        let counts: Vec<_> = queues
            .iter_mut()
            .map(|queue| recv(&mut **queue.rx.as_mut().unwrap(), usize::MAX, QUIET).len())
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), 60);
        assert!(counts.iter().filter(|count| **count > 0).count() > 1, "{counts:?}");
    });
}

#[test]
fn down_and_removed() {
    testkit::in_namespace(|| {
        let _peer = veth();
        let (mut pair, stats) = queues(&LinkOptions::new());
        interface::down("near").unwrap();
        let frame = packet::ethernet(OTHER, OWN, packet::ETH_EXPERIMENT, b"out");
        let parts = [IoSlice::new(&frame)];
        let list = [TxFrame::new(&parts)];
        assert_eq!(pair.tx.send(&list).unwrap(), Sent { taken: 1, sent: 0 });
        let rx = pair.rx.as_mut().unwrap();
        assert_eq!(recv(&mut **rx, 1, QUIET), Vec::<Vec<u8>>::new());
        assert_eq!((stats.rx().link_down, stats.tx().link_down), (1, 1));
        interface::remove("near").unwrap();
        assert_eq!(closed(&mut **rx), Closed::Removed);
        assert!(pair.tx.send(&list).is_err());
    });
}

/// Passes on frames, and the reason at the end.
struct Recorder(mpsc::SyncSender<Result<Vec<u8>, Closed>>);

impl NetworkDispatcher for Recorder {
    fn deliver(&self, _: QueueIndex, batch: &mut RxBatch<'_>) {
        batch.for_each(|frame| self.0.send(Ok(frame.bytes().to_vec())).unwrap());
    }

    fn closed(&self, _: QueueIndex, why: &Closed) {
        self.0.send(Err(why.clone())).unwrap();
    }
}

#[test]
fn an_endpoint_on_a_cooked_socket() {
    testkit::in_namespace(|| {
        let peer = veth();
        for mode in MODES {
            let endpoint = Endpoint::new(link(&LinkOptions::new().mode(mode)).unwrap()).unwrap();
            let (give, take) = mpsc::sync_channel(100);
            endpoint.attach(Arc::new(Recorder(give))).unwrap();
            let (source, destination) = addresses();
            let packet = packet::udp(source, destination, b"packet");
            let parts = [IoSlice::new(&packet)];
            let to = TxPacket::new(MacAddr(OTHER), EtherType::IPV4, &parts);
            assert_eq!(endpoint.write_packets(&[to]).unwrap().sent, 1);
            let header = ethernet_header(MacAddr(OTHER), MacAddr(OWN), EtherType::IPV4);
            assert_eq!(peer.recv(PATIENCE).unwrap().unwrap(), [&header[..], &packet].concat());
            let frame = packet::ethernet(OWN, OTHER, 0x0800, &packet);
            peer.send(&frame).unwrap();
            assert_eq!(take.recv_timeout(PATIENCE).unwrap(), Ok(frame));
            endpoint.stop();
            endpoint.join().unwrap();
            assert_eq!(take.recv_timeout(PATIENCE).unwrap(), Err(Closed::Stopped));
        }
    });
}
