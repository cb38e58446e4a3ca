//! Frames on streams: what a stream must be, both directions together, and endpoints. How frames are
//! cut out of a stream is in `receive.rs`, how they leave in `send.rs`, and what is done to them
//! before in `offload.rs`.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../common/mod.rs"]
mod common;
mod offload;
mod receive;
mod rig;
mod send;

use std::io::{IoSlice, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};

use common::{PATIENCE, QUIET, datagrams, recv, seqpackets};
use fdlink::link::{FramePrefix, adopt_framed};
use fdlink::offload::vnet::{ChecksumField, Gso, GsoKind, RxChecksum, TxOffload};
use fdlink::{
    BpfInstruction, Closed, Endpoint, Fanout, Fill, Link, LinkEndpoint, LinkHeader, LinkKind,
    LinkOptions, Mode, NetworkDispatcher, Offload, QueueIndex, RxBatch, Sent, TxFrame, WritePolicy,
};
use rig::{PREFIXES, Rig, body, framed, tcp_pair};

fn refusal(fd: OwnedFd, prefix: FramePrefix, options: &LinkOptions) -> String {
    adopt_framed(fd, prefix, options).expect_err("a refusal").to_string()
}

#[test]
fn only_a_connected_stream_will_do() {
    use rustix::net::{AddressFamily, SocketType, socket};
    let directory = std::env::temp_dir().join(format!("fdlink-framed-{}", std::process::id()));
    let listener = UnixListener::bind(&directory).unwrap();
    std::fs::remove_file(&directory).unwrap();
    let idle = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let cases: [(OwnedFd, &str); 7] = [
        (seqpackets().0, "a seqpacket socket, which keeps boundaries"),
        (datagrams().0, "a datagram socket, which keeps boundaries"),
        (TcpListener::bind("127.0.0.1:0").unwrap().into(), "a stream socket that listens"),
        (listener.into(), "a stream socket that listens"),
        (idle, "a stream socket that is not connected"),
        (std::io::pipe().unwrap().0.into(), "a pipe"),
        (std::fs::File::open("/proc/self/exe").unwrap().into(), "a file"),
    ];
    for (fd, reason) in cases {
        let text = refusal(fd, FramePrefix::Be32, &LinkOptions::new());
        assert!(text.starts_with(&format!("descriptor 0 is {reason}")), "{text}");
        assert!(
            text.ends_with("a link needs a connected stream socket for length-prefixed frames")
        );
    }
}

#[test]
fn a_connection_that_is_being_made_is_refused() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    testkit::in_namespace(|| {
        // Nobody answers on this network.
        testkit::interface::veth("a", "b", 1500).unwrap();
        testkit::interface::add_address("a", [192, 0, 2, 1].into(), 24).unwrap();
        let flags = SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        let address: std::net::SocketAddr = "192.0.2.9:9".parse().unwrap();
        assert_eq!(connect(&fd, &address), Err(rustix::io::Errno::INPROGRESS));
        let text = refusal(fd, FramePrefix::Be16, &LinkOptions::new());
        assert!(text.contains("a stream socket that is not connected"), "{text}");
    });
}

#[test]
fn options_that_do_not_go_with_a_stream_are_errors_and_change_nothing() {
    let (ours, _far) = UnixStream::pair().unwrap();
    let flags = || rustix::fs::fcntl_getfl(&ours).unwrap();
    let before = flags();
    let new = LinkOptions::new;
    // BPF_RET | BPF_K: everything.
    let accept = BpfInstruction { code: 6, jt: 0, jf: 0, k: u32::MAX };
    let cases = [
        (FramePrefix::Be32, new().mode(Mode::RecvMmsg), "mode: expected a socket that keeps"),
        (FramePrefix::Be32, new().mode(Mode::PacketMmap), "mode: expected an AF_PACKET socket"),
        (FramePrefix::Be32, new().offload(Offload::Required), "found a framed stream without"),
        (FramePrefix::Be32, new().in_band_vnet_header(11), "in_band_vnet_header"),
        (FramePrefix::Be32, new().in_band_vnet_header(usize::MAX), "in_band_vnet_header"),
        (FramePrefix::Be32, new().timestamps(true), "timestamps: expected a socket that keeps"),
        (FramePrefix::Be32, new().promiscuous(true), "promiscuous: expected an AF_PACKET"),
        (FramePrefix::Be32, new().fanout(Fanout::default()), "fanout: expected AF_PACKET"),
        (FramePrefix::Be32, new().filter(vec![accept]), "filter: expected a socket that keeps"),
        (FramePrefix::Be32, new().save_restore(true), "save_restore: expected a descriptor that"),
        (FramePrefix::Be16, new().mtu(65522), "mtu: expected at most 65521 bytes with this"),
        (FramePrefix::Le16, new().mtu(65521).in_band_vnet_header(10), "at most 65511 bytes"),
        (FramePrefix::Le16, new().mtu(65536).ethernet(false), "at most 65535 bytes"),
        (FramePrefix::Be16, new().gso_max_size(65549), "gso_max_size: expected at most 65535"),
    ];
    for (prefix, options, reason) in cases {
        let text = refusal(ours.try_clone().unwrap().into(), prefix, &options);
        assert!(text.contains(reason), "{text}");
        assert_eq!(flags(), before);
    }
    for mode in [Mode::RecvMmsg, Mode::PacketMmap] {
        let fd = ours.try_clone().unwrap().into();
        let link = adopt_framed(fd, FramePrefix::Be32, &new().mode(mode).fallback(true)).unwrap();
        assert_eq!((link.report().asked_mode, link.report().mode), (mode, Mode::Readv));
        assert_eq!(link.report().notes.len(), 1, "{:?}", link.report().notes);
    }
}

