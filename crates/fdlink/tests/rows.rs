//! Row S10 on the wire: what a frame's offload information becomes on every kind of descriptor,
//! read back from the far end, compared with what it must be, and printed as a table.
//!
//! `rows` needs a network namespace, `rows_on_sockets` nothing. Either prints:
//!
//! * `hdr`: bytes of vnet header on the link under test; 0 means that the sender does the work.
//! * `given`: whether the frame came with offload information (checksum and segmentation).
//! * what arrived: the vnet header's fields, the number of frames, and by whom the header is.
//!   Behind an interface the kernel makes it anew: `hdr_len` is then 0 where nothing is to be cut,
//!   and else what the kernel has in one piece, at least the headers. On plain sockets it is the
//!   sender's own, compared byte by byte.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which prints its table")]

mod common;

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use common::traffic::{MSS, Traffic};
use common::{PATIENCE, QUIET, datagrams, seqpackets};
use fdlink::link::{FramePrefix, adopt, adopt_framed, open_packet, open_tap, open_tun};
use fdlink::offload::vnet::{TxOffload, VnetHeader};
use fdlink::stats::LinkStats;
use fdlink::{FdLink, Link, LinkOptions, Offload, Sent, SetupError, Transmit, TxFrame};
use testkit::{Peer, interface};

/// A link of one kind, and its far end.
struct Row {
    kind: &'static str,
    ethernet: bool,
    /// Of the link under test.
    vnet_header: usize,
    /// Whether the far end is behind an interface.
    mediated: bool,
    /// The longest frame that is taken without being cut, where that is less than 64 KiB.
    longest: Option<usize>,
    tx: Box<dyn Transmit>,
    stats: LinkStats,
    peer: Peer,
}

/// What has to arrive.
#[derive(Debug)]
enum Expected {
    /// The segments, cut and completed by the sender.
    Segments,
    /// Nothing: too long to be one frame.
    TooLong,
    /// The frame as it was given, with this header.
    Whole(VnetHeader),
}

impl Row {
    fn new(kind: &'static str, link: FdLink, peer: Peer) -> Self {
        let vnet_header = link.report().descriptors[0].vnet_header_len;
        let (properties, stats) = (link.properties().clone(), link.stats());
        let tx = Box::new(link).into_queues().unwrap().pop().unwrap().tx;
        let packet = kind.starts_with("packet");
        Self {
            kind,
            ethernet: !properties.link_header.is_empty(),
            vnet_header,
            mediated: packet || kind.starts_with("t"),
            longest: packet.then_some(properties.max_frame_len),
            tx,
            stats,
            peer,
        }
    }

    /// Sends everything that a frame can be, and prints a line for each.
    fn run(&mut self) {
        let mss = usize::from(MSS);
        for v6 in [false, true] {
            for udp in [false, true] {
                for (size, payload) in [("below", 700), ("at", mss), ("above", 3 * mss + 123)] {
                    for given in [false, true] {
                        let ethernet = self.ethernet;
                        let traffic = Traffic { ethernet, v6, udp, payload, mss: MSS };
                        let arrived = self.try_one(traffic, given);
                        println!(
                            "{:20} {:>3} {:3} {:2} {:3} {size:5} {:5} {arrived}",
                            self.kind,
                            self.vnet_header,
                            if ethernet { "yes" } else { "no" },
                            if v6 { "v6" } else { "v4" },
                            if udp { "udp" } else { "tcp" },
                            if given { "yes" } else { "no" },
                        );
                    }
                }
            }
        }
    }

    fn expected(&self, traffic: Traffic, given: bool, len: usize) -> Expected {
        let cut = traffic.payload > usize::from(traffic.mss);
        if self.longest.is_some_and(|longest| len > longest) && !given {
            return Expected::TooLong;
        }
        if !given {
            return Expected::Whole(VnetHeader::default());
        }
        if self.vnet_header == 0 {
            return Expected::Segments;
        }
        Expected::Whole(VnetHeader {
            flags: 1,
            gso_type: if cut { traffic.gso_type() } else { 0 },
            hdr_len: traffic.headers(),
            gso_size: if cut { traffic.mss } else { 0 },
            csum_start: traffic.start(),
            csum_offset: traffic.offset(),
        })
    }

