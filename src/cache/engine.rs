//! Where freshness, flights and the shelf meet: how a cache loads.

use std::borrow::Borrow;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::entry::{Arrival, Destination, Entry, Receipt, Storing};
#[cfg(feature = "redis")]
use super::errand::{Errand, Gate};
use super::generations::{Born, Mark, mark_of};
use super::loaded::{LoadContext, Loaded};
#[cfg(feature = "redis")]
use super::shared::Shared;
use super::shelf::{Change, Shelf};
use super::stats::Counters;
use crate::error::{LoadError, RemoteKind, bounded};
use crate::event;
use crate::flight::{BoxLoad, Fault, Flights, Key, KeySource, Plan, Settle, Value};
use crate::invalidation::Invalidation;
use crate::policy::Lifetime;
#[cfg(feature = "redis")]
use crate::sync::OnceLock;

/// What a flight of a cache brings.
pub(crate) type CacheLanding<K, V> = Result<Arrival<K, V>, Nothing>;

/// Why a flight brings nothing, though nothing has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// Its loader had others to load as well and left it out: there is no such value.
    LeftOut,
    /// No loader was asked after all. Whether there is such a value nobody has said.
    NotAsked,
}

/// All flights of a cache and the shelf they land on.
pub(crate) type CacheFlights<K, V, E> = Flights<K, CacheLanding<K, V>, E, Engine<K, V>>;

/// What every handle of a cache shares, beside its flights.
pub(crate) struct Engine<K, V> {
    pub(crate) shelf: Shelf<K, V>,
    pub(crate) life: Lifetime,
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) counters: Counters,
    pub(super) governor: Option<Arc<Semaphore>>,
    pub(super) closed: AtomicBool,
    /// Of a cache on a tier, set before anyone can use it: what it joins with are the flights above it.
    #[cfg(feature = "redis")]
    pub(super) shared: OnceLock<Shared<K, V>>,
}

/// What a loader came to.
pub(crate) type Came<V, E> = Result<Result<Loaded<V>, Nothing>, LoadError<E>>;

/// A loader of any form.
pub(crate) trait Loader<V, E>: Sized {
    type Load: Future<Output: Send> + Send + 'static;

    /// False for one of a batch, which takes one permit and is counted once for all.
    const ALONE: bool = true;

    fn load(self, context: LoadContext<V>) -> Self::Load;

    /// What the load came to and what it cost, if it took this long.
    fn came(output: <Self::Load as Future>::Output, took: Duration) -> (Came<V, E>, Duration);

    /// Told when it is clear that another instance loads: who has other keys to load need not wait for this one.
    #[cfg(feature = "redis")]
    fn gate(&mut self) -> Option<Arc<dyn Gate>> {
        None
    }

    /// Given back unless the loader has its own time for background loads.
    fn put_off(self, stale: Entry<V>) -> Option<(Self, Entry<V>)> {
        Some((self, stale))
    }
}

/// A loader that returns a value.
pub(crate) struct Plain<F>(pub(crate) F);

impl<V, E, F, Fut> Loader<V, E> for Plain<F>
where
    V: Send,
    E: Send,
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
{
    type Load = Fut;

    fn load(self, _: LoadContext<V>) -> Fut {
        (self.0)()
    }

    fn came(output: Result<V, E>, took: Duration) -> (Came<V, E>, Duration) {
        (came_alone(output.map(Loaded::new)), took)
    }
}

/// A loader that learns about its key and says how long its value holds.
pub(crate) struct Detailed<F>(pub(crate) F);

impl<V, E, F, Fut> Loader<V, E> for Detailed<F>
where
    V: Send,
    E: Send,
    F: FnOnce(LoadContext<V>) -> Fut,
    Fut: Future<Output = Result<Loaded<V>, E>> + Send + 'static,
{
    type Load = Fut;

    fn load(self, context: LoadContext<V>) -> Fut {
        (self.0)(context)
    }

    fn came(output: Result<Loaded<V>, E>, took: Duration) -> (Came<V, E>, Duration) {
        (came_alone(output), took)
    }
}

