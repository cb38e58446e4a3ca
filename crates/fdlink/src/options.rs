//! What a caller asks of a link. Everything has a default; what is asked for by name is given, is
//! an error, or, with [`fallback`](LinkOptions::fallback), is replaced and reported.

use crate::batch::MacAddr;

/// How frames come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// What is best where nothing is known of the traffic: readv, on every kind.
    #[default]
    Auto,
    /// A ring shared with the kernel (AF_PACKET only).
    PacketMmap,
    /// One frame for each system call; works on every descriptor.
    Readv,
    /// Many frames for each system call (sockets only).
    RecvMmsg,
}

impl Mode {
    /// The modes that can be asked for by name.
    pub const NAMED: [Self; 3] = [Self::Readv, Self::RecvMmsg, Self::PacketMmap];

    /// Its name, as it is written on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::PacketMmap => "packet-mmap",
            Self::Readv => "readv",
            Self::RecvMmsg => "recvmmsg",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        [Self::Auto].into_iter().chain(Self::NAMED).find(|m| m.name() == text).ok_or(UnknownMode)
    }
}

/// The text names no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mode is one of auto, readv, recvmmsg, packet-mmap")]
pub struct UnknownMode;

/// How the kernel lays out and hands over a ring ([`Mode::PacketMmap`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RingVersion {
    /// TPACKET_V2: a slot for each frame, ours as soon as it is written. For latency.
    V2,
    /// TPACKET_V3: frames one behind the other in blocks, which are ours when they are full or a
    /// millisecond after their first frame. For throughput.
    #[default]
    V3,
}

/// Which offloads a link is to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// What the descriptor can have: a vnet header where it is opened here or is AF_PACKET, and on
    /// TUN and TAP what the kernel may leave to us (TUNSETOFFLOAD, which holds for the device).
    #[default]
    Auto,
    /// None: no vnet header where the descriptor is opened here; one that is there is written as
    /// zeros and its meaning on received frames kept.
    Off,
    /// Checksums and segmentation; an error where the descriptor has no vnet header.
    Required,
}

/// How several AF_PACKET sockets share what comes in (PACKET_FANOUT, packet(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fanout {
    /// Which socket gets which frame.
    pub mode: FanoutMode,
    /// Whether the kernel puts IPv4 fragments together before it chooses, so that they go where
    /// the rest of their flow goes. Off by default: what comes then is no longer what was on the
    /// link.
    pub defragment: bool,
}

/// Which socket of a fanout group gets which frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FanoutMode {
    /// By the processor that the frame arrived on (PACKET_FANOUT_CPU).
    Cpu,
    /// By a hash of addresses and ports, so that the frames of a flow stay in order
    /// (PACKET_FANOUT_HASH).
    #[default]
    Hash,
    /// One after the other, whatever flow the frames are of (PACKET_FANOUT_LB).
    LoadBalance,
    /// The first one until it is full, then the next (PACKET_FANOUT_ROLLOVER).
    Rollover,
}

impl FanoutMode {
    /// Its name, as it is written on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Hash => "hash",
            Self::LoadBalance => "load-balance",
            Self::Rollover => "rollover",
        }
    }
}

/// One instruction of a classic BPF program (`struct sock_filter`, linux/filter.h). `tcpdump -dd`
/// prints programs in this form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BpfInstruction {
    /// What to do.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// What a caller asks of a link. Made by [`LinkOptions::default`] and its setters.
#[derive(Clone, Debug, Default)]
pub struct LinkOptions {
    pub(crate) mode: Mode,
    pub(crate) fallback: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) ethernet: Option<bool>,
    pub(crate) address: Option<MacAddr>,
    pub(crate) offload: Offload,
    pub(crate) in_band_vnet_header: Option<usize>,
    pub(crate) gso_max_size: Option<usize>,
    pub(crate) rx_checksum_trusted: bool,
    pub(crate) save_restore: bool,
    pub(crate) disconnect_ok: bool,
    pub(crate) socket_buffer: Option<usize>,
    pub(crate) batch: Option<usize>,
    pub(crate) fanout: Option<Fanout>,
    pub(crate) promiscuous: bool,
    pub(crate) filter: Option<Vec<BpfInstruction>>,
    pub(crate) timestamps: bool,
    pub(crate) ring_version: RingVersion,
    pub(crate) ring_bytes: Option<usize>,
}

impl LinkOptions {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How frames come in.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Whether a mode, an offload or the like that the descriptor cannot have is replaced or left
    /// out, and said so in the report, instead of being an error. A filter never is.
    pub fn fallback(mut self, fallback: bool) -> Self {
        self.fallback = fallback;
        self
    }

    /// The IP MTU, 68 to 65536 bytes, for whoever makes packets by it. Default: the interface's, or
    /// 1500. The interface keeps its own, and a note says where they differ; a longer frame is the
    /// kernel's to refuse.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Whether frames carry an Ethernet header. Default: what the kind says; on a unix socket, no.
    pub fn ethernet(mut self, ethernet: bool) -> Self {
        self.ethernet = Some(ethernet);
        self
    }

