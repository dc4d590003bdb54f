//! Caches and locks on real Redis servers, which the tests start themselves on free ports.

mod cache;
mod faults;
mod lock;
mod model;
mod processes;
mod proxy;
mod server;
#[cfg(all(feature = "redis-cluster", feature = "redis-sentinel"))]
mod topologies;
