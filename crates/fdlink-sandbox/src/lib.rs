//! fdlink-sandbox