    /// Sends one frame, from its own memory and then from the queue's, and checks what comes of
    /// it; returns the rest of its line.
    fn try_one(&mut self, traffic: Traffic, given: bool) -> String {
        let frame = if given { traffic.partial() } else { traffic.complete() };
        let expected = self.expected(traffic, given, frame.len());
        let offload = if given { traffic.offload() } else { TxOffload::default() };
        let parts = [IoSlice::new(&frame)];
        let before = self.stats.tx();
        let sent = self.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
        if matches!(expected, Expected::TooLong) {
            assert_eq!((sent.taken, sent.sent), (1, 0));
            assert_eq!(self.stats.tx().too_long, before.too_long + 1);
            assert!(self.peer.recv(QUIET).unwrap().is_none());
            return "cannot be: longer than the MTU and not to be cut (too_long)".to_owned();
        }
        assert_eq!(sent, Sent { taken: 1, sent: 1 }, "{traffic:?} {given}");
        let line = self.read_back(traffic, &frame, &expected);
        // A slot is no longer than what the link is made for.
        if let Some(mut slot) = self.tx.slot(frame.len()) {
            slot.bytes_mut().copy_from_slice(&frame);
            slot.commit(frame.len(), offload);
            assert_eq!(self.tx.flush().unwrap(), sent, "{traffic:?} {given}");
            assert_eq!(self.read_back(traffic, &frame, &expected), line);
        }
        line
    }

    fn read_back(&self, traffic: Traffic, frame: &[u8], expected: &Expected) -> String {
        let count = if matches!(expected, Expected::Segments) { traffic.segments() } else { 1 };
        let arrived: Vec<_> =
            (0..count).map(|_| self.peer.recv_with(PATIENCE).unwrap().unwrap()).collect();
        let (vnet, frames): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
        if let Expected::Whole(header) = expected {
            assert!(frames[0] == frame, "{traffic:?}");
            self.check_header(*header, &vnet[0], frame.len());
        } else {
            traffic.check_segments(&frames);
            vnet.iter().for_each(|vnet| self.check_header(VnetHeader::default(), vnet, 0));
        }
        let by = match (vnet[0].is_empty(), self.mediated) {
            (true, _) => "-",
            (false, true) => "kernel",
            (false, false) => "sender",
        };
        format!("{} {count:>6} {by}", fields(&vnet[0]))
    }

    fn check_header(&self, expected: VnetHeader, bytes: &[u8], frame_len: usize) {
        let Some(arrived) = VnetHeader::parse(bytes) else {
            return assert_eq!((bytes.len(), self.vnet_header), (0, 0));
        };
        if !self.mediated {
            let mut whole = vec![0xff; self.vnet_header];
            expected.write(&mut whole);
            return assert_eq!(bytes, whole);
        }
        assert_eq!(VnetHeader { hdr_len: expected.hdr_len, ..arrived }, expected);
        let hdr_len = arrived.hdr_len;
        if expected.gso_type == 0 {
            assert_eq!(hdr_len, 0);
        } else {
            assert!((expected.hdr_len..=u16::try_from(frame_len).unwrap()).contains(&hdr_len));
        }
    }
}

/// The header's fields, read by hand.
fn fields(vnet: &[u8]) -> String {
    let word = |at: usize| u16::from_ne_bytes([vnet[at], vnet[at + 1]]).to_string();
    let texts = if vnet.is_empty() {
        [const { String::new() }; 6].map(|_| "-".to_owned())
    } else {
        [vnet[0].to_string(), vnet[1].to_string(), word(2), word(4), word(6), word(8)]
    };
    let [flags, kind, hdr_len, size, start, offset] = texts;
    format!("{flags:>5} {kind:>4} {hdr_len:>7} {size:>8} {start:>10} {offset:>11}")
}

fn print_head() {
    println!(
        "{:20} hdr eth ip l4  size  given flags type hdr_len gso_size csum_start csum_offset \
         frames header_by",
        "kind"
    );
}

/// A combination that no link can be made of: prints what is said to whoever asks for it.
fn cannot_exist(what: &str, result: Result<FdLink, SetupError>) {
    let error = result.expect_err(what);
    // And for no other reason.
    assert!(matches!(error, SetupError::Option { .. }), "{what}: {error}");
    println!("{what}: cannot exist: {error}");
}

