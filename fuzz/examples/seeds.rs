//! Writes `seeds/TARGET/NAME`: a few real packets for each target to begin with, in the form that
//! the target reads. The same bytes each time.

use std::fs;
use std::path::Path;

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, TcpHeader,
};

/// Ethernet from and to locally administered addresses; the type follows.
const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
const MSS: u16 = 100;

fn main() -> std::io::Result<()> {
    let packets = packets();
    for (name, packet) in &packets {
        let frame = [&ETHERNET[..], &ether_type(packet), packet].concat();
        // No link header or Ethernet's, lengths as they are, where TCP over IPv4 has its checksum.
        write("headers", name, &[&[0, 0, 0, 20, 0, 16], &packet[..]].concat())?;
        write(
            "headers",
            &format!("{name}-ethernet"),
            &[&[14, 1, 0, 34, 0, 16], &frame[..]].concat(),
        )?;
        if let Some((kind, gso_type, offset)) = cut_as(name) {
            let [high, low] = MSS.to_be_bytes();
            write("segment", name, &[&[kind, high, low, 14, 0], &frame[..]].concat())?;
            let start = if packet[0] >> 4 == 4 { 34 } else { 54 };
            // Needs a checksum; the fields are in the order of bytes of the machine.
            let mut header = vec![1, gso_type];
            for field in [start + 20, MSS, start, offset] {
                header.extend(field.to_ne_bytes());
            }
            write("vnet", name, &[&header, &frame[..]].concat())?;
        }
    }
    write("vnet", "nothing-to-do", &[&[0; 10], &packets[0].1[..]].concat())?;
    write("vnet", "verified", &[&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &packets[0].1[..]].concat())?;
    for (name, memory) in rings(&packets[0].1) {
        write("ring", name, &memory)?;
    }
    for (name, program) in programs() {
        write("coalesce", name, &program)?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(name), bytes)
}

fn ether_type(packet: &[u8]) -> [u8; 2] {
    if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] }
}

/// The kind of super-frame, the vnet header's name for it, and where the checksum is.
fn cut_as(name: &str) -> Option<(u8, u8, u16)> {
    match name {
        "tcp4" => Some((0, 1, 16)),
        "tcp6" | "tcp6-hop-by-hop" => Some((1, 4, 16)),
        "udp4" | "udp6" => Some((2, 5, 6)),
        _ => None,
    }
}

fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let payload = [0x61; 250];
    let v4 = || {
        let mut ip = Ipv4Header { identification: 7, time_to_live: 64, ..Ipv4Header::default() };
        (ip.source, ip.destination, ip.dont_fragment) = ([10, 0, 0, 1], [10, 0, 0, 2], true);
        IpHeaders::Ipv4(ip, Ipv4Extensions::default())
    };
    let v6 = |options: bool| {
        let (source, destination) = ([0xfd; 16], [0xfe; 16]);
        let ip = Ipv6Header { source, destination, hop_limit: 64, ..Ipv6Header::default() };
        // Padding only (RFC 8200, section 4.2).
        let padding = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]);
        let hop_by_hop_options = options.then(|| padding.expect("a multiple of eight bytes"));
        IpHeaders::Ipv6(ip, Ipv6Extensions { hop_by_hop_options, ..Ipv6Extensions::default() })
    };
    let tcp = || {
        let mut tcp = TcpHeader::new(1000, 80, u32::MAX - 500, 512);
        (tcp.ack, tcp.psh, tcp.cwr) = (true, true, true);
        // Two no-operations and a time stamp (RFC 7323).
        tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).expect("whole words");
        tcp
    };
    let built = |build: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = Vec::new();
        build(&mut packet);
        packet
    };
    let tcp_over = |ip: IpHeaders| {
        built(&|out| {
            PacketBuilder::ip(ip.clone()).tcp_header(tcp()).write(out, &payload).expect("fits")
        })
    };
    let udp_over = |ip: IpHeaders| {
        built(&|out| {
            PacketBuilder::ip(ip.clone()).udp(1000, 53).write(out, &payload).expect("fits")
        })
    };
    let ping = |ip: IpHeaders| match ip {
        IpHeaders::Ipv4(..) => built(&|out| {
            PacketBuilder::ip(v4()).icmpv4_echo_request(1, 1).write(out, &[1; 32]).expect("fits");
        }),
        IpHeaders::Ipv6(..) => built(&|out| {
            PacketBuilder::ip(v6(false))
                .icmpv6_echo_request(1, 1)
                .write(out, &[1; 32])
                .expect("fits");
        }),
    };
    let mut fragment = udp_over(v4());
    fragment[6] = 0x20;
    vec![
        ("tcp4", tcp_over(v4())),
        ("tcp6", tcp_over(v6(false))),
        ("tcp6-hop-by-hop", tcp_over(v6(true))),
        ("udp4", udp_over(v4())),
        ("udp6", udp_over(v6(false))),
        ("fragment", fragment),
        ("ping4", ping(v4())),
        ("ping6", ping(v6(false))),
    ]
}