fn came_alone<V, E>(output: Result<Loaded<V>, E>) -> Came<V, E> {
    output.map(Ok).map_err(|error| LoadError::Failed(Arc::new(error)))
}

/// The load of a caller that waits for it.
pub(crate) struct Miss<'a, K, V, E, L> {
    pub(crate) flights: &'a Arc<CacheFlights<K, V, E>>,
    pub(crate) loader: L,
    /// What the caller found.
    pub(crate) stale: Option<Box<Entry<V>>>,
    /// When it took off or, of a leader, when it looked again: its load is as old as what it found.
    pub(crate) born: Born,
    /// What to ask the other instances, if there are any.
    #[cfg(feature = "redis")]
    pub(super) errand: Option<Box<Errand<K>>>,
}

impl<K, V, E, L> Plan<K, CacheLanding<K, V>, E> for Miss<'_, K, V, E, L>
where
    K: Key,
    V: Value,
    E: Fault,
    L: Loader<V, E>,
{
    type Kept = ();

    fn recheck(&mut self, key: &K) -> Option<CacheLanding<K, V>> {
        #[cfg(feature = "redis")]
        if self.flights.hook.shared().is_some() {
            let gate = self.loader.gate();
            let errand = Errand { key: key.clone(), background: false, newer_than: None, gate };
            self.errand = Some(Box::new(errand));
        }
        let shelf = &self.flights.hook.shelf;
        self.born = shelf.generations.born();
        let found = shelf.find_again(key);
        let spared = found.as_ref().and_then(|found| shelf.spare_load(found, self.stale.as_deref()));
        // What the caller saw may have been voided or replaced since.
        self.stale = found.map(Box::new);
        spared.map(Ok)
    }

    fn load(self, (): &mut ()) -> BoxLoad<CacheLanding<K, V>, E> {
        let stale = self.stale.map(|stale| *stale);
        let own = load(Arc::clone(self.flights), self.loader, stale, self.born);
        #[cfg(feature = "redis")]
        if let Some(errand) = self.errand {
            return super::errand::load(Arc::clone(self.flights), *errand, Box::new(own));
        }
        own(None)
    }
}

/// A load that nobody waits for.
struct Refresh<K, V, E, L> {
    flights: Arc<CacheFlights<K, V, E>>,
    loader: L,
    stale: Option<Entry<V>>,
    /// When it looked again.
    born: Born,
    /// Loads even if the shelf has something fresh.
    forced: bool,
    permit: Option<OwnedSemaphorePermit>,
    #[cfg(feature = "redis")]
    errand: Option<Errand<K>>,
}

impl<K, V, E, L> Plan<K, CacheLanding<K, V>, E> for Refresh<K, V, E, L>
where
    K: Key,
    V: Value,
    E: Fault,
    L: Loader<V, E>,
{
    type Kept = ();

    fn recheck(&mut self, key: &K) -> Option<CacheLanding<K, V>> {
        #[cfg(feature = "redis")]
        if self.flights.hook.shared().is_some() {
            let seen = self.stale.as_ref().map(Entry::token);
            // Asked for by name, a load is to run whatever the others have.
            let newer_than = if self.forced { seen.or(Some(u64::MAX)) } else { seen };
            let gate = self.loader.gate();
            self.errand = Some(Errand { key: key.clone(), background: true, newer_than, gate });
        }
        let shelf = &self.flights.hook.shelf;
        self.born = shelf.generations.born();
        let found = shelf.find_again(key);
        let due = found.as_ref().filter(|_| !self.forced);
        let spared = due.and_then(|found| shelf.spare_load(found, self.stale.as_ref()));
        self.stale = found;
        spared.map(Ok)
    }

    fn load(self, (): &mut ()) -> BoxLoad<CacheLanding<K, V>, E> {
        let own = load(Arc::clone(&self.flights), self.loader, self.stale, self.born);
        #[cfg(feature = "redis")]
        if let Some(errand) = self.errand {
            return super::errand::load(self.flights, errand, Box::new(own));
        }
        own(self.permit)
    }
}