#[test]
fn rows() {
    testkit::in_namespace(|| {
        print_head();
        let off = LinkOptions::new().offload(Offload::Off);
        interface::veth("a", "b", 1500).unwrap();
        let packet = |options: &LinkOptions| open_packet("a", 1, options).unwrap();
        let far = || Peer::on_interface("b").unwrap();
        Row::new("packet", packet(&LinkOptions::new()), far()).run();
        let fd = packet(&off).into_fds().pop().unwrap();
        match testkit::set_packet_vnet_header(&fd, 12) {
            Ok(()) => {
                let link = adopt(vec![fd], &LinkOptions::new()).unwrap();
                Row::new("packet", link, far()).run();
            }
            Err(error) => println!("packet, 12 bytes: cannot exist: {error}"),
        }
        Row::new("packet", packet(&off), far()).run();
        let bare = LinkOptions::new().ethernet(false);
        cannot_exist("packet on veth, no ethernet", open_packet("a", 1, &bare));
        if testkit::has_tun("rows") {
            rows_of_devices();
        }
    });
}

fn rows_of_devices() {
    let off = LinkOptions::new().offload(Offload::Off);
    let on = LinkOptions::new();
    for (kind, open) in [("tap", open_tap as fn(&str, usize, &LinkOptions) -> _), ("tun", open_tun)]
    {
        for (len, options) in [(10, &on), (12, &on), (0, &off)] {
            let name = format!("{kind}{len}");
            let mut link: FdLink = open(&name, 1, options).unwrap();
            if len == 12 {
                let fds = link.into_fds();
                testkit::set_tun_vnet_header(fds[0].as_fd(), 12).unwrap();
                link = adopt(fds, options).unwrap();
            }
            interface::up(&name).unwrap();
            Row::new(kind, link, Peer::on_interface(&name).unwrap()).run();
        }
    }
    // AF_PACKET without an Ethernet header: on a TUN device, read at the device's own descriptor.
    for (name, options) in [("far0", &on), ("far1", &off)] {
        let tun = open_tun(name, 1, &on).unwrap().into_fds().pop().unwrap();
        interface::up(name).unwrap();
        interface::wait_running(name).unwrap();
        let link = open_packet(name, 1, options).unwrap();
        Row::new("packet on tun", link, Peer::on_socket(tun, 10)).run();
    }
    let ethernet = |ethernet| LinkOptions::new().ethernet(ethernet);
    cannot_exist("tap, no ethernet", open_tap("tap10", 1, &ethernet(false)));
    cannot_exist("tun, ethernet", open_tun("tun10", 1, &ethernet(true)));
    let _tun = open_tun("far2", 1, &on).unwrap();
    cannot_exist("packet on tun, ethernet", open_packet("far2", 1, &ethernet(true)));
}

#[test]
fn rows_on_sockets() {
    print_head();
    for (kind, pair) in [
        ("unix seqpacket", seqpackets as fn() -> (OwnedFd, OwnedFd)),
        ("unix datagram", datagrams),
        ("udp", udp_sockets),
    ] {
        for len in [10, 12, 0] {
            for ethernet in [true, false] {
                let mut options = LinkOptions::new().ethernet(ethernet);
                if len > 0 {
                    options = options.in_band_vnet_header(len);
                }
                let (ours, far) = pair();
                let link = adopt(vec![ours], &options).unwrap();
                Row::new(kind, link, Peer::on_socket(far, len)).run();
            }
        }
    }
    for len in [10, 12, 0] {
        for ethernet in [true, false] {
            let mut options = LinkOptions::new().ethernet(ethernet);
            if len > 0 {
                options = options.in_band_vnet_header(len);
            }
            let (ours, far) = UnixStream::pair().unwrap();
            let link = adopt_framed(ours.into(), FramePrefix::Be32, &options).unwrap();
            Row::new("framed stream", link, Peer::on_stream(far.into(), len)).run();
        }
    }
    for len in [1, 11, 14] {
        let options = LinkOptions::new().in_band_vnet_header(len);
        cannot_exist("a header of another length", adopt(vec![seqpackets().0], &options));
    }
}

fn udp_sockets() -> (OwnedFd, OwnedFd) {
    let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    (a.into(), b.into())
}
