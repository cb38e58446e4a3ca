//! What was typed. What it means, and whether it can be, is `plan.rs`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fdlink::Mode;

use crate::cmd::demo::DemoArgs;
use crate::cmd::demo::client::ClientArgs;
use crate::cmd::demo::process::RowArgs;

use crate::failure::OUR_FAILURE;

/// Fast user-space networking on file descriptors, without root
#[derive(Debug, Parser)]
#[command(name = "fdlink", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  fdlink run -- curl -s https://example.org/    a command in a network of its own
  fdlink run -- bash                            a shell in one
  fdlink demo                                   what every mode moves on this machine
  fdlink help run                               what `run` can do, with more examples")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do. What it is about is said by the arguments: a comment here would replace that.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Demo(DemoArgs),
    /// A row of the demo: endpoint, stack and sandbox
    #[command(hide = true)]
    DemoRow(RowArgs),
    /// The command in the sandbox of a row
    #[command(hide = true)]
    DemoClient(ClientArgs),
}

/// `fdlink run`.
#[derive(Args, Debug)]
#[command(about = "Run a command in a network of its own, whose only way out is this program")]
#[command(long_about = "\
Run a command in a network of its own, whose only way out is this program.

The command gets fresh user, network, mount and PID namespaces: no privilege is needed, none is \
given, and nothing is left behind. It keeps its user id, its files and its terminal. It has one \
interface, eth0, with 10.0.2.15 and fd00:fd::15; its TCP connections, UDP datagrams, pings and \
name look-ups are taken in by a TCP/IP stack in this program and go on from here as connections of \
the host.

Loopback, link-local and multicast addresses of the host are out of reach. The host's 127.0.0.1 \
and ::1 are reached at 10.0.2.2 and fd00:fd::2, and only with --host-loopback.")]
#[command(after_long_help = "\
Examples:
  Fetch a page:
      fdlink run -- curl -sO https://example.org/
  Look around in a shell:
      fdlink run -- bash
  Use a server that listens on the host's 127.0.0.1:8080 (or on [::1]:8080, at fd00:fd::2):
      fdlink run --host-loopback -- curl -s http://10.0.2.2:8080/
  Measure:
      iperf3 -s -D && fdlink run --host-loopback -- iperf3 -c 10.0.2.2
  See what happened to every packet:
      fdlink run --stats run.json -- make test
  Be root inside, for programs that insist:
      fdlink run --root -- ip addr

Exit status:
  the command's own; 128 + N where signal N ended it; 127 where there is no such command, 126 where \
it cannot be executed; 125 where fdlink itself failed.")]
pub(crate) struct RunArgs {
    /// How frames cross the descriptor: auto, readv, recvmmsg or packet-mmap
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub(crate) mode: Mode,

    /// What the command's interface is
    ///
    /// veth needs nothing from the host; tap needs /dev/net/tun to be open for this user.
    #[arg(long, value_name = "KIND", default_value = "veth")]
    pub(crate) link: LinkKind,

    /// Descriptors (and so queues) on the link, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) queues: u16,

    /// MTU of the command's interface, 68 to 65520 bytes
    ///
    /// Segmentation offload makes large ones unnecessary. Below 1280 there is no IPv6.
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub(crate) mtu: u32,

    /// Let the command see itself as root, over its own namespaces only
    #[arg(long)]
    pub(crate) root: bool,

    /// Let the command reach the host's loopback, at 10.0.2.2 and fd00:fd::2
    #[arg(long)]
    pub(crate) host_loopback: bool,

    /// Ask this name server instead of those in /etc/resolv.conf; may be repeated
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub(crate) dns: Vec<String>,

    /// Write what was counted to this file, as JSON, when the command has ended
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,

    /// Say on stderr what was set up, and what had to be left out
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// The kinds of link that `run` can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkKind {
    /// A veth pair and a packet socket on its far end
    Veth,
    /// A TAP device
    Tap,
}

/// Says what clap has to say: help and version on stdout, errors in our words on stderr. A reader
/// who has gone is no error of ours.
pub(crate) fn say(answer: &clap::Error) -> ExitCode {
    if !answer.use_stderr() || answer.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        let _ = answer.print();
        return ExitCode::from(if answer.use_stderr() { OUR_FAILURE } else { 0 });
    }
    let text = answer.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let _ = write!(io::stderr(), "fdlink: {text}");
    ExitCode::from(OUR_FAILURE)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_command_are_the_commands() {
        let cli = Cli::parse_from(["fdlink", "run", "--mtu", "9000", "ls", "--mtu", "-v"]);
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!(run.command, ["ls", "--mtu", "-v"]);
        assert!(!run.verbose);
        assert_eq!(run.mtu, 9000);
    }
}
