//! What may be changed about an endpoint while it runs: its MTU and its own link address. Read for
//! each packet, from any thread, without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::batch::MacAddr;
use crate::error::SetupError;
use crate::link::{LEAST_MTU, LinkProperties};

/// The settings of one endpoint.
#[derive(Debug)]
pub(super) struct Settings {
    mtu: AtomicU32,
    /// Six bytes of address and two of nothing.
    address: AtomicU64,
}

impl Settings {
    pub(super) fn new(properties: &LinkProperties) -> Self {
        let address = AtomicU64::new(pack(properties.address.unwrap_or_default()));
        Self { mtu: AtomicU32::new(properties.mtu), address }
    }

    pub(super) fn mtu(&self) -> u32 {
        self.mtu.load(Relaxed)
    }

    pub(super) fn set_mtu(&self, mtu: u32, properties: &LinkProperties) -> Result<(), SetupError> {
        let most = properties.max_frame_len.saturating_sub(properties.link_header.len());
        if mtu < LEAST_MTU || mtu as usize > most {
            return Err(SetupError::Option {
                option: "mtu",
                expected: format!("{LEAST_MTU} to {most} bytes, which the link was built for"),
                found: mtu.to_string(),
            });
        }
        self.mtu.store(mtu, Relaxed);
        Ok(())
    }

    pub(super) fn address(&self) -> MacAddr {
        let [a, b, c, d, e, f, _, _] = self.address.load(Relaxed).to_ne_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    pub(super) fn set_address(
        &self,
        address: MacAddr,
        properties: &LinkProperties,
    ) -> Result<(), SetupError> {
        if properties.address.is_none() || address.is_multicast() {
            return Err(SetupError::Option {
                option: "address",
                expected: "an individual address, on a link whose frames carry one".to_owned(),
                found: match properties.address {
                    Some(_) => format!("{address}, which is a group's"),
                    None => format!("a {} without link headers", properties.kind.name()),
                },
            });
        }
        self.address.store(pack(address), Relaxed);
        Ok(())
    }
}

fn pack(address: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = address.0;
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}
