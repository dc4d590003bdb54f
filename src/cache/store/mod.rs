//! Where entries are kept: one of two stores, with the same promises.
//!
//! No store knows of freshness. An expiry of its own would read the clock once more at each hit and could not serve
//! stale values; here a lookup is one probe, and policy decides what the entry found is good for. Entries past their
//! last use stay until they are replaced or the capacity pushes them out.

mod kept;
mod moka;
#[cfg(feature = "quick-cache")]
mod quick;

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

pub(super) use self::kept::Kept;
use self::moka::MokaStore;
#[cfg(feature = "quick-cache")]
use self::quick::QuickStore;
use super::departures::Departures;
use crate::deferred;
use crate::flight::{Key, Value};

pub(crate) type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// Where a cache keeps its values, for [`StampedeCacheBuilder::store`](crate::StampedeCacheBuilder::store).
///
/// | | [`Moka`] (the default) | `QuickCache` (feature `quick-cache`) |
/// |---|---|---|
/// | a hit | copies the entry, queues a record of the read | one shard's read lock, one probe, one flag |
/// | who stays when it is full | `TinyLFU`: a newcomer is let in if it is asked for more often than whoever would go | S3-FIFO: a newcomer is always let in, and goes soon unless it is asked for again |
/// | capacity | one for all | split evenly over up to four shards a core |
/// | an entry heavier than | the capacity is not kept | about a shard's share is not kept |
/// | dropping all values | at once, the memory follows | takes time in their number |
///
/// Take moka where the hit ratio matters most: loads are dear, the capacity is short beside the keys that are asked
/// for, scans of rare keys pass through, or single entries are large. Take `quick_cache` where nearly every call is a
/// hit on a cache with room to spare, and its cost is what counts.
///
/// All else is the same: freshness, stale windows, tags, weigher and eviction listener. Both call a value's `Clone` under
/// locks: it must not use the cache. Its destructor may.
///
/// Sealed: these are all there are.
pub trait Store: sealed::Sealed {}

mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        fn kind(&self) -> super::StoreKind;
    }
}

/// The store on [moka](https://docs.rs/moka): the best hit ratio. The default; see [`Store`].
///
/// ```
/// use stampede_guard::{Moka, StampedeCache};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder().store(Moka).build()?;
/// # drop(cache); Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moka;

/// The store on [`quick_cache`](https://docs.rs/quick_cache): the cheapest hit; see [`Store`].
///
/// ```
/// use stampede_guard::{QuickCache, StampedeCache};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder().store(QuickCache).build()?;
/// cache.insert(1, 10);
/// assert_eq!(cache.get(&1), Some(10));
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "quick-cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "quick-cache")))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuickCache;

impl sealed::Sealed for Moka {
    fn kind(&self) -> StoreKind {
        StoreKind::Moka
    }
}
impl Store for Moka {}

#[cfg(feature = "quick-cache")]
impl sealed::Sealed for QuickCache {
    fn kind(&self) -> StoreKind {
        StoreKind::QuickCache
    }
}
#[cfg(feature = "quick-cache")]
impl Store for QuickCache {}

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    #[default]
    Moka,
    #[cfg(feature = "quick-cache")]
    QuickCache,
}

pub(super) enum AnyStore<K, V> {
    Moka(MokaStore<K, V>),
    #[cfg(feature = "quick-cache")]
    QuickCache(QuickStore<K, V>),
}

/// The same call of either store. What it makes leave is dropped when it is over: stores do their upkeep in any call,
/// under locks of their own.
macro_rules! either {
    ($any:expr, $store:ident => $call:expr) => {{
        let _scope = deferred::hold_for::<V>();
        match $any {
            AnyStore::Moka($store) => $call,
            #[cfg(feature = "quick-cache")]
            AnyStore::QuickCache($store) => $call,
        }
    }};
}

impl<K, V> AnyStore<K, V>
where
    K: Key,
    V: Value,
{
    pub(super) fn new(
        kind: StoreKind,
        capacity: u64,
        weighs: bool,
        departures: Option<Arc<Departures<K, V>>>,
    ) -> Self {
        match kind {
            StoreKind::Moka => Self::Moka(MokaStore::new(capacity, weighs, departures)),
            #[cfg(feature = "quick-cache")]
            StoreKind::QuickCache => Self::QuickCache(QuickStore::new(capacity, weighs, departures)),
        }
    }

    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<Kept<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        either!(self, store => store.get(key))
    }

    /// The same for a call that has looked already: should the key still not be there, moka is not told that it was
    /// asked for twice. In `quick_cache` a lookup that finds nothing leaves no trace.
    pub(super) fn get_again<Q>(&self, key: &Q) -> Option<Kept<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let may_be_there = match self {
            Self::Moka(store) => store.contains(key),
            #[cfg(feature = "quick-cache")]
            Self::QuickCache(_) => true,
        };
        if may_be_there { self.get(key) } else { None }
    }

    pub(super) fn insert(&self, key: K, kept: Kept<V>) {
        either!(self, store => store.insert(key, kept));
    }

    /// Writes an entry back with other times: nothing leaves the cache.
    pub(super) fn rewrite(&self, key: K, kept: Kept<V>) {
        either!(self, store => store.rewrite(key, kept));
    }

    pub(super) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        either!(self, store => store.remove(key));
    }

    pub(super) fn clear(&self) {
        either!(self, store => store.clear());
    }

    /// How many entries there are, and what they weigh.
    pub(super) fn size(&self) -> (u64, u64) {
        either!(self, store => store.size())
    }
}
