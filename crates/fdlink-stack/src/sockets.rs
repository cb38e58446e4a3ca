//! Sockets for tokio, with the names and habits of `std::net`. They only look at the stack's state
//! and change it; the driver moves the packets.

mod tcp;
mod udp;

pub use tcp::{TcpListener, TcpStream};
pub use udp::{MAX_DATAGRAM, UdpSocket};
