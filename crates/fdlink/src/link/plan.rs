//! From what was found and what is asked to what will be: pure decisions, no system call.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::batch::{ETHERNET_HEADER_LEN, LinkHeader, MacAddr};
use crate::error::SetupError;
use crate::link::examine::Found;
use crate::link::extras::{self, Extras};
use crate::link::{Capabilities, LinkKind};
use crate::offload::vnet::VnetHeader;
use crate::options::{LinkOptions, Mode, Offload};

/// What a link will be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: LinkKind,
    pub(super) mode: Mode,
    pub(super) mtu: u32,
    pub(super) max_frame_len: usize,
    pub(super) link_header: LinkHeader,
    pub(super) address: Option<MacAddr>,
    pub(super) vnet_header: usize,
    pub(super) capabilities: Capabilities,
    pub(super) gso_max_size: usize,
    pub(super) extras: Extras,
    pub(super) notes: Vec<String>,
}

/// The least IP MTU, in bytes (RFC 791).
pub(crate) const LEAST_MTU: u32 = 68;

/// The greatest, in bytes: the loopback interface's.
const MOST_MTU: u32 = 65536;

/// Decides, or says what does not go together.
pub(super) fn make(found: &[Found], options: &LinkOptions) -> Result<Plan, SetupError> {
    let first = found.first().ok_or(SetupError::NoDescriptors)?;
    same_kind(first, found)?;
    let mut notes = Vec::new();
    let mode = mode(first.kind, options, &mut notes)?;
    let vnet_header = vnet_header(first, options, &mut notes)?;
    let link_header = link_header(first, options)?;
    let mtu = mtu(first, options, &mut notes)?;
    let max_frame_len = mtu as usize + link_header.len();
    let offload = vnet_header > 0 && options.offload != Offload::Off;
    let capabilities = Capabilities {
        tx_checksum: offload,
        rx_checksum: options.rx_checksum_trusted,
        tso4: offload,
        tso6: offload,
        uso: offload && first.uso,
        resolution_required: link_header == LinkHeader::Ethernet,
        save_restore: options.save_restore,
        disconnect_ok: options.disconnect_ok,
    };
    let gso_max_size = gso_max_size(mtu, link_header, options)?;
    let gso_max_size = if offload { gso_max_size } else { no_super_frames(options, &mut notes)? };
    let extras = extras::plan(found, options, &mut notes)?;
    let address = address(first, link_header, options, &mut notes)?;
    if options.socket_buffer.is_some() && matches!(first.kind, LinkKind::Tap | LinkKind::Tun) {
        notes.push(format!("no socket_buffer on a {}", first.kind.name()));
    }
    Ok(Plan {
        kind: first.kind,
        mode,
        mtu,
        max_frame_len,
        link_header,
        address,
        vnet_header,
        capabilities,
        gso_max_size,
        extras,
        notes,
    })
}

/// The endpoint's own address. A cooked socket sends from its interface's, whatever a frame says.
fn address(
    first: &Found,
    link_header: LinkHeader,
    options: &LinkOptions,
    notes: &mut Vec<String>,
) -> Result<Option<MacAddr>, SetupError> {
    let refused = |expected, found: MacAddr| {
        Err(SetupError::Option { option: "address", expected, found: found.to_string() })
    };
    if let Some(group) = options.address.filter(|address| address.is_multicast()) {
        return refused("a station's address, and no group's".to_owned(), group);
    }
    let own = first.cooked.map(|cooked| cooked.address);
    if let (Some(own), Some(asked)) = (own, options.address)
        && own != asked
    {
        let expected = format!("{own}, the interface's own, on a {}", first.kind.name());
        return refused(expected, asked);
    }
    Ok(match link_header {
        LinkHeader::Ethernet => Some(own.or(options.address).unwrap_or_else(random_address)),
        LinkHeader::None => {
            let unused =
                options.address.map(|address| format!("no address {address}: no frame has one"));
            notes.extend(unused);
            None
        }
    })
}

/// Opening nothing is no link.
pub(super) fn some_queues(queues: usize) -> Result<(), SetupError> {
    if queues > 0 {
        return Ok(());
    }
    let (expected, found) = ("at least 1".to_owned(), "0".to_owned());
    Err(SetupError::Option { option: "queues", expected, found })
}

