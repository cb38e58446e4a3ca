//! fdlink-stack
