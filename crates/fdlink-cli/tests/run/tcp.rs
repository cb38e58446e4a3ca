//! TCP through the stack to servers on the host.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::users::{User, as_each_user, has, stats};

/// Where the command finds what listens on the host's 127.0.0.1 and ::1.
const INSIDE: [(IpAddr, &str); 2] = [
    (IpAddr::V4(Ipv4Addr::LOCALHOST), "10.0.2.2"),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), "fd00:fd::2"),
];

/// Serves one connection; what to connect to, and what became of the server.
fn serve<T: Send + 'static>(
    ip: IpAddr,
    server: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        server(stream)
    });
    (port, thread)
}

/// Runs a case for each user and IP version: what the script prints, and what the server saw.
fn each<T: Send + 'static>(
    case: &str,
    server: impl Fn(TcpStream) -> T + Clone + Send + 'static,
    script: &str,
    check: impl Fn(&str, T),
) {
    if !has("python3", case) {
        return;
    }
    as_each_user(|user| {
        for (ip, inside) in INSIDE {
            let (port, served) = serve(ip, server.clone());
            let script = format!("s = connect('{inside}', {port})\n{script}");
            let said = user.python(&["--host-loopback"], &script);
            check(&said, served.join().unwrap());
        }
    });
}

/// Bytes that no shift or loss leaves the same.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 256 * 13) % 251).unwrap()).collect()
}

/// The same in Python.
const PATTERN: &str = "
def pattern(n):
    return bytes((at * 7 + at // 256 * 13) % 251 for at in range(n))
";

fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    got
}

const MANY: usize = 3_000_000;

#[test]
fn many_bytes_out() {
    let script =
        format!("{PATTERN}s.sendall(pattern({MANY})); s.shutdown(socket.SHUT_WR); s.recv(1)");
    let server = |stream: TcpStream| read_all(&stream);
    each("many_bytes_out", server, &script, |_, got| assert!(got == pattern(MANY)));
}

#[test]
fn many_bytes_in() {
    let script = format!("{PATTERN}print(read_all(s) == pattern({MANY}))");
    let server = |mut stream: TcpStream| stream.write_all(&pattern(MANY)).unwrap();
    each("many_bytes_in", server, &script, |said, ()| assert_eq!(said, "True\n"));
}

#[test]
fn many_bytes_both_ways_at_once() {
    let script = format!(
        "import threading\n{PATTERN}p = pattern({MANY})\n\
         t = threading.Thread(target=lambda: (s.sendall(p), s.shutdown(socket.SHUT_WR)))\n\
         t.start(); print(read_all(s) == p); t.join()"
    );
    let server = |stream: TcpStream| {
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&pattern(MANY)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let got = read_all(&stream);
        writing.join().unwrap();
        got
    };
    each("many_bytes_both_ways_at_once", server, &script, |said, got| {
        assert_eq!(said, "True\n");
        assert!(got == pattern(MANY));
    });
}

#[test]
fn the_command_closes_first_and_still_reads() {
    let script = "s.sendall(b'question'); s.shutdown(socket.SHUT_WR); print(read_all(s).decode())";
    let server = |mut stream: TcpStream| {
        let question = read_all(&stream);
        thread::sleep(Duration::from_millis(50));
        stream.write_all(b"an answer after the end").unwrap();
        question
    };
    each("the_command_closes_first_and_still_reads", server, script, |said, question| {
        assert_eq!(said, "an answer after the end\n");
        assert_eq!(question, b"question");
    });
}

#[test]
fn the_host_closes_first_and_still_reads() {
    let script = "got = read_all(s); time.sleep(0.05); s.sendall(b'late ' + got); s.close()";
    let server = |mut stream: TcpStream| {
        stream.write_all(b"news").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&stream)
    };
    each("the_host_closes_first_and_still_reads", server, script, |_, got| {
        assert_eq!(got, b"late news");
    });
}

