//! The flight protocol: one live loader a key, and what starts, joins, leaves and lands it.
//!
//! A flight is linked (in the map) from its start until it is closed, and live until it lands. Its own mutex
//! orders everything that happens to it; the map's shard lock is only ever taken inside it, never around it.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::Duration;

use super::bounds::{Fault, Key, Value};
use super::lineage::{self, Ancestor};
use super::plan::{BoxLoad, KeySource};
use super::stats::Counters;
use super::waiters::Waiters;
use crate::error::{LoadError, Overloaded};
use crate::sync::{AbortHandle, Arc, AtomicUsize, Map, Mutex, OnceLock, Ordering};

/// What happens to a load when the last caller that waited for it goes away.
///
/// ```
/// use stampede_guard::{OnAbandon, SingleFlight};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let searches: SingleFlight<String, u64> =
///     SingleFlight::builder().on_abandon(OnAbandon::Cancel).build()?;
/// # drop(searches); Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnAbandon {
    /// It goes on in the background, so that a cache behind it fills, while fewer than `max_abandoned` such
    /// loads run. Beyond that it is dropped.
    #[default]
    Detach,
    /// It is dropped.
    Cancel,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightConfig {
    pub(crate) on_abandon: OnAbandon,
    pub(crate) max_abandoned: usize,
    pub(crate) load_timeout: Option<Duration>,
    pub(crate) max_in_flight: usize,
    pub(crate) max_waiters_per_key: usize,
}

impl Default for FlightConfig {
    fn default() -> Self {
        Self {
            on_abandon: OnAbandon::Detach,
            max_abandoned: 64,
            load_timeout: None,
            max_in_flight: usize::MAX,
            max_waiters_per_key: usize::MAX,
        }
    }
}

/// Told of each landing of a linked flight, under the flight's mutex and before it is unlinked: whoever finds
/// no flight afterwards finds the result in the store.
pub(crate) trait Settle<K, V, E>: Send + Sync + 'static {
    fn settle(&self, key: &K, result: &Result<V, LoadError<E>>);

    /// Called after the mutex was given back, for what must not run under it.
    fn settled(&self) {}
}

/// No store: single-flight alone.
impl<K, V, E> Settle<K, V, E> for () {
    fn settle(&self, _: &K, _: &Result<V, LoadError<E>>) {}
}

/// How a flight ended.
pub(super) enum Landing<V, E> {
    Done(Result<V, LoadError<E>>),
    /// Its load was dropped because nobody waited. Whoever came while that happened starts over.
    Abandoned,
}

