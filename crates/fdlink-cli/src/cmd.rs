//! What the program can do, a file for each.

pub(crate) mod demo;
pub(crate) mod run;
