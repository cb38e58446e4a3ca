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
//! 1. Open a link ([`link::open_packet`], [`link::open_tun`], [`link::open_tap`],
//!    [`link::open_seqpacket_pair`]), adopt descriptors that somebody else opened
//!    ([`link::adopt`]; [`link::adopt_framed`] for a stream with lengths), or borrow them
//!    ([`link::adopt_borrowed`]). Everything is checked before anything is changed.
//!    [`Link::report`] says what was got of what was asked for.
//! 2. Make an [`Endpoint`] of it, or an [`InjectableEndpoint`] that does not read.
//! 3. [`attach`](LinkEndpoint::attach) a [`NetworkDispatcher`]: a thread for each descriptor
//!    delivers batches to it.
//! 4. Send by [`write_packets`](LinkEndpoint::write_packets) and
//!    [`write_raw`](LinkEndpoint::write_raw), from any thread; change the MTU and the link
//!    address while it runs; read the [`stats`] from anywhere.
//! 5. [`stop`](LinkEndpoint::stop) and [`join`](LinkEndpoint::join), in this order or with the
//!    other side's close in place of the stop. Each descriptor has one closed notice, with its
//!    reason ([`Closed`]). Then it may be attached again, or
//!    [handed over](Endpoint::hand_over) to another process.
//! 6. Drop it, at any time, from anywhere: its threads end and its descriptors are closed.
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
//! A link owns its descriptors, its queues after it; [`FdLink::into_fds`] gives them back. A link
//! made by [`link::adopt_borrowed`] works on duplicates, and puts back whatever it changed when it
//! goes. A receive queue owns the memory that frames arrive in, and a batch borrows it: a frame may
//! be read and changed where the kernel put it (encrypted in place, turned into its answer) until
//! the next visit. A transmit queue owns the memory behind [`Transmit::slot`]; [`Transmit::send`]
//! borrows the caller's. Both directions of a descriptor share it, and it is closed with the later
//! of them. The library starts threads only in `attach`, reads no environment, prints nothing and
//! has no global state.
//!
//! # What happens when
//!
//! | what happens | what comes of it |
//! |---|---|
//! | a mode or an offload asked for by name cannot be had | [`SetupError::Option`]; with [`LinkOptions::fallback`] it is replaced, and a note in the [`Report`] says so |
//! | a descriptor keeps no boundaries, is given twice, or does not go with the others | [`SetupError::WrongKind`], with what it is and what would do |
//! | any step of the set-up fails | [`SetupError::Call`]; what had been changed is undone, O_NONBLOCK and socket options included |
//! | a frame was cut off, or the header before it makes no sense | dropped, and counted in [`stats::RxStats`] by reason; what a *packet* means is not judged |
//! | the kernel dropped frames because nobody read | `kernel_drops` (AF_PACKET, UDP); for a TUN or TAP device [`FdLink::device_counters`] |
//! | a frame cannot be sent ever | dropped, and counted in [`stats::TxStats`] by reason; the rest of its list goes on |
//! | the kernel refuses a super-frame, or there is no vnet header to leave work in | it is cut and its checksums are computed here (`segmented`), and it leaves |
//! | the descriptor is full | a queue cuts the list short ([`Sent::taken`]), and slots stay queued, in order; an endpoint drops and counts (`not_writable`), or waits up to a bound ([`WritePolicy`]) |
//! | a super-frame was cut, or a stream took a part of a frame, and it is full then | the rest is the queue's, and leaves before anything else |
//! | the kernel has no buffers (ENOBUFS) | a gathered frame is dropped and counted; slots, and frames with work to be done here, stay queued and [`Transmit::wakeup`] gives a time, a hundred times before the first is dropped |
//! | the link goes down | `link_down`, and nothing comes until it is up again; nothing needs to be bound or opened again |
//! | the interface is removed | [`Closed::Removed`] |
//! | the peer closes | [`Closed::PeerClosed`] on seqpacket and stream sockets; a datagram peer's end shows only on sending (`peer_gone`) |
//! | a stream gives a length that no frame has | [`Closed::OutOfStep`] |
//! | a datagram socket is shut down for receiving, by whoever shares it | [`Closed::Stopped`] |
//! | a dispatcher panics | [`Closed::Panicked`] for its descriptor; the others go on |
//!
//! # Coming from gVisor's fdbased
//!
//! What the endpoint of gVisor's netstack does, what does the same here, and where we differ and
//! why. Each row names tests that drive it on real descriptors. Which kind has which mode and which
//! offload is tried by a test, too: `docs/matrix.md` in the repository.
//!
//! | | there | here | tests |
//! |---|---|---|---|
//! | S1 | `New`: at least one FD, made non-blocking, not taken over | [`link::adopt`] owns descriptors and [`FdLink::into_fds`] gives them back, for ownership is what Rust can check; [`link::adopt_borrowed`] leaves them the caller's. All checks come first, and a failure at one descriptor undoes what was done to the others | test: what_is_no_base_for_a_link_is_refused_with_the_reason, test: a_failure_at_the_last_descriptor_puts_the_others_back, test: borrowed_descriptors_go_back_to_what_they_were |
//! | S2 | any FD that keeps boundaries | AF_PACKET raw and cooked, TUN, TAP, macvtap, every datagram and seqpacket socket; the kind is read back and not believed. Streams are refused, unless their frames stand behind lengths ([`link::adopt_framed`]) | test: sockets, test: packet_sockets, test: tun_and_tap, test: descriptors_that_do_not_go_together_are_refused, test: a_macvtap_is_a_tap, test: frames_come_with_the_header_that_they_had, test: two_links_back_to_back |
//! | S3 | `EthernetHeader`; source from the route, else the endpoint's | [`LinkOptions::ethernet`], [`TxPacket::local`]; an address has six bytes and needs no check at run time | test: packets_get_their_link_header_from_their_route, test: mtu_and_link_address_are_changed_while_running |
//! | S4 | `Readv`, the default | [`Mode::Readv`], and what [`Mode::Auto`], the default, chooses. One frame a call, into one warm buffer | test: every_kind_and_mode_delivers_and_stops, test: kinds_modes_and_offloads |
//! | S5 | `RecvMMsg` on sockets; silently `Readv` on the rest | [`Mode::RecvMmsg`]; on the rest an error, or `Readv` and a note with [`LinkOptions::fallback`]. The batch can be sized | test: a_mode_that_cannot_be_is_an_error_or_replaced_and_reported, test: a_call_brings_as_many_frames_as_it_was_told |
//! | S6 | `PacketMMap` on AF_PACKET, 32 slots, copied out; silently `Readv` on the rest | [`Mode::PacketMmap`]: [`RingVersion::V3`] or V2, sized by a byte budget, frames borrowed from the ring; the same rule for the rest | test: frames_come_in_order_and_may_be_changed_in_place, test: the_layout_is_computed_and_reported, test: a_sleeping_reader_loses_nothing_of_a_trickle |
//! | S7 | several AF_PACKET FDs: PACKET_FANOUT by hash, one constant id | the kernel chooses the id, so that processes do not collide; [`Fanout`] has the other modes; DEFRAG only where asked, for it hides fragments from the stack; no group for a single descriptor | test: a_flow_stays_on_one_socket_and_in_order_by_hash, test: each_way_of_sharing_gives_every_frame_to_one_socket, test: processes_in_one_namespace_have_groups_of_their_own |
//! | S8 | several other FDs: a dispatcher each, the caller hashes | the same | test: each_descriptor_ends_on_its_own_with_the_reason, test: several_queues_of_one_tap |
//! | S9 | capabilities | [`Capabilities`], each with somebody who acts on it | test: unverified_frames_are_verified_unless_they_are_trusted, test: strays_are_reset_unless_they_may_be_restored, test: descriptors_are_handed_over_where_that_was_declared |
//! | S10 | GSO by a vnet header, in-band on any socket | the descriptor's own vnet header where it has one, in-band by [`LinkOptions::in_band_vnet_header`]; `csum_start` counts the link header that is there, lengths are not cut to 16 bits, UDP too; what nobody else will cut is cut here | test: rows, test: rows_on_sockets, test: a_super_frame_that_the_kernel_refuses_is_cut_here, test: udp_super_frames_leave_by_128_segments |
//! | S11 | `WritePacket`, `WriteRawPacket`; not writable is dropped in silence | [`write_packets`](LinkEndpoint::write_packets) takes lists, [`write_raw`](LinkEndpoint::write_raw) a frame; not writable is counted, or waited for ([`WritePolicy`]); one failing frame does not take the rest with it | test: one_failing_frame_is_counted_by_its_reason, test: what_has_no_room_is_dropped_and_counted, test: waiting_for_room_loses_nothing_and_has_a_bound |
//! | S12 | `Attach`, `IsAttached`, `ClosedFunc`, `Wait` | the same, and stop, join, attach again; one typed notice for each descriptor; an interface that goes down does not end it | test: delivers_until_stopped_and_can_be_attached_again, test: one_notice_for_each_descriptor_with_its_reason, test: links_go_down_and_up_and_away_under_an_attached_endpoint, test: leaks |
//! | S13 | `InjectableEndpoint`; injecting before attaching crashes | [`InjectableEndpoint`]; before attaching it is an error | test: frames_are_injected_and_sent, test: an_injection_that_panics_ends_the_injecting |
//! | S14 | delivery with addresses and protocol; one strange packet ends the loop | [`Frame::source`], [`Frame::destination`], [`Frame::protocol`]; nothing that comes in ends a loop | test: packet_sockets, test: tun_and_tap, test: a_storm_of_signals_loses_nothing |
//! | S15 | `CreateNIC` on a stack | `Stack::create_nic` in the crate `fdlink-stack` | test: packet_with_packet_mmap, test: tap, test: tun |
//! | S16 | writing to all FDs "once 5-tuple hashes are available" | [`Endpoint`] picks the descriptor by [`offload::flow_hash`], or by [`TxPacket::flow`], over the whole list; order within a flow is kept | test: flows_are_spread_over_descriptors_and_keep_their_order, test: a_flow_may_be_given_by_number, test: both_directions_have_one_hash |

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
