//! The link: what the command sees of it, and what crosses it.

use fdlink_sandbox::Config;

use crate::runner::{Case, Verdict, Who, missing, text};

pub(crate) const CASES: &[Case] = &[
    ("addresses_and_routes", addresses_and_routes),
    ("mtu_is_as_asked", mtu_is_as_asked),
    ("sysctls_are_set", sysctls_are_set),
    ("frames_cross_both_ways", frames_cross_both_ways),
    ("ipv6_leaves_by_the_link", ipv6_leaves_by_the_link),
    ("only_the_command_is_heard", only_the_command_is_heard),
    ("several_queues", several_queues),
    ("tap", tap),
];

fn addresses_and_routes(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ip") {
        return verdict;
    }
    let addresses = who.shell(&[], "ip -o address");
    for expected in [
        " inet 10.0.2.15/24 brd 10.0.2.255 ",
        " inet6 fd00:fd::15/64 ",
        " inet 127.0.0.1/8 ",
        " inet6 ::1/128 ",
    ] {
        assert!(addresses.contains(expected), "{expected}: {addresses}");
    }
    assert!(!addresses.contains("tentative"), "{addresses}");
    let routes = who.shell(&[], "ip route; ip -6 route");
    assert!(routes.contains("default via 10.0.2.2 dev eth0"), "{routes}");
    assert!(routes.contains("default via fd00:fd::2 dev eth0"), "{routes}");
    let links = who.shell(&[], "ip -o link");
    assert_eq!(links.lines().count(), 2, "lo and eth0: {links}");
    assert!(links.contains("02:fd:00:00:00:15") && links.contains("mtu 1500"), "{links}");
    assert_eq!(links.matches("LOWER_UP").count(), 2, "{links}");
    assert_eq!(who.shell(&[], "ls /sys/class/net").split_whitespace().count(), 2);
    Verdict::Passed
}

