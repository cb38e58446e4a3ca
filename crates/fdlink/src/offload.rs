//! Work that one side of a link may leave to the other: checksums and segmentation. Pure and
//! public: bytes in, bytes out; no descriptor, no stack, no clock, and no input makes it panic.
//! For people who bring their own I/O, too.

pub mod checksum;
pub mod coalesce;
pub mod flow_hash;
mod ip;
pub mod segment;
pub mod vnet;
