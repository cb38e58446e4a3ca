//! What is meant: the arguments, checked, with everything that they leave open decided.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use fdlink::Mode;
use fdlink_sandbox::LinkChoice;

use crate::cli::{LinkKind, RunArgs};
use crate::failure::Failure;
use crate::outbound::Policy;
use crate::outbound::resolvers::{self, Resolvers};

/// A command in a network of its own: what `session.rs` starts.
#[derive(Clone, Debug)]
pub(crate) struct SessionPlan {
    /// The command and its arguments.
    pub(crate) command: Vec<OsString>,
    /// How frames cross the descriptors.
    pub(crate) mode: Mode,
    /// What the command's interface is.
    pub(crate) link: LinkChoice,
    /// Descriptors on the link.
    pub(crate) queues: usize,
    /// MTU of the command's interface.
    pub(crate) mtu: u32,
    /// Whether the command sees itself as root.
    pub(crate) root: bool,
    /// Where it may connect to.
    pub(crate) policy: Policy,
    /// Whom its name look-ups go to.
    pub(crate) resolvers: Resolvers,
}

/// `fdlink run`.
#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    pub(crate) session: SessionPlan,
    /// Where the counters go.
    pub(crate) stats: Option<PathBuf>,
    /// Whether notes go to stderr.
    pub(crate) verbose: bool,
}

/// The largest MTU: what is left of the 65535 bytes that a frame may have beside every header and
/// tag there is, and a multiple of 16. What slirp4netns and pasta use.
const MAX_MTU: u32 = 65_520;
/// The least that IPv4 allows (RFC 791, section 3.2).
const MIN_MTU: u32 = 68;
/// As many descriptors as fdlink-sandbox passes on.
const MAX_QUEUES: u16 = 64;

impl RunPlan {
    /// What `args` mean.
    pub(crate) fn new(args: RunArgs) -> Result<Self, Failure> {
        if !(MIN_MTU..=MAX_MTU).contains(&args.mtu) {
            return Err(Failure::new(format!(
                "--mtu {}: an MTU is {MIN_MTU} to {MAX_MTU} bytes",
                args.mtu
            )));
        }
        if !(1..=MAX_QUEUES).contains(&args.queues) {
            return Err(Failure::new(format!(
                "--queues {}: a link has 1 to {MAX_QUEUES} queues",
                args.queues
            )));
        }
        if args.mode == Mode::PacketMmap && args.link == LinkKind::Tap {
            return Err(Failure::new(
                "--mode packet-mmap: a TAP has no ring that could be shared with the kernel",
            )
            .hint("use --link veth, or --mode readv".to_owned()));
        }
        if args.mode == Mode::RecvMmsg && args.link == LinkKind::Tap {
            return Err(Failure::new("--mode recvmmsg: a TAP is no socket")
                .hint("use --link veth, or --mode readv".to_owned()));
        }
        let resolvers = match args.dns.is_empty() {
            true => Resolvers::of_host(),
            false => Resolvers::fixed(
                args.dns.iter().map(|text| resolver(text)).collect::<Result<_, _>>()?,
            ),
        };
        let link = match args.link {
            LinkKind::Veth => LinkChoice::Veth,
            LinkKind::Tap => LinkChoice::Tap,
        };
        let session = SessionPlan {
            command: args.command,
            mode: args.mode,
            link,
            queues: usize::from(args.queues),
            mtu: args.mtu,
            root: args.root,
            policy: Policy { host_loopback: args.host_loopback },
            resolvers,
        };
        Ok(Self { session, stats: args.stats, verbose: args.verbose })
    }
}

/// A name server: an address, or an address and a port.
fn resolver(text: &str) -> Result<SocketAddr, Failure> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, resolvers::PORT));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(Failure::new(format!("--dns {text}: this is no address of a name server"))
            .hint("write 192.0.2.1, 192.0.2.1:5353, 2001:db8::1 or [2001:db8::1]:5353".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn plan(args: &[&str]) -> Result<RunPlan, Failure> {
        let args = ["fdlink", "run"].iter().chain(args).chain(&["true"]);
        let Command::Run(run) = Cli::parse_from(args).command else { panic!() };
        RunPlan::new(run)
    }

    #[test]
    fn bounds_are_kept() {
        for good in [["--mtu", "68"], ["--mtu", "65520"], ["--queues", "1"], ["--queues", "64"]] {
            assert!(plan(&good).is_ok(), "{good:?}");
        }
        for bad in [["--mtu", "67"], ["--mtu", "65521"], ["--queues", "0"], ["--queues", "65"]] {
            assert!(plan(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mode_that_a_tap_cannot_have_is_refused() {
        for (mode, possible) in
            [("auto", true), ("readv", true), ("recvmmsg", false), ("packet-mmap", false)]
        {
            assert_eq!(plan(&["--link", "tap", "--mode", mode]).is_ok(), possible, "{mode}");
            assert!(plan(&["--mode", mode]).is_ok(), "{mode}");
        }
    }

    #[test]
    fn name_servers_may_have_a_port() {
        let cases = [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ];
        for (text, address) in cases {
            assert_eq!(resolver(text).unwrap(), address.parse().unwrap(), "{text}");
        }
        for bad in ["", "example.org", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:66000"] {
            assert!(resolver(bad).is_err(), "{bad}");
        }
    }
}
