//! Cache-stampede protection: when a hot key expires or is cold, one load runs. Everyone else waits for it or gets a
//! slightly stale answer, expiries are spread, and the origin stays calm.
//!
//! Three ways in, one engine underneath:
//!
//! 1. [`StampedeGuard`], a Tower layer over an axum router or any HTTP service:
//!
//! ```
//! # #[cfg(feature = "layer")] {
//! use axum::{Router, routing::get};
//! use stampede_guard::StampedeGuard;
//!
//! let app: Router =
//!     Router::new().route("/products/{id}", get(|| async { "..." })).layer(StampedeGuard::new());
//! # }
//! ```
//!
//! 2. [`SingleFlight`] on its own, where nothing is to be cached:
//!
//! ```
//! # use stampede_guard::{LoadError, SingleFlight};
//! # async fn load_user(id: &str) -> Result<String, std::io::Error> { Ok(id.into()) }
//! # async fn get(id: String) -> Result<(), LoadError<std::io::Error>> {
//! let flights: SingleFlight<String, String, std::io::Error> = SingleFlight::new();
//! let user = flights.run(id.clone(), || async move { load_user(&id).await }).await?;
//! # drop(user); Ok(())
//! # }
//! ```
//!
//! 3. [`StampedeCache`], for data inside a service:
//!
//! ```
//! # #[cfg(feature = "cache")] {
//! # use std::time::Duration;
//! # use stampede_guard::StampedeCache;
//! # async fn product(id: &str) -> Result<String, std::io::Error> { Ok(id.into()) }
//! # async fn get(id: String) -> Result<(), Box<dyn std::error::Error>> {
//! let cache: StampedeCache<String, String, std::io::Error> = StampedeCache::builder()
//!     .ttl(Duration::from_secs(60))
//!     .jitter(0.1)
//!     .stale_while_revalidate(Duration::from_secs(30))
//!     .build()?;
//! let product = cache.get_or_load(id.clone(), || async move { product(&id).await }).await?;
//! # drop(product); Ok(())
//! # }
//! # }
//! ```
//!
//! # What holds under any interleaving
//!
//! - One live load a key. It belongs to its flight and not to the caller that started it, so a caller that is dropped
//!   or never polled again stalls nobody.
//! - One failure, panic or time-out is one run, shared by all who waited, and not cached.
//! - An `insert` or `invalidate` during a load wins over its result.
//! - A runtime that shuts down ends waits with [`LoadError::Cancelled`]; nothing hangs, nothing is poisoned.
//!
//! # Testing code that uses it
//!
//! Time is Tokio's, so a test that pauses it (Tokio's feature `test-util`) needs nothing else and never sleeps:
//!
//! ```
//! # #[cfg(feature = "cache")] {
//! use std::time::Duration;
//! use stampede_guard::StampedeCache;
//!
//! // In a test: #[tokio::test(start_paused = true)]
//! #[tokio::main(flavor = "current_thread", start_paused = true)]
//! async fn main() {
//!     let cache: StampedeCache<u64, u64> =
//!         StampedeCache::builder().ttl(Duration::from_secs(60)).jitter(0.0).build().unwrap();
//!     assert_eq!(cache.get_or_load(1, || async { Ok(10) }).await.unwrap(), 10);
//!     assert_eq!(cache.get_or_load(1, || async { Ok(11) }).await.unwrap(), 10);
//!     tokio::time::advance(Duration::from_secs(60)).await;
//!     assert_eq!(cache.get_or_load(1, || async { Ok(12) }).await.unwrap(), 12);
//! }
//! # main();
//! # }
//! ```
//!
//! Where the runtime cannot be paused, `clock` takes a `ManualClock` (feature `test-util`). It moves freshness alone:
//! `load_timeout`, `soft_timeout` and `wait_timeout` stay Tokio's timers. `seed` makes jitter and early refresh
//! repeatable. With `redis`, the tier in memory of `test_util` loses and delays messages as drawn from a seed.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `cache` | yes | [`StampedeCache`], on moka |
//! | `layer` | yes | [`StampedeGuard`] |
//! | `grpc` | no | `GrpcStampedeGuard`: unary gRPC methods that opted in, under tonic or axum |
//! | `quick-cache` | no | `QuickCache`, a second [`Store`] for the cache, whose hits cost less |
//! | `metrics` | no | counters and histograms through the [`metrics`](https://docs.rs/metrics) facade |
//! | `tracing` | with `layer`, `redis` | a span for each load, from which the spans of those who wait follow; warnings |
//! | `redis` | no | `RedisTier` and `RedisLock`: one loader among all instances of a service; see `docs/redis.md` |
//! | `redis-cluster`, `redis-sentinel`, `redis-tls` | no | Redis Cluster, Sentinel, TLS |
//! | `test-util` | no | `ManualClock`; with `redis`, a tier in memory that fails at will |
//!
//! Without any of them there is [`SingleFlight`], on tokio and hashbrown. What `metrics` counts of it are its waiters alone;
//! [`stats`](SingleFlight::stats) has the rest.
//!
//! With `metrics`: `stampede_requests_total{outcome}`, `stampede_loads_total{result}` (`ok`, `error`, `dropped`),
//! `stampede_load_seconds`, `stampede_refreshes_total`, `stampede_stale_age_seconds`, `stampede_shed_total{cap}`
//! (`in_flight`, `waiters`) and `stampede_waiters`, how many callers waited for a flight when it ended; with `redis`,
//! too: `stampede_lock_wait_seconds{of}` (`load`: for a load in another instance, `lock`: in `RedisLock::acquire`),
//! `stampede_publications_total{result}` (`ok`, `superseded`, `local`), `stampede_redis_errors_total{kind}` (`timeout`,
//! `connection`, `refused`, `malformed`) and the gauges `stampede_redis_circuit_open{namespace}`, 1 while callers go on
//! without Redis, and `stampede_redis_subscribed{namespace}`, 1 while events of other instances arrive. `describe_metrics` tells the recorder so; `docs/operations.md` says what to alert on.
//!
//! With `tracing`, each load runs in a span `load` within the span of the caller that started it (in that one itself, if
//! the subscriber does not want level debug), and the span of each caller that waits for it follows from it. With `redis`,
//! a caller that waits for another instance does so in the span `shared_wait`, and the load that it waits for runs in a
//! span `shared_load` of the same `token`. All are at level debug. No label or span holds a key or a value.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "cache")]
mod cache;
#[cfg(feature = "cache")]
mod clock;
#[cfg(feature = "redis")]
mod codec;
#[cfg(feature = "redis")]
mod coordinate;
#[cfg(feature = "cache")]
mod deferred;
#[cfg(feature = "metrics")]
mod describe;
mod error;
#[cfg(feature = "cache")]
mod event;
mod flight;
#[cfg(feature = "layer")]
mod http;
#[cfg(feature = "cache")]
mod invalidation;
#[cfg(feature = "layer")]
mod layer;
#[cfg(feature = "cache")]
mod policy;
mod quietly;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "cache")]
mod rng;
#[cfg(feature = "cache")]
mod stable_hash;
mod sync;
#[cfg(feature = "test-util")]
pub mod test_util;
mod trace;
#[cfg(feature = "redis")]
mod trouble;

