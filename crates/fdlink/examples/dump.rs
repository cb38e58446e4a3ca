//! Prints what an interface receives: `dump INTERFACE [FRAMES]`. Needs CAP_NET_RAW; without it,
//! `unshare -rn` gives a network to try in.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

mod common;

use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use fdlink::{Endpoint, LinkEndpoint, LinkOptions, Mode, NetworkDispatcher, QueueIndex, RxBatch};

/// Describes each frame on the thread that received it, where it lies in the ring.
struct Describe(mpsc::SyncSender<String>);

impl NetworkDispatcher for Describe {
    fn deliver(&self, _: QueueIndex, batch: &mut RxBatch<'_>) {
        for frame in batch {
            let meta = frame.meta();
            let mut line = format!("{:6} bytes", frame.bytes().len());
            if let (Some(from), Some(to)) = (frame.source(), frame.destination()) {
                line += &format!("  {from} > {to}");
            }
            match frame.protocol() {
                Some(protocol) => line += &format!("  type {:#06x}", protocol.0),
                None => line += "  a runt",
            }
            if let Some(tag) = meta.vlan {
                line += &format!("  VLAN {}", tag.tci & 0xfff);
            }
            if let Some(gso) = meta.gso {
                line += &format!("  super-frame of {} bytes each", gso.size);
            }
            if let Some(time) =
                meta.timestamp.and_then(|t| SystemTime::now().duration_since(t).ok())
            {
                line += &format!("  {} µs ago", time.as_micros());
            }
            // Who prints too slowly misses lines, and the ring is read all the same.
            let _ = self.0.try_send(line);
        }
    }
}

fn main() -> std::process::ExitCode {
    common::tell(run())
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let interface = arguments.next().ok_or("usage: dump INTERFACE [FRAMES]")?;
    let frames = arguments.next().map_or(Ok(usize::MAX), |text| text.parse())?;

    let options = LinkOptions::new().mode(Mode::PacketMmap).fallback(true);
    let endpoint = Endpoint::new(fdlink::link::open_packet(&interface, 1, &options)?)?;
    eprintln!("{}", endpoint.report());
    let (give, take) = mpsc::sync_channel(1024);
    endpoint.attach(Arc::new(Describe(give)))?;
    for _ in 0..frames {
        println!("{}", take.recv_timeout(Duration::from_secs(60))?);
    }
    endpoint.stop();
    endpoint.join()?;
    let rx = endpoint.stats().rx();
    eprintln!(
        "{} frames, {} bytes, {} dropped by the kernel",
        rx.frames, rx.bytes, rx.kernel_drops
    );
    Ok(())
}
