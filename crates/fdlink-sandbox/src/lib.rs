//! A command in a network of its own, without root: what `fdlink run` needs, as a library.
//!
//! # The nouns
//!
//! * **P** is the program that uses this crate. It makes a [`Sandbox`] while it has one thread.
//! * **init** is P's only child here: PID 1 of a new PID namespace, in a new user, network and
//!   mount namespace. It sets everything up, starts the command, reaps, forwards signals, and
//!   takes the whole PID namespace with it when it ends.
//! * **CMD** is the command. It keeps its user id, has no capabilities (unless
//!   [`Config::root`] asks), and sees one interface, `eth0`, with one way out.
//! * The **outer end** of that interface is what P gets: bound `AF_PACKET` sockets, or TAP
//!   descriptors. P needs no privilege to use them.
//!
//! # The life of a sandbox
//!
//! 1. [`Sandbox::start`] makes the namespaces, link, addresses, routes and mounts. Must be called
//!    before any thread is started.
//! 2. [`Sandbox::take_descriptors`] gives the outer end of the link. Whoever reads it starts now.
//! 3. [`Sandbox::run_command`] starts CMD.
//! 4. [`Sandbox::control`] becomes readable when [`Sandbox::next_event`] has something to tell.
//! 5. Dropping the `Sandbox` kills and reaps whatever is left in it.
//!
//! # What always holds
//!
//! * Nothing outlives P: init has `PR_SET_PDEATHSIG` and also ends when its control socket hangs
//!   up; when init ends, the kernel kills every process of its PID namespace, whatever session or
//!   group it moved to. Interfaces, namespaces and mounts go with the last process and descriptor.
//! * Nothing outside the namespaces is changed: no file, no mount, no interface.
//! * What could not be done but can be lived without is left out and said ([`Sandbox::notes`]);
//!   everything else is an [`Error`] with its cause, and with a cure where one is known
//!   ([`Error::cure`]).
//!
//! # What it is not
//!
//! A wall around the network, not around files: the command has its user's files, and whatever
//! listens on a socket *in the file system* (an agent, a display, a container engine) can be asked
//! to use the network for it. Abstract sockets and loopback are its own.
//!
//! # Signals and terminals
//!
//! CMD has P's standard streams, session and process group. A Ctrl-C at the terminal therefore
//! reaches CMD without P's help. [`Sandbox::forward_signal`] is for signals sent to P alone
//! (`si_code` `SI_USER`, as from `kill PID` or a supervisor); see there.
//!
//! ```no_run
//! use fdlink_sandbox::{Config, Event, Sandbox};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config { command: vec!["true".into()], ..Config::default() };
//! let mut sandbox = Sandbox::start(&config)?;
//! let outer = sandbox.take_descriptors(); // read and write Ethernet frames here
//! sandbox.run_command()?;
//! let event = sandbox.wait_event()?;
//! assert!(matches!(event, Event::Exited(exit) if exit.code() == 0));
//! # drop(outer);
//! # Ok(())
//! # }
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("fdlink-sandbox is made of Linux namespaces: it works on Linux only");

mod child;
mod config;
mod control;
mod cure;
mod error;
mod init;
mod linger;
mod mounts;
mod netlink;
mod network;
mod privileges;
mod resolv;
mod sandbox;
mod sys;

pub use config::{Config, LinkChoice};
pub use error::{Error, Step};
pub use sandbox::{Event, Exit, Sandbox};