#[test]
fn a_framed_link_says_what_it_is() {
    let (ours, _far) = UnixStream::pair().unwrap();
    let link = adopt_framed(ours.into(), FramePrefix::Be32, &LinkOptions::new()).unwrap();
    let properties = link.properties();
    assert_eq!((properties.kind, properties.kind.name()), (LinkKind::Framed, "framed stream"));
    assert_eq!((properties.mode, properties.queues), (Mode::Readv, 1));
    assert_eq!((properties.link_header, properties.max_frame_len), (LinkHeader::Ethernet, 1514));
    assert!(properties.capabilities.resolution_required && properties.address.is_some());
    assert_eq!((properties.capabilities.tso4, properties.gso_max_size), (false, 0));
    let report = link.report();
    let text = report.to_string();
    assert!(text.starts_with("framed stream × 1, readv (asked: auto); vnet header 0"), "{text}");
    assert!(report.descriptors[0].send_buffer > 0 && report.descriptors[0].receive_buffer > 0);
    // Given back, it can be had again, with bare packets this time.
    let fd = link.into_fds().pop().unwrap();
    let options = LinkOptions::new().ethernet(false).mtu(65536);
    let link = adopt_framed(fd, FramePrefix::Be32, &options).unwrap();
    let properties = link.properties();
    assert_eq!((properties.link_header, properties.max_frame_len), (LinkHeader::None, 65536));
}

#[test]
fn order_and_boundaries_and_many_frames_in_one_call() {
    for prefix in PREFIXES {
        let mut rig = Rig::new(prefix);
        let frames: Vec<_> = (0..100).map(|i| body(1 + i * 13, i)).collect();
        rig.arrive(&frames.iter().flat_map(|frame| framed(prefix, frame)).collect::<Vec<_>>());
        assert_eq!(rig.rx.fill().unwrap(), Fill::Frames(100));
        let arrived: Vec<_> = rig.rx.batch().map(|frame| frame.bytes().to_vec()).collect();
        assert_eq!(arrived, frames);
        rig.rx.release();
        assert!(rig.rx.batch().next().is_none());
        assert_eq!(rig.rx.fill().unwrap(), Fill::Empty);
        let (rx, bytes) = (rig.stats.rx(), frames.iter().map(Vec::len).sum::<usize>() as u64);
        assert_eq!((rx.frames, rx.bytes, rx.batches, rx.calls), (100, bytes, 1, 2));

        assert_eq!(rig.send(&frames[..60]), Sent { taken: 60, sent: 60 });
        let tx = rig.stats.tx();
        assert_eq!((tx.frames, tx.calls), (60, 1));
        frames[..60].iter().for_each(|frame| assert_eq!(&rig.far_recv(), frame));
        for frame in &frames[60..] {
            let mut slot = rig.tx.slot(1514).unwrap();
            slot.bytes_mut()[..frame.len()].copy_from_slice(frame);
            slot.commit(frame.len(), TxOffload::default());
        }
        assert_eq!(rig.tx.queued(), 40);
        assert_eq!(rig.tx.flush().unwrap(), Sent { taken: 40, sent: 40 });
        frames[60..].iter().for_each(|frame| assert_eq!(&rig.far_recv(), frame));
        let tx = rig.stats.tx();
        assert_eq!((tx.frames, tx.bytes, tx.calls, rig.tx.queued()), (100, bytes, 2, 0));
    }
}