/// A load of the cache: the loader, what it replaces, and where its value goes. It waits for a permit, unless it is
/// given one. It was `born` before `stale` was found: an invalidation in between voids what is kept of it.
#[inline]
fn load<K, V, E, L>(
    flights: Arc<CacheFlights<K, V, E>>,
    loader: L,
    stale: Option<Entry<V>>,
    born: Born,
) -> impl FnOnce(Option<OwnedSemaphorePermit>) -> BoxLoad<CacheLanding<K, V>, E> + Send + 'static
where
    K: Key,
    V: Value,
    E: Fault,
    L: Loader<V, E>,
{
    let engine = &flights.hook;
    // Asked once the flight is linked: either it sees that the cache is closed, or `close` sees it.
    let load = if engine.is_closed() {
        None
    } else {
        Some(loader.load(LoadContext::new(stale.as_ref().map(|entry| entry.value.clone()))))
    };
    move |permit| {
        let Some(load) = load else { return Box::pin(ready(Err(LoadError::Cancelled))) };
        Box::pin(async move {
            let engine = &flights.hook;
            let permit =
                if L::ALONE && engine.governor.is_some() { engine.permit(permit).await } else { None };
            let asked = L::ALONE && engine.asks_for_cost();
            let running = event::Running::new(&engine.shelf.timeline, L::ALONE, asked);
            let output = load.await;
            let (came, cost) = L::came(output, running.took());
            drop(permit);
            running.end(came.is_ok(), cost);
            let loaded = match came? {
                Ok(loaded) => loaded,
                Err(nothing) => return Ok(Err(nothing)),
            };
            let bound_for = engine.destination(&loaded, stale.as_ref(), born, cost);
            let value = loaded.value.or_else(|| stale.map(|entry| entry.value));
            let value =
                value.expect("Loaded::not_modified() was returned, but there is no stale value to keep");
            Ok(Ok(Arrival { value, bound_for }))
        })
    }
}

