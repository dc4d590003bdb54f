//! Ours beside its peers and beside the floors under both, in one process. See `main.rs` for how to run it.

pub mod bench;
pub mod clocks;
pub mod counting;
pub mod load;
pub mod peers;
pub mod scenarios;
