//! The host's end of the transfers: a listener on loopback for each version of IP, and a thread.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::row::{Direction, Family};
use super::stream::{self, Seen};

/// A stream that stands still for so long has failed.
pub(crate) const STALLED: Duration = Duration::from_secs(5);
/// How often a server that waits for its client looks whether it is still wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What the server saw of each stream, up to the first failure.
pub(crate) type Served = (Vec<(Family, Seen)>, Option<String>);

/// A server for the transfers of one row.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) ports: Vec<(Family, u16)>,
    moved: Arc<AtomicU64>,
    unwanted: Arc<AtomicBool>,
    thread: JoinHandle<Served>,
}

impl Server {
    /// Starts one that sends (`Down`) for `time`, or receives (`Up`), once for each version of IP
    /// that this host's loopback has.
    pub(crate) fn start(direction: Direction, time: Duration) -> io::Result<Self> {
        let listeners = listeners()?;
        let ports = listeners
            .iter()
            .map(|(family, listener)| Ok((*family, listener.local_addr()?.port())))
            .collect::<io::Result<_>>()?;
        let (moved, unwanted) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let served = Self::serve(direction, time, Arc::clone(&moved), Arc::clone(&unwanted));
        let thread = thread::Builder::new()
            .name("demo-server".to_owned())
            .spawn(move || served(listeners))?;
        Ok(Self { ports, moved, unwanted, thread })
    }

    fn serve(
        direction: Direction,
        time: Duration,
        moved: Arc<AtomicU64>,
        unwanted: Arc<AtomicBool>,
    ) -> impl FnOnce(Vec<(Family, TcpListener)>) -> Served {
        move |listeners| {
            let mut served = Vec::new();
            for (family, listener) in listeners {
                match serve_one(&listener, direction, time, &moved, &unwanted) {
                    Ok(seen) => served.push((family, seen)),
                    Err(error) => return (served, Some(format!("{family}: server: {error}"))),
                }
            }
            (served, None)
        }
    }

    /// Bytes moved until now.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// What it saw. If a client did not come, none will come now.
    pub(crate) fn finish(self) -> Served {
        self.unwanted.store(true, Relaxed);
        let panicked = || (Vec::new(), Some("the server's thread panicked".to_owned()));
        self.thread.join().unwrap_or_else(|_| panicked())
    }
}

/// One for each version of IP; IPv6 is left out where the host has none.
fn listeners() -> io::Result<Vec<(Family, TcpListener)>> {
    let mut listeners = vec![(Family::V4, listener(Ipv4Addr::LOCALHOST.into())?)];
    if let Ok(v6) = listener(Ipv6Addr::LOCALHOST.into()) {
        listeners.push((Family::V6, v6));
    }
    Ok(listeners)
}

fn listener(address: IpAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((address, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve_one(
    listener: &TcpListener,
    direction: Direction,
    time: Duration,
    moved: &AtomicU64,
    unwanted: &AtomicBool,
) -> io::Result<Seen> {
    let mut stream = accept(listener, unwanted)?;
    limit(&stream)?;
    match direction {
        Direction::Up => stream::receive(&mut stream, moved),
        Direction::Down => {
            let seen = stream::send(&mut stream, time, moved)?;
            stream.shutdown(Shutdown::Write)?;
            // The client closes when it has everything; closing before could cut it short.
            wait_for_end(&mut stream)?;
            Ok(seen)
        }
    }
}

/// Waits for the client.
fn accept(listener: &TcpListener, unwanted: &AtomicBool) -> io::Result<TcpStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if unwanted.load(Relaxed) {
            return Err(io::Error::other("no client came"));
        }
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a stream that stands still fail.
pub(crate) fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(STALLED))?;
    stream.set_write_timeout(Some(STALLED))
}

/// Waits until the other end has closed, which it does without a word.
pub(crate) fn wait_for_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 1]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(io::Error::other("the receiver sent something")),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::*;

    /// Both ends against each other, without anything in between.
    #[test]
    fn both_ends_agree_in_both_directions() {
        let time = Duration::from_millis(30);
        for direction in [Direction::Down, Direction::Up] {
            let server = Server::start(direction, time).unwrap();
            let mut told = Vec::new();
            for &(family, port) in &server.ports {
                let address: IpAddr = match family {
                    Family::V4 => Ipv4Addr::LOCALHOST.into(),
                    Family::V6 => Ipv6Addr::LOCALHOST.into(),
                };
                let saw = client::transfer(family, (address, port).into(), direction, time);
                told.push((family, saw.unwrap().seen));
            }
            let (served, fault) = server.finish();
            assert_eq!(fault, None);
            assert_eq!(served.len(), told.len());
            for ((_, server), (_, client)) in served.iter().zip(&told) {
                assert!(server.bytes > 0);
                assert!(server.same_stream(client), "{server:?} {client:?}");
            }
        }
    }

    #[test]
    fn a_server_whose_client_does_not_come_ends() {
        let server = Server::start(Direction::Up, Duration::from_secs(60)).unwrap();
        let (served, fault) = server.finish();
        assert!(served.is_empty());
        assert!(fault.unwrap().contains("no client came"));
    }
}
