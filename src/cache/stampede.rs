//! `StampedeCache`, the public face of the engine.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::builder::StampedeCacheBuilder;
use super::engine::{CacheFlights, Detailed, Plain, refresh};
use super::entry::Storing;
use super::fetch::{Bare, Fetch, Fetched, WithOutcome};
use super::generations::mark_of;
use super::loaded::{LoadContext, Loaded};
use super::many::fetch_many;
use super::shelf::Change;
use super::stats::CacheStats;
use crate::error::LoadError;
use crate::flight::{Borrowed, KeySource, Owned};
use crate::invalidation::{Invalidation, KeyRef};

/// A cache whose misses share one load, whose expiries are spread, and which serves slightly stale values
/// rather than let its callers wait.
///
/// A value is fresh for its ttl, less a random share of it. Concurrent misses of one key run one loader. With
/// [`stale_while_revalidate`](StampedeCacheBuilder::stale_while_revalidate) an expired value is served at once
/// while one background load replaces it; with [`stale_if_error`](StampedeCacheBuilder::stale_if_error) it is
/// served when loads fail. A failed load is retried after a pause that doubles from 100 ms to 30 s, less up to a
/// quarter, if there is a stale value to serve meanwhile. An [`insert`](Self::insert) or
/// [`invalidate`](Self::invalidate) during a load wins over its result.
///
/// A clone is a cheap handle to the same cache.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::StampedeCache;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = StampedeCache::<u64, String>::builder().ttl(Duration::from_secs(60)).build()?;
/// let name = cache.get_or_load(7, || async { Ok("Ada".to_string()) }).await?;
/// assert_eq!(name, "Ada");
/// assert_eq!(cache.get(&7), Some(name));
/// # Ok(())
/// # }
/// ```
///
/// Loaders are `'static`, since they outlive their callers. One that borrows takes a clone of the handle:
///
/// ```
/// # use std::sync::Arc;
/// # use stampede_guard::{LoadError, StampedeCache};
/// # struct Db;
/// # impl Db { async fn user(&self, id: u64) -> Result<String, std::io::Error> { Ok(format!("user {id}")) } }
/// # async fn get(cache: &StampedeCache<u64, String, std::io::Error>, db: &Arc<Db>, id: u64)
/// #     -> Result<String, LoadError<std::io::Error>> {
/// let db = Arc::clone(db);
/// cache.get_or_load(id, move || async move { db.user(id).await }).await
/// # }
/// ```
pub struct StampedeCache<K, V, E = Infallible> {
    flights: Arc<CacheFlights<K, V, E>>,
}

impl<K, V, E> Clone for StampedeCache<K, V, E> {
    fn clone(&self) -> Self {
        Self { flights: Arc::clone(&self.flights) }
    }
}

/// A cache with all its defaults: those of [`builder`](StampedeCache::builder).
///
/// ```
/// use stampede_guard::StampedeCache;
///
/// #[derive(Default)]
/// struct App {
///     users: StampedeCache<u64, String>,
/// }
/// assert_eq!(App::default().users.get(&7), None);
/// ```
impl<K, V, E> Default for StampedeCache<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn default() -> Self {
        Self::builder().build().expect("every default is in its range")
    }
}

impl<K, V, E> fmt::Debug for StampedeCache<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StampedeCache").field("flights", &self.flights).finish()
    }
}

impl<K, V, E> StampedeCache<K, V, E> {
    /// Settings, each with its default.
    pub fn builder() -> StampedeCacheBuilder<K, V, E> {
        StampedeCacheBuilder::new()
    }

    pub(super) fn from_flights(flights: Arc<CacheFlights<K, V, E>>) -> Self {
        Self { flights }
    }
}

