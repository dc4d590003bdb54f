//! Settings of a [`StampedeCache`].

use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::departures::{EvictionCause, EvictionListener};
use super::engine::Engine;
#[cfg(feature = "redis")]
use super::shared::{Schemas, Tiering};
use super::shelf::{Shelf, ShelfConfig};
use super::stampede::StampedeCache;
use super::stats::Counters;
use super::store::{Store, StoreKind, Weigher};
use crate::clock::{Clock, Timeline};
#[cfg(feature = "redis")]
use crate::codec::{Codec, PostcardCodec};
#[cfg(feature = "redis")]
use crate::coordinate::{SharedKey, SharedTier};
use crate::error::{ConfigError, bounded, check_count, check_name, check_positive};
use crate::flight::{FlightConfig, Flights, OnAbandon};
use crate::policy::{EarlyRefresh, Lifetime};
use crate::rng::Random;
#[cfg(feature = "redis")]
use crate::sync::OnceLock;

/// Settings of a [`StampedeCache`], from [`StampedeCache::builder`].
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::StampedeCache;
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let cache: StampedeCache<String, String> = StampedeCache::builder()
///     .ttl(Duration::from_secs(60))
///     .jitter(0.1)
///     .stale_while_revalidate(Duration::from_secs(30))
///     .stale_if_error(Duration::from_secs(600))
///     .capacity(50_000)
///     .build()?;
/// # drop(cache); Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `build()`"]
pub struct StampedeCacheBuilder<K, V, E> {
    life: Lifetime,
    jitter: f64,
    early: Option<EarlyRefresh>,
    soft_timeout: Option<Duration>,
    max_concurrent_loads: Option<usize>,
    store: StoreKind,
    capacity: u64,
    weigher: Option<Weigher<K, V>>,
    listener: Option<EvictionListener<K, V>>,
    clock: Option<Arc<dyn Clock>>,
    seed: Option<u64>,
    flights: FlightConfig,
    name: Option<Arc<str>>,
    #[cfg(feature = "redis")]
    schemas: Schemas,
    #[cfg(feature = "redis")]
    tiering: Option<Tiering<K, V>>,
    of: PhantomData<fn() -> E>,
}

