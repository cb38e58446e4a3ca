//! A link's way out, used in both ways, and its far end.

use std::io::IoSlice;
use std::os::unix::net::UnixStream;

use fdlink::link::{FramePrefix, adopt, adopt_framed};
use fdlink::offload::vnet::TxOffload;
use fdlink::stats::{LinkStats, TxStats};
use fdlink::{Link, LinkOptions, Sent, Transmit, TxFrame};
use testkit::Peer;

use super::traffic::{MSS, Traffic};
use super::{Kind, PATIENCE, QUIET, datagrams, link, seqpackets};

/// A way out and its far end.
pub(crate) struct Out {
    pub(crate) kind: Kind,
    pub(crate) tx: Box<dyn Transmit>,
    pub(crate) stats: LinkStats,
    pub(crate) peer: Peer,
    pub(crate) interface: String,
}

/// The two ways to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    List,
    Slots,
}

pub(crate) const BOTH: [By; 2] = [By::List, By::Slots];

impl Out {
    pub(crate) fn new(kind: Kind, options: &LinkOptions) -> Self {
        let (link, peer, interface) = link(kind, options).unwrap();
        let stats = link.stats();
        let tx = Box::new(link).into_queues().unwrap().pop().unwrap().tx;
        Self { kind, tx, stats, peer, interface }
    }

    /// A pair of seqpacket sockets with vnet headers in band.
    pub(crate) fn in_band() -> Self {
        Self::on_socket(Kind::Seqpacket, 1 << 20, 10)
    }

    /// A pair of unix sockets of that kind, with bytes of buffer and of vnet header.
    pub(crate) fn on_socket(kind: Kind, buffer: usize, vnet_header: usize) -> Self {
        let (ours, far) = match kind {
            Kind::Framed => UnixStream::pair().map(|(a, b)| (a.into(), b.into())).unwrap(),
            Kind::Seqpacket => seqpackets(),
            _ => datagrams(),
        };
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, buffer).unwrap();
        // Buffers only grow.
        let mut options = LinkOptions::new().socket_buffer(1);
        if vnet_header > 0 {
            options = options.in_band_vnet_header(vnet_header);
        }
        let (link, peer) = if kind == Kind::Framed {
            let link = adopt_framed(ours, FramePrefix::Be32, &options).unwrap();
            (link, Peer::on_stream(far, vnet_header))
        } else {
            (adopt(vec![ours], &options).unwrap(), Peer::on_socket(far, vnet_header))
        };
        let stats = link.stats();
        let tx = Box::new(link).into_queues().unwrap().pop().unwrap().tx;
        Self { kind, tx, stats, peer, interface: String::new() }
    }

    /// TCP over IPv4 of that many segments, for this link.
    pub(crate) fn tcp(&self, segments: usize) -> Traffic {
        let (ethernet, payload) = (self.kind.header() > 0, segments * usize::from(MSS));
        Traffic { ethernet, v6: false, udp: false, payload, mss: MSS }
    }

    pub(crate) fn send(&mut self, by: By, frames: &[(&[u8], TxOffload)]) -> Sent {
        if by == By::Slots {
            for (frame, offload) in frames {
                let mut slot = self.tx.slot(frame.len()).unwrap();
                slot.bytes_mut().copy_from_slice(frame);
                slot.commit(frame.len(), *offload);
            }
            return self.tx.flush().unwrap();
        }
        let parts: Vec<_> = frames.iter().map(|(frame, _)| [IoSlice::new(frame)]).collect();
        let list: Vec<_> = parts
            .iter()
            .zip(frames)
            .map(|(parts, (_, offload))| TxFrame::new(parts).with_offload(*offload))
            .collect();
        self.tx.send(&list).unwrap()
    }

    pub(crate) fn recv(&self) -> Vec<u8> {
        self.peer.recv(PATIENCE).unwrap().expect("a frame in time")
    }

    pub(crate) fn recv_many(&self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.recv()).collect()
    }

    pub(crate) fn recv_nothing(&self) {
        assert!(self.peer.recv(QUIET).unwrap().is_none());
    }

    pub(crate) fn tx(&self) -> TxStats {
        self.stats.tx()
    }
}

pub(crate) const NOTHING: TxOffload = TxOffload { checksum: None, gso: None };
