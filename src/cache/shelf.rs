//! Where values are kept: moka, with each entry's times beside it.
//!
//! moka knows nothing of freshness. Its own expiry would read the clock again at each hit and could not serve
//! stale values; here a lookup is one probe, and policy decides what the entry found is good for. Entries past
//! their last use stay until they are replaced or the capacity pushes them out.

use std::borrow::Borrow;
use std::cell::Cell;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use moka::notification::RemovalCause;

use super::generations::{Born, Generations, Mark};
#[cfg(feature = "redis")]
use crate::clock::Tick;
use crate::clock::Timeline;
use crate::error::LoadError;
use crate::flight::{Fault, Key, Settle, Value};
use crate::policy::{EarlyRefresh, Freshness, Lifetime, Times};
use crate::rng::Random;
use crate::sync::{Mutex, RandomState};

/// Why an entry left the cache.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use stampede_guard::{EvictionCause, StampedeCache};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let left = Arc::new(Mutex::new(Vec::new()));
/// let seen = Arc::clone(&left);
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder()
///     .eviction_listener(move |key, _value, cause| seen.lock().unwrap().push((*key, cause)))
///     .build()?;
/// cache.insert(1, 10);
/// cache.insert(1, 11);
/// cache.invalidate(&1);
/// assert_eq!(*left.lock().unwrap(), [(1, EvictionCause::Replaced), (1, EvictionCause::Invalidated)]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictionCause {
    /// It was invalidated, or its key's loader called the new value uncacheable.
    Invalidated,
    /// Another value took its place.
    Replaced,
    /// The capacity was full.
    Capacity,
}

/// Called with each value that leaves the cache, after all locks were given back.
pub(crate) type EvictionListener<K, V> = Box<dyn Fn(Arc<K>, V, EvictionCause) + Send + Sync>;
pub(crate) type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// A value on the shelf.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    pub(crate) times: Times,
    /// The end of freshness once more, in the form in which the clock is read.
    fresh_until: Option<Instant>,
    born: Born,
    pub(crate) tags: Option<Arc<[Mark]>>,
    /// Among the loads of all instances; 0 for one that no other instance heard of.
    #[cfg(feature = "redis")]
    pub(crate) token: crate::coordinate::Token,
}

/// What a flight brings: a value, and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Arrival<K, V> {
    pub(crate) value: V,
    pub(crate) bound_for: Destination<K, V>,
}

#[derive(Clone, Debug)]
pub(crate) enum Destination<K, V> {
    /// It comes from the shelf.
    Nowhere,
    /// It is for those who wait alone, and voids what the shelf has.
    WaitersOnly,
    /// Under the flight's key.
    Shelf(Storing),
    /// Under these keys, each with the value that goes there.
    #[cfg_attr(not(feature = "layer"), allow(dead_code))]
    Shelves(Arc<[(K, V, Storing)]>),
}

/// How a value is stored.
#[derive(Clone, Debug)]
pub(crate) struct Storing {
    pub(crate) life: Lifetime,
    pub(crate) cost: std::time::Duration,
    pub(crate) born: Born,
    pub(crate) tags: Option<Arc<[Mark]>>,
    /// Of a cache that shares its values.
    #[cfg(feature = "redis")]
    pub(crate) shared: Option<Stamp>,
}

/// What a shared cache knows of a value beyond its life, which then is exact: its jitter is in it.
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) token: crate::coordinate::Token,
    /// How the flight came by the value, if not by its own load.
    pub(crate) outcome: Option<crate::event::Outcome>,
}

impl Storing {
    /// A life that is as long as its setting says, less jitter.
    pub(crate) fn new(life: Lifetime, cost: std::time::Duration, born: Born) -> Self {
        Self {
            life,
            cost,
            born,
            tags: None,
            #[cfg(feature = "redis")]
            shared: None,
        }
    }
}

struct Departures<K, V> {
    listener: EvictionListener<K, V>,
    queue: Mutex<Vec<(Arc<K>, V, EvictionCause)>>,
}