#[test]
fn both_close_at_once() {
    let script = "s.shutdown(socket.SHUT_WR); print(read_all(s))";
    let server = |stream: TcpStream| {
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&stream)
    };
    each("both_close_at_once", server, script, |said, got| {
        assert_eq!(said, "b''\n");
        assert_eq!(got, b"");
    });
}

#[test]
fn the_commands_reset_reaches_the_host() {
    let script = "s.sendall(b'x'); s.recv(1)\n\
                  s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n\
                  s.close(); time.sleep(0.3)";
    let server = |mut stream: TcpStream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
        stream.read(&mut byte).unwrap_err().kind()
    };
    each("the_commands_reset_reaches_the_host", server, script, |_, kind| {
        assert_eq!(kind, ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_hosts_reset_reaches_the_command() {
    let script = "s.sendall(b'xy'); time.sleep(0.3); print(failure(lambda: s.recv(1)))";
    // Closing with a byte unread makes the kernel reset.
    let server = |mut stream: TcpStream| stream.read_exact(&mut [0]).unwrap();
    each("the_hosts_reset_reaches_the_command", server, script, |said, ()| {
        assert_eq!(said, "ECONNRESET\n");
    });
}

#[test]
fn an_answer_before_a_reset_arrives() {
    // A server that answers and leaves without reading the rest of the question, as web servers
    // do with uploads they do not want.
    let script = "failure(lambda: s.sendall(bytes(4 << 20)))\nprint(s.recv(100).decode())";
    let server = |mut stream: TcpStream| {
        stream.read_exact(&mut [0; 1000]).unwrap();
        stream.write_all(b"too long").unwrap();
        thread::sleep(Duration::from_millis(100));
    };
    each("an_answer_before_a_reset_arrives", server, script, |said, ()| {
        assert_eq!(said, "too long\n");
    });
}

#[test]
fn the_hosts_loopback_is_closed_unless_asked_for() {
    if !has("python3", "the_hosts_loopback_is_closed_unless_asked_for") {
        return;
    }
    as_each_user(|user| {
        for (ip, inside) in INSIDE {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let script = format!("print(failure(lambda: connect('{inside}', {port})))");
            assert_eq!(user.python(&[], &script), "ECONNREFUSED\n");
            assert_eq!(user.python(&["--host-loopback"], &script), "none\n");
        }
    });
}

#[test]
fn a_closed_port_refuses() {
    if !has("python3", "a_closed_port_refuses") {
        return;
    }
    as_each_user(|user| {
        for (ip, inside) in INSIDE {
            // Bound, so that nobody else takes it, and not listening.
            let socket = std::net::UdpSocket::bind((ip, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            let script = format!("print(failure(lambda: connect('{inside}', {port})))");
            assert_eq!(user.python(&["--host-loopback"], &script), "ECONNREFUSED\n");
        }
    });
}

#[test]
fn denied_destinations_are_denied_and_counted() {
    if !has("python3", "denied_destinations_are_denied_and_counted") {
        return;
    }
    let cases = [
        ("169.254.169.254", "link_local"),
        ("240.0.0.1", "reserved"),
        ("64:ff9b::7f00:1", "embedded_v4"),
        ("2002:7f00:1::1", "embedded_v4"),
        ("::127.0.0.1", "embedded_v4"),
    ];
    as_each_user(|user| {
        for (address, reason) in cases {
            let folder = user.folder();
            let file = folder.path().join("run.json");
            let options = ["--host-loopback", "--stats", file.to_str().unwrap()];
            let script = format!("print(failure(lambda: connect('{address}', 80)))");
            let said = user.python(&options, &script);
            assert!(["EHOSTUNREACH\n", "EACCES\n"].contains(&said.as_str()), "{address}: {said}");
            let stats = stats(&file);
            assert_eq!(stats["denied"][reason], 1, "{address}: {stats}");
            assert_eq!(stats["outbound"]["tcp_dialled"], 0, "{address}");
        }
    });
}

/// Every link, mode, number of queues and MTU carries bytes both ways.
#[test]
fn every_kind_of_link_carries_bytes() {
    if !has("python3", "every_kind_of_link_carries_bytes") {
        return;
    }
    let veth: [&[&str]; 8] = [
        &["--mode", "auto"],
        &["--mode", "readv"],
        &["--mode", "recvmmsg"],
        &["--mode", "packet-mmap"],
        &["--queues", "3"],
        &["--queues", "2", "--mode", "packet-mmap"],
        &["--mtu", "65520"],
        &["--mtu", "576"],
    ];
    as_each_user(|user| {
        veth.iter().for_each(|options| carries_bytes(user, options));
        if user.is_root() {
            for options in [&["--link", "tap"][..], &["--link", "tap", "--queues", "2"]] {
                carries_bytes(user, options);
            }
        }
    });
}

fn carries_bytes(user: User, options: &[&str]) {
    let (port, served) = serve(Ipv4Addr::LOCALHOST.into(), |stream| {
        let got = read_all(&stream);
        (&stream).write_all(&got).unwrap();
    });
    let script = format!(
        "s = connect('10.0.2.2', {port})\np = bytes(range(251)) * 4000\ns.sendall(p)\n\
         s.shutdown(socket.SHUT_WR)\nprint(read_all(s) == p)"
    );
    let options = [options, &["--host-loopback"]].concat();
    assert_eq!(user.python(&options, &script), "True\n", "{options:?}");
    served.join().unwrap();
}

#[test]
fn many_connections_at_once() {
    const CONNECTIONS: usize = 200;
    if !has("python3", "many_connections_at_once") {
        return;
    }
    as_each_user(|user| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            for stream in listener.incoming().take(CONNECTIONS) {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    stream.write_all(&byte).unwrap();
                });
            }
        });
        let script = format!(
            "all = [connect('10.0.2.2', {port}) for _ in range({CONNECTIONS})]\n\
             for at, s in enumerate(all): s.sendall(bytes([at]))\n\
             print(all == all and [read_all(s)[0] for s in all] == list(range({CONNECTIONS})))"
        );
        assert_eq!(user.python(&["--host-loopback"], &script), "True\n");
        server.join().unwrap();
    });
}

