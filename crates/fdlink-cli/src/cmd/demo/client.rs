//! The sandbox's end of the transfers: `fdlink demo-client`, the command that a row runs.

use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::Args;

use super::row::{ClientSaw, Direction, Family, Message};
use super::server;
use super::stream;
use crate::failure::Failure;
use crate::outbound::policy::{GATEWAY_V4, GATEWAY_V6};
use crate::sys::tcp_info;

/// What the client does. Written by the demo, not by people.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientArgs {
    /// Which way the data goes
    #[arg(long)]
    pub(crate) direction: Direction,
    /// How long each transfer takes
    #[arg(long)]
    pub(crate) millis: u64,
    /// Where the host listens
    #[arg(long)]
    pub(crate) ipv4_port: u16,
    /// Where the host listens, if it has IPv6
    #[arg(long)]
    pub(crate) ipv6_port: Option<u16>,
}

impl ClientArgs {
    /// As they are typed.
    pub(crate) fn typed(&self) -> Vec<String> {
        let mut args = vec![
            format!("--direction={}", self.direction.name()),
            format!("--millis={}", self.millis),
            format!("--ipv4-port={}", self.ipv4_port),
        ];
        args.extend(self.ipv6_port.map(|port| format!("--ipv6-port={port}")));
        args
    }

    fn servers(&self) -> impl Iterator<Item = (Family, SocketAddr)> {
        let v4 = (Family::V4, (IpAddr::from(GATEWAY_V4), self.ipv4_port).into());
        let v6 = self.ipv6_port.map(|port| (Family::V6, (IpAddr::from(GATEWAY_V6), port).into()));
        [v4].into_iter().chain(v6)
    }
}

/// `fdlink demo-client`.
pub(crate) fn run(args: &ClientArgs) -> Result<(), Failure> {
    super::show_as(c"demo-client");
    for (family, server) in args.servers() {
        let saw = transfer(family, server, args.direction, Duration::from_millis(args.millis))
            .map_err(|error| Failure::new(format!("client, {family}")).because(&error))?;
        super::tell(&Message::Client(saw))?;
    }
    Ok(())
}

/// Moves one stream.
pub(crate) fn transfer(
    family: Family,
    server: SocketAddr,
    direction: Direction,
    time: Duration,
) -> io::Result<ClientSaw> {
    let mut stream = TcpStream::connect_timeout(&server, server::STALLED)?;
    server::limit(&stream)?;
    let moved = AtomicU64::new(0);
    let seen = match direction {
        Direction::Down => stream::receive(&mut stream, &moved)?,
        Direction::Up => {
            let seen = stream::send(&mut stream, time, &moved)?;
            stream.flush()?;
            stream.shutdown(Shutdown::Write)?;
            // The server closes when it has everything. Ending before that would end the sandbox,
            // and with it what is still on its way.
            server::wait_for_end(&mut stream)?;
            seen
        }
    };
    let retransmits = tcp_info::total_retransmits(&stream)?;
    Ok(ClientSaw { family, seen, retransmits })
}