impl<V: Clone, E> Clone for Landing<V, E> {
    fn clone(&self) -> Self {
        match self {
            Self::Done(result) => Self::Done(result.clone()),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

/// One run of one loader.
pub(super) struct Flight<K, V, E> {
    pub(super) key: K,
    landing: OnceLock<Landing<V, E>>,
    state: Mutex<State<V, E>>,
}

// Independent facts, each read on its own.
#[allow(clippy::struct_excessive_bools)]
struct State<V, E> {
    /// Not, or no longer, in the map: nobody joins, and the result is not stored.
    closed: bool,
    landed: bool,
    /// The first poll of the load, in its leader's own poll, is not over: the leader is here, without a slot.
    boarding: bool,
    /// Runs with nobody waiting and holds one of the `max_abandoned` places.
    unattended: bool,
    /// Nobody wants the load, which is being polled right now: whoever polls it drops it.
    unwanted: bool,
    waiters: Waiters,
    leader: Option<u32>,
    /// The load between two polls.
    load: Option<BoxLoad<V, E>>,
    task: Option<AbortHandle>,
    parent: Option<Arc<dyn Ancestor>>,
}

impl<K, V, E> Flight<K, V, E> {
    fn new(key: K, parent: Option<Arc<dyn Ancestor>>, unattended: bool) -> Arc<Self> {
        let state = State {
            closed: false,
            landed: false,
            boarding: !unattended,
            unattended,
            unwanted: false,
            waiters: Waiters::new(),
            leader: None,
            load: None,
            task: None,
            parent,
        };
        Arc::new(Self { key, landing: OnceLock::new(), state: Mutex::new(state) })
    }

    pub(super) fn landing(&self) -> Option<Landing<V, E>>
    where
        V: Clone,
    {
        self.landing.get().cloned()
    }

    pub(super) fn landed(&self) -> bool {
        self.state.lock().landed
    }

    /// Waits on with another waker, unless the flight has landed meanwhile.
    pub(super) fn keep_waiting(&self, slot: u32, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.landed {
            return false;
        }
        let old = state.waiters.update(slot, waker);
        drop(state);
        drop(old);
        true
    }

    /// Puts the leader, whose poll ends, among the waiters, and its load where the driver finds it.
    pub(super) fn hand_over(&self, load: BoxLoad<V, E>, leader: Option<&Waker>) -> u32 {
        let mut state = self.state.lock();
        state.load = Some(load);
        // A leader beyond four billion waiters has no slot to be woken through; its herd would not fit memory.
        let slot = leader.and_then(|waker| state.waiters.add(waker));
        state.leader = slot;
        slot.unwrap_or(u32::MAX)
    }

    pub(super) fn driven_by(&self, task: AbortHandle) {
        let mut state = self.state.lock();
        state.task = Some(task);
        state.boarding = false;
    }

    /// The driver's task, for a model to end as a dying runtime would.
    #[cfg(all(test, stampede_loom))]
    pub(super) fn take_task(&self) -> Option<AbortHandle> {
        self.state.lock().task.take()
    }

    /// A seat for somebody who only wants to know when the flight ends.
    #[cfg(feature = "cache")]
    pub(super) fn watch(&self, waker: &Waker) -> Option<u32> {
        let mut state = self.state.lock();
        if state.landed { None } else { state.waiters.add(waker) }
    }

    pub(super) fn take_load(&self) -> Option<BoxLoad<V, E>> {
        self.state.lock().load.take()
    }

    /// Keeps a pending load until its next poll, or gives it back because nobody wants it any more.
    pub(super) fn park_load(&self, load: BoxLoad<V, E>) -> Option<BoxLoad<V, E>> {
        let mut state = self.state.lock();
        if state.unwanted {
            return Some(load);
        }
        state.load = Some(load);
        None
    }
}

impl<K: Send + Sync, V: Send + Sync, E: Send + Sync> Ancestor for Flight<K, V, E> {
    fn parent(&self) -> Option<Arc<dyn Ancestor>> {
        self.state.lock().parent.clone()
    }
}

/// What a caller becomes.
pub(super) enum Boarding<K, V, E> {
    Leads(Arc<Flight<K, V, E>>),
    Waits(Arc<Flight<K, V, E>>, u32),
    Refused(LoadError<E>),
}

/// All flights over one key space.
pub(crate) struct Flights<K, V, E, H> {
    map: Map<K, Arc<Flight<K, V, E>>>,
    pub(super) config: FlightConfig,
    pub(super) counters: Counters,
    /// Where results are kept.
    pub(crate) hook: H,
    in_flight: AtomicUsize,
    unattended: AtomicUsize,
}

impl<K, V, E, H> fmt::Debug for Flights<K, V, E, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl<K, V, E, H> Flights<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    pub(crate) fn new(config: FlightConfig, hook: H) -> Arc<Self> {
        Arc::new(Self {
            map: Map::new(),
            config,
            counters: Counters::default(),
            hook,
            in_flight: AtomicUsize::new(0),
            unattended: AtomicUsize::new(0),
        })
    }

    /// Keys in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    #[cfg(feature = "redis")]
    pub(crate) fn load_timeout(&self) -> Option<std::time::Duration> {
        self.config.load_timeout
    }

    pub(crate) fn stats(&self) -> super::FlightStats {
        self.counters.snapshot()
    }

    /// Whether the code that runs now is part of the flight under a key, and would wait for itself. The key is asked
    /// for only inside a load.
    #[cfg(feature = "layer")]
    pub(crate) fn is_own(&self, key: impl FnOnce() -> Option<K>) -> bool {
        lineage::current().is_some()
            && key().and_then(|key| self.map.get(&key)).is_some_and(|flight| lineage::waits_for_us(&flight))
    }

    /// Callers that wait for `key`.
    pub(crate) fn waiters<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.map.get(key).map_or(0, |flight| flight.state.lock().waiters.count())
    }

    /// Closes the key's flight, if there is one: those who wait keep it, later callers start another, and its
    /// result is not stored.
    pub(crate) fn forget<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        while let Some(flight) = self.map.get(key) {
            let key = self.close(&flight, &mut flight.state.lock());
            if key.is_some() {
                return true;
            }
        }
        false
    }

    /// Closes every flight.
    #[cfg(feature = "cache")]
    pub(crate) fn forget_all(&self) {
        for flight in self.map.values() {
            let key = self.close(&flight, &mut flight.state.lock());
            drop(key);
        }
    }

    /// Runs `write`, once, while `key` has no flight and none can start, closing the one that is under way.
    #[cfg(feature = "cache")]
    pub(crate) fn overrule(&self, key: &K, mut write: impl FnMut()) {
        loop {
            let found = self.map.get_or_try_insert(key.clone(), || {
                write();
                None
            });
            let Some(flight) = found else { return };
            let mut state = flight.state.lock();
            if !state.closed {
                // In this order: while the flight is linked nobody starts another, which would find the store
                // as it was and land over what is written.
                write();
                let key = self.close(&flight, &mut state);
                drop(state);
                drop(key);
                return;
            }
        }
    }

