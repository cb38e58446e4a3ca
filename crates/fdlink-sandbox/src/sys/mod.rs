//! The only unsafe code of this crate: system calls that neither std nor rustix offers safely,
//! each as a safe function. No policy in here.

pub(crate) mod descriptors;
pub(crate) mod link;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod signal;