#[test]
fn a_reset_is_heard_even_where_nobody_waits_for_the_command() {
    // After the command's FIN, and while the host reads nothing.
    let script = "n = s.send(b'x'); s.shutdown(socket.SHUT_WR); time.sleep(0.3)\n\
                  s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n\
                  s.close(); time.sleep(4)";
    let server = |stream: TcpStream| {
        assert_eq!(read_all(&stream), b"x");
        // Says nothing, and is told nothing by reading: a hang-up and an error are all there is.
        let mut hung_up = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::empty())];
        // Less than the command lives, whose end would be heard in any case.
        let patience = rustix::event::Timespec { tv_sec: 3, tv_nsec: 500_000_000 };
        rustix::event::poll(&mut hung_up, Some(&patience)).unwrap()
    };
    each(
        "a_reset_is_heard_even_where_nobody_waits_for_the_command",
        server,
        script,
        |_, events| {
            assert_eq!(events, 1);
        },
    );
}

#[test]
fn what_was_written_is_delivered_though_the_command_has_ended() {
    const LEN: usize = 8 << 20;
    let slow = |mut stream: TcpStream| {
        let (mut total, mut chunk) = (0, vec![0; 1 << 16]);
        loop {
            // Slower than the command by far: most of it waits in kernels and rings by its end.
            thread::sleep(Duration::from_millis(2));
            match stream.read(&mut chunk).unwrap() {
                0 => return total,
                len => total += len,
            }
        }
    };
    let script = format!("s.sendall(bytes({LEN}))\nprint('ended')");
    each("what_was_written_is_delivered", slow, &script, |said, total| {
        assert_eq!((said.trim(), total), ("ended", LEN));
    });
}