fn mtu_is_as_asked(who: &Who) -> Verdict {
    for mtu in ["68", "1280", "9000", "65520", "65535"] {
        let seen = who.shell(&["--mtu", mtu], "cat /sys/class/net/eth0/mtu");
        assert_eq!(seen.trim(), mtu);
    }
    let output = who.command(&["--mtu", "1000"], &["true"]).output().unwrap();
    assert!(text(&output).contains("note: IPv6 needs an MTU of 1280"), "{}", text(&output));
    let output = who.command(&["--mtu", "65536"], &["true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    Verdict::Passed
}

fn sysctls_are_set(who: &Who) -> Verdict {
    let ping = who.shell(&[], "cat /proc/sys/net/ipv4/ping_group_range");
    let id = who.uid().to_string();
    assert_eq!(ping.split_whitespace().collect::<Vec<_>>(), [&id, &id]);
    let script = "cd /proc/sys/net/ipv6/conf/eth0; cat accept_dad accept_ra disable_ipv6";
    assert_eq!(who.shell(&[], script), "0\n0\n0\n");
    Verdict::Passed
}

fn frames_cross_both_ways(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    // As any user: a ping socket, opened by ping_group_range.
    let ping = ["ping", "-c", "3", "-i", "0.1", "-W", "2", "10.0.2.2"];
    let output = who.command(&["--gateway"], &ping).output().unwrap();
    assert!(text(&output).contains("3 received, 0% packet loss"), "{}", text(&output));
    Verdict::Passed
}

fn ipv6_leaves_by_the_link(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    let ping = ["ping", "-6", "-c", "1", "-W", "1", "2001:db8::1"];
    let output = who.command(&["--print-frames"], &ping).output().unwrap();
    assert!(text(&output).contains("solicits fd00:fd::2"), "{}", text(&output));
    Verdict::Passed
}

fn only_the_command_is_heard(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    // Long enough for router solicitations, multicast reports and address detection, on either
    // side; and with traffic that the outer kernel would answer if it felt addressed.
    let script = "ping -c 1 -W 1 10.0.2.2 >/dev/null; ping -6 -c 1 -W 1 ff02::1%eth0 >/dev/null; \
                  ping -b -c 1 -W 1 10.0.2.255 >/dev/null 2>&1; sleep 1";
    let output = who.command(&["--print-frames"], &["sh", "-c", script]).output().unwrap();
    let said = text(&output);
    assert!(said.contains("from guest") && said.contains("asks for 10.0.2.2"), "{said}");
    assert!(!said.contains("from somebody else"), "{said}");
    Verdict::Passed
}

fn several_queues(who: &Who) -> Verdict {
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    for queues in ["2", "16", "64"] {
        // Without a fanout group every socket sees every frame: one answer each.
        let ping = ["ping", "-c", "1", "-W", "2", "10.0.2.2"];
        let output = who.command(&["--gateway", "--queues", queues], &ping).output().unwrap();
        assert!(text(&output).contains("1 received"), "{}", text(&output));
    }
    for queues in ["0", "65"] {
        let output = who.command(&["--queues", queues], &["true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    }
    Verdict::Passed
}

fn tap(who: &Who) -> Verdict {
    let output = who.command(&["--tap", "--account"], &["true"]).output().unwrap();
    if output.status.code() == Some(125) {
        let said = text(&output);
        assert!(said.contains("/dev/net/tun could not be opened"), "{said}");
        assert!(said.contains("chmod 0666") || said.contains("modprobe tun"), "{said}");
        assert!(said.contains("nothing is left"), "{said}");
        // For a user without privilege this node is closed on some machines and open on others;
        // that the error is right is what can be seen here.
        return Verdict::Passed;
    }
    if let Some(verdict) = missing("ping") {
        return verdict;
    }
    for queues in ["1", "4"] {
        let ping = ["ping", "-c", "2", "-i", "0.1", "-W", "2", "10.0.2.2"];
        let options = ["--tap", "--gateway", "--queues", queues];
        let output = who.command(&options, &ping).output().unwrap();
        assert!(text(&output).contains("2 received"), "{}", text(&output));
    }
    assert_eq!(who.shell(&["--tap", "--mtu", "65520"], "cat /sys/class/net/eth0/mtu"), "65520\n");
    Verdict::Passed
}

/// Answers as the gateway would: ARP for its address, and ICMP echo requests.
pub(crate) struct Gateway {
    mac: [u8; 6],
    address: [u8; 4],
}

impl Gateway {
    pub(crate) fn new(config: &Config) -> Self {
        Self { mac: config.gateway_mac, address: config.gateway4.octets() }
    }

    pub(crate) fn reply(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let mut reply = frame.to_vec();
        let (from, mac) = (frame.get(6..12)?, &self.mac);
        reply[..6].copy_from_slice(from);
        reply[6..12].copy_from_slice(mac);
        match frame.get(12..14)? {
            // ARP, a request, for the gateway's address.
            [8, 6] if frame[21] == 1 && frame[38..42] == self.address => {
                reply[21] = 2;
                reply[32..42].copy_from_slice(&frame[22..32]);
                reply[22..28].copy_from_slice(mac);
                reply[28..32].copy_from_slice(&self.address);
                Some(reply)
            }
            // IPv4, ICMP, an echo request to the gateway. Type 8 becomes 0, and the checksum,
            // which counts it as 0x0800, grows by as much, carry included.
            [8, 0] if frame[23] == 1 && frame[34] == 8 && frame[30..34] == self.address => {
                reply[26..30].copy_from_slice(&frame[30..34]);
                reply[30..34].copy_from_slice(&frame[26..30]);
                reply[34] = 0;
                let sum = u16::from_be_bytes([frame[36], frame[37]]);
                let (sum, carry) = sum.overflowing_add(0x0800);
                reply[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
                Some(reply)
            }
            _ => None,
        }
    }
}

/// Says what frames are.
pub(crate) struct Watch {
    guest: [u8; 6],
}

impl Watch {
    pub(crate) fn new(config: &Config) -> Self {
        Self { guest: config.guest_mac }
    }

    pub(crate) fn describe(&mut self, frame: &[u8]) -> String {
        let from = if frame[6..12] == self.guest { "guest" } else { "somebody else" };
        let what = match &frame[12..14] {
            [8, 6] => {
                let [a, b, c, d] = frame[38..42] else { unreachable!() };
                format!("asks for {a}.{b}.{c}.{d}")
            }
            // IPv6, ICMPv6, a neighbour solicitation.
            [0x86, 0xdd] if frame[20] == 58 && frame[54] == 135 => {
                let target: [u8; 16] = frame[62..78].try_into().unwrap();
                format!("solicits {}", std::net::Ipv6Addr::from(target))
            }
            kind => format!("type {kind:02x?}, {} bytes", frame.len()),
        };
        format!("from {from}: {what}")
    }
}
