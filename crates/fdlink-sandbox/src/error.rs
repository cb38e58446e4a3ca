//! Why a sandbox could not be made: a variant per failing call on P's side, a [`Step`] per failing
//! call inside the new namespaces.

use std::{fmt, io, time::Duration};

/// Why [`Sandbox::start`](crate::Sandbox::start) failed. Whatever had been made is undone by then.
///
/// The message says what failed, `source()` why, [`Error::cure`] what may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The [`Config`](crate::Config) asks for something impossible.
    #[error("the sandbox cannot be made as asked: {0}")]
    Config(String),
    /// Another thread runs already. The child is a copy of this process with one thread only: a
    /// lock held by another thread would stay locked in it for ever.
    #[error(
        "a sandbox must be started before any other thread, and this process has {threads} threads"
    )]
    Threads {
        /// How many threads there are.
        threads: usize,
    },
    /// `/proc/self/task` could not be read, so nobody knows how many threads there are.
    #[error("the threads of this process could not be counted in /proc/self/task")]
    CountThreads(#[source] io::Error),
    /// `socketpair` failed.
    #[error("the control socket could not be made")]
    ControlSocket(#[source] io::Error),
    /// `clone` failed.
    #[error("new user, network, mount and PID namespaces could not be made")]
    Namespaces(#[source] io::Error),
    /// A step inside the new namespaces failed.
    #[error("{step}")]
    Setup {
        /// Which one.
        step: Step,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The child's report could not be received.
    #[error("the report of the sandbox's init could not be received")]
    Receive(#[source] io::Error),
    /// The kernel kept back descriptors: this process may not have more of them.
    #[error("only {received} of the {expected} descriptors of the link arrived")]
    Descriptors {
        /// How many there should have been.
        expected: usize,
        /// How many came.
        received: usize,
    },
    /// The child was killed, or panicked, before it was ready.
    #[error("the sandbox's init ended before it was ready")]
    Gone,
    /// The child did not get ready.
    #[error("the sandbox's init was not ready after {} s", .0.as_secs())]
    Timeout(Duration),
}

/// A step of the set-up inside the new namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// `prctl(PR_SET_PDEATHSIG)`.
    DeathSignal,
    /// The signal mask, the signal descriptor.
    Signals,
    /// `/proc/self/setgroups`.
    SetGroups,
    /// `/proc/self/uid_map`.
    UidMap,
    /// `/proc/self/gid_map`.
    GidMap,
    /// `mount(MS_REC | MS_SLAVE)` on `/`.
    MountPropagation,
    /// `socket(AF_NETLINK)`.
    Netlink,
    /// `socket(AF_PACKET)`.
    PacketSocket,
    /// `open("/proc/self/ns/net")`.
    NetworkHandle,
    /// `unshare(CLONE_NEWNET)`.
    NetworkNamespace,
    /// `RTM_NEWLINK` of the veth pair.
    CreateVeth,
    /// `open("/dev/net/tun")`.
    OpenTun,
    /// `TUNSETIFF`.
    CreateTap,
    /// `RTM_SETLINK` of the outer end.
    OuterLink,
    /// `bind` of a packet socket.
    BindPacketSocket,
    /// `RTM_SETLINK` of `lo`.
    Loopback,
    /// `RTM_SETLINK` of `eth0`.
    GuestLink,
    /// `RTM_NEWADDR`, IPv4.
    Address4,
    /// `RTM_NEWROUTE`, IPv4.
    Route4,
    /// `RTM_NEWADDR`, IPv6.
    Address6,
    /// `RTM_NEWROUTE`, IPv6.
    Route6,
    /// `PR_CAPBSET_DROP`, `PR_SET_SECUREBITS`, `capset`.
    Capabilities,
    /// `sendmsg(SCM_RIGHTS)`.
    SendDescriptors,
}

impl Step {
    /// Every step, in the order of their numbers on the control socket.
    const ALL: [Self; 23] = [
        Self::DeathSignal,
        Self::Signals,
        Self::SetGroups,
        Self::UidMap,
        Self::GidMap,
        Self::MountPropagation,
        Self::Netlink,
        Self::PacketSocket,
        Self::NetworkHandle,
        Self::NetworkNamespace,
        Self::CreateVeth,
        Self::OpenTun,
        Self::CreateTap,
        Self::OuterLink,
        Self::BindPacketSocket,
        Self::Loopback,
        Self::GuestLink,
        Self::Address4,
        Self::Route4,
        Self::Address6,
        Self::Route6,
        Self::Capabilities,
        Self::SendDescriptors,
    ];

    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeathSignal => "the sandbox's init could not be tied to this process",
            Self::Signals => "the sandbox's init could not take over its signals",
            Self::SetGroups => "/proc/self/setgroups could not be written",
            Self::UidMap => "the user id could not be mapped into the new user namespace",
            Self::GidMap => "the group id could not be mapped into the new user namespace",
            Self::MountPropagation => {
                "the new mount namespace could not be cut off from the host's"
            }
            Self::Netlink => "a netlink socket could not be opened",
            Self::PacketSocket => "an AF_PACKET socket could not be opened",
            Self::NetworkHandle => "/proc/self/ns/net could not be opened",
            Self::NetworkNamespace => "a second network namespace could not be made",
            Self::CreateVeth => "a veth pair could not be made",
            Self::OpenTun => "/dev/net/tun could not be opened",
            Self::CreateTap => "a TAP device could not be made",
            Self::OuterLink => "the outer end of the link could not be configured",
            Self::BindPacketSocket => "an AF_PACKET socket could not be bound to the link",
            Self::Loopback => "the loopback interface could not be brought up",
            Self::GuestLink => "the command's interface could not be brought up",
            Self::Address4 => "the IPv4 address could not be set",
            Self::Route4 => "the IPv4 default route could not be set",
            Self::Address6 => "the IPv6 address could not be set",
            Self::Route6 => "the IPv6 default route could not be set",
            Self::Capabilities => "the capabilities could not be given up",
            Self::SendDescriptors => "the descriptors of the link could not be passed out",
        })
    }
}

/// A failed step, on its way to P.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: rustix::io::Errno,
}

/// Names the step that an error belongs to.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, rustix::io::Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, errno })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: Step) -> Result<T, Failure> {
        // Only errors that the kernel did not give have no errno: a reply we cannot parse.
        self.map_err(|error| Failure {
            step,
            errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::PROTO),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_keep_their_numbers() {
        for step in Step::ALL {
            assert_eq!(Step::from_number(step.number()), Some(step));
        }
        assert_eq!(Step::from_number(Step::SendDescriptors.number() + 1), None);
    }
}
