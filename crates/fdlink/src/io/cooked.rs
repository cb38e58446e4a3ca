//! Cooked AF_PACKET sockets (SOCK_DGRAM): the kernel takes the link header off what comes in and
//! makes that of what leaves, and says, or is told, its fields by a `sockaddr_ll`. Here frames have
//! an Ethernet header all the same; this file makes it for those that come in.
//!
//! What is not told is filled in as well as it can be: a frame to this host goes to the interface's
//! own address, one to a group to the address that its IP packet's group has; one to somebody else
//! goes to zeros, which is no station's address. Of two VLAN tags the kernel takes off and tells the
//! outer one; what is left of the inner one stands before the packet, and nothing says so
//! (`vlan_get_protocol_dgram`, net/packet/af_packet.c).
//!
//! What is not here: receiving (`io/readv.rs`, `io/mmsg.rs`), and the way out, where the header
//! becomes the address again (`sys/address.rs`).

use crate::batch::{ETHERNET_HEADER_LEN, EtherType, MacAddr, PacketType, ethernet_header};
use crate::io::inlet::packet_type;
use crate::sys::message::PacketInfo;

/// [`ETHERNET_HEADER_LEN`] in the type of `tp_len`.
const HEADER_LEN: u32 = 14;

/// The least EtherType (IEEE 802.3); a lesser number there is the length of the packet. The kernel
/// says of such frames only that they are (`ETH_P_802_2`, `ETH_P_802_3`).
const LEAST_ETHER_TYPE: u16 = 0x0600;

/// A group of which nobody knows which one it is: the group bit alone.
const SOME_GROUP: MacAddr = MacAddr([1, 0, 0, 0, 0, 0]);

/// What a cooked socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cooked {
    /// The interface's number.
    pub(crate) interface: libc::c_int,
    /// The interface's own address when the link was built.
    pub(crate) address: MacAddr,
}

impl Cooked {
    /// Writes the Ethernet header of a received frame to its first 14 bytes, behind which is the
    /// packet; gives what is known of the frame with its header.
    pub(crate) fn add_header(self, info: PacketInfo, frame: &mut [u8]) -> PacketInfo {
        let Some((header, packet)) = frame.split_first_chunk_mut::<ETHERNET_HEADER_LEN>() else {
            return info;
        };
        let destination = match packet_type(info.packet_type) {
            PacketType::Broadcast => MacAddr::BROADCAST,
            PacketType::Host => self.address,
            PacketType::Multicast => group(EtherType(info.protocol), packet),
            PacketType::OtherHost | PacketType::Outgoing => MacAddr::default(),
        };
        let len = u16::try_from(packet.len()).ok().filter(|_| info.protocol < LEAST_ETHER_TYPE);
        let protocol = EtherType(len.unwrap_or(info.protocol));
        *header = ethernet_header(destination, MacAddr(info.source), protocol);
        PacketInfo { len: info.len.saturating_add(HEADER_LEN), ..info }
    }
}

/// The link address of the group that a packet goes to: RFC 1112, section 6.4, and RFC 2464,
/// section 7.
fn group(protocol: EtherType, packet: &[u8]) -> MacAddr {
    let address = match protocol {
        EtherType::IPV4 => packet.get(16..20),
        EtherType::IPV6 => packet.get(24..40),
        _ => None,
    };
    match address {
        Some([224..=239, b, c, d]) => MacAddr([0x01, 0x00, 0x5e, b & 0x7f, *c, *d]),
        Some([0xff, .., a, b, c, d]) => MacAddr([0x33, 0x33, *a, *b, *c, *d]),
        _ => SOME_GROUP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn header(packet_type: u8, protocol: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = [&[0xee; 14], packet].concat();
        let len = packet.len().try_into().unwrap();
        let info = PacketInfo { packet_type, protocol, source: SOURCE, len, ..Default::default() };
        let info = Cooked { interface: 1, address: OWN }.add_header(info, &mut frame);
        assert_eq!(info.len as usize, frame.len());
        assert_eq!(&frame[14..], packet);
        frame.truncate(14);
        frame
    }

    fn expected(destination: [u8; 6], protocol: u16) -> Vec<u8> {
        ethernet_header(MacAddr(destination), MacAddr(SOURCE), EtherType(protocol)).to_vec()
    }

    #[test]
    fn the_destination_follows_the_packet_type() {
        let packet = [0x45; 40];
        for (packet_type, destination) in [
            (libc::PACKET_HOST, OWN.0),
            (libc::PACKET_BROADCAST, [0xff; 6]),
            (libc::PACKET_OTHERHOST, [0; 6]),
            (libc::PACKET_OUTGOING, [0; 6]),
        ] {
            assert_eq!(header(packet_type, 0x0806, &packet), expected(destination, 0x0806));
        }
    }

    #[test]
    fn groups_have_the_address_of_their_ip_address() {
        let mut v4 = [0; 20];
        v4[16..].copy_from_slice(&[239, 255, 1, 2]);
        let mut v6 = [0; 40];
        v6[24] = 0xff;
        v6[36..].copy_from_slice(&[0xff, 1, 2, 3]);
        let of = |protocol, packet| header(libc::PACKET_MULTICAST, protocol, packet);
        assert_eq!(of(0x0800, &v4), expected([1, 0, 0x5e, 0x7f, 1, 2], 0x0800));
        assert_eq!(of(0x86dd, &v6), expected([0x33, 0x33, 0xff, 1, 2, 3], 0x86dd));
        let unknown = SOME_GROUP.0;
        assert_eq!(of(0x0800, &v4[..19]), expected(unknown, 0x0800));
        assert_eq!(of(0x86dd, &v6[..39]), expected(unknown, 0x86dd));
        assert_eq!(of(0x0800, &[0; 20]), expected(unknown, 0x0800));
        assert_eq!(of(0x88cc, &v4), expected(unknown, 0x88cc));
        assert!(SOME_GROUP.is_multicast());
    }

    #[test]
    fn a_frame_with_a_length_gets_its_length() {
        // ETH_P_802_3 and ETH_P_802_2.
        for protocol in [1, 4] {
            assert_eq!(header(libc::PACKET_HOST, protocol, &[0xaa; 38]), expected(OWN.0, 38));
        }
    }

    #[test]
    fn no_room_is_no_panic() {
        let cooked = Cooked { interface: 1, address: OWN };
        for len in 0..14 {
            let mut frame = vec![7; len];
            assert_eq!(cooked.add_header(PacketInfo::default(), &mut frame).len, 0);
            assert_eq!(frame, vec![7; len]);
        }
    }
}