pub(crate) struct Shelf<K, V> {
    store: moka::sync::Cache<K, Entry<V>, RandomState>,
    departures: Option<Arc<Departures<K, V>>>,
    pub(crate) generations: Generations,
    pub(crate) timeline: Timeline,
    random: Random,
    jitter: f64,
    early: Option<EarlyRefresh>,
}

/// How a shelf is set up.
pub(crate) struct ShelfConfig<K, V> {
    pub(crate) capacity: u64,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) listener: Option<EvictionListener<K, V>>,
    pub(crate) timeline: Timeline,
    pub(crate) random: Random,
    pub(crate) jitter: f64,
    pub(crate) early: Option<EarlyRefresh>,
}

thread_local! {
    /// An entry is being written back with other times: nothing leaves the cache.
    static REWRITING: Cell<bool> = const { Cell::new(false) };
}

impl<K, V> fmt::Debug for Shelf<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("timeline", &self.timeline).finish_non_exhaustive()
    }
}

impl<K, V> Shelf<K, V>
where
    K: Key,
    V: Value,
{
    pub(crate) fn new(config: ShelfConfig<K, V>) -> Self {
        let mut store = moka::sync::Cache::builder().max_capacity(config.capacity);
        if let Some(weigher) = config.weigher {
            store = store.weigher(move |key, entry: &Entry<V>| weigher(key, &entry.value));
        }
        let departures =
            config.listener.map(|listener| Arc::new(Departures { listener, queue: Mutex::new(Vec::new()) }));
        if let Some(departures) = departures.clone() {
            store = store.eviction_listener(move |key, entry: Entry<V>, cause| {
                let cause = match cause {
                    RemovalCause::Replaced if REWRITING.get() => return,
                    RemovalCause::Replaced => EvictionCause::Replaced,
                    RemovalCause::Size => EvictionCause::Capacity,
                    RemovalCause::Explicit | RemovalCause::Expired => EvictionCause::Invalidated,
                };
                departures.queue.lock().push((key, entry.value, cause));
            });
        }
        Self {
            store: store.build_with_hasher(RandomState::new()),
            departures,
            generations: Generations::new(),
            timeline: config.timeline,
            random: config.random,
            jitter: config.jitter,
            early: config.early,
        }
    }

    /// The entry under `key`, whatever its age, unless it was invalidated.
    pub(crate) fn find<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let entry = self.store.get(key)?;
        if self.generations.is_valid(entry.born, entry.tags.as_deref()) { Some(entry) } else { None }
    }

    /// True if `entry` is fresh and nothing is to be done about it: what nearly every lookup comes to.
    pub(crate) fn is_plain_hit(&self, entry: &Entry<V>) -> bool {
        self.early.is_none() && self.is_fresh(entry)
    }

    fn is_fresh(&self, entry: &Entry<V>) -> bool {
        entry.fresh_until.is_none_or(|end| self.timeline.instant() < end)
    }

    /// True if `entry`, found earlier, may stand in for a load that failed or is slow.
    pub(crate) fn covers_failure(&self, entry: &Entry<V>) -> bool {
        entry.times.covers_failure(self.timeline.now())
            && self.generations.is_valid(entry.born, entry.tags.as_deref())
    }

    /// What `entry` is good for now.
    pub(crate) fn judge(&self, entry: &Entry<V>) -> Freshness {
        entry.times.judge(self.timeline.now(), self.early, || self.random.unit())
    }

    /// The value under `key`, if it is fresh.
    pub(crate) fn fresh<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let entry = self.find(key)?;
        if self.is_fresh(&entry) { Some(entry) } else { None }
    }

    /// A time to live with its jitter.
    #[cfg(feature = "redis")]
    pub(crate) fn jittered(&self, ttl: std::time::Duration) -> std::time::Duration {
        let times = Times::new(Tick(0), &Lifetime::fresh_for(ttl), self.jitter, self.random.unit(), ttl);
        times.fresh_until.since(Tick(0))
    }

    /// Stores `value` as of now.
    pub(crate) fn put(&self, key: K, value: V, storing: &Storing) {
        #[cfg(feature = "redis")]
        let jitter = if storing.shared.is_some() { 0.0 } else { self.jitter };
        #[cfg(not(feature = "redis"))]
        let jitter = self.jitter;
        let times = Times::new(self.timeline.now(), &storing.life, jitter, self.random.unit(), storing.cost);
        let fresh_until = self.timeline.instant_of(times.fresh_until);
        let entry = Entry {
            value,
            times,
            fresh_until,
            born: storing.born,
            tags: storing.tags.clone(),
            #[cfg(feature = "redis")]
            token: storing.shared.map_or(0, |stamp| stamp.token),
        };
        self.store.insert(key, entry);
    }

    /// Stores `entry` again, whose replacement came to nothing, and puts off the next load of its key. Nothing has
    /// left the cache, so the listener is not told.
    pub(crate) fn put_back(&self, key: K, mut entry: Entry<V>) {
        entry.times = entry.times.failed(self.timeline.now(), self.random.unit());
        REWRITING.set(true);
        self.store.insert(key, entry);
        REWRITING.set(false);
    }

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.store.invalidate(key);
    }

    /// Voids every entry and every load under way; the memory follows.
    pub(crate) fn clear(&self) {
        self.generations.invalidate_all();
        self.store.invalidate_all();
    }

    /// How many entries there are, dead ones included, and what they weigh.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.store.run_pending_tasks();
        self.announce();
        (self.store.entry_count(), self.store.weighted_size())
    }

    /// Puts off the next load of `key`, if there is a value to serve meanwhile.
    fn back_off(&self, key: &K) {
        if let Some(entry) = self.find(key)
            && !entry.times.is_dead(self.timeline.now())
        {
            self.put_back(key.clone(), entry);
        }
    }

    /// Tells the listener what left. Never called under a lock.
    pub(crate) fn announce(&self) {
        let Some(departures) = &self.departures else { return };
        loop {
            let batch = std::mem::take(&mut *departures.queue.lock());
            if batch.is_empty() {
                return;
            }
            for (key, value, cause) in batch {
                (departures.listener)(key, value, cause);
            }
        }
    }
}

