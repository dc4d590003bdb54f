//! The flight protocol: one live loader a key, and what starts, joins, leaves and lands it.
//!
//! A flight is linked (in the table) from its start until it is closed, and live until it lands. Its own mutex
//! orders everything that happens to it; a shard's lock is only ever taken inside it, never around it.

use std::borrow::Borrow;
#[cfg(feature = "layer")]
use std::convert::Infallible;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::Duration;

use super::bounds::{Fault, Key, Value};
use super::drop_load::{drop_load, is_deep};
use super::lineage;
use super::plan::{BoxLoad, KeySource};
use super::state::{Flight, Landing, State};
use super::stats::Counters;
use super::table::{Boarded, Hold, Linked, PickedUp, Place, Table};
use crate::error::{LoadError, Overloaded, Panicked};
use crate::sync::{Arc, AtomicUsize, Ordering};

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

/// Keeps what linked flights bring. Told of each landing, before its flight is unlinked: whoever finds no flight
/// afterwards finds the result in the store.
pub(crate) trait Settle<K, V, E>: Send + Sync + 'static {
    /// Whether anything is kept. If not, nothing of this is called, and a flight that nobody joins is never looked at
    /// while it lands.
    const KEEPS: bool = true;

    /// What is to be written.
    type Change;

    /// Makes ready what a landing writes, before any lock is taken: what runs code of the user's belongs here. What it
    /// leaves in the result is what those who wait get.
    fn prepare(&self, key: &K, result: &mut Result<V, LoadError<E>>) -> Self::Change;

    /// Writes it, under the flight's mutex.
    fn settle(&self, key: &K, change: &mut Self::Change);

    /// Called after the mutex was given back, for what must not run under it; also if nothing was to be written, because
    /// the flight had been closed.
    fn settled(&self, change: Self::Change);
}

/// No store: single-flight alone.
impl<K, V, E> Settle<K, V, E> for () {
    const KEEPS: bool = false;

    type Change = ();

    fn prepare(&self, _: &K, _: &mut Result<V, LoadError<E>>) {}

    fn settle(&self, _: &K, (): &mut ()) {}

    fn settled(&self, (): ()) {}
}

/// What a caller becomes.
pub(super) enum Boarding<K, V, E, P> {
    /// With the plan that it brought.
    Leads(Hold<K, V, E>, P),
    Waits(Arc<Flight<K, V, E>>, u32),
    Refused(LoadError<E>),
}

/// All flights over one key space.
pub(crate) struct Flights<K, V, E, H> {
    pub(super) table: Table<K, V, E>,
    pub(super) config: FlightConfig,
    pub(super) counters: Counters,
    /// Where results are kept.
    pub(crate) hook: H,
    /// Keys in flight, counted only where there is a limit to them: the table knows, too.
    limited: AtomicUsize,
    unattended: AtomicUsize,
}

