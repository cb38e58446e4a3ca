//! fdlink
fn main(){}