impl<K, V> Shelf<K, V>
where
    K: Key,
    V: Value,
{
    fn land<E>(&self, key: &K, result: Result<&Arrival<K, V>, &LoadError<E>>) {
        let arrival = match result {
            Ok(arrival) => arrival,
            Err(LoadError::Failed(_) | LoadError::Panicked(_) | LoadError::TimedOut(_)) => {
                return self.back_off(key);
            }
            Err(_) => return,
        };
        match &arrival.bound_for {
            Destination::Nowhere => {}
            Destination::WaitersOnly => self.remove(key),
            Destination::Shelf(storing) => self.put(key.clone(), arrival.value.clone(), storing),
            Destination::Shelves(places) => {
                for (key, value, storing) in places.iter() {
                    self.put(key.clone(), value.clone(), storing);
                }
            }
        }
    }
}

impl<K, V, E> Settle<K, Arrival<K, V>, E> for Shelf<K, V>
where
    K: Key,
    V: Value,
    E: Fault,
{
    fn settle(&self, key: &K, result: &Result<Arrival<K, V>, LoadError<E>>) {
        self.land(key, result.as_ref());
    }

    fn settled(&self) {
        self.announce();
    }
}

/// A load that was asked for a key and left it out has voided what the shelf has.
impl<K, V, E> Settle<K, Option<Arrival<K, V>>, E> for Shelf<K, V>
where
    K: Key,
    V: Value,
    E: Fault,
{
    fn settle(&self, key: &K, result: &Result<Option<Arrival<K, V>>, LoadError<E>>) {
        match result {
            Ok(Some(arrival)) => self.land(key, Ok::<_, &LoadError<E>>(arrival)),
            Ok(None) => self.remove(key),
            Err(error) => self.land(key, Err(error)),
        }
    }

    fn settled(&self) {
        self.announce();
    }
}
