//! System calls behind safe functions; the only place of this crate with unsafe code.

pub(crate) mod alloc;
pub(crate) mod option;
pub(crate) mod packet;
pub(crate) mod signal;
pub(crate) mod tun;
pub(crate) mod unshare;
