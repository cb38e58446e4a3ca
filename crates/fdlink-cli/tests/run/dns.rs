//! Name look-ups at 10.0.2.3.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::users::{as_each_user, has, stats};

/// A name server that knows one answer: whatever is asked for has the address 192.0.2.77, or none
/// where that is not what was asked for.
fn name_server() -> SocketAddr {
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            break (tcp, udp);
        }
    };
    let address = udp.local_addr().unwrap();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = udp.recv_from(&mut query) {
            udp.send_to(&answer(&query[..len]), from).unwrap();
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query).unwrap();
            let answer = answer(&query);
            stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    address
}

fn answer(query: &[u8]) -> Vec<u8> {
    // The question: labels up to an empty one, then type and class.
    let name_end = query[12..].iter().position(|&byte| byte == 0).unwrap() + 13;
    let wants_v4 = query[name_end..name_end + 2] == [0, 1];
    let mut answer = query[..name_end + 4].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(wants_v4), 0, 0, 0, 0]);
    if wants_v4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    }
    answer
}

const RESOLVE: &str = "print(socket.gethostbyname('fdlink.test'))";

#[test]
fn names_are_looked_up_over_udp() {
    if !has("python3", "names_are_looked_up_over_udp") {
        return;
    }
    let server = name_server().to_string();
    as_each_user(|user| {
        let folder = user.folder();
        let file = folder.path().join("run.json");
        let options = ["--dns", &server, "--stats", file.to_str().unwrap()];
        assert_eq!(user.python(&options, RESOLVE), "192.0.2.77\n");
        let outbound = &stats(&file)["outbound"];
        assert!(outbound["dns_queries"].as_u64().unwrap() > 0, "{outbound}");
        assert_eq!(outbound["dns_queries"], outbound["dns_answers"], "{outbound}");
    });
}

#[test]
fn dig_works_over_udp_and_tcp() {
    if !has("dig", "dig_works_over_udp_and_tcp") {
        return;
    }
    let server = name_server().to_string();
    as_each_user(|user| {
        for how in ["+notcp", "+tcp"] {
            for at in ["@10.0.2.3", "@fd00:fd::3"] {
                let dig = ["dig", at, how, "+noedns", "+short", "+tries=1", "fdlink.test"];
                let output = crate::users::output(user.run(&["--dns", &server], &dig));
                let text = crate::users::text(&output);
                assert_eq!(String::from_utf8_lossy(&output.stdout), "192.0.2.77\n", "{how} {text}");
            }
        }
    });
}

#[test]
fn the_next_name_server_is_asked_where_one_does_not_answer() {
    if !has("python3", "the_next_name_server_is_asked_where_one_does_not_answer") {
        return;
    }
    let server = name_server().to_string();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = (silent.local_addr().unwrap().to_string(), silent);
    as_each_user(|user| {
        let started = Instant::now();
        let options = ["--dns", &silent.0, "--dns", &server];
        assert_eq!(user.python(&options, RESOLVE), "192.0.2.77\n");
        // After two seconds; glibc would ask again only after five.
        assert!(started.elapsed() < Duration::from_millis(4_500), "{:?}", started.elapsed());
    });
}

#[test]
fn a_name_server_that_is_not_there_is_passed_over_at_once() {
    if !has("python3", "a_name_server_that_is_not_there_is_passed_over_at_once") {
        return;
    }
    let server = name_server().to_string();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    as_each_user(|user| {
        let started = Instant::now();
        let options = ["--dns", &closed, "--dns", &server];
        assert_eq!(user.python(&options, RESOLVE), "192.0.2.77\n");
        assert!(started.elapsed() < Duration::from_millis(1_800), "{:?}", started.elapsed());
        // And where none is there, that is said at once too.
        let script = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)\n\
                      s.connect(('10.0.2.3', 53)); s.send(bytes(12))\n\
                      print(failure(lambda: s.recv(1)))";
        assert_eq!(user.python(&["--dns", &closed], script), "ECONNREFUSED\n");
    });
}