#[test]
fn vnet_headers_in_band_stand_behind_the_length() {
    for len in [10, 12] {
        let options = LinkOptions::new().in_band_vnet_header(len);
        let mut rig = Rig::with(FramePrefix::Be32, &options);
        let frame = body(50_000, 1);
        let gso = Gso { kind: GsoKind::TcpV6, size: 1400, header_len: 74, ecn: false };
        let checksum = ChecksumField { start: 54, offset: 16 };
        let offload = TxOffload { checksum: Some(checksum), gso: Some(gso) };
        let parts = [IoSlice::new(&frame)];
        rig.tx.send(&[TxFrame::new(&parts).with_offload(offload)]).unwrap();
        let mut slot = rig.tx.slot(frame.len()).unwrap();
        slot.bytes_mut().copy_from_slice(&frame);
        slot.commit(frame.len(), offload);
        rig.tx.flush().unwrap();
        assert_eq!(rig.stats.tx().super_frames, 2);
        for _ in 0..2 {
            let message = rig.far_recv();
            assert_eq!((message.len(), &message[..2]), (len + 50_000, &[1, 4][..]));
            assert!(message[len..] == frame);
            rig.arrive(&framed(rig.prefix, &message));
            while rig.rx.fill().unwrap() == Fill::Frames(0) {}
            let arrived = rig.rx.batch().next().unwrap();
            assert!(arrived.bytes() == frame);
            assert_eq!(arrived.meta().gso, Some(gso));
            assert_eq!(arrived.meta().checksum, RxChecksum::Partial(checksum));
        }
        // One that points past its frame, one that is cut short, and none: each is dropped alone.
        let past = [&[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0][..], &[0; 30]].concat();
        let good = [&vec![0; len][..], b"good"].concat();
        for message in [&past[..], &[0; 9], &[], &good] {
            rig.arrive(&framed(rig.prefix, message));
        }
        assert_eq!(rig.recv(1), [b"good"]);
        assert_eq!((rig.stats.rx().frames, rig.stats.rx().malformed), (3, 3));
    }
}

#[test]
fn tcp_sends_at_once_and_sizes_its_buffers() {
    use rustix::net::sockopt::{socket_recv_buffer_size, tcp_nodelay};
    let (ours, mut far) = tcp_pair();
    let spare = ours.try_clone().unwrap();
    let own_size = socket_recv_buffer_size(&spare).unwrap();
    let link = adopt_framed(ours.into(), FramePrefix::Be16, &LinkOptions::new()).unwrap();
    assert!(tcp_nodelay(&spare).unwrap());
    assert_eq!(socket_recv_buffer_size(&spare).unwrap(), own_size);
    let mut pair = Box::new(link).into_queues().unwrap().pop().unwrap();
    let frame = body(1514, 3);
    far.write_all(&framed(FramePrefix::Be16, &frame)).unwrap();
    assert_eq!(recv(&mut **pair.rx.as_mut().unwrap(), 1, PATIENCE), std::slice::from_ref(&frame));
    let parts = [IoSlice::new(&frame)];
    pair.tx.send(&[TxFrame::new(&parts)]).unwrap();
    let mut bytes = vec![0; 1516];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, framed(FramePrefix::Be16, &frame));
}

/// An endpoint on a stream whose buffer is shorter than the frame, and that frame on the stream.
fn narrow_endpoint(policy: WritePolicy) -> (Endpoint, UnixStream, Vec<u8>) {
    let (ours, far) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 8192).unwrap();
    let options = LinkOptions::new().socket_buffer(1);
    let link = adopt_framed(ours.into(), FramePrefix::Be16, &options).unwrap();
    let endpoint = Endpoint::new(link).unwrap().with_write_policy(policy).unwrap();
    (endpoint, far, body(60_000, 1))
}

#[test]
fn an_endpoint_that_waits_finishes_what_it_began() {
    let (endpoint, mut far, frame) = narrow_endpoint(WritePolicy::Wait(PATIENCE));
    let mut bytes = vec![0; 2 + frame.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(QUIET);
            far.set_read_timeout(Some(PATIENCE)).unwrap();
            far.read_exact(&mut bytes).unwrap();
        });
        endpoint.write_raw(&frame).unwrap();
    });
    assert!(bytes == framed(FramePrefix::Be16, &frame));
    assert_eq!(endpoint.stats().tx().frames, 1);
}

#[test]
fn an_endpoint_that_does_not_wait_finishes_it_with_the_next_packet() {
    let (endpoint, mut far, frame) = narrow_endpoint(WritePolicy::Drop);
    let expected = framed(FramePrefix::Be16, &frame);
    far.set_nonblocking(true).unwrap();
    endpoint.write_raw(&frame).unwrap();
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).unwrap_err();
    assert!(!bytes.is_empty() && bytes.len() < expected.len(), "{}", bytes.len());
    while bytes.len() < expected.len() {
        // Not even one that is refused is in its way.
        endpoint.write_raw(&[]).unwrap_err();
        far.read_to_end(&mut bytes).unwrap_err();
    }
    assert!(bytes == expected);
    assert_eq!(endpoint.stats().tx().frames, 1);
}