impl<K, V> Engine<K, V>
where
    K: Key,
    V: Value,
{
    /// The place that a load takes among those that run: `given`, or else it waits for its turn.
    pub(super) async fn permit(&self, given: Option<OwnedSemaphorePermit>) -> Option<OwnedSemaphorePermit> {
        match (given, &self.governor) {
            (None, Some(governor)) => Arc::clone(governor).acquire_owned().await.ok(),
            (permit, _) => permit,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether anything depends on what a load costs: the next refresh, or what the other instances are told.
    pub(super) fn asks_for_cost(&self) -> bool {
        #[cfg(feature = "redis")]
        if self.shared().is_some() {
            return true;
        }
        self.shelf.asks_for_cost()
    }

    /// Its place on a tier, if it has one.
    #[cfg(feature = "redis")]
    pub(super) fn shared(&self) -> Option<&Shared<K, V>> {
        self.shared.get()
    }

    /// What a call gets for a key that neither its own loader nor another's was asked for: where instances share, one of
    /// the others was to load it.
    pub(super) fn not_asked<E>(&self) -> LoadError<E> {
        if self.is_shared() { LoadError::Remote { kind: RemoteKind::Failed } } else { LoadError::Cancelled }
    }

    #[cfg_attr(not(feature = "redis"), allow(clippy::unused_self))]
    fn is_shared(&self) -> bool {
        #[cfg(feature = "redis")]
        return self.shared().is_some();
        #[cfg(not(feature = "redis"))]
        false
    }

    /// How long a value that was inserted holds.
    pub(super) fn insert_life(&self) -> Lifetime {
        #[cfg(feature = "redis")]
        if let Some(shared) = self.shared() {
            return shared.capped(self.life);
        }
        self.life
    }

    /// Tells the other instances, if there are any, that what they have under a key is void.
    #[cfg_attr(not(feature = "redis"), allow(unused_variables, clippy::unused_self))]
    pub(super) fn tell_invalid(&self, key: impl FnOnce() -> Option<K>) -> Invalidation {
        #[cfg(feature = "redis")]
        if let Some(shared) = self.shared()
            && let Some(key) = key()
        {
            return shared.invalidate(&key);
        }
        Invalidation::done()
    }

    /// The same of all they have.
    #[cfg_attr(not(feature = "redis"), allow(clippy::unused_self))]
    pub(super) fn tell_all_invalid(&self) {
        #[cfg(feature = "redis")]
        if let Some(shared) = self.shared() {
            drop(shared.invalidate_all());
        }
    }

    /// The same of all that carries a mark.
    #[cfg_attr(not(feature = "redis"), allow(unused_variables, clippy::unused_self))]
    pub(super) fn tell_tag_invalid(&self, mark: Mark) {
        #[cfg(feature = "redis")]
        if let Some(shared) = self.shared() {
            drop(shared.invalidate_tag(mark));
        }
    }

    fn destination(
        &self,
        loaded: &Loaded<V>,
        stale: Option<&Entry<V>>,
        born: Born,
        cost: Duration,
    ) -> Destination<K, V> {
        // As nearly every loader has it; what other instances are told is said in full.
        if loaded.is_plain() && !self.is_shared() {
            return Destination::Usual { born, cost };
        }
        let ttl = loaded.ttl.unwrap_or(self.life.ttl);
        let or = |own: Option<Duration>, default: Duration| bounded(own.unwrap_or(default));
        let life = Lifetime {
            ttl: bounded(ttl),
            stale_while_revalidate: or(loaded.stale_while_revalidate, self.life.stale_while_revalidate),
            stale_if_error: or(loaded.stale_if_error, self.life.stale_if_error),
        };
        // A value that is kept keeps its tags.
        let kept = stale.filter(|_| loaded.value.is_none()).and_then(Entry::tags);
        let tags = if loaded.tags.is_empty() {
            kept.cloned()
        } else {
            let own = loaded.tags.iter().map(mark_of);
            Some(kept.into_iter().flat_map(|tags| tags.iter().copied()).chain(own).collect())
        };
        if loaded.uncacheable || ttl.is_zero() {
            return Destination::WaitersOnly(Receipt::new(born, tags));
        }
        Destination::Shelf(Box::new(Storing { tags, ..Storing::new(life, cost, born) }))
    }
}

/// Starts a background load of `key`; false if one runs, the caps leave no place or the cache is closed.
pub(super) fn refresh<K, V, E, S, L>(
    flights: &Arc<CacheFlights<K, V, E>>,
    source: S,
    loader: L,
    stale: Option<Entry<V>>,
    forced: bool,
) -> bool
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    let engine = &flights.hook;
    if engine.is_closed() {
        return false;
    }
    // A refresh without a permit is skipped: the stale value serves, and misses go first.
    let permit = match engine.governor.as_ref().filter(|_| L::ALONE) {
        None => None,
        // One that asks other instances first takes it when it is to load.
        Some(governor) if engine.is_shared() => {
            if governor.available_permits() == 0 {
                return false;
            }
            None
        }
        Some(governor) => match Arc::clone(governor).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => return false,
        },
    };
    let load = Refresh {
        flights: Arc::clone(flights),
        loader,
        stale,
        born: Born::default(),
        forced,
        permit,
        #[cfg(feature = "redis")]
        errand: None,
    };
    let started = flights.launch(source, load);
    if started {
        engine.counters.count_refresh();
    }
    started
}

/// A load that was asked for a key and left it out has voided what the shelf has.
impl<K, V, E> Settle<K, CacheLanding<K, V>, E> for Engine<K, V>
where
    K: Key,
    V: Value,
    E: Fault,
{
    type Change = Change<K, V>;

    fn prepare(&self, key: &K, result: &mut Result<CacheLanding<K, V>, LoadError<E>>) -> Change<K, V> {
        match result {
            Ok(Ok(arrival)) => {
                if let Destination::Usual { born, cost } = arrival.bound_for {
                    return self.shelf.keeping(key, arrival, &Storing::new(self.life, cost, born));
                }
                self.shelf.landing(key, Ok::<_, &mut LoadError<E>>(arrival))
            }
            Ok(Err(Nothing::LeftOut)) => Change::removal(),
            Ok(Err(Nothing::NotAsked)) => Change::none(),
            Err(error) => self.shelf.landing(key, Err(error)),
        }
    }

    fn settle(&self, key: &K, change: &mut Change<K, V>) {
        self.shelf.make(key, change);
    }

    fn settled(&self, change: Change<K, V>) {
        self.shelf.made(change);
    }
}
