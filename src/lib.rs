//! Cache-stampede protection.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "cache")]
mod cache;
#[cfg(feature = "cache")]
mod clock;
mod error;
#[cfg(feature = "cache")]
mod event;
mod flight;
#[cfg(feature = "layer")]
mod http;
#[cfg(feature = "layer")]
mod layer;
#[cfg(feature = "cache")]
mod policy;
#[cfg(feature = "cache")]
mod rng;
mod sync;
#[cfg(all(feature = "cache", feature = "test-util"))]
pub mod test_util;

#[cfg(feature = "cache")]
pub use cache::{
    CacheStats, EvictionCause, Fetched, LoadContext, Loaded, StampedeCache, StampedeCacheBuilder,
};
#[cfg(feature = "cache")]
pub use clock::Clock;
pub use error::{ConfigError, LoadError, Overloaded, Panicked, TimedOut};
#[cfg(feature = "cache")]
pub use event::{Outcome, StaleReason};
pub use flight::{FlightStats, Flown, OnAbandon, Role, SingleFlight, SingleFlightBuilder};
#[cfg(feature = "layer")]
pub use layer::{
    BrokenBody, GuardBody, GuardService, GuardStats, KeyExtra, ResponseFuture, StampedeGuard,
    StampedeGuardBuilder,
};
#[cfg(feature = "cache")]
pub use policy::EarlyRefresh;
#[cfg(all(feature = "cache", feature = "test-util"))]
pub use test_util::ManualClock;
