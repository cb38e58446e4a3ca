//! What stands before each frame on a descriptor: on a stream its length, and behind that the vnet
//! header, if there is one. What the header says is decided elsewhere (`transmit/way`).

use crate::io::framed::FramePrefix;
use crate::offload::vnet::VnetHeader;

/// A length prefix and a vnet header, each where there is one.
#[derive(Clone, Copy, Debug)]
pub(in crate::io) struct Lead {
    prefix: Option<FramePrefix>,
    /// 0, 10 or 12 bytes.
    vnet_header: usize,
}

impl Lead {
    /// The longest, in bytes.
    pub(in crate::io) const LONGEST: usize = FramePrefix::LONGEST + VnetHeader::LEN_MRG;

    pub(in crate::io) fn new(prefix: Option<FramePrefix>, vnet_header: usize) -> Self {
        Self { prefix, vnet_header }
    }

    /// Its own length in bytes.
    pub(in crate::io) fn len(self) -> usize {
        self.prefix_len() + self.vnet_header
    }

    /// The longest frame that may stand behind it, in bytes.
    pub(in crate::io) fn limit(self) -> usize {
        self.prefix.map_or(usize::MAX, |prefix| prefix.limit() - self.vnet_header)
    }

    /// Writes it before a frame of `frame_len` bytes, which are no more than
    /// [`limit`](Self::limit), to the whole of `out`.
    pub(in crate::io) fn write(self, frame_len: usize, header: VnetHeader, out: &mut [u8]) {
        let (before, vnet) = out.split_at_mut(self.prefix_len());
        if let Some(prefix) = self.prefix {
            prefix.write(self.vnet_header + frame_len, before);
        }
        header.write(vnet);
    }

    /// The vnet header in what starts with a lead.
    pub(in crate::io) fn vnet(self, message: &[u8]) -> &[u8] {
        &message[self.prefix_len()..self.len()]
    }

    fn prefix_len(self) -> usize {
        self.prefix.map_or(0, FramePrefix::len)
    }
}
