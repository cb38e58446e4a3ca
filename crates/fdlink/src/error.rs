//! What can go wrong while a link is built. On the data path there are only `io::Error` and
//! counters.

use std::io;

/// Why a link could not be built. Nothing that had been done to the descriptors remains, but for what
/// [`adopt`](crate::link::adopt) names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// No descriptor was given.
    #[error("a link needs at least one descriptor")]
    NoDescriptors,
    /// A system call failed.
    #[error("{call} failed on {subject}")]
    Call {
        /// The system call, with the option where there is one.
        call: &'static str,
        /// What it was called on: an interface's name, or `descriptor K`.
        subject: String,
        /// Why.
        source: io::Error,
    },
    /// A descriptor is not of a kind that a link can be made of.
    #[error("descriptor {index} is {found}; a link needs {expected}")]
    WrongKind {
        /// Which one, in the order given.
        index: usize,
        /// What it is.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// An option does not go with the descriptors.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What it needs.
        expected: String,
        /// What is there.
        found: String,
    },
}
