//! A user-space TCP/IP stack on [`fdlink`] links, with tokio sockets and a transparent mode.

#![forbid(unsafe_code)]

mod address;
mod config;
mod core;
mod datagrams;
mod driver;
mod flows;
mod fragment;
mod icmp;
mod ingress;
mod lifecycle;
mod neighbor;
mod nic;
mod outward;
mod packet;
mod reassembly;
mod resolution;
mod sockets;
mod stack;
pub mod stats;
mod tcp;
mod timers;
mod transparent;

pub use address::{Cidr, NicId, ParseCidrError};
pub use config::StackConfig;
pub use driver::Driver;
pub use sockets::{MAX_DATAGRAM, TcpListener, TcpStream, UdpSocket};
pub use stack::{NicError, Stack};
pub use stats::{StackLevels, StackStats};
pub use transparent::{
    EchoFlow, Incoming, IncomingEcho, IncomingTcp, IncomingUdp, Refusal, Transparent, UdpFlow,
};
