//! What the stack counts. A frame or a flow that is refused, dropped or replaced shows up here.

pub use fdlink::stats::Counter;

fdlink::counters! {
    /// What a stack counts over all its interfaces.
    StackCounters, StackStats {
        /// IP packets that came in whole, reassembled ones included.
        rx_packets,
        /// Dropped: addressed to another station on the link.
        rx_foreign,
        /// Dropped: headers that make no sense, or a source that cannot be (a group, ourselves).
        rx_malformed,
        /// Dropped: a transport checksum that is wrong.
        rx_bad_checksum,
        /// Transport checksums that nobody had verified and the stack did.
        rx_verified,
        /// Dropped: to an address that is not ours, without transparent mode.
        rx_not_ours,
        /// Dropped: a protocol that nobody here speaks.
        rx_unknown_protocol,
        /// Fragments that came in.
        rx_fragments,
        /// Fragments dropped: overlapping, too many, or too long.
        rx_fragments_dropped,
        /// Packets given up because fragments of them did not come in time.
        rx_packets_incomplete,
        /// Connections that were established because the peer asked.
        tcp_accepted,
        /// Connections that were established because we asked.
        tcp_connected,
        /// Connection requests answered with an RST or an ICMP error.
        tcp_refused,
        /// SYNs dropped: too many half-open connections, a full backlog, or no buffer memory.
        tcp_syn_dropped,
        /// Handshakes that nobody followed up, given up for a newer SYN where there was no room.
        tcp_handshakes_evicted,
        /// Connections given a small buffer because the memory budget ran low.
        tcp_small_buffers,
        /// Connections that the peer reset.
        tcp_reset_by_peer,
        /// Connections given up after retransmission.
        tcp_timed_out,
        /// RSTs sent to segments that belong to no connection.
        tcp_stray_resets,
        /// Segments dropped that belong to no connection, and may belong to one that is to be
        /// restored: the link may be handed over, and its flows are not to be reset.
        tcp_strays_spared,
        /// Segments dropped: longer than a TCP can be shown (65515 bytes).
        tcp_too_long,
        /// Bytes that TCP handed to applications.
        tcp_rx_bytes,
        /// Bytes that applications handed to TCP.
        tcp_tx_bytes,
        /// Segments that were sent again.
        tcp_retransmits,
        /// UDP datagrams handed to a queue.
        udp_rx,
        /// UDP datagrams sent.
        udp_tx,
        /// Datagrams and echo requests dropped because their queue was full.
        datagram_queue_drops,
        /// UDP and echo flows offered in transparent mode.
        datagram_flows,
        /// Flows dropped: the table, or the queue of flows waiting to be accepted, was full.
        flows_over_cap,
        /// Flows that the owner of transparent mode refused.
        flows_refused,
        /// Echo requests answered.
        echo_replies,
        /// ICMP errors sent.
        icmp_errors,
        /// ICMP errors not sent: over the rate limit.
        icmp_errors_limited,
        /// Packets dropped: no route to the destination.
        tx_no_route,
        /// Packets dropped: the neighbour did not answer, or too many waited for it.
        tx_unresolved,
        /// Packets dropped: no room in the transmit queue for one that cannot wait.
        tx_no_room,
        /// Packets sent in fragments.
        tx_fragmented,
        /// Requests for a neighbour's link address (ARP, NDP).
        neighbors_asked,
        /// Neighbours that did not answer.
        neighbors_failed,
        /// Neighbours forgotten because the cache was full.
        neighbors_evicted,
    }
}

/// Numbers that go up and down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackLevels {
    /// TCP connections, in whatever state.
    pub tcp_flows: usize,
    /// TCP connections in the handshake, or waiting for an answer of transparent mode's owner.
    pub tcp_half_open: usize,
    /// UDP and echo flows of transparent mode.
    pub datagram_flows: usize,
    /// Bytes of TCP buffer memory.
    pub buffer_bytes: usize,
}
