//! What the program can do, a file for each.

pub(crate) mod run;
