//! A host that only answers ping: `echo INTERFACE [ANSWERS]`. Every ICMP echo request that the
//! interface receives, to whatever IPv4 address, is turned into its reply in the very memory it was
//! received in, and sent back. It answers no ARP, so whoever pings needs a neighbour entry:
//! `ip neigh add 10.7.0.2 lladdr 02:00:00:00:00:02 dev veth0`.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

mod common;

use std::io::IoSlice;
use std::sync::{Arc, OnceLock, Weak, mpsc};

use fdlink::{
    Endpoint, EtherType, LinkEndpoint, LinkOptions, NetworkDispatcher, QueueIndex, RxBatch,
    TxPacket,
};

/// Answers; the endpoint is told after it was made, since it holds the dispatcher.
struct Answer {
    endpoint: OnceLock<Weak<Endpoint>>,
    answered: mpsc::Sender<()>,
}

impl NetworkDispatcher for Answer {
    fn deliver(&self, _: QueueIndex, batch: &mut RxBatch<'_>) {
        let Some(endpoint) = self.endpoint.get().and_then(Weak::upgrade) else { return };
        for mut frame in batch {
            let (Some(from), Some(EtherType::IPV4)) = (frame.source(), frame.protocol()) else {
                continue;
            };
            if !turn_into_reply(&mut frame.bytes_mut()[endpoint.max_header_len()..]) {
                continue;
            }
            let parts = [IoSlice::new(frame.packet())];
            let packet = TxPacket::new(from, EtherType::IPV4, &parts);
            if endpoint.write_packets(&[packet]).is_ok_and(|sent| sent.sent == 1) {
                let _ = self.answered.send(());
            }
        }
    }
}

/// Swaps the addresses and makes the request (type 8) a reply (type 0); false for anything else.
fn turn_into_reply(packet: &mut [u8]) -> bool {
    let header = packet.first().map_or(0, |byte| usize::from(byte & 0xf) * 4);
    let is_request = packet.len() >= header + 8 && packet[9] == 1 && packet[header] == 8;
    if header < 20 || !is_request {
        return false;
    }
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    packet[header] = 0;
    // The sum over the message has lost 0x0800; its complement gains it (RFC 1624).
    let sum = u16::from_be_bytes([packet[header + 2], packet[header + 3]]);
    let (sum, carry) = sum.overflowing_add(0x0800);
    packet[header + 2..header + 4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    true
}

fn main() -> std::process::ExitCode {
    common::tell(run())
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let interface = arguments.next().ok_or("usage: echo INTERFACE [ANSWERS]")?;
    let answers = arguments.next().map_or(Ok(usize::MAX), |text| text.parse())?;

    let link = fdlink::link::open_packet(&interface, 1, &LinkOptions::new())?;
    let endpoint = Arc::new(Endpoint::new(link)?);
    let (give, take) = mpsc::channel();
    let dispatcher = Arc::new(Answer { endpoint: OnceLock::new(), answered: give });
    let _ = dispatcher.endpoint.set(Arc::downgrade(&endpoint));
    endpoint.attach(dispatcher)?;
    take.iter().take(answers).for_each(drop);
    let tx = endpoint.stats().tx();
    println!("answered {} of them", tx.frames);
    Ok(())
}