    /// The endpoint's own link address. Default: a random, locally administered one, for an endpoint
    /// is a host of its own beside the one whose interface it is. Whether a real device lets in what
    /// is addressed to it may take [`promiscuous`](Self::promiscuous).
    pub fn address(mut self, address: MacAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Which offloads to use.
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// Declares that both ends of a plain socket put a vnet header of `len` bytes (10 or 12)
    /// before each frame.
    pub fn in_band_vnet_header(mut self, len: usize) -> Self {
        self.in_band_vnet_header = Some(len);
        self
    }

    /// The longest super-frame to send, link header included, in bytes. Default: what keeps below
    /// the 65536 bytes at which the kernel segments in software.
    pub fn gso_max_size(mut self, bytes: usize) -> Self {
        self.gso_max_size = Some(bytes);
        self
    }

    /// Declares that frames which carry no checksum state were verified elsewhere.
    pub fn rx_checksum_trusted(mut self, trusted: bool) -> Self {
        self.rx_checksum_trusted = trusted;
        self
    }

    /// Declares that the descriptors may be handed over to another process.
    pub fn save_restore(mut self, allowed: bool) -> Self {
        self.save_restore = allowed;
        self
    }

    /// Declares that a stack that was taken over may reset its flows.
    pub fn disconnect_ok(mut self, allowed: bool) -> Self {
        self.disconnect_ok = allowed;
        self
    }

    /// Bytes of kernel buffer to ask for on sockets, each direction, as the kernel counts them (twice
    /// what SO_RCVBUF is given). Default: 4 MiB. A hint: a buffer is never made smaller, and where
    /// the limit is lower a note says so.
    pub fn socket_buffer(mut self, bytes: usize) -> Self {
        self.socket_buffer = Some(bytes);
        self
    }

    /// Frames for each system call in [`Mode::RecvMmsg`], 1 to 1024; nothing to the other modes. Default: 32. Each takes
    /// 68 KiB of address space, and as much memory as the longest frame that came in its place.
    pub fn batch(mut self, frames: usize) -> Self {
        self.batch = Some(frames);
        self
    }

    /// How two or more AF_PACKET sockets share what comes in. Default: by hash, fragments as they
    /// are. The kernel chooses the group's number.
    pub fn fanout(mut self, fanout: Fanout) -> Self {
        self.fanout = Some(fanout);
        self
    }

    /// Whether the interface behind AF_PACKET sockets is to receive frames that are addressed to
    /// somebody else (PACKET_MR_PROMISC). It ends with the link.
    pub fn promiscuous(mut self, promiscuous: bool) -> Self {
        self.promiscuous = promiscuous;
        self
    }

    /// A classic BPF program of 1 to 4096 instructions that sees each frame before it is queued and
    /// returns how much of it to keep, 0 for nothing. On sockets (SO_ATTACH_FILTER) and TAP devices
    /// (TUNATTACHFILTER: for the whole device, in place of any that is there, until the link goes;
    /// the device's `tx_dropped` counts what is refused).
    ///
    /// It sees an AF_PACKET or TAP frame from the link header on, without vnet header; of a plain
    /// socket the whole message, a vnet header in band included; of a UDP socket the UDP header
    /// before that.
    ///
    /// What waits when the program is attached is thrown away, so that no frame comes that it did
    /// not see. Return 0 or `u32::MAX`: an AF_PACKET frame of which a part is kept is a truncated
    /// one, which is counted and not delivered; on other kinds nobody tells that it is a part.
    pub fn filter(mut self, program: Vec<BpfInstruction>) -> Self {
        self.filter = Some(program);
        self
    }

    /// Whether the kernel is to say when it took each frame in (SO_TIMESTAMPNS, or the ring's
    /// own stamps), for [`RxMeta::timestamp`](crate::batch::RxMeta::timestamp). Sockets only. Where
    /// nobody else on the machine has asked, the first AF_PACKET and UDP frames may come before the
    /// kernel has begun, and are stamped when they are read.
    pub fn timestamps(mut self, timestamps: bool) -> Self {
        self.timestamps = timestamps;
        self
    }

    /// Which kind of ring [`Mode::PacketMmap`] uses; nothing to the other modes. Default: V3.
    pub fn ring_version(mut self, version: RingVersion) -> Self {
        self.ring_version = version;
        self
    }

    /// Bytes that the ring of one descriptor may take, which the kernel allocates at once; nothing
    /// to the other modes. Rounded down to whole slots of 128 KiB (or a page where pages are
    /// larger); from 64 of them, 8 MiB, to 1 GiB. Default: 256, 32 MiB.
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.ring_bytes = Some(bytes);
        self
    }
}
