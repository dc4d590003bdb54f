//! Counts of what a cache did.

use crate::event::{self, Striped};
use crate::flight::FlightStats;
use crate::sync::{AtomicU64, Ordering};

/// What a [`StampedeCache`](crate::StampedeCache) did since it was made: a snapshot.
///
/// ```
/// # use stampede_guard::StampedeCache;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
/// for _ in 0..3 {
///     cache.get_or_load(1, || async { Ok(1) }).await?;
/// }
/// assert_eq!((cache.stats().hits, cache.stats().flights.loads), (2, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Calls answered from the cache with a fresh value.
    pub hits: u64,
    /// Calls answered with a stale value, for whatever reason.
    pub stale: u64,
    /// Calls that found nothing to serve at once.
    pub misses: u64,
    /// Background loads started.
    pub refreshes: u64,
    /// Flights that ended with what another instance had loaded, its failures included. They are among the misses
    /// or refreshes, and not among the loads.
    pub shared: u64,
    /// Loads: how many ran, how many calls joined one, how they ended.
    pub flights: FlightStats,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: Striped,
    pub(crate) stale: AtomicU64,
    pub(crate) misses: AtomicU64,
    refreshes: AtomicU64,
    #[cfg(feature = "redis")]
    shared: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self, flights: FlightStats) -> CacheStats {
        CacheStats {
            hits: self.hits.get(),
            stale: self.stale.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            refreshes: self.refreshes.load(Ordering::Relaxed),
            shared: self.shared(),
            flights: FlightStats { loads: flights.loads.saturating_sub(self.shared()), ..flights },
        }
    }

    #[cfg(feature = "redis")]
    fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    #[cfg(not(feature = "redis"))]
    #[allow(clippy::unused_self)]
    fn shared(&self) -> u64 {
        0
    }

    /// A flight's own load was not needed.
    #[cfg(feature = "redis")]
    pub(crate) fn spare_load(&self) {
        self.shared.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refresh(&self) {
        self.refreshes.fetch_add(1, Ordering::Relaxed);
        event::count_refresh();
    }
}
