//! Link endpoints on Linux file descriptors.

#[cfg(not(target_os = "linux"))]
compile_error!("fdlink works on Linux file descriptors and builds for Linux only");

#[cfg(feature = "tokio")]
pub mod aio;
pub mod batch;
pub mod dispatcher;
pub mod endpoint;
pub mod error;
pub mod link;
pub mod offload;
pub mod options;
pub mod queue;
pub mod report;
pub mod stats;

mod io;
mod sys;

pub use batch::{EtherType, Frame, LinkHeader, MacAddr, RxBatch, TxFrame, TxSlot};
pub use dispatcher::{NetworkDispatcher, QueueIndex};
pub use endpoint::{AttachError, Endpoint, JoinError, LinkEndpoint, TxPacket};
pub use error::SetupError;
pub use link::{Capabilities, FdLink, Link, LinkKind, LinkProperties};
pub use options::{LinkOptions, Mode, Offload};
pub use queue::{Closed, Fill, QueuePair, Receive, Sent, Transmit, Wakeup};
pub use report::Report;