    /// Joins the key's flight or starts one. Only a leader's key is taken.
    pub(super) fn board<S>(&self, source: &mut Option<S>, waker: &Waker) -> Boarding<K, V, E>
    where
        S: KeySource<K>,
        K: Borrow<S::Query>,
    {
        loop {
            let found = match source.as_ref().and_then(|source| self.map.get(source.query())) {
                Some(flight) => flight,
                None => match self.start(source, lineage::current(), false) {
                    Ok(Start::New(flight)) => return Boarding::Leads(flight),
                    Ok(Start::Found(flight)) => flight,
                    Err(error) => return Boarding::Refused(error),
                },
            };
            match self.join(&found, waker) {
                Ok(Some(slot)) => return Boarding::Waits(found, slot),
                Ok(None) => {}
                Err(error) => return Boarding::Refused(error),
            }
        }
    }

    /// Joins the key's flight if there is one.
    #[cfg(feature = "layer")]
    pub(super) fn board_existing<Q>(&self, key: &Q, waker: &Waker) -> Option<Boarding<K, V, E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        while let Some(flight) = self.map.get(key) {
            match self.join(&flight, waker) {
                Ok(Some(slot)) => return Some(Boarding::Waits(flight, slot)),
                Ok(None) => {}
                Err(error) => return Some(Boarding::Refused(error)),
            }
        }
        None
    }

    /// Starts a flight that nobody waits for, if the key has none and such a flight may run.
    #[cfg(feature = "cache")]
    pub(super) fn start_unattended<S>(&self, source: S) -> Option<Arc<Flight<K, V, E>>>
    where
        S: KeySource<K>,
        K: Borrow<S::Query>,
    {
        let full = self.unattended.load(Ordering::Relaxed) >= self.config.max_abandoned;
        if full || self.map.get(source.query()).is_some() {
            return None;
        }
        match self.start(&mut Some(source), None, true) {
            Ok(Start::New(flight)) => Some(flight),
            _ => None,
        }
    }

    fn start<S>(
        &self,
        source: &mut Option<S>,
        parent: Option<Arc<dyn Ancestor>>,
        unattended: bool,
    ) -> Result<Start<K, V, E>, LoadError<E>>
    where
        S: KeySource<K>,
    {
        let Some(given) = source.as_ref() else { return Err(LoadError::Cancelled) };
        // Keys are cloned here: behind the map's lock no user code runs, and between a place taken and the
        // flight that holds it nothing panics.
        let (key, spare) = (given.to_key(), given.spare_key());
        let mut started = None;
        let found = self.map.get_or_try_insert(key, || {
            if !self.take_place(unattended) {
                return None;
            }
            started = source.take().map(|source| {
                let own = spare.unwrap_or_else(|| source.into_key());
                Flight::new(own, parent, unattended)
            });
            started.clone()
        });
        match (found, started) {
            (Some(flight), _) => Ok(Start::Found(flight)),
            (None, Some(flight)) => Ok(Start::New(flight)),
            (None, None) => {
                if !unattended {
                    self.counters.overloaded.add();
                }
                Err(LoadError::Overloaded(Overloaded::InFlight { max: self.config.max_in_flight }))
            }
        }
    }

    /// Counts a flight that is about to be linked, if the caps allow it.
    fn take_place(&self, unattended: bool) -> bool {
        if unattended && !self.enter_unattended() {
            return false;
        }
        let taken = enter(&self.in_flight, self.config.max_in_flight);
        if unattended && !taken {
            self.leave_unattended();
        }
        taken
    }

    /// A seat on `flight`; `None` if it is over for newcomers, and then the map has forgotten it already.
    fn join(&self, flight: &Arc<Flight<K, V, E>>, waker: &Waker) -> Result<Option<u32>, LoadError<E>> {
        if lineage::waits_for_us(flight) {
            self.counters.reentrant.add();
            return Err(LoadError::Reentrant);
        }
        let mut state = flight.state.lock();
        if state.closed {
            return Ok(None);
        }
        let max = self.config.max_waiters_per_key;
        let seat = if state.waiters.count() < max { state.waiters.add(waker) } else { None };
        if seat.is_none() {
            drop(state);
            self.counters.overloaded.add();
            return Err(LoadError::Overloaded(Overloaded::Waiters { max }));
        }
        if std::mem::take(&mut state.unattended) {
            self.leave_unattended();
        }
        state.unwanted = false;
        drop(state);
        self.counters.coalesced.add();
        Ok(seat)
    }

    /// A waiter goes away before the flight has landed.
    pub(super) fn leave(&self, flight: &Arc<Flight<K, V, E>>, slot: u32) {
        let mut state = flight.state.lock();
        if state.landed {
            return;
        }
        // Wakers and parents belong to others: they are dropped after the lock.
        let waker = state.waiters.remove(slot);
        let mut parent = None;
        if waker.is_some() && state.leader == Some(slot) {
            state.leader = None;
            parent = state.parent.take();
        }
        let wanted = state.waiters.count() > 0 || state.boarding || state.unattended;
        if wanted {
            drop(state);
        } else if self.config.on_abandon == OnAbandon::Detach && self.enter_unattended() {
            state.unattended = true;
            drop(state);
        } else if let Some(load) = state.load.take() {
            drop(state);
            self.abandon(flight, load);
        } else {
            state.unwanted = true;
            drop(state);
        }
        drop((waker, parent));
    }

    /// Drops a load that nobody wants, then lets those who came meanwhile start over: at no time are two loads
    /// of one key alive.
    pub(super) fn abandon(&self, flight: &Arc<Flight<K, V, E>>, load: BoxLoad<V, E>) {
        drop_quietly(load);
        self.counters.abandoned.add();
        self.land(flight, Landing::Abandoned);
        let task = flight.state.lock().task.take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Ends a flight: store, unlink, publish, then wake. The first three happen under the flight's mutex, so
    /// nobody joins a finished flight and whoever finds no flight finds what it stored.
    ///
    /// Gives the landing back if nobody waits for it. A flight that has landed already is closed and nobody
    /// waits for it: nothing changes.
    pub(super) fn land(
        &self,
        flight: &Arc<Flight<K, V, E>>,
        landing: Landing<V, E>,
    ) -> Option<Landing<V, E>> {
        let mut state = flight.state.lock();
        // Before the flight is unlinked: whoever finds no flight finds its places free.
        if std::mem::take(&mut state.unattended) {
            self.leave_unattended();
        }
        let mut key = None;
        if !state.closed {
            if let Landing::Done(result) = &landing {
                self.hook.settle(&flight.key, result);
            }
            key = self.close(flight, &mut state);
        }
        let unclaimed = if state.waiters.count() > 0 {
            let _ = flight.landing.set(landing);
            None
        } else {
            Some(landing)
        };
        state.landed = true;
        let leader = state.leader.take();
        let herd = state.waiters.take(leader);
        let parent = state.parent.take();
        drop(state);
        herd.wake();
        self.hook.settled();
        drop((key, parent));
        unclaimed
    }

    /// Takes the flight out of the map, by identity. The map's key belongs to others: it is returned, to be
    /// dropped after the flight's lock; `None` if the flight was closed already.
    ///
    /// Closed means gone from the map, also if the key's own `Hash` or `Eq` panics: then the flight is as it
    /// was, and whoever has the duty to land it tries again.
    #[must_use]
    fn close(&self, flight: &Arc<Flight<K, V, E>>, state: &mut State<V, E>) -> Option<K> {
        let key = self.map.remove_if(&flight.key, |linked| {
            let mine = Arc::ptr_eq(linked, flight);
            if mine {
                // Under the map's lock: whoever finds no flight finds its place free.
                self.in_flight.fetch_sub(1, Ordering::Relaxed);
            }
            mine
        });
        state.closed = true;
        key
    }

    /// Takes one of the places of loads that run with nobody waiting.
    pub(crate) fn enter_unattended(&self) -> bool {
        enter(&self.unattended, self.config.max_abandoned)
    }

    pub(crate) fn leave_unattended(&self) {
        self.unattended.fetch_sub(1, Ordering::Relaxed);
    }

    /// Loads that run with nobody waiting.
    #[cfg(all(test, stampede_loom))]
    pub(super) fn unattended(&self) -> usize {
        self.unattended.load(Ordering::Relaxed)
    }

    /// The flights under way.
    #[cfg(feature = "cache")]
    pub(super) fn linked(&self) -> Vec<Arc<Flight<K, V, E>>> {
        self.map.values()
    }
}

enum Start<K, V, E> {
    New(Arc<Flight<K, V, E>>),
    Found(Arc<Flight<K, V, E>>),
}

/// Adds one to `count` unless that would lift it over `max`, even for a moment.
fn enter(count: &AtomicUsize, max: usize) -> bool {
    let one_more = |now: usize| (now < max).then_some(now + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

/// Drops a loader's future; a panic in its destructors ends there.
pub(super) fn drop_quietly<V, E>(load: BoxLoad<V, E>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(load)));
}

#[cfg(all(test, feature = "cache"))]
mod tests;
