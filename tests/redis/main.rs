//! Caches and locks on real Redis servers, which the tests start themselves on free ports.
//!
//! `REDIS_SERVER` names the program, if it is not to be `redis-server`: that of Valkey, say.
//! `STAMPEDE_TEST_STEPS`, `STAMPEDE_TEST_PROCESSES` and `STAMPEDE_TEST_ROUNDS` make some of them longer.

mod cache;
mod calls;
#[cfg(feature = "metrics")]
#[path = "../support/counts.rs"]
mod counts;
#[cfg(feature = "metrics")]
#[path = "../support/everything.rs"]
mod everything;
mod faults;
#[cfg(all(feature = "layer", feature = "test-util"))]
mod http;
mod lock;
mod model;
#[cfg(feature = "metrics")]
mod observed;
mod processes;
mod proxy;
mod server;
mod shared_stale;
#[cfg(all(feature = "layer", feature = "test-util"))]
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "redis-tls")]
mod tls;
#[cfg(all(feature = "redis-cluster", feature = "redis-sentinel"))]
mod topologies;