impl<K, V, E> StampedeCache<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// The value of `key`: cached, from a load that is under way, or from `load`.
    ///
    /// # Errors
    ///
    /// What ended the load, if there is no stale value to serve instead; see [`LoadError`].
    ///
    /// # Panics
    ///
    /// If a load is not ready at its first poll, outside a Tokio runtime. Where one has to be started in a task, for a
    /// background refresh too, on a runtime without a timer (`enable_time`) unless
    /// [`load_timeout`](StampedeCacheBuilder::load_timeout) is `None`. A loader's own panic is a [`LoadError::Panicked`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes this caller out. The load goes on and fills the cache, as
    /// [`on_abandon`](StampedeCacheBuilder::on_abandon) and
    /// [`max_abandoned`](StampedeCacheBuilder::max_abandoned) say.
    pub fn get_or_load<F, Fut>(&self, key: K, load: F) -> impl Future<Output = Result<V, LoadError<E>>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        Fetch::<_, _, _, _, _, Bare>::new(&self.flights, Owned(key), Plain(load))
    }

    /// [`get_or_load`](Self::get_or_load) with a borrowed key, which only a leader clones. A hit allocates
    /// nothing.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: StampedeCache<String, u64> = StampedeCache::builder().build()?;
    /// assert_eq!(cache.get_or_load_ref("stock", || async { Ok(3) }).await?, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Panics
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    pub fn get_or_load_ref<Q, F, Fut>(
        &self,
        key: &Q,
        load: F,
    ) -> impl Future<Output = Result<V, LoadError<E>>>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + Hash + Eq + ?Sized,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        Fetch::<_, _, _, _, _, Bare>::new(&self.flights, Borrowed(key), Plain(load))
    }

    /// [`get_or_load`](Self::get_or_load) with a loader that sees the stale value and says how long its own
    /// holds; tells how the call came by its value.
    ///
    /// ```
    /// use std::time::Duration;
    /// use stampede_guard::{Loaded, Outcome, StampedeCache};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: StampedeCache<&str, (u64, String)> = StampedeCache::builder().build()?;
    /// let page = cache
    ///     .get_or_load_with("page", |context| async move {
    ///         let known_version = context.stale().map(|(version, _)| *version);
    ///         // Ask the origin for anything newer than `known_version` ...
    /// #       let unchanged = known_version.is_some();
    ///         if unchanged {
    ///             return Ok(Loaded::not_modified());
    ///         }
    ///         Ok(Loaded::new((1, "body".to_string())).ttl(Duration::from_secs(5)).tags(["pages"]))
    ///     })
    ///     .await?;
    /// assert_eq!(page.outcome, Outcome::Loaded);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Panics
    ///
    /// As [`get_or_load`](Self::get_or_load).
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Self::get_or_load).
    pub fn get_or_load_with<F, Fut>(
        &self,
        key: K,
        load: F,
    ) -> impl Future<Output = Result<Fetched<V>, LoadError<E>>>
    where
        F: FnOnce(LoadContext<V>) -> Fut,
        Fut: Future<Output = Result<Loaded<V>, E>> + Send + 'static,
    {
        Fetch::<_, _, _, _, _, WithOutcome>::new(&self.flights, Owned(key), Detailed(load))
    }

    /// The values of many keys: cached, from loads that are under way, and the rest from one call of `load`.
    ///
    /// `load` is given the keys that are neither cached nor in flight, each once, and is not called if there are
    /// none. Stale values are in the answer, and their keys ride along in that call, or are loaded in the background, when
    /// the answer is complete, if nothing else is missing. Each key is in flight on its own: callers who ask for it alone wait
    /// for this batch, and an [`insert`](Self::insert) or [`invalidate`](Self::invalidate) wins over its part of
    /// it. A batch takes one permit of [`max_concurrent_loads`](StampedeCacheBuilder::max_concurrent_loads); in
    /// [`stats`](Self::stats) each of its keys is a load.
    ///
    /// A key that `load` leaves out is absent from the answer, and the cache keeps nothing for it. Callers who wait
    /// for it alone run their own loaders; a call like this one that waits for it asks its own `load`, unless that
    /// has been called already. Values for other keys are ignored. A key whose load under way turns out to be from before
    /// an invalidation of its tag, when `load` has been called already, is [`LoadError::Cancelled`],
    /// or on a tier [`LoadError::Remote`].
    ///
    /// Where instances share a tier, it is asked for all keys at once, and `load` is given those that no other instance
    /// has or loads. It is called when that is known: a stale value is served one round trip later than without a tier.
    /// A key that another instance was loading, and then did not, is [`LoadError::Remote`] if `load` has been called by
    /// then. A call that is not polled holds its keys for a second at most, then others load them.
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # use stampede_guard::StampedeCache;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: StampedeCache<u64, String> = StampedeCache::builder().build()?;
    /// cache.insert(1, "Ada".to_string());
    /// let users = cache
    ///     .get_or_load_many([1, 2, 3], |missing| async move {
    ///         // SELECT id, name FROM users WHERE id = ANY(missing)
    /// #       assert_eq!(missing.len(), 2);
    /// #       let found = HashMap::from([(2, "Grace".to_string())]);
    ///         Ok(found)
    ///     })
    ///     .await;
    /// assert_eq!(users[&1].as_deref().unwrap(), "Ada");
    /// assert_eq!(users[&2].as_deref().unwrap(), "Grace");
    /// assert!(!users.contains_key(&3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Each key has its own result, as [`get_or_load`](Self::get_or_load) gives it. If `load` fails, the keys it was
    /// called for share its error; the others are not touched.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, if `load` is needed; on one without a timer as [`get_or_load`](Self::get_or_load). A
    /// panic of `load` is the [`LoadError::Panicked`] of the keys it was called for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes this caller out. The batch goes on and fills the cache, as
    /// [`on_abandon`](StampedeCacheBuilder::on_abandon) says; each key takes a place of
    /// [`max_abandoned`](StampedeCacheBuilder::max_abandoned), and keys that find none are not stored. A batch that nobody
    /// waits for any more is dropped by its task, which may be a moment after its keys are free.
    pub async fn get_or_load_many<I, F, Fut>(&self, keys: I, load: F) -> HashMap<K, Result<V, LoadError<E>>>
    where
        I: IntoIterator<Item = K>,
        F: FnOnce(Vec<K>) -> Fut,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
    {
        fetch_many(&self.flights, keys, load).await
    }

    /// The value under `key`, if it is fresh.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let cache: StampedeCache<String, u64> = StampedeCache::builder().build()?;
    /// cache.insert("stock".into(), 3);
    /// assert_eq!(cache.get("stock"), Some(3));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.flights.hook.shelf.fresh(key)
    }

    /// True if [`get`](Self::get) would find a value.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// assert!(!cache.contains_key(&1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key).is_some()
    }

    /// Stores `value`, fresh from now. A load of the key that is under way serves those who wait for it and is
    /// not stored.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// cache.insert(1, 1);
    /// assert_eq!(cache.get(&1), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    #[allow(clippy::needless_pass_by_value)] // as every map's
    pub fn insert(&self, key: K, value: V) {
        let shelf = &self.flights.hook.shelf;
        let born = shelf.generations.born();
        let storing = Storing::new(self.flights.hook.insert_life(), Duration::ZERO, born);
        let mut change = shelf.putting(key.clone(), value, &storing);
        // Other instances load it for themselves. They are told first: a load that asks from here on has nothing from before.
        drop(self.flights.hook.tell_invalid(|| Some(key.clone())));
        self.flights.overrule(&key, || shelf.make(&key, &mut change));
        shelf.made(change);
    }

    /// Drops the value under `key`. A load of the key that is under way serves those who wait for it and is not
    /// stored; callers after this start a new one.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// cache.insert(1, 1);
    /// cache.invalidate(&1);
    /// assert_eq!(cache.get(&1), None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Where instances share a tier this concerns all of them. The handle that is returned says when the tier has
    /// confirmed it; it may be dropped.
    pub fn invalidate<Q>(&self, key: &Q) -> Invalidation
    where
        K: Borrow<Q>,
        Q: KeyRef<K> + Hash + Eq + ?Sized,
    {
        let shelf = &self.flights.hook.shelf;
        let change = Change::none();
        // The others first: a load that asks them from here on has nothing from before.
        let told = self.flights.hook.tell_invalid(|| key.to_key());
        self.flights.overrule(key, || shelf.remove(key));
        shelf.made(change);
        told
    }

    /// Drops every value, and voids the loads under way as [`invalidate`](Self::invalidate) does.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// cache.insert(1, 1);
    /// cache.invalidate_all();
    /// assert_eq!(cache.get(&1), None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Where instances share a tier this concerns all of them, soon after the call returns.
    pub fn invalidate_all(&self) {
        self.flights.hook.tell_all_invalid();
        self.flights.hook.shelf.clear();
        self.flights.forget_all();
        self.flights.hook.shelf.announce();
    }

    /// Drops every value that was loaded with `tag` ([`Loaded::tags`]). A load under way that turns out to carry
    /// the tag serves those who wait for it and is not stored; callers after this load anew.
    ///
    /// Takes the same time however many values carry the tag. Tags share 4,096 marks, so values of another tag
    /// may be dropped along with them, at the price of a reload.
    ///
    /// ```
    /// # use stampede_guard::{Loaded, StampedeCache};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// cache.get_or_load_with(1, |_| async { Ok(Loaded::new(1).tags(["shoes"])) }).await?;
    /// cache.invalidate_tag("shoes");
    /// assert_eq!(cache.get(&1), None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Where instances share a tier this concerns all of them, soon after the call returns.
    pub fn invalidate_tag(&self, tag: impl AsRef<str>) {
        let mark = mark_of(tag.as_ref());
        self.flights.hook.tell_tag_invalid(mark);
        self.flights.hook.shelf.generations.invalidate(mark);
    }

    /// Starts a background load of `key`, whether or not its value is fresh. False if one is under way, the
    /// places for such loads are taken, the cache is closed, or there is no Tokio runtime.
    ///
    /// ```
    /// # use stampede_guard::StampedeCache;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// assert!(cache.refresh(1, || async { Ok(2) }));
    /// assert_eq!(cache.get_or_load(1, || async { Ok(3) }).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn refresh<F, Fut>(&self, key: K, load: F) -> bool
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        let stale = self.flights.hook.shelf.find(Owned(key.clone()).query());
        refresh(&self.flights, Owned(key), Plain(load), stale, true)
    }

    /// How many entries there are, those past their freshness included.
    ///
    /// Does the cache's pending upkeep first, so the number is exact between calls.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        self.flights.hook.shelf.size().0
    }

    /// What happened so far: a snapshot.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.flights.hook.counters.snapshot(self.flights.stats())
    }

    /// Ends all loading: from now on a call that would load gets [`LoadError::Cancelled`], and this returns when
    /// the loads under way have ended. Values that are cached are served on. A load that was invalidated or overruled
    /// while it ran is not waited for.
    ///
    /// ```
    /// # use stampede_guard::{LoadError, StampedeCache};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
    /// cache.close().await;
    /// assert!(matches!(cache.get_or_load(1, || async { Ok(1) }).await, Err(LoadError::Cancelled)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// The cache is closed by the first poll; dropping the future only stops the wait.
    pub async fn close(&self) {
        self.flights.hook.closed.store(true, Ordering::Release);
        for landing in self.flights.landings() {
            landing.await;
        }
    }
}