impl<K, V, E> fmt::Debug for StampedeCacheBuilder<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StampedeCacheBuilder")
            .field("life", &self.life)
            .field("jitter", &self.jitter)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl<K, V, E> StampedeCacheBuilder<K, V, E> {
    pub(super) fn new() -> Self {
        Self {
            life: Lifetime::fresh_for(Duration::from_secs(60)),
            jitter: 0.1,
            early: None,
            soft_timeout: None,
            max_concurrent_loads: None,
            store: StoreKind::default(),
            capacity: 10_000,
            weigher: None,
            listener: None,
            clock: None,
            seed: None,
            flights: FlightConfig { load_timeout: Some(Duration::from_secs(30)), ..FlightConfig::default() },
            name: None,
            #[cfg(feature = "redis")]
            schemas: Schemas::default(),
            #[cfg(feature = "redis")]
            tiering: None,
            of: PhantomData,
        }
    }

    /// What the cache is called where several are told apart: on a tier that instances share, it is part of every
    /// key. 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `-` and `.`. Default: none, which a cache on a tier must not have.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Shares loads, values and invalidations with all instances whose caches have the same
    /// [`name`](Self::name) on the same tier. Default: none. Values in an `Arc` need serde's feature `rc`.
    ///
    /// Of all callers in all instances that miss one key, one runs its loader, and the others get its value; see
    /// [`Outcome`](crate::Outcome). The instance that loads decides for all how long the value is fresh and how long it
    /// may be served stale; capacity is each one's own. `insert` drops the other instances' values. What is uncacheable
    /// stays in its instance. A loader is called before the others are asked, so work that is to be spared belongs into
    /// the future it returns.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn redis(self, tier: impl Into<SharedTier>) -> Self
    where
        K: SharedKey,
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.redis_with(tier, PostcardCodec)
    }

    /// [`redis`](Self::redis), with values in a form of your own.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn redis_with(mut self, tier: impl Into<SharedTier>, codec: impl Codec<V>) -> Self
    where
        K: SharedKey,
    {
        self.tiering = Some(Tiering::new(tier.into(), codec));
        self
    }

    /// The shape of the values on a tier. Change it whenever their type changes, so that versions of a service that
    /// run side by side do not read each other's values. Default: 0.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn schema(mut self, schema: u32) -> Self {
        self.schemas.current = schema;
        self
    }

    /// The shapes that instances of earlier versions may still use: invalidations concern them, too. Default: none.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn previous_schemas(mut self, schemas: impl IntoIterator<Item = u32>) -> Self {
        self.schemas.previous = schemas.into_iter().collect();
        self
    }

    /// How long a value is fresh, before [`jitter`](Self::jitter). Default: 60 s. With `Duration::MAX` it is fresh until it
    /// is evicted or invalidated; a hit then reads no clock, which is a good part of what it costs.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.life.ttl = bounded(ttl);
        self
    }

    /// The share of the ttl by which freshness is shortened at most, 0 to 1. Default: 0.1.
    ///
    /// Each entry is fresh for a time drawn uniformly from `[ttl * (1 - jitter), ttl]`, so entries stored
    /// together do not expire together. Freshness is a promise: jitter never lengthens it.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// How long after its freshness a value is still served, at once, while one background load replaces it
    /// (RFC 5861, section 3). Default: zero, not at all.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.life.stale_while_revalidate = bounded(window);
        self
    }

    /// How long after its freshness a value is served if a load fails, or outlasts
    /// [`soft_timeout`](Self::soft_timeout) (RFC 5861, section 4). Default: zero, not at all.
    ///
    /// Counted from the end of freshness like `stale_while_revalidate`, beside it.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.life.stale_if_error = bounded(window);
        self
    }

    /// How long a call waits for a load before it is served a value within `stale_if_error`; the load goes on,
    /// as [`on_abandon`](Self::on_abandon) says once nobody waits for it. Default: `None`, until the load ends.
    pub fn soft_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.soft_timeout = limit.into().map(bounded);
        self
    }

    /// How long a load may take, the wait for a permit of
    /// [`max_concurrent_loads`](Self::max_concurrent_loads) included, before it is dropped and everyone who
    /// waits gets [`LoadError::TimedOut`](crate::LoadError::TimedOut). Default: 30 s. `None` is no limit.
    pub fn load_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.flights.load_timeout = limit.into().map(bounded);
        self
    }

    /// Refreshes values before they expire. Default: `None`, off.
    pub fn early_refresh(mut self, when: impl Into<Option<EarlyRefresh>>) -> Self {
        self.early = when.into();
        self
    }

    /// How many loads may run at once, over all keys. Default: no limit.
    ///
    /// Beyond it misses wait their turn, so that a cold start with 100,000 distinct keys is not 100,000 loads at
    /// once; a background refresh is skipped instead. A loader that asks this cache for another key holds its own
    /// place meanwhile: leave room for that, or `load_timeout` has to end it.
    pub fn max_concurrent_loads(mut self, loads: usize) -> Self {
        self.max_concurrent_loads = Some(loads);
        self
    }

    /// Where values are kept. Default: [`Moka`](crate::Moka). [`Store`] says which to choose when.
    #[allow(clippy::needless_pass_by_value)] // `.store(QuickCache)` reads better than `.store(&QuickCache)`
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = store.kind();
        self
    }

    /// How many entries are kept; with a [`weigher`](Self::weigher), what they may weigh together.
    /// Default: 10,000.
    ///
    /// Beyond it, the [`store`](Self::store) decides which entries go: those seldom asked for, expired ones among them.
    /// An entry past its last use keeps its place until then, or until it is loaded anew.
    pub fn capacity(mut self, capacity: u64) -> Self {
        self.capacity = capacity;
        self
    }

    /// What an entry counts towards the capacity, say its size in bytes. Default: 1 each.
    ///
    /// It runs each time a value is about to be stored, under no lock: it may use the cache.
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// Called with each value that leaves the cache, soon after it left, on the thread of some later call. It
    /// may use the cache. If it panics, the panic hook says so, and that call and later ones go on as if it had not.
    /// Default: none.
    pub fn eviction_listener(
        mut self,
        listener: impl Fn(Arc<K>, V, EvictionCause) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Where time comes from. Default: Tokio's clock, which `tokio::time::pause` stops.
    ///
    /// `load_timeout` and `soft_timeout` are Tokio timers whatever the clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Makes jitter and early refresh repeatable. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What happens to a load that nobody waits for any more. Default: [`OnAbandon::Detach`], so that the cache
    /// fills.
    pub fn on_abandon(mut self, what: OnAbandon) -> Self {
        self.flights.on_abandon = what;
        self
    }

    /// How many loads may run with nobody waiting for them: abandoned ones and background refreshes.
    /// Default: 64.
    ///
    /// Beyond it, an abandoned load is dropped and a refresh is left to a later call.
    pub fn max_abandoned(mut self, loads: usize) -> Self {
        self.flights.max_abandoned = loads;
        self
    }

    /// How many keys may be in flight; a miss beyond that gets
    /// [`LoadError::Overloaded`](crate::LoadError::Overloaded) at once. Default: no limit.
    pub fn max_in_flight(mut self, keys: usize) -> Self {
        self.flights.max_in_flight = keys;
        self
    }

    /// How many callers may wait for one key; one more gets
    /// [`LoadError::Overloaded`](crate::LoadError::Overloaded) at once. Default: no limit.
    pub fn max_waiters_per_key(mut self, callers: usize) -> Self {
        self.flights.max_waiters_per_key = callers;
        self
    }

    /// The cache.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that is out of its range: `ttl`, `load_timeout` and `soft_timeout` must
    /// be more than 0, `jitter` from 0 to 1, `capacity`, `max_concurrent_loads`, `max_in_flight` and
    /// `max_waiters_per_key` at least 1, `early_refresh`'s beta more than 0 and at most 1,000, or its fraction
    /// between 0 and 1. A `ttl` of 100 years or more is for ever, another time
    /// counts as 100 years.
    pub fn build(self) -> Result<StampedeCache<K, V, E>, ConfigError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
        E: Send + Sync + 'static,
    {
        check_positive("ttl", self.life.ttl)?;
        check_jitter(self.jitter)?;
        if let Some(early) = self.early {
            check_early(early)?;
        }
        if let Some(limit) = self.soft_timeout {
            check_positive("soft_timeout", limit)?;
        }
        if let Some(loads) = self.max_concurrent_loads {
            check_count("max_concurrent_loads", loads)?;
        }
        if self.capacity == 0 {
            return Err(ConfigError::new("capacity", self.capacity, "at least 1"));
        }
        self.flights.check()?;
        if let Some(name) = &self.name {
            check_name("name", name)?;
        }
        #[cfg(feature = "redis")]
        if self.tiering.is_some() && self.name.is_none() {
            return Err(ConfigError::new("name", self.name, "set for a cache on a tier"));
        }
        let shelf = Shelf::new(ShelfConfig {
            store: self.store,
            capacity: self.capacity,
            weigher: self.weigher,
            listener: self.listener,
            timeline: Timeline::new(self.clock),
            random: Random::new(self.seed),
            jitter: self.jitter,
            early: self.early,
        });
        // A semaphore counts no further than this; a limit above it is none.
        let governor = self.max_concurrent_loads.filter(|&loads| loads <= Semaphore::MAX_PERMITS);
        let engine = Engine {
            shelf,
            life: self.life,
            soft_timeout: self.soft_timeout,
            counters: Counters::default(),
            governor: governor.map(|loads| Arc::new(Semaphore::new(loads))),
            closed: AtomicBool::new(false),
            #[cfg(feature = "redis")]
            shared: OnceLock::new(),
        };
        let flights = Flights::new(self.flights, engine);
        #[cfg(feature = "redis")]
        if let Some((tiering, name)) = self.tiering.zip(self.name) {
            flights.hook.shared.get_or_init(|| tiering.join(&flights, name, self.schemas));
        }
        Ok(StampedeCache::from_flights(flights))
    }
}

pub(crate) fn check_jitter(share: f64) -> Result<(), ConfigError> {
    if !(0.0..=1.0).contains(&share) {
        return Err(ConfigError::new("jitter", share, "from 0 to 1"));
    }
    Ok(())
}

fn check_early(early: EarlyRefresh) -> Result<(), ConfigError> {
    match early {
        EarlyRefresh::XFetch { beta } if !(beta > 0.0 && beta <= 1_000.0) => {
            Err(ConfigError::new("early_refresh", early, "a beta of more than 0 and at most 1,000"))
        }
        EarlyRefresh::Fraction(share) if !(share > 0.0 && share < 1.0) => {
            Err(ConfigError::new("early_refresh", early, "a fraction of more than 0 and less than 1"))
        }
        _ => Ok(()),
    }
}
