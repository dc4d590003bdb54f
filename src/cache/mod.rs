//! The cache: freshness, flights and a store joined.

mod builder;
mod departures;
mod engine;
mod entry;
#[cfg(feature = "redis")]
mod errand;
mod fetch;
mod generations;
mod loaded;
mod many;
#[cfg(feature = "redis")]
mod shared;
mod shelf;
mod stampede;
mod stats;
mod store;

pub use builder::StampedeCacheBuilder;
pub use departures::EvictionCause;
pub use fetch::Fetched;
pub use loaded::{LoadContext, Loaded};
pub use stampede::StampedeCache;
pub use stats::CacheStats;
#[cfg(feature = "quick-cache")]
pub use store::QuickCache;
pub use store::{Moka, Store};

#[cfg(feature = "layer")]
pub(crate) use self::{
    builder::check_jitter,
    entry::{Arrival, Destination, Entry, Receipt, Storing},
    generations::{Born, Mark, mark_of},
    shelf::{Shelf, ShelfConfig},
    store::StoreKind,
};
#[cfg(all(feature = "layer", feature = "redis"))]
pub(crate) use self::{
    entry::Stamp,
    generations::MARKS,
    shared::{capped, rest_of},
};
