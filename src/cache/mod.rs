//! The cache: freshness, flights and a store joined.

mod builder;
mod engine;
mod fetch;
mod generations;
mod loaded;
mod many;
#[cfg(feature = "redis")]
mod shared;
mod shelf;
mod stampede;
mod stats;

pub use builder::StampedeCacheBuilder;
pub use fetch::Fetched;
pub use loaded::{LoadContext, Loaded};
pub use shelf::EvictionCause;
pub use stampede::StampedeCache;
pub use stats::CacheStats;

#[cfg(feature = "layer")]
pub(crate) use self::{
    builder::{check_jitter, check_life, check_window},
    generations::{Born, Mark},
    shelf::{Arrival, Destination, Entry, Shelf, ShelfConfig, Storing},
};
