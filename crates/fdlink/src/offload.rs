//! Work that one side of a link may leave to the other: checksums and segmentation. Pure and
//! public: bytes in, bytes out; no descriptor, no stack, no clock, and no input makes it panic.
//! For people who bring their own I/O, too.
//!
//! | a frame | what to do | with |
//! |---|---|---|
//! | came with a virtio-net header | read it, and check it against the frame's length | [`vnet`] |
//! | has a checksum that nobody verified, or that was left partial | verify it, complete it | [`checksum`] |
//! | is a super-frame, and goes where nobody will cut it | cut it | [`segment`] |
//! | is one of many small ones | put them together | [`coalesce`] |
//! | goes to one of several queues | keep its flow on one | [`flow_hash`] |
//!
//! Frames are slices that begin with the link header, whose length each function is told; offsets
//! count from its first byte, as the kernel's do. Lengths are in bytes.
//!
//! # From any descriptor
//!
//! What a descriptor with a virtio-net header gives (a TUN or TAP with `IFF_VNET_HDR`, a packet
//! socket with `PACKET_VNET_HDR`, a virtqueue), made into packets that anybody takes:
//!
//! ```
//! use fdlink::offload::checksum::{Verdict, complete, verify_transport};
//! use fdlink::offload::segment::{SegmentChecksum, SuperFrame};
//! use fdlink::offload::vnet::{RxChecksum, VnetHeader};
//!
//! /// `received` is what one read gave; `link_header_len` is 0 for a TUN, 14 for Ethernet.
//! fn packets(
//!     received: &mut [u8],
//!     link_header_len: usize,
//!     mut take: impl FnMut(&[u8]),
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let Some(header) = VnetHeader::parse(received) else {
//!         return Err("shorter than a vnet header".into());
//!     };
//!     let frame = &mut received[VnetHeader::LEN..];
//!     let checksum = header.checksum(frame.len())?;
//!     if let Some(gso) = header.gso(frame.len())? {
//!         // Segments get checksums of their own, so the super-frame's may stay partial.
//!         let super_frame = SuperFrame::parse(frame, link_header_len, gso)?;
//!         let mut buffer = vec![0; super_frame.max_segment_len()];
//!         for segment in super_frame.segments(SegmentChecksum::Complete) {
//!             let len = segment.write(&mut buffer)?;
//!             take(&buffer[..len]);
//!         }
//!         return Ok(());
//!     }
//!     match checksum {
//!         RxChecksum::Valid => {}
//!         RxChecksum::Partial(field) => complete(frame, field)?,
//!         RxChecksum::Unverified => {
//!             let packet = frame.get(link_header_len..).unwrap_or(&[]);
//!             if matches!(verify_transport(packet), Verdict::Wrong | Verdict::Malformed) {
//!                 return Err("damaged on the way".into());
//!             }
//!         }
//!     }
//!     take(frame);
//!     Ok(())
//! }
//!
//! // From anywhere: a TCP super-frame of 2,500 bytes over IPv4, its checksum left partial.
//! # use etherparse::PacketBuilder;
//! # use fdlink::offload::checksum::seed;
//! # use fdlink::offload::vnet::{Gso, GsoKind, TxOffload};
//! # let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 80, 7, 512);
//! # let mut frame = Vec::new();
//! # builder.write(&mut frame, &[0x61; 2500])?;
//! # let gso = Gso { kind: GsoKind::TcpV4, size: 1000, header_len: 40, ecn: false };
//! # let offload = TxOffload { checksum: seed(&mut frame, 0), gso: Some(gso) };
//! # let mut received = [&VnetHeader::for_tx(offload, 40).to_bytes()[..], &frame].concat();
//! let mut lens = Vec::new();
//! packets(&mut received, 0, |packet| {
//!     assert_eq!(verify_transport(packet), Verdict::Correct);
//!     lens.push(packet.len());
//! })?;
//! assert_eq!(lens, [1040, 1040, 540]);
//! # let mut plain = [&VnetHeader::for_tx(TxOffload { gso: None, ..offload }, 40).to_bytes()[..], &frame].concat();
//! # packets(&mut plain, 0, |packet| assert_eq!(verify_transport(packet), Verdict::Correct))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The other way, [`VnetHeader::for_tx`](vnet::VnetHeader::for_tx) gives the header that goes before
//! a frame whose checksum [`checksum::seed`] left partial.

pub mod checksum;
pub mod coalesce;
pub mod flow_hash;
mod ip;
pub mod segment;
pub mod vnet;
