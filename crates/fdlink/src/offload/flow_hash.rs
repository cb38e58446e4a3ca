//! flow_hash
