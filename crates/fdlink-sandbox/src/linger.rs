//! What the command's kernel still has to say when the command has ended.
//!
//! A kernel goes on delivering what a process wrote after the process is gone; here the kernel's
//! network would be gone with init. So init waits until no connection of the namespace that was
//! closed has bytes, or its FIN, unacknowledged, and not without bound.

use std::fs;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::Control;

/// The longest wait. A kernel alone would go on for minutes; a command that has ended should not
/// keep its caller that long.
const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks; the first come quickly, for nearly always there is nothing to wait for.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// States of include/net/tcp_states.h in which a FIN of ours is not acknowledged: FIN_WAIT1,
/// LAST_ACK, CLOSING, as /proc/net/tcp writes them.
const CLOSING: [&str; 3] = ["04", "09", "0B"];

/// Waits until closed connections have delivered what was written to them, until P says anything
/// (a signal for the command that has ended, or its hang-up), or until [`LIMIT`].
pub(crate) fn until_delivered(control: &Control) {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    while started.elapsed() < LIMIT && something_is_closing() {
        let timeout = Timespec::try_from(pause).ok();
        let mut ready = [PollFd::new(control, PollFlags::IN)];
        if !matches!(poll(&mut ready, timeout.as_ref()), Ok(0)) {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn something_is_closing() -> bool {
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .any(|table| fs::read_to_string(table).is_ok_and(|text| has_closing(&text)))
}

/// Whether a table of connections (Documentation/networking/proc_net_tcp.rst) has a closing one.
fn has_closing(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        // sl, local_address, rem_address, st, …
        line.split_whitespace().nth(3).is_some_and(|state| CLOSING.contains(&state))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";

    fn table(states: &[&str]) -> String {
        let rows = states.iter().enumerate().map(|(number, state)| {
            format!(
                "\n   {number}: 0F02000A:8E5A 0202000A:1F90 {state} 000FA000:00000000 01:0 0 65534"
            )
        });
        HEAD.to_owned() + &rows.collect::<String>()
    }

    #[test]
    fn only_connections_with_an_unacknowledged_fin_are_waited_for() {
        assert!(!has_closing(HEAD));
        // Established, SYN_SENT, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LISTEN.
        assert!(!has_closing(&table(&["01", "02", "05", "06", "07", "08", "0A"])));
        for closing in CLOSING {
            assert!(has_closing(&table(&["01", closing])), "{closing}");
        }
    }
}
