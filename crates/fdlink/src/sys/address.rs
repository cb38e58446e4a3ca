//! Link-layer addresses of AF_PACKET sockets (`sockaddr_ll`): what the kernel says of a received
//! frame's link header, and what it is told of the header of one that leaves a cooked socket.

/// Length of an Ethernet header (`ETH_HLEN`, if_ether.h).
pub(super) const ETHERNET_HEADER_LEN: usize = 14;

/// Length of an Ethernet address (`ETH_ALEN`, if_ether.h), in the type of `sll_halen`.
const ETHERNET_ADDRESS_LEN: u8 = 6;

/// An address of no interface, to be filled in by the kernel.
pub(super) fn empty() -> libc::sockaddr_ll {
    on_interface(0, 0)
}

/// The address of an interface, for one protocol (host byte order).
pub(super) fn on_interface(interface: libc::c_int, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: 17, // AF_PACKET, in the type of this field
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// The Ethernet address in it; zeros where there is another kind of address, or none.
pub(super) fn ethernet_address(name: &libc::sockaddr_ll) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = name.sll_addr;
    if name.sll_halen == ETHERNET_ADDRESS_LEN { [a, b, c, d, e, f] } else { [0; 6] }
}

/// Where the messages of a list go on a cooked socket, which makes their Ethernet headers itself:
/// taken from the headers that they start with.
#[derive(Debug)]
pub(super) struct Destinations {
    interface: libc::c_int,
    /// The header of the message being made, as far as it has come.
    header: [u8; ETHERNET_HEADER_LEN],
    filled: usize,
    names: Vec<libc::sockaddr_ll>,
}

impl Destinations {
    /// For that many messages on an interface; more make it grow once.
    pub(super) fn with_capacity(messages: usize, interface: libc::c_int) -> Self {
        let header = [0; ETHERNET_HEADER_LEN];
        Self { interface, header, filled: 0, names: Vec::with_capacity(messages) }
    }

    /// Starts a list.
    pub(super) fn clear(&mut self) {
        self.names.clear();
        self.filled = 0;
    }

    /// Takes what belongs to the header off the next part of the message; gives what is left of it.
    pub(super) fn take<'a>(&mut self, part: &'a [u8]) -> &'a [u8] {
        let (header, rest) = part.split_at(part.len().min(ETHERNET_HEADER_LEN - self.filled));
        self.header[self.filled..self.filled + header.len()].copy_from_slice(header);
        self.filled += header.len();
        rest
    }

    /// Ends the message. The kernel sends it from the interface's own address.
    pub(super) fn end_message(&mut self) {
        let [a, b, c, d, e, f, .., high, low] = self.header;
        let mut name = on_interface(self.interface, u16::from_be_bytes([high, low]));
        name.sll_halen = ETHERNET_ADDRESS_LEN;
        name.sll_addr = [a, b, c, d, e, f, 0, 0];
        self.names.push(name);
        self.filled = 0;
    }

    /// One for each message.
    pub(super) fn names(&self) -> &[libc::sockaddr_ll] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_found_however_the_message_is_cut() {
        let frame: Vec<u8> = (1..=20).collect();
        for first in 0..=20 {
            for second in first..=20 {
                let mut destinations = Destinations::with_capacity(1, 7);
                let parts = [&frame[..first], &frame[first..second], &frame[second..]];
                let rest: Vec<u8> =
                    parts.iter().flat_map(|part| destinations.take(part).to_vec()).collect();
                destinations.end_message();
                assert_eq!(rest, [15, 16, 17, 18, 19, 20]);
                let [name] = destinations.names() else { panic!("one message") };
                assert_eq!(ethernet_address(name), [1, 2, 3, 4, 5, 6]);
                let numbers = (name.sll_family, u16::from_be(name.sll_protocol), name.sll_ifindex);
                assert_eq!(numbers, (17, 0x0d0e, 7));
            }
        }
    }

    #[test]
    fn an_address_of_another_length_is_none() {
        let mut name = empty();
        name.sll_addr = [1; 8];
        for len in [0, 4, 5, 7, 8, 20, 255] {
            name.sll_halen = len;
            assert_eq!(ethernet_address(&name), [0; 6], "{len}");
        }
    }
}