/// Bursts: places, longest frame, link header; then an operation, a length and a value for each
/// frame, and what the operation reads beside.
fn programs() -> Vec<(&'static str, Vec<u8>)> {
    let program = |places: u8, max_frame_len: u16, operations: &[&[u8]], times: usize| {
        let [high, low] = max_frame_len.to_be_bytes();
        [&[places, high, low, 14][..], &operations.concat().repeat(times)].concat()
    };
    let burst = |operations: &[&[u8]], times: usize| program(4, 9000, operations, times);
    const TCP4: &[u8] = &[0, 100, 0];
    const TCP6: &[u8] = &[1, 90, 0];
    const UDP4: &[u8] = &[2, 80, 0];
    const UDP6: &[u8] = &[3, 70, 0];
    vec![
        ("one-flow", burst(&[TCP4], 12)),
        ("four-flows", burst(&[TCP4, TCP6, UDP4, UDP6], 6)),
        ("partial", burst(&[&[0x80, 100, 0], &[0x83, 50, 0]], 6)),
        ("verified", burst(&[&[0x40, 100, 0], &[0x42, 50, 0]], 6)),
        ("pushed", burst(&[TCP4, TCP4, &[3 << 2, 100, 0x18]], 4)),
        ("a-gap", burst(&[TCP6, TCP6, &[5 << 2 | 1, 90, 9]], 4)),
        ("ids-that-stand-still", burst(&[UDP4, UDP4, &[4 << 2 | 2, 80, 0]], 4)),
        ("many-datagrams", burst(&[&[3, 1, 0]], 140)),
        ("little-room", program(1, 300, &[TCP4, TCP6, TCP4], 4)),
        ("time-to-live", burst(&[TCP4, &[7 << 2 | 0x20, 100, 22, 1], TCP4], 4)),
        ("damaged", burst(&[TCP4, &[7 << 2, 100, 80, 1], TCP4], 4)),
        ("a-runt", burst(&[TCP4, &[6 << 2, 3, 0, 1, 2, 3]], 4)),
    ]
}

/// Slots and blocks as a kernel writes them (linux/if_packet.h), in the machine's order of bytes,
/// with a vnet header of 10 bytes before each frame.
fn rings(packet: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    // TP_STATUS_USER; with a checksum left partial; with a VLAN tag; with frames lost before.
    const STATUS: [u32; 4] = [0x01, 0x01 | 0x08, 0x01 | 0x10 | 0x40, 0x01 | 0x04];
    let frame = [&ETHERNET[..], &ether_type(packet), packet].concat();
    let len = u32::try_from(frame.len()).expect("a short frame");
    // sockaddr_ll: to this host, from an interface of Ethernet.
    let address = [17_u8, 0, 8, 0, 2, 0, 0, 0, 1, 0, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0];
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let halves =
        |halves: &[u16]| halves.iter().flat_map(|half| half.to_ne_bytes()).collect::<Vec<u8>>();
    // Both put the frame 96 bytes behind the header, and its vnet header before it.
    let behind = |mut header: Vec<u8>| {
        header.extend(address);
        header.resize(96, 0);
        header.extend(&frame);
        header
    };
    // tpacket2_hdr: status, len, snaplen; mac, net; sec, nsec; tci, tpid; padding.
    let slot = |status: u32| {
        let header = [words(&[status, len, len]), halves(&[96, 110]), words(&[1, 2])];
        behind([header.concat(), halves(&[5, 0x8100]), vec![0; 4]].concat())
    };
    // tpacket3_hdr: next, sec, nsec, snaplen, len, status; mac, net; hash, tci; tpid; padding.
    let framed = |status: u32, next: u32| {
        let header = [words(&[next, 1, 2, len, len, status]), halves(&[96, 110]), words(&[0, 5])];
        let mut framed = behind([header.concat(), halves(&[0x8100, 0]), vec![0; 8]].concat());
        framed.resize(framed.len().next_multiple_of(8), 0);
        framed
    };
    // tpacket_block_desc: version, private; status, packets, first, length, number; time stamps.
    let block = |frames: &[Vec<u8>]| {
        let count = u32::try_from(frames.len()).expect("few frames");
        let first = words(&[1, 48, 1, count, 48, 0, 7, 0, 1, 2, 3, 4]);
        [&[0], &first[..], &frames.concat()].concat()
    };
    let next = u32::try_from(framed(0, 0).len()).expect("a short frame");
    vec![
        ("v2-slot", [&[1], &slot(STATUS[0])[..]].concat()),
        ("v2-slots", [&[1], &STATUS.map(slot).concat()[..]].concat()),
        ("v3-block", block(&STATUS.map(|status| framed(status, next)))),
        ("v3-block-of-one", block(&[framed(STATUS[0], 0)])),
        ("v3-block-of-none", block(&[])),
    ]
}
