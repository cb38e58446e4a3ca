//! What the targets share: parameters from the front of an input, and headers made to agree with
//! their packet, so that random bytes get past the first check. Written apart from the library.

/// The parameters in front of an input, read one after the other; 0 where there are no more.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    /// The next two bytes, as a number.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next bytes, as many of them as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// The checksum of RFC 1071 over `pieces`, each but the last of an even length, word by word.
pub fn naive_checksum(pieces: &[&[u8]]) -> u16 {
    let words = pieces.iter().flat_map(|piece| piece.chunks(2));
    let sum = words.fold(0_u64, |sum, word| {
        sum + u64::from(word[0]) * 256 + u64::from(*word.get(1).unwrap_or(&0))
    });
    let once = (sum & 0xffff) + (sum >> 16);
    !(((once & 0xffff) + (once >> 16)) as u16)
}

/// Makes the lengths in IP and UDP headers and the IPv4 header's checksum those of the packet, as
/// far as they can say it and no IPv6 extension header is in the way.
pub fn mend_lengths(packet: &mut [u8]) {
    let len = packet.len();
    let word = |len: usize| ((len & 0xffff) as u16).to_be_bytes();
    let (transport, protocol) = match packet.first().map(|first| first >> 4) {
        Some(4) if len >= 20 => {
            packet[2..4].copy_from_slice(&word(len));
            let end = (usize::from(packet[0] & 15) * 4).clamp(20, len);
            packet[10..12].fill(0);
            let checksum = naive_checksum(&[&packet[..end]]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            (end, packet[9])
        }
        Some(6) if len >= 40 => {
            packet[4..6].copy_from_slice(&word(len - 40));
            (40, packet[6])
        }
        _ => return,
    };
    if protocol == 17 && len >= transport + 8 {
        packet[transport + 4..transport + 6].copy_from_slice(&word(len - transport));
    }
}
