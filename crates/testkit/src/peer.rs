//! The far end of a link under test.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::SendFlags;

/// Bytes of the vnet header that a [`Peer`] on an interface puts before each frame.
const VNET: usize = 10;

/// Sends and receives by script: on a socket, on a stream with lengths, on an interface (the other
/// end of a veth pair, or the kernel's side of a TUN or TAP device), or on the descriptor of a TUN or
/// TAP device.
#[derive(Debug)]
pub struct Peer {
    fd: OwnedFd,
    vnet_header: usize,
    /// Each message stands behind its length, four bytes in network order.
    stream: bool,
}

impl Peer {
    /// On an interface, by an AF_PACKET socket with a vnet header.
    ///
    /// # Errors
    ///
    /// Where there is no such interface or no right to open such a socket.
    pub fn on_interface(name: &str) -> io::Result<Self> {
        let fd = crate::sys::packet::open(crate::interface::index(name)?)?;
        Ok(Self { fd, vnet_header: VNET, stream: false })
    }

    /// On a socket, whose messages start with `vnet_header` bytes of vnet header. A TUN or TAP
    /// device will do for receiving.
    pub fn on_socket(fd: OwnedFd, vnet_header: usize) -> Self {
        Self { fd, vnet_header, stream: false }
    }

    /// On a stream socket whose messages stand behind their length, four bytes in network order, and
    /// start with `vnet_header` bytes of vnet header.
    pub fn on_stream(fd: OwnedFd, vnet_header: usize) -> Self {
        Self { fd, vnet_header, stream: true }
    }

    /// Sends a frame that leaves nothing to the other side.
    ///
    /// # Errors
    ///
    /// What send says.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send_with(&[0; VNET], frame)
    }

    /// Sends a frame with a vnet header, which is left out where the far end has none.
    ///
    /// # Errors
    ///
    /// What send says.
    pub fn send_with(&self, vnet: &[u8; VNET], frame: &[u8]) -> io::Result<()> {
        let mut message = vnet[..self.vnet_header.min(VNET)].to_vec();
        message.resize(self.vnet_header, 0);
        message.extend(frame);
        if self.stream {
            let len = u32::try_from(message.len()).map_err(io::Error::other)?;
            message.splice(..0, len.to_be_bytes());
        }
        let mut rest = &message[..];
        loop {
            let sent = rustix::net::send(&self.fd, rest, SendFlags::NOSIGNAL)?;
            rest = rest.get(sent..).unwrap_or(&[]);
            // Whatever is no stream takes a message whole.
            if rest.is_empty() || !self.stream {
                return Ok(());
            }
        }
    }

    /// The next frame, or `None` if none comes in time.
    ///
    /// # Errors
    ///
    /// What recv says.
    pub fn recv(&self, time: Duration) -> io::Result<Option<Vec<u8>>> {
        Ok(self.recv_with(time)?.map(|(_, frame)| frame))
    }

    /// The next frame with its vnet header, which is empty where the far end has none.
    ///
    /// # Errors
    ///
    /// What recv says.
    pub fn recv_with(&self, time: Duration) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        if !self.readable(time)? {
            return Ok(None);
        }
        let mut message = if self.stream { self.recv_from_stream()? } else { self.read()? };
        let frame = message.split_off(self.vnet_header.min(message.len()));
        Ok(Some((message, frame)))
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut message = vec![0; 1 << 17];
        let len = rustix::io::read(&self.fd, &mut message)?;
        message.truncate(len);
        Ok(message)
    }

    fn recv_from_stream(&self) -> io::Result<Vec<u8>> {
        let mut len = [0; 4];
        self.read_exact(&mut len)?;
        let mut frame =
            vec![0; usize::try_from(u32::from_be_bytes(len)).map_err(io::Error::other)?];
        self.read_exact(&mut frame)?;
        Ok(frame)
    }

    fn read_exact(&self, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            match rustix::io::read(&self.fd, &mut *into)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => into = &mut into[len..],
            }
        }
        Ok(())
    }

    fn readable(&self, time: Duration) -> io::Result<bool> {
        let mut entries = [PollFd::new(&self.fd, PollFlags::IN)];
        let time = rustix::event::Timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        Ok(rustix::event::poll(&mut entries, Some(&time))? > 0)
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
