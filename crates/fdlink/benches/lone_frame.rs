//! How long a lone frame takes from being sent to being received, in every way a packet socket has:
//! V3 rings hand it over with their block timeout, everything else at once. `unshare -rn sh -c 'ip
//! link set lo up; cargo bench -p fdlink --bench lone_frame'`: on lo, where nobody else sends then.

#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use fdlink::link::open_packet;
use fdlink::{Fill, Link, LinkOptions, Mode, Receive, RingVersion};

const ROUNDS: usize = 301;

/// So that no frame finds a block that another one has begun.
const PAUSE: Duration = Duration::from_millis(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ways = [
        ("readv", LinkOptions::new().mode(Mode::Readv)),
        ("recvmmsg", LinkOptions::new().mode(Mode::RecvMmsg)),
        ("packet-mmap V2", ring(RingVersion::V2)),
        ("packet-mmap V3", ring(RingVersion::V3)),
    ];
    println!("{ROUNDS} lone frames, µs:     {:>8} {:>8} {:>8}", "median", "min", "max");
    for (name, options) in ways {
        let pair = Box::new(open_packet("lo", 1, &options)?).into_queues()?.remove(0);
        let mut times = measure(&mut *pair.rx.expect("a packet socket receives"))?;
        times.sort_unstable();
        let (median, min, max) = (times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
        println!("{name:24} {median:>8} {min:>8} {max:>8}");
    }
    Ok(())
}

fn ring(version: RingVersion) -> LinkOptions {
    LinkOptions::new().mode(Mode::PacketMmap).ring_version(version)
}

fn measure(rx: &mut dyn Receive) -> std::io::Result<Vec<u128>> {
    let to = UdpSocket::bind("127.0.0.1:0")?;
    let from = UdpSocket::bind("127.0.0.1:0")?;
    let address = to.local_addr()?;
    let mut times = Vec::with_capacity(ROUNDS);
    while times.len() < ROUNDS {
        std::thread::sleep(PAUSE);
        let sent = Instant::now();
        from.send_to(b"a lone frame", address)?;
        // Looking and not sleeping: what is measured is the ring, not the scheduler.
        while !matches!(rx.fill()?, Fill::Frames(1..)) {
            std::hint::spin_loop();
        }
        times.push(sent.elapsed().as_micros());
        rx.release();
    }
    Ok(times)
}