/// Sends `count` numbered frames of random lengths and takes as many from the other side.
fn exchange(fd: OwnedFd, prefix: FramePrefix, seed: u64, count: u32) {
    let link = adopt_framed(fd, prefix, &LinkOptions::new()).unwrap();
    let stats = link.stats();
    let mut pair = Box::new(link).into_queues().unwrap().pop().unwrap();
    let rx = pair.rx.as_mut().unwrap();
    let frame = |number: u32, len: usize| {
        let mut frame = body(len.max(4), number as usize);
        frame[..4].copy_from_slice(&number.to_be_bytes());
        frame
    };
    let mut random = seed;
    let mut len = || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let most = [64, 1514, 1514, 60_000][(random >> 60) as usize % 4];
        (random >> 33) as usize % most
    };
    let (mut sent, mut received) = (0, 0);
    while sent < count || received < count || pair.tx.queued() > 0 {
        let frames: Vec<_> = (sent..count.min(sent + 20)).map(|i| frame(i, len())).collect();
        if sent % 3 == 0 {
            let parts: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
            let list: Vec<_> = parts.iter().map(|parts| TxFrame::new(parts)).collect();
            sent += u32::try_from(pair.tx.send(&list).unwrap().taken).unwrap();
        } else {
            for frame in frames.iter().take_while(|frame| frame.len() <= 1514) {
                let Some(mut slot) = pair.tx.slot(frame.len()) else { break };
                slot.bytes_mut().copy_from_slice(frame);
                slot.commit(frame.len(), TxOffload::default());
                sent += 1;
            }
            if frames.first().is_some_and(|frame| frame.len() > 1514) {
                let parts = [IoSlice::new(&frames[0])];
                sent +=
                    u32::try_from(pair.tx.send(&[TxFrame::new(&parts)]).unwrap().taken).unwrap();
            }
            pair.tx.flush().unwrap();
        }
        match rx.fill().unwrap() {
            Fill::Frames(_) => {
                for arrived in rx.batch() {
                    assert!(arrived.bytes() == frame(received, arrived.bytes().len()));
                    received += 1;
                }
            }
            Fill::Empty => std::thread::yield_now(),
            Fill::Closed(why) => panic!("after {received} of {count}: {why}"),
        }
    }
    assert_eq!((stats.tx().frames, stats.rx().frames), (count.into(), count.into()));
    assert_eq!(stats.rx().malformed, 0);
    // The other side may still be reading.
    rx.release();
    std::thread::sleep(QUIET);
}

#[test]
fn two_links_back_to_back() {
    const COUNT: u32 = 20_000;
    for prefix in PREFIXES {
        let (a, b) = UnixStream::pair().unwrap();
        let (c, d) = tcp_pair();
        let ends: [(OwnedFd, OwnedFd); 2] = [(a.into(), b.into()), (c.into(), d.into())];
        for (near, far) in ends {
            std::thread::scope(|scope| {
                scope.spawn(|| exchange(near, prefix, 1, COUNT));
                scope.spawn(|| exchange(far, prefix, 2, COUNT));
            });
        }
    }
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
fn an_endpoint_on_a_framed_stream() {
    let (unix, far_unix) = UnixStream::pair().unwrap();
    let (tcp, far_tcp) = tcp_pair();
    let ends: [(OwnedFd, OwnedFd); 2] =
        [(unix.into(), far_unix.into()), (tcp.into(), far_tcp.into())];
    for (ours, far) in ends {
        // Whatever it is, read and write do.
        let mut far = std::fs::File::from(far);
        let link = adopt_framed(ours, FramePrefix::Be32, &LinkOptions::new()).unwrap();
        let endpoint = Endpoint::new(link).unwrap();
        for _ in 0..2 {
            let (give, take) = mpsc::sync_channel(100);
            endpoint.attach(Arc::new(Recorder(give))).unwrap();
            for seed in 0..20 {
                let frame = body(100 + seed, seed);
                far.write_all(&framed(FramePrefix::Be32, &frame)).unwrap();
                assert_eq!(take.recv_timeout(PATIENCE).unwrap(), Ok(frame.clone()));
                endpoint.write_raw(&frame).unwrap();
                let mut bytes = vec![0; 4 + frame.len()];
                far.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes, framed(FramePrefix::Be32, &frame));
            }
            std::thread::sleep(QUIET);
            endpoint.stop();
            endpoint.join().unwrap();
            assert_eq!(take.recv_timeout(PATIENCE).unwrap(), Err(Closed::Stopped));
        }
        let (give, take) = mpsc::sync_channel(100);
        endpoint.attach(Arc::new(Recorder(give))).unwrap();
        far.write_all(&framed(FramePrefix::Be32, b"last")).unwrap();
        drop(far);
        assert_eq!(take.recv_timeout(PATIENCE).unwrap(), Ok(b"last".to_vec()));
        assert_eq!(take.recv_timeout(PATIENCE).unwrap(), Err(Closed::PeerClosed));
        endpoint.join().unwrap();
    }
}
