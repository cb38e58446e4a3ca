//! How long it takes to stop an endpoint whose reader is blocked: from `stop` to the end of `join`,
//! for every kind that can be opened here. `cargo bench -p fdlink --bench stop`; under `unshare -n`
//! or `unshare -rn`, where nobody sends, also for packet sockets.

#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fdlink::link::{adopt, open_packet, open_tap, open_tun};
use fdlink::{
    Endpoint, FdLink, LinkEndpoint, LinkOptions, Mode, NetworkDispatcher, QueueIndex, RxBatch,
    SetupError,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const ROUNDS: usize = 200;

/// Long enough for every thread to be blocked in poll.
const SETTLE: Duration = Duration::from_millis(2);

struct Nobody;

impl NetworkDispatcher for Nobody {
    fn deliver(&self, _: QueueIndex, _: &mut RxBatch<'_>) {}
}

type Open = fn(&LinkOptions) -> Result<FdLink, SetupError>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: [(&str, &[Mode], Open); 5] = [
        ("seqpacket", &[Mode::Readv, Mode::RecvMmsg], |options| {
            let unix = AddressFamily::UNIX;
            let pair = socketpair(unix, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let (ours, far) = pair.expect("a socket pair");
            // The far end stays open for as long as the bench runs.
            std::mem::forget(far);
            adopt(vec![ours], options)
        }),
        ("datagram", &[Mode::Readv, Mode::RecvMmsg], |options| {
            let (ours, far) = UnixDatagram::pair().expect("a socket pair");
            std::mem::forget(far);
            adopt(vec![ours.into()], options)
        }),
        ("packet", &Mode::NAMED, |options| open_packet("lo", 1, options)),
        ("tap", &[Mode::Readv], |options| open_tap("fdlstop%d", 1, options)),
        ("tun", &[Mode::Readv], |options| open_tun("fdlstop%d", 1, options)),
    ];
    println!("{ROUNDS} stops of a blocked reader, µs: {:>8} {:>8} {:>8}", "median", "min", "max");
    for (kind, modes, open) in rows {
        for mode in modes {
            match open(&LinkOptions::new().mode(*mode)) {
                Ok(link) => measure(&format!("{kind} {mode}"), &Endpoint::new(link)?)?,
                Err(error) => println!("{kind} {mode}: not here: {error}"),
            }
        }
    }
    Ok(())
}

fn measure(name: &str, endpoint: &Endpoint) -> Result<(), Box<dyn std::error::Error>> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        endpoint.attach(Arc::new(Nobody))?;
        std::thread::sleep(SETTLE);
        let begin = Instant::now();
        endpoint.stop();
        endpoint.join()?;
        times.push(begin.elapsed().as_micros());
    }
    times.sort_unstable();
    let (median, min, max) = (times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
    println!("{name:36} {median:>8} {min:>8} {max:>8}");
    Ok(())
}