impl<K, V, E, H> fmt::Debug for Flights<K, V, E, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("in_flight", &self.table.len()).finish_non_exhaustive()
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
            table: Table::new(),
            config,
            counters: Counters::default(),
            hook,
            limited: AtomicUsize::new(0),
            unattended: AtomicUsize::new(0),
        })
    }

    /// Keys in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.table.len()
    }

    #[cfg(feature = "redis")]
    pub(crate) fn load_timeout(&self) -> Option<std::time::Duration> {
        self.config.load_timeout
    }

    pub(crate) fn stats(&self) -> super::FlightStats {
        let mut stats = self.counters.snapshot();
        stats.loads += self.table.loads();
        stats
    }

    /// Whether the code that runs now is part of the flight under a key, and would wait for itself. The key is asked
    /// for only inside a load.
    #[cfg(feature = "layer")]
    pub(crate) fn is_own(&self, key: impl FnOnce() -> Option<K>) -> bool {
        lineage::is_inside()
            && key().and_then(|key| self.table.find(&key)).is_some_and(|flight| self.waits_for_us(&flight))
    }

    /// Callers that wait for `key`.
    pub(crate) fn waiters<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.table.look(key, |flight| flight.state.lock().waiters.count())
    }

    /// Closes the key's flight, if there is one: those who wait keep it, later callers start another, and its
    /// result is not stored.
    pub(crate) fn forget<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        while let Some(flight) = self.table.find(key) {
            if self.close(&flight, &mut flight.state.lock()) {
                return true;
            }
        }
        false
    }

    /// Closes every flight.
    #[cfg(feature = "cache")]
    pub(crate) fn forget_all(&self) {
        for flight in self.table.all() {
            self.close(&flight, &mut flight.state.lock());
        }
    }

    /// Runs `write`, once, while `key` has no flight and none can start, closing the one that is under way. It runs under
    /// a lock, and must call no code of the user's.
    #[cfg(feature = "cache")]
    pub(crate) fn overrule<Q>(&self, key: &Q, mut write: impl FnMut())
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        loop {
            let Some(flight) = self.table.find_or(key, &mut write) else { return };
            let mut state = flight.state.lock();
            if !state.closed {
                // In this order: while the flight is linked nobody starts another, which would find the store
                // as it was and land over what is written.
                write();
                self.close(&flight, &mut state);
                return;
            }
        }
    }

    /// Joins the key's flight or starts one. Only what a leader brought is taken.
    #[inline]
    pub(super) fn board<S, P>(&self, brought: &mut Option<(S, P)>, waker: &Waker) -> Boarding<K, V, E, P>
    where
        S: KeySource<K>,
        K: Borrow<S::Query>,
    {
        loop {
            let boarded = self.look(
                brought,
                || self.admit(),
                |key, place| {
                    if H::KEEPS {
                        let flight = Flight::joined(key, place);
                        (Linked::Known(Arc::clone(&flight)), Hold::Flight(flight))
                    } else {
                        (Linked::Alone(key, place), Hold::Entry(place))
                    }
                },
            );
            let found = match boarded {
                Boarded::Led(hold, plan) => return Boarding::Leads(hold, plan),
                Boarded::Found(found) => found,
                Boarded::Refused if brought.is_none() => return Boarding::Refused(LoadError::Cancelled),
                Boarded::Refused => {
                    self.counters.overloaded.add();
                    let max = self.config.max_in_flight;
                    return Boarding::Refused(LoadError::Overloaded(Overloaded::InFlight { max }));
                }
            };
            match self.join(&found, waker) {
                Ok(Some(slot)) => return Boarding::Waits(found, slot),
                Ok(None) => {}
                Err(error) => return Boarding::Refused(error),
            }
        }
    }

    /// The key's flight, or a new one.
    #[inline]
    fn look<S, P>(
        &self,
        brought: &mut Option<(S, P)>,
        admitted: impl FnOnce() -> bool,
        make: impl FnOnce(K, Place) -> (Linked<K, V, E>, Hold<K, V, E>),
    ) -> Boarded<K, V, E, P>
    where
        S: KeySource<K>,
        K: Borrow<S::Query>,
    {
        let Some((given, _)) = brought.as_ref() else { return Boarded::Refused };
        let hash = self.table.hash(given.query());
        let mut key = None;
        if !S::OWNED {
            // Keys are cloned here: behind the table's lock no user code runs, and between a place taken and the flight
            // that holds it nothing panics.
            if let Some(found) = self.table.find_hashed(hash, given.query()) {
                return Boarded::Found(found);
            }
            key = Some(given.to_key());
        }
        self.table.board(hash, brought, key, admitted, make)
    }

    /// Joins the key's flight if there is one.
    #[cfg(feature = "layer")]
    pub(super) fn board_existing<Q>(&self, key: &Q, waker: &Waker) -> Option<Boarding<K, V, E, Infallible>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        while let Some(flight) = self.table.find(key) {
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
        if self.unattended.load(Ordering::Relaxed) >= self.config.max_abandoned {
            return None;
        }
        let boarded = self.look(
            &mut Some((source, ())),
            || self.admit_unattended(),
            |key, place| {
                let flight = Flight::unattended(key, place);
                (Linked::Known(Arc::clone(&flight)), Hold::Flight(flight))
            },
        );
        match boarded {
            Boarded::Led(Hold::Flight(flight), ()) => Some(flight),
            _ => None,
        }
    }

    /// Counts a flight for nobody that is about to be linked, if the caps allow it.
    #[cfg(feature = "cache")]
    fn admit_unattended(&self) -> bool {
        if !self.enter_unattended() {
            return false;
        }
        let admitted = self.admit();
        if !admitted {
            self.leave_unattended();
        }
        admitted
    }

    /// Counts a flight that is about to be linked, if the cap allows it.
    fn admit(&self) -> bool {
        let max = self.config.max_in_flight;
        max == usize::MAX || enter(&self.limited, max)
    }

    fn waits_for_us(&self, flight: &Flight<K, V, E>) -> bool {
        lineage::waits_for_us(self.table.id(flight.place))
    }

    /// A seat on `flight`; `None` if it is over for newcomers, and then the map has forgotten it already.
    fn join(&self, flight: &Arc<Flight<K, V, E>>, waker: &Waker) -> Result<Option<u32>, LoadError<E>> {
        if self.waits_for_us(flight) {
            self.counters.reentrant.add();
            return Err(LoadError::Reentrant);
        }
        // A waker's clone is code of others.
        let waker = waker.clone();
        let ours = lineage::ours();
        let mut state = flight.state.lock();
        if state.closed {
            return Ok(None);
        }
        let max = self.config.max_waiters_per_key;
        let seat = if state.waiters.count() < max { state.waiters.add(waker) } else { None };
        let Some(slot) = seat else {
            drop(state);
            self.counters.overloaded.add();
            return Err(LoadError::Overloaded(Overloaded::Waiters { max }));
        };
        if let (Some(link), Some(ours)) = (&state.link, &ours)
            && !link.tie(slot, ours)
        {
            let waker = state.remove(slot);
            drop(state);
            drop(waker);
            self.counters.reentrant.add();
            return Err(LoadError::Reentrant);
        }
        if !state.standing && std::mem::take(&mut state.unattended) {
            self.leave_unattended();
        }
        state.unwanted = false;
        let span = state.span.clone();
        drop(state);
        span.link();
        self.counters.coalesced.add();
        Ok(Some(slot))
    }
}

