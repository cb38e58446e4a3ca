//! Socket buffers that somebody with more rights has made larger than the limit: they do not shrink,
//! and go back to what they were.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::datagrams;
use fdlink::LinkOptions;
use fdlink::link::{adopt, adopt_borrowed};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

// asm-generic/socket.h: SO_RCVBUF and SO_SNDBUF, then those that exceed limits.
const PLAIN: [i32; 2] = [8, 7];
const FORCE: [i32; 2] = [33, 32];

/// A socket with buffers of four times the limits; `None` without the right to them.
fn large(test: &str) -> Option<(OwnedFd, usize)> {
    let limit = |name| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap();
    let limits = ["rmem_max", "wmem_max"].map(|name| limit(name).trim().parse::<i32>().unwrap());
    let asked = limits[0].max(limits[1]).checked_mul(4).filter(|asked| *asked < i32::MAX / 4);
    let Some(asked) = asked else {
        testkit::skip(test, "there is no limit");
        return None;
    };
    let socket = datagrams().0;
    for name in FORCE {
        if let Err(error) = testkit::set_socket_option(socket.as_fd(), 1, name, asked) {
            testkit::skip(test, &format!("no buffers above the limit: {error}"));
            return None;
        }
    }
    Some((socket, usize::try_from(asked).unwrap() * 2))
}

fn sizes(socket: &OwnedFd) -> [i32; 2] {
    PLAIN.map(|name| testkit::socket_option(socket.as_fd(), 1, name).unwrap())
}

#[test]
fn a_link_without_rights_keeps_what_a_socket_has() {
    let Some((socket, size)) = large("a_link_without_rights_keeps_what_a_socket_has") else {
        return;
    };
    let before = sizes(&socket);
    // Of a thread, and so of this test alone.
    let mut rights = capabilities(None).unwrap();
    rights.effective.remove(CapabilitySet::NET_ADMIN);
    set_capabilities(None, rights).unwrap();
    let shared = socket.try_clone().unwrap();
    let link = adopt(vec![socket], &LinkOptions::new().socket_buffer(2 * size)).unwrap();
    assert_eq!(sizes(&shared), before);
    let notes = ["SO_RCVBUF", "SO_SNDBUF"]
        .map(|name| format!("descriptor 0: {name} is {size} of {} bytes", 2 * size));
    assert_eq!(fdlink::Link::report(&link).notes, notes);
    // Where there is something to be gained, it is.
    let (small, _far) = datagrams();
    let shared = small.try_clone().unwrap();
    let before = sizes(&shared);
    let _link = adopt(vec![small], &LinkOptions::new().socket_buffer(2 * size)).unwrap();
    assert!(sizes(&shared).iter().zip(before).all(|(now, then)| *now >= then));
}

#[test]
fn a_borrowed_socket_gets_back_what_it_had() {
    let Some((socket, size)) = large("a_borrowed_socket_gets_back_what_it_had") else { return };
    let before = sizes(&socket);
    let options = LinkOptions::new().socket_buffer(2 * size);
    let link = adopt_borrowed(&[socket.as_fd()], &options).unwrap();
    assert!(sizes(&socket).iter().zip(before).all(|(now, then)| *now > then));
    drop(link);
    assert_eq!(sizes(&socket), before);
}
