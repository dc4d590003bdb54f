//! Leases, values and events on Redis.
//!
//! A request's way: `member` or `lock` asks (`acquire`), through `scripts`, over the connection that `link` keeps;
//! `lease` is what it may be given; `subscriber` hears what others do and `events` wakes those who wait for it;
//! `undone` is what Redis has to be told once it is back.

mod acquire;
mod config;
mod connector;
mod envelope;
mod events;
mod keys;
mod lease;
mod link;
mod lock;
mod member;
mod scripts;
mod stats;
mod subscriber;
mod tier;
mod undone;

#[cfg(feature = "redis-sentinel")]
pub use config::RedisCredentials;
#[cfg(feature = "redis-tls")]
pub use config::RedisTls;
pub use config::{RedisConfig, RedisTierError};
pub use lock::{LockError, LockGuard, RedisLock};
pub use stats::RedisStats;
pub use tier::RedisTier;