#[cfg(feature = "redis-sentinel")]
pub use crate::redis::RedisCredentials;
#[cfg(feature = "redis-tls")]
pub use crate::redis::RedisTls;
#[cfg(feature = "redis")]
pub use crate::redis::{LockError, LockGuard, RedisConfig, RedisLock, RedisStats, RedisTier, RedisTierError};
#[cfg(feature = "quick-cache")]
pub use cache::QuickCache;
#[cfg(feature = "cache")]
pub use cache::{
    CacheStats, EvictionCause, Fetched, LoadContext, Loaded, Moka, StampedeCache, StampedeCacheBuilder, Store,
};
#[cfg(feature = "cache")]
pub use clock::Clock;
#[cfg(feature = "redis")]
pub use codec::{Codec, CodecError, PostcardCodec};
#[cfg(feature = "redis")]
pub use coordinate::{SharedKey, SharedTier};
#[cfg(feature = "metrics")]
pub use describe::describe_metrics;
pub use error::{ConfigError, LoadError, Overloaded, Panicked, RemoteKind, TimedOut};
#[cfg(feature = "cache")]
pub use event::{Outcome, StaleReason};
pub use flight::{FlightStats, Flown, OnAbandon, Role, SingleFlight, SingleFlightBuilder};
#[cfg(feature = "cache")]
pub use invalidation::{Invalidation, KeyRef, Undelivered};
#[cfg(feature = "layer")]
pub use layer::{
    BrokenBody, GuardBody, GuardService, GuardStats, KeyExtra, OnWaitTimeout, ResponseFuture, StampedeGuard,
    StampedeGuardBuilder,
};
#[cfg(feature = "grpc")]
pub use layer::{GrpcGuardService, GrpcMethod, GrpcStampedeGuard, RequestBody};
#[cfg(feature = "cache")]
pub use policy::EarlyRefresh;
#[cfg(feature = "test-util")]
pub use test_util::ManualClock;
