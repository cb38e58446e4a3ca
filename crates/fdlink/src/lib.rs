//! Link endpoints on Linux file descriptors: any descriptor that keeps packet boundaries becomes a
//! fast link for a network stack in user space.
//!
//! # The nouns
//!
//! A **frame** is what crosses a link; the **packet** in it is what follows the link header. A
//! **super-frame** is longer than the MTU and is to be cut by whoever forwards it. A **queue** is
//! one direction of one descriptor: [`Receive`] or [`Transmit`]; both directions are a
//! [`QueuePair`]. A **batch** is what one visit to the kernel brought ([`RxBatch`]). A **link** is
//! whatever has queues and [`LinkProperties`]: [`FdLink`] over descriptors, or anything that
//! implements [`Link`]. The **kind** says what a descriptor is ([`LinkKind`]), the **mode** how
//! frames come in ([`Mode`]). An **endpoint** is a link with threads that deliver ([`Endpoint`]).
//!
//! # The life of an endpoint
//!
//! 1. Open a link ([`link::open_packet`], [`link::open_tun`], [`link::open_tap`]) or adopt
//!    descriptors that somebody else opened ([`link::adopt`]). Everything is checked before
//!    anything is changed. [`Link::report`] says what was got of what was asked for.
//! 2. Make an [`Endpoint`] of it.
//! 3. [`attach`](LinkEndpoint::attach) a [`NetworkDispatcher`]: a thread for each descriptor
//!    delivers batches to it.
//! 4. Send by [`write_packets`](LinkEndpoint::write_packets) and
//!    [`write_raw`](LinkEndpoint::write_raw), from any thread.
//! 5. [`stop`](LinkEndpoint::stop) and [`join`](LinkEndpoint::join), in this order or with the
//!    other side's close in place of the stop. Then it may be attached again.
//! 6. Drop it, at any time: its threads end and its descriptors are closed.
//!
//! ```
//! use std::{io::IoSlice, sync::{Arc, mpsc}};
//! use fdlink::{Endpoint, LinkEndpoint, LinkOptions, NetworkDispatcher, QueueIndex, RxBatch};
//! # use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
//! # const UNIX: AddressFamily = AddressFamily::UNIX;
//! # const SEQPACKET: SocketType = SocketType::SEQPACKET;
//!
//! struct Print(mpsc::SyncSender<Vec<u8>>);
//! impl NetworkDispatcher for Print {
//!     fn deliver(&self, _: QueueIndex, batch: &mut RxBatch<'_>) {
//!         batch.for_each(|frame| self.0.send(frame.bytes().to_vec()).unwrap());
//!     }
//! }
//!
//! let (ours, theirs) = socketpair(UNIX, SEQPACKET, SocketFlags::CLOEXEC, None)?;
//! let endpoint = Endpoint::new(fdlink::link::adopt(vec![ours], &LinkOptions::new())?)?;
//! let (give, take) = mpsc::sync_channel(16);
//! endpoint.attach(Arc::new(Print(give)))?;
//! rustix::io::write(&theirs, b"a frame")?;
//! assert_eq!(take.recv()?, b"a frame");
//! endpoint.write_raw(b"another")?;
//! endpoint.stop();
//! endpoint.join()?;
//! # let mut answer = [0; 16];
//! # assert_eq!(rustix::io::read(&theirs, &mut answer)?, 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A stack that wants to keep its own order drives the queues itself instead
//! ([`Link::into_queues`]): fill, read the batch, write into slots, flush, wait for
//! [`Receive::wakeup`].
//!
//! # Who owns what
//!
//! A link owns its descriptors, its queues after it; [`FdLink::into_fds`] gives them back. A
//! receive queue owns the memory that frames arrive in, and a batch borrows it: a frame may be
//! read and changed where the kernel put it until the next visit. A transmit queue owns the memory
//! behind [`Transmit::slot`]; [`Transmit::send`] borrows the caller's. Both directions of a
//! descriptor share it, and it is closed with the later of them. The library starts threads only
//! in `attach`, reads no environment, prints nothing and has no global state.
//!
//! # What happens when
//!
//! | what happens | what comes of it |
//! |---|---|
//! | a mode or an offload asked for by name cannot be had | [`SetupError::Option`]; with [`LinkOptions::fallback`] it is replaced, and a note in the [`Report`] says so |
//! | a descriptor keeps no boundaries, or does not go with the others | [`SetupError::WrongKind`], with what it is and what would do |
//! | any step of the set-up fails | [`SetupError::Call`]; what had been changed is undone, O_NONBLOCK and socket options included |
//! | a strange, truncated or foreign frame comes in | dropped, and counted in [`stats::RxStats`] by reason |
//! | the kernel dropped frames because nobody read | `kernel_drops` (AF_PACKET) |
//! | a frame cannot be sent ever | dropped, and counted in [`stats::TxStats`] by reason; the rest of its list goes on |
//! | the descriptor is full | the list is cut short ([`Sent::taken`]); slots stay queued, in order |
//! | the kernel has no buffers (ENOBUFS) | a gathered frame is dropped and counted; slots stay queued and [`Transmit::wakeup`] gives a time, a hundred times before the first is dropped |
//! | the link goes down | `link_down`, and nothing comes until it is up again |
//! | the interface is removed | [`Closed::Removed`] |
//! | the peer closes | [`Closed::PeerClosed`] on seqpacket sockets; on datagram sockets `peer_gone` when sending |
//! | a dispatcher panics | [`Closed::Panicked`] for its descriptor |
//!
//! # Coming from gVisor's fdbased
//!
//! What the endpoint of gVisor's netstack does, and what does the same here. Tests drive each row
//! that is there on real descriptors (`tests/`).
//!
//! | | there | here |
//! |---|---|---|
//! | S1 | `New`: at least one FD, made non-blocking, not taken over | [`link::adopt`]: descriptors are owned, given back by [`FdLink::into_fds`]; a failure restores them. Borrowing them: not yet |
//! | S2 | any FD that keeps boundaries | AF_PACKET raw, TUN, TAP, every datagram and seqpacket socket; the kind is read back. AF_PACKET cooked and framed streams: not yet |
//! | S3 | `EthernetHeader`, source from the route or the endpoint | [`LinkOptions::ethernet`], [`TxPacket`] |
//! | S4 | `Readv`, the default | [`Mode::Readv`], and what [`Mode::Auto`] chooses |
//! | S5 | `RecvMMsg` on sockets, else `Readv` | [`Mode::RecvMmsg`]; else an error, or `Readv` with [`LinkOptions::fallback`] |
//! | S6 | `PacketMMap` on AF_PACKET, else `Readv` | [`Mode::PacketMmap`], frames borrowed from the ring; else the same rule |
//! | S7 | several AF_PACKET FDs share by PACKET_FANOUT | the same, by hash, with a group number of the kernel's choice. Other fanout modes: not yet |
//! | S8 | several other FDs: a dispatcher each | the same |
//! | S9 | capabilities | [`Capabilities`]; `hand_over` and its consumers: not yet |
//! | S10 | GSO by a vnet header, in-band on any socket | the descriptor's own vnet header, or in-band by [`LinkOptions::in_band_vnet_header`]; UDP too. Segmentation in software where the kernel refuses: not yet (counted as `invalid`) |
//! | S11 | `WritePacket`, `WriteRawPacket` | [`write_packets`](LinkEndpoint::write_packets) takes lists; [`write_raw`](LinkEndpoint::write_raw) |
//! | S12 | `Attach`, `IsAttached`, `ClosedFunc`, `Wait` | the same, and stop, join, attach again; a typed reason for each descriptor |
//! | S13 | `InjectableEndpoint` | not yet |
//! | S14 | delivery with addresses and protocol | [`Frame::source`], [`Frame::destination`], [`Frame::protocol`] |
//! | S15 | `CreateNIC` | in the crate `fdlink-stack` |
//! | S16 | writing to all FDs once there are flow hashes | [`Endpoint`] picks the descriptor by [`offload::flow_hash`] |

#[cfg(not(target_os = "linux"))]
compile_error!("fdlink works on Linux file descriptors and builds for Linux only");

#[cfg(feature = "tokio")]
pub mod aio;
pub mod batch;
pub mod dispatcher;
pub mod endpoint;
pub mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod link;
pub mod offload;
pub mod options;
pub mod queue;
pub mod report;
pub mod stats;

mod descriptor;
mod io;
mod sys;

pub use batch::{EtherType, Frame, LinkHeader, MacAddr, RxBatch, TxFrame, TxSlot};
pub use dispatcher::{NetworkDispatcher, QueueIndex};
pub use endpoint::{
    AttachError, Endpoint, HandOverError, InjectError, InjectableEndpoint, JoinError, LinkEndpoint,
    TxPacket, WritePolicy,
};
pub use error::SetupError;
pub use link::{Capabilities, FdLink, Link, LinkKind, LinkProperties};
pub use options::{BpfInstruction, Fanout, FanoutMode, LinkOptions, Mode, Offload, RingVersion};
pub use queue::{Closed, Fill, QueuePair, Receive, Sent, Transmit, Wakeup};
pub use report::Report;
