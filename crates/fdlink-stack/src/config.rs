//! What a stack may use, and how it behaves. Everything has a bound.

use std::time::Duration;

/// The limits and habits of a stack. Made by [`StackConfig::default`] and its setters.
#[derive(Clone, Debug)]
pub struct StackConfig {
    pub(crate) max_tcp_flows: usize,
    pub(crate) max_half_open: usize,
    pub(crate) max_datagram_flows: usize,
    pub(crate) max_offers: usize,
    pub(crate) tcp_buffer: usize,
    pub(crate) buffer_budget: usize,
    pub(crate) datagram_queue: usize,
    pub(crate) backlog: usize,
    pub(crate) congestion_control: bool,
    pub(crate) spin: Duration,
}

impl Default for StackConfig {
    fn default() -> Self {
        Self {
            max_tcp_flows: 16_384,
            max_half_open: 2_048,
            max_datagram_flows: 8_192,
            max_offers: 1_024,
            tcp_buffer: 1 << 20,
            buffer_budget: 1 << 30,
            datagram_queue: 256 << 10,
            backlog: 1_024,
            congestion_control: false,
            spin: Duration::from_micros(50),
        }
    }
}

impl StackConfig {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// TCP connections in whatever state. Default: 16384.
    pub fn max_tcp_flows(mut self, flows: usize) -> Self {
        self.max_tcp_flows = flows;
        self
    }

    /// TCP connections in the handshake, or waiting to be accepted or refused in transparent mode.
    /// Default: 2048.
    pub fn max_half_open(mut self, flows: usize) -> Self {
        self.max_half_open = flows;
        self
    }

    /// UDP and echo flows of transparent mode. Default: 8192.
    pub fn max_datagram_flows(mut self, flows: usize) -> Self {
        self.max_datagram_flows = flows;
        self
    }

    /// New flows that wait for transparent mode's owner to look at them. Default: 1024.
    pub fn max_offers(mut self, flows: usize) -> Self {
        self.max_offers = flows;
        self
    }

    /// Capacity of a connection's receive buffer, and of its send buffer, in bytes; at least 4096.
    /// Default: 1 MiB. While more than half of the budget is in use, new connections get 64 KiB.
    pub fn tcp_buffer(mut self, bytes: usize) -> Self {
        self.tcp_buffer = bytes.clamp(4_096, 1 << 30);
        self
    }

    /// Buffer memory of all connections, in bytes. The kernel gives pages as they are used.
    /// Default: 1 GiB.
    pub fn buffer_budget(mut self, bytes: usize) -> Self {
        self.buffer_budget = bytes;
        self
    }

    /// Bytes that wait on one UDP socket, or on one UDP or echo flow, before datagrams are
    /// dropped; at least 65536. Default: 256 KiB.
    pub fn datagram_queue(mut self, bytes: usize) -> Self {
        self.datagram_queue = bytes.max(65_536);
        self
    }

    /// Connections of one listener that are in the handshake or wait for `accept`. Default: 1024.
    pub fn backlog(mut self, connections: usize) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether TCP controls congestion (CUBIC). Right for a real network behind the descriptor;
    /// on a link inside one machine it only costs throughput. Default: off.
    pub fn congestion_control(mut self, on: bool) -> Self {
        self.congestion_control = on;
        self
    }

    /// How long the driver looks for more before it sleeps, at most. A sleep costs the peer an
    /// interrupt and us a wake-up; looking costs a busy core. It adapts: where looking brings
    /// nothing, it soon sleeps at once. Default: 50 µs; zero turns it off.
    pub fn spin(mut self, at_most: Duration) -> Self {
        self.spin = at_most;
        self
    }
}
