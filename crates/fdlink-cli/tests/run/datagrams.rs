//! UDP and pings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::users::{as_each_user, has, output, skip, stats, text};

const INSIDE: [(IpAddr, &str); 2] = [
    (IpAddr::V4(Ipv4Addr::LOCALHOST), "10.0.2.2"),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), "fd00:fd::2"),
];

/// Echoes that many datagrams.
fn echo(ip: IpAddr, count: usize) -> u16 {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buf = vec![0; 65_536];
        for _ in 0..count {
            let Ok((len, from)) = socket.recv_from(&mut buf) else { return };
            socket.send_to(&buf[..len], from).unwrap();
        }
    });
    port
}

#[test]
fn datagrams_of_every_size_come_back() {
    if !has("python3", "datagrams_of_every_size_come_back") {
        return;
    }
    // Whole, empty, and in fragments each way.
    let sizes = "[1, 0, 1472, 1473, 9000, 65000]";
    as_each_user(|user| {
        for (ip, inside) in INSIDE {
            let port = echo(ip, 6);
            let script = format!(
                "family = socket.AF_INET6 if ':' in '{inside}' else socket.AF_INET\n\
                 s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(10)\n\
                 s.connect(('{inside}', {port}))\n\
                 for n in {sizes}:\n    s.send(bytes([n % 251]) * n)\n    \
                 assert s.recv(65536) == bytes([n % 251]) * n, n\nprint('same')"
            );
            assert_eq!(user.python(&["--host-loopback"], &script), "same\n");
        }
    });
}

#[test]
fn a_closed_udp_port_is_unreachable() {
    if !has("python3", "a_closed_udp_port_is_unreachable") {
        return;
    }
    as_each_user(|user| {
        for (ip, inside) in INSIDE {
            // Taken for TCP, so that nobody else takes it; nobody has it for UDP.
            let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let script = format!(
                "family = socket.AF_INET6 if ':' in '{inside}' else socket.AF_INET\n\
                 s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(10)\n\
                 s.connect(('{inside}', {port})); s.send(b'x')\n\
                 print(failure(lambda: s.recv(1)))"
            );
            // Because the host says so, and because this program does.
            assert_eq!(user.python(&["--host-loopback"], &script), "ECONNREFUSED\n");
            assert_eq!(user.python(&[], &script), "ECONNREFUSED\n");
        }
    });
}

#[test]
fn the_gateway_answers_pings() {
    if !has("ping", "the_gateway_answers_pings") {
        return;
    }
    as_each_user(|user| {
        for gateway in ["10.0.2.2", "fd00:fd::2"] {
            let output = output(user.run(&[], &["ping", "-n", "-c2", "-i0.2", "-W5", gateway]));
            assert!(output.status.success(), "{}", text(&output));
        }
    });
}

#[test]
fn pings_go_out_where_the_host_lets_them() {
    let case = "pings_go_out_where_the_host_lets_them";
    if !has("ping", case) {
        return;
    }
    // An address of this host that is not its loopback is as good as any.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let Ok(()) = probe.connect((Ipv4Addr::new(192, 0, 2, 77), 9)) else {
        return skip(case, "this host has no network");
    };
    let address = probe.local_addr().unwrap().ip().to_string();
    as_each_user(|user| {
        let folder = user.folder();
        let file = folder.path().join("run.json");
        let options = ["--stats", file.to_str().unwrap()];
        let output = output(user.run(&options, &["ping", "-n", "-c1", "-W5", &address]));
        let stats = stats(&file);
        if output.status.success() {
            assert_eq!(stats["outbound"]["echo_replies"], 1, "{stats}");
        } else {
            // Not in silence: the command hears of it at once, and the report says why.
            assert_eq!(stats["outbound"]["echo_denied"], 1, "{}{stats}", text(&output));
            assert!(stats["notes"].to_string().contains("ping_group_range"), "{stats}");
        }
    });
}
