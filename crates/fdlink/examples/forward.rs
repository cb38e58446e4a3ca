//! A cable between two interfaces: `forward A B [FRAMES]`. What one receives leaves on the other:
//! super-frames as super-frames, with the checksums that the sender left to others left to others,
//! so that nothing is computed or cut on the way. VLAN tags, which the kernel takes out of what it
//! gives (`RxMeta::vlan`), are not put back.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

mod common;

use std::io::IoSlice;
use std::thread;

use fdlink::{Fill, Link, LinkOptions, QueuePair, Receive, Transmit, TxFrame};

/// Moves frames until there were that many, or either side ends.
fn pump(
    mut rx: Box<dyn Receive>,
    mut tx: Box<dyn Transmit>,
    frames: usize,
) -> std::io::Result<usize> {
    let mut moved = 0;
    while moved < frames {
        match rx.fill()? {
            Fill::Frames(_) => {
                for frame in rx.batch() {
                    let parts = [IoSlice::new(frame.bytes())];
                    let list = [TxFrame::new(&parts).with_offload(frame.meta().left_to_do())];
                    // Where there is no room the frame waits, and the sender behind it.
                    while tx.send(&list)?.taken == 0 {
                        tx.wakeup().wait_writable();
                    }
                    // Of a super-frame that the kernel refused and that was cut, some may be left.
                    while tx.queued() > 0 {
                        tx.wakeup().wait_writable();
                        tx.flush()?;
                    }
                    moved += 1;
                }
            }
            Fill::Empty => {
                rx.release();
                rx.wakeup().wait_readable();
            }
            Fill::Closed(why) => {
                eprintln!("{why}");
                break;
            }
        }
    }
    Ok(moved)
}

fn main() -> std::process::ExitCode {
    common::tell(run())
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ([a, b] | [a, b, _]) = arguments.as_slice() else {
        return Err("usage: forward A B [FRAMES]".into());
    };
    let frames = arguments.get(2).map_or(Ok(usize::MAX), |text| text.parse())?;

    let (from_a, from_b) = (open(a)?, open(b)?);
    let (rx_a, rx_b) = (from_a.rx.expect("it receives"), from_b.rx.expect("it receives"));
    thread::spawn(move || pump(rx_b, from_a.tx, usize::MAX));
    println!("{} frames from {a} to {b}", pump(rx_a, from_b.tx, frames)?);
    Ok(())
}

fn open(interface: &str) -> Result<QueuePair, fdlink::SetupError> {
    let link = fdlink::link::open_packet(interface, 1, &LinkOptions::new())?;
    eprintln!("{interface}: {}", link.report());
    Ok(Box::new(link).into_queues()?.remove(0))
}