/// Several descriptors make one link only if frames on them mean the same.
fn same_kind(first: &Found, found: &[Found]) -> Result<(), SetupError> {
    for (index, other) in found.iter().enumerate() {
        let expected = if other.kind != first.kind {
            "descriptors of the same kind as descriptor 0"
        } else if other.interface != first.interface {
            "descriptors of the same interface as descriptor 0"
        } else if other.namespace != first.namespace {
            "descriptors of the same network namespace as descriptor 0"
        } else if other.vnet_header != first.vnet_header {
            "descriptors with as long a vnet header as descriptor 0"
        } else if other.link_header != first.link_header {
            "descriptors with the same link header as descriptor 0"
        } else {
            continue;
        };
        return Err(SetupError::WrongKind { index, found: describe(other), expected });
    }
    Ok(())
}

fn describe(found: &Found) -> String {
    let kind = found.kind.name();
    let interface = found.interface.as_deref().map_or(String::new(), |name| format!(" on {name}"));
    format!("a {kind}{interface} with {} bytes of vnet header", found.vnet_header)
}

fn mode(
    kind: LinkKind,
    options: &LinkOptions,
    notes: &mut Vec<String>,
) -> Result<Mode, SetupError> {
    let (possible, needs) = match options.mode {
        Mode::Auto => return Ok(Mode::Readv),
        Mode::Readv => (true, ""),
        Mode::RecvMmsg if kind == LinkKind::Framed => (false, "a socket that keeps boundaries"),
        Mode::RecvMmsg => (!matches!(kind, LinkKind::Tap | LinkKind::Tun), "a socket"),
        Mode::PacketMmap if kind == LinkKind::PacketCooked => {
            (false, "an AF_PACKET SOCK_RAW socket")
        }
        Mode::PacketMmap => (kind == LinkKind::Packet, "an AF_PACKET socket"),
    };
    if possible {
        return Ok(options.mode);
    }
    if options.fallback {
        notes.push(format!("{} needs {needs}: readv", options.mode));
        return Ok(Mode::Readv);
    }
    Err(SetupError::Option {
        option: "mode",
        expected: format!("{needs} for {}", options.mode),
        found: format!("a {}", kind.name()),
    })
}

fn vnet_header(
    first: &Found,
    options: &LinkOptions,
    notes: &mut Vec<String>,
) -> Result<usize, SetupError> {
    let mut len = first.vnet_header;
    if let Some(in_band) = options.in_band_vnet_header {
        let plain = first.kind.is_plain_socket();
        let known = [VnetHeader::LEN, VnetHeader::LEN_MRG].contains(&in_band);
        if !known || (!plain && in_band != len) {
            return Err(SetupError::Option {
                option: "in_band_vnet_header",
                expected: "10 or 12 bytes, on a plain socket".to_owned(),
                found: format!("{in_band} bytes on a {}", first.kind.name()),
            });
        }
        len = in_band;
    }
    if first.kind == LinkKind::Packet && len == 0 && options.offload != Offload::Off {
        // `packet::configure` switches it on, or lowers this again.
        len = VnetHeader::LEN;
    }
    if len == 0 && options.offload == Offload::Required {
        no_offload(options, notes, format!("a {} without a vnet header", first.kind.name()))?;
    }
    Ok(len)
}

/// Offloads were required and cannot be had.
pub(super) fn no_offload(
    options: &LinkOptions,
    notes: &mut Vec<String>,
    found: String,
) -> Result<(), SetupError> {
    if options.fallback {
        notes.push(format!("no offload: {found}"));
        return Ok(());
    }
    let expected = "a vnet header on the descriptor, or one declared in band".to_owned();
    Err(SetupError::Option { option: "offload", expected, found })
}

fn link_header(first: &Found, options: &LinkOptions) -> Result<LinkHeader, SetupError> {
    let Some(ethernet) = options.ethernet else { return Ok(first.link_header) };
    let asked = if ethernet { LinkHeader::Ethernet } else { LinkHeader::None };
    if first.kind.is_plain_socket() || asked == first.link_header {
        return Ok(asked);
    }
    Err(SetupError::Option {
        option: "ethernet",
        expected: format!("{}, as a {} has it here", !ethernet, first.kind.name()),
        found: ethernet.to_string(),
    })
}

