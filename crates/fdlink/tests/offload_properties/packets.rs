//! Packets at random, as etherparse builds them: what the properties are tried on.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, TcpHeader,
};
use fdlink::offload::vnet::{Gso, GsoKind};
use proptest::collection::vec;
use proptest::prelude::*;

/// The network layer of a packet, from which etherparse builds it.
#[derive(Clone, Debug)]
pub(crate) enum Network {
    V4 { source: [u8; 4], destination: [u8; 4], id: u16, options: bool },
    V6 { source: [u8; 16], destination: [u8; 16], extension: bool },
}

#[derive(Clone, Debug)]
pub(crate) enum Transport {
    Tcp { ports: (u16, u16), seq: u32, flags: u8, options: Vec<u8> },
    Udp { ports: (u16, u16) },
    Icmp { id: u16 },
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) network: Network,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

impl Network {
    pub(crate) fn headers(&self) -> IpHeaders {
        match *self {
            Self::V4 { source, destination, id, options } => {
                let mut ip =
                    Ipv4Header { identification: id, time_to_live: 64, ..Ipv4Header::default() };
                (ip.source, ip.destination) = (source, destination);
                if options {
                    // No-operations and the end of the list (RFC 791, section 3.1).
                    ip.options = [1, 1, 1, 0].into();
                }
                IpHeaders::Ipv4(ip, Ipv4Extensions::default())
            }
            Self::V6 { source, destination, extension } => {
                let ip = Ipv6Header { source, destination, hop_limit: 64, ..Ipv6Header::default() };
                let mut extensions = Ipv6Extensions::default();
                if extension {
                    // Padding only (RFC 8200, section 4.2).
                    let header = Ipv6RawExtHeader::new_raw(
                        IpNumber::TCP,
                        &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                    );
                    extensions.hop_by_hop_options = Some(header.unwrap());
                }
                IpHeaders::Ipv6(ip, extensions)
            }
        }
    }

    pub(crate) fn reversed(&self) -> Self {
        let mut reversed = self.clone();
        match &mut reversed {
            Self::V4 { source, destination, .. } => std::mem::swap(source, destination),
            Self::V6 { source, destination, .. } => std::mem::swap(source, destination),
        }
        reversed
    }
}

impl Packet {
    /// Its bytes, with every checksum as etherparse has it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ip(self.network.headers());
        match (&self.transport, &self.network) {
            (Transport::Tcp { ports, seq, flags, options }, _) => {
                let mut tcp = TcpHeader::new(ports.0, ports.1, *seq, 512);
                let flag = |bit: u8| flags & 1 << bit != 0;
                (tcp.fin, tcp.psh, tcp.ack, tcp.ece) = (flag(0), flag(3), flag(4), flag(6));
                tcp.cwr = flag(7);
                tcp.set_options_raw(options).unwrap();
                builder.tcp_header(tcp).write(&mut out, &self.payload)
            }
            (Transport::Udp { ports }, _) => {
                builder.udp(ports.0, ports.1).write(&mut out, &self.payload)
            }
            (Transport::Icmp { id }, Network::V4 { .. }) => {
                builder.icmpv4_echo_request(*id, 1).write(&mut out, &self.payload)
            }
            (Transport::Icmp { id }, Network::V6 { .. }) => {
                builder.icmpv6_echo_request(*id, 1).write(&mut out, &self.payload)
            }
        }
        .unwrap();
        out
    }

    pub(crate) fn reversed(&self) -> Self {
        let mut reversed = Self { network: self.network.reversed(), ..self.clone() };
        match &mut reversed.transport {
            Transport::Tcp { ports, .. } | Transport::Udp { ports } => *ports = (ports.1, ports.0),
            Transport::Icmp { .. } => {}
        }
        reversed
    }

    /// The kind of super-frame it would be, if it can be cut.
    pub(crate) fn gso_kind(&self) -> Option<GsoKind> {
        match (&self.transport, &self.network) {
            (Transport::Tcp { .. }, Network::V4 { .. }) => Some(GsoKind::TcpV4),
            (Transport::Tcp { .. }, Network::V6 { .. }) => Some(GsoKind::TcpV6),
            (Transport::Udp { .. }, _) => Some(GsoKind::UdpSegments),
            (Transport::Icmp { .. }, _) => None,
        }
    }
}

pub(crate) fn network() -> impl Strategy<Value = Network> {
    prop_oneof![
        any::<([u8; 4], [u8; 4], u16, bool)>().prop_map(|(source, destination, id, options)| {
            Network::V4 { source, destination, id, options }
        }),
        any::<([u8; 16], [u8; 16], bool)>().prop_map(|(source, destination, extension)| {
            Network::V6 { source, destination, extension }
        }),
    ]
}

pub(crate) fn tcp() -> impl Strategy<Value = Transport> {
    // Options of whole words, no-operations only: their meaning plays no part here.
    (any::<(u16, u16)>(), any::<u32>(), any::<u8>(), 0_usize..=10).prop_map(
        |(ports, seq, flags, words)| Transport::Tcp {
            ports,
            seq,
            flags,
            options: vec![1; words * 4],
        },
    )
}

pub(crate) fn udp() -> impl Strategy<Value = Transport> {
    any::<(u16, u16)>().prop_map(|ports| Transport::Udp { ports })
}

pub(crate) fn packet_of(
    transport: impl Strategy<Value = Transport>,
    payload: std::ops::Range<usize>,
) -> impl Strategy<Value = Packet> {
    (network(), transport, vec(any::<u8>(), payload))
        .prop_map(|(network, transport, payload)| Packet { network, transport, payload })
}

pub(crate) fn any_packet() -> impl Strategy<Value = Packet> {
    let icmp = any::<u16>().prop_map(|id| Transport::Icmp { id });
    packet_of(prop_oneof![tcp(), udp(), icmp], 0..2000)
}

pub(crate) fn gso() -> impl Strategy<Value = Gso> {
    let kind = prop_oneof![
        Just(GsoKind::TcpV4),
        Just(GsoKind::TcpV6),
        Just(GsoKind::UdpFragments),
        Just(GsoKind::UdpSegments),
    ];
    (kind, 1_u16.., any::<u16>(), any::<bool>()).prop_map(|(kind, size, header_len, ecn)| {
        let ecn = ecn && matches!(kind, GsoKind::TcpV4 | GsoKind::TcpV6);
        Gso { kind, size, header_len, ecn }
    })
}