/// How flights end, whatever is in them.
impl<K, V, E, H: Settle<K, V, E>> Flights<K, V, E, H> {
    /// A waiter goes away before the flight has landed.
    pub(super) fn leave(&self, flight: &Arc<Flight<K, V, E>>, slot: u32) {
        let mut state = flight.state.lock();
        if state.landed {
            return;
        }
        let waker = state.remove(slot);
        let wanted = state.waiters.count() > 0 || state.boarding || state.unattended;
        if wanted {
            drop(state);
        } else if self.config.on_abandon == OnAbandon::Detach && self.enter_unattended() {
            state.unattended = true;
            drop(state);
        } else if let Some(load) = state.load.take_if(|_| !is_deep()) {
            drop(state);
            self.abandon(flight, load);
        } else {
            state.unwanted = true;
            let driver = if state.load.is_some() { state.driver.take() } else { None };
            drop(state);
            if let Some(driver) = driver {
                driver.wake();
            }
        }
        drop(waker);
    }

    /// Drops a load that nobody wants, then lets those who came meanwhile start over: at no time are two loads
    /// of one key alive.
    pub(super) fn abandon(&self, flight: &Arc<Flight<K, V, E>>, load: BoxLoad<V, E>) {
        drop_load(load);
        self.counters.abandoned.add();
        self.land(flight, &mut None);
        // It finds no load, and ends.
        let driver = flight.state.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// What became of an entry that a leader holds.
    #[inline]
    pub(super) fn pick_up(&self, place: Place) -> PickedUp<K, V, E> {
        self.table.pick_up(place, || self.unlinked())
    }

    /// Ends a flight: store, unlink, publish, then wake. The first three happen under the flight's mutex, so
    /// nobody joins a finished flight and whoever finds no flight finds what it stored.
    ///
    /// `result` is nothing if the load was dropped because nobody waited for it. It is taken if somebody waits for it.
    /// A flight that has landed already is closed and nobody waits for it: nothing changes.
    pub(super) fn land(&self, flight: &Flight<K, V, E>, result: &mut Option<Result<V, LoadError<E>>>) {
        let mut change = match result {
            Some(result) if H::KEEPS => {
                self.unless_it_panics(result, |result| self.hook.prepare(&flight.key, result))
            }
            _ => None,
        };
        let mut state = flight.state.lock();
        // Before the flight is unlinked: whoever finds no flight finds its places free.
        if std::mem::take(&mut state.unattended) {
            self.leave_unattended();
        }
        if !state.closed {
            if let (Some(change), Some(result)) = (&mut change, &mut *result) {
                self.unless_it_panics(result, |_| self.hook.settle(&flight.key, change));
            }
            self.close(flight, &mut state);
        }
        let waiters = state.waiters.count();
        if waiters > 0 {
            flight.landing.get_or_init(|| result.take().map_or(Landing::Abandoned, Landing::Done));
        }
        state.landed = true;
        let herd = state.waiters.take();
        #[cfg(feature = "cache")]
        let watchers = state.watchers.take();
        let _over = std::mem::take(&mut state.span);
        let link = state.link.take();
        drop(state);
        // Who came to wait since the load was over was tied to it once more.
        if let Some(link) = link {
            link.cut_all();
        }
        herd.wake();
        #[cfg(feature = "cache")]
        if let Some(mut watchers) = watchers {
            watchers.take().wake();
        }
        #[cfg(feature = "metrics")]
        crate::event::count_waiters(waiters);
        if let Some(change) = change {
            self.hook.settled(change);
        }
    }

    /// Code of the user's that is part of keeping a result, such as a value's `Clone`: if it panics, so did the load.
    fn unless_it_panics<T>(
        &self,
        result: &mut Result<V, LoadError<E>>,
        keep: impl FnOnce(&mut Result<V, LoadError<E>>) -> T,
    ) -> Option<T> {
        let kept = catch_unwind(AssertUnwindSafe(|| keep(&mut *result)));
        kept.map_err(|payload| {
            self.counters.panicked.add();
            *result = Err(LoadError::Panicked(Panicked::new(payload)));
        })
        .ok()
    }

    /// Under the table's lock: whoever finds no flight finds its place free.
    fn unlinked(&self) {
        if self.config.max_in_flight != usize::MAX {
            self.limited.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes the flight out of the table, by identity; false if it was closed already.
    fn close(&self, flight: &Flight<K, V, E>, state: &mut State<V, E>) -> bool {
        state.closed = true;
        self.table.unlink(flight.place, || self.unlinked())
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
        self.table.all()
    }
}

/// Adds one to `count` unless that would lift it over `max`, even for a moment.
fn enter(count: &AtomicUsize, max: usize) -> bool {
    let one_more = |now: usize| (now < max).then_some(now + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

#[cfg(all(test, feature = "cache"))]
mod tests;