fn mtu(first: &Found, options: &LinkOptions, notes: &mut Vec<String>) -> Result<u32, SetupError> {
    const DEFAULT: u32 = 1500;
    let mtu = options.mtu.or(first.mtu).unwrap_or_else(|| {
        if first.interface.is_some() {
            notes.push(format!("the interface's MTU is not known here: {DEFAULT}"));
        }
        DEFAULT
    });
    if (LEAST_MTU..=MOST_MTU).contains(&mtu) {
        if let Some(own) = first.mtu.filter(|own| *own != mtu) {
            notes.push(format!("an MTU of {mtu} where the interface has {own}"));
        }
        return Ok(mtu);
    }
    let expected = format!("{LEAST_MTU} to {MOST_MTU} bytes");
    Err(SetupError::Option { option: "mtu", expected, found: mtu.to_string() })
}

/// A size for what cannot be sent was asked for in vain.
fn no_super_frames(options: &LinkOptions, notes: &mut Vec<String>) -> Result<usize, SetupError> {
    if let Some(size) = options.gso_max_size {
        if !options.fallback {
            return Err(SetupError::Option {
                option: "gso_max_size",
                expected: "a link with segmentation offload".to_owned(),
                found: format!("{size} bytes on a link without"),
            });
        }
        notes.push(format!("no super-frames of {size} bytes: no segmentation offload"));
    }
    Ok(0)
}

/// The longest super-frame: as many full segments as keep it below 64 KiB with room to spare.
fn gso_max_size(
    mtu: u32,
    link_header: LinkHeader,
    options: &LinkOptions,
) -> Result<usize, SetupError> {
    const IPV4_TCP: usize = 40;
    // An IPv6 header is 20 bytes longer, and frames of exactly 64 KiB with their headers stall
    // some devices: 160 bytes of slack.
    const LIMIT: usize = 65536 - 160 - 20;
    // A frame of an IP packet of 65535 bytes.
    let most = ETHERNET_HEADER_LEN + 65535;
    let (mtu, link_header) = (mtu as usize, link_header.len());
    let floor = (mtu + link_header).min(most);
    if let Some(asked) = options.gso_max_size {
        if (floor..=most).contains(&asked) {
            return Ok(asked);
        }
        return Err(SetupError::Option {
            option: "gso_max_size",
            expected: format!("{floor} to {most} bytes"),
            found: asked.to_string(),
        });
    }
    let headers = link_header + IPV4_TCP;
    let segment = mtu - IPV4_TCP;
    let segments = (LIMIT - headers) / segment;
    Ok((headers + segments * segment).max(floor))
}

/// A random, locally administered, individual address.
fn random_address() -> MacAddr {
    // std seeds its hasher from the kernel's random numbers: enough to tell endpoints apart.
    let [a, b, c, d, e, _, _, _] = RandomState::new().build_hasher().finish().to_ne_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(mtu: u32, link_header: LinkHeader) -> usize {
        gso_max_size(mtu, link_header, &LinkOptions::default()).unwrap()
    }

    #[test]
    fn super_frames_are_full_segments_below_64_kib() {
        assert_eq!(size(1500, LinkHeader::Ethernet), 14 + 40 + 44 * 1460);
        assert_eq!(size(1500, LinkHeader::None), 40 + 44 * 1460);
        assert_eq!(size(9000, LinkHeader::Ethernet), 14 + 40 + 7 * 8960);
        // One segment fills it: then it is a frame like any other.
        assert_eq!(size(65520, LinkHeader::Ethernet), 65534);
        assert_eq!(size(65536, LinkHeader::Ethernet), 65549);
        for mtu in 68..=65536 {
            let len = size(mtu, LinkHeader::Ethernet);
            assert!(len <= 65535 + 14, "{mtu}: {len}");
            assert!(
                len + 20 + 160 <= 65536 || len == (mtu as usize + 14).min(65549),
                "{mtu}: {len}"
            );
        }
    }

    #[test]
    fn a_super_frame_size_that_cannot_be_is_refused() {
        for bad in [0, 1513, 65550] {
            let options = LinkOptions::default().gso_max_size(bad);
            assert!(gso_max_size(1500, LinkHeader::Ethernet, &options).is_err(), "{bad}");
        }
    }

    #[test]
    fn random_addresses_are_local_individual_and_differ() {
        let (a, b) = (random_address(), random_address());
        assert!(!a.is_multicast() && a.0[0] & 2 != 0);
        assert_ne!(a, b);
    }
}
