//! The shelf: a store of entries, and the one place that joins it with time, chance and invalidation.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
#[cfg(feature = "redis")]
use std::time::Duration;
use std::time::Instant;

use super::departures::{Departures, EvictionListener};
#[cfg(feature = "redis")]
use super::entry::Then;
use super::entry::{Arrival, Destination, Entry, Storing};
use super::generations::{Born, Generations};
use super::store::{AnyStore, Kept, StoreKind, Weigher};
use crate::clock::Timeline;
#[cfg(feature = "redis")]
use crate::coordinate::Token;
use crate::deferred;
use crate::error::{LoadError, MAX_DURATION};
use crate::flight::{Fault, Key, Settle, Value};
use crate::policy::{EarlyRefresh, Freshness, Times, shortened};
use crate::rng::Random;

pub(crate) struct Shelf<K, V> {
    store: AnyStore<K, V>,
    weigher: Option<Weigher<K, V>>,
    departures: Option<Arc<Departures<K, V>>>,
    pub(crate) generations: Generations,
    pub(crate) timeline: Timeline,
    random: Random,
    jitter: f64,
    early: Option<EarlyRefresh>,
}

/// How a shelf is set up.
pub(crate) struct ShelfConfig<K, V> {
    pub(crate) store: StoreKind,
    pub(crate) capacity: u64,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) listener: Option<EvictionListener<K, V>>,
    pub(crate) timeline: Timeline,
    pub(crate) random: Random,
    pub(crate) jitter: f64,
    pub(crate) early: Option<EarlyRefresh>,
}

/// What is to change on the shelf, made ready where no lock is held: values have been cloned and weighed. What leaves
/// the shelf is dropped after it.
pub(crate) struct Change<K, V> {
    write: Write<K, V>,
    #[cfg(feature = "redis")]
    then: Option<Then>,
    _scope: Option<deferred::Scope>,
}

enum Write<K, V> {
    Nothing,
    Remove,
    Put(K, Kept<V>),
    PutBack(K, Kept<V>),
    PutAll(Vec<(K, Kept<V>)>),
}

impl<K, V> Change<K, V> {
    /// All stays as it is.
    pub(super) fn none() -> Self {
        Write::Nothing.into()
    }

    /// The key's value goes.
    pub(super) fn removal() -> Self {
        Write::Remove.into()
    }
}

#[cfg(feature = "redis")]
impl<K, V> Change<K, V> {
    /// False if its flight was closed, and it was not to be.
    fn is_made(&self) -> bool {
        matches!(self.write, Write::Nothing)
    }
}

impl<K, V> From<Write<K, V>> for Change<K, V> {
    fn from(write: Write<K, V>) -> Self {
        Self {
            write,
            #[cfg(feature = "redis")]
            then: None,
            _scope: deferred::hold_for::<V>(),
        }
    }
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
        let departures = config.listener.map(|listener| Arc::new(Departures::new(listener)));
        Self {
            store: AnyStore::new(config.store, config.capacity, config.weigher.is_some(), departures.clone()),
            weigher: config.weigher,
            departures,
            generations: Generations::new(),
            timeline: config.timeline,
            random: config.random,
            jitter: config.jitter,
            early: config.early,
        }
    }

    /// Whether it matters to its entries what their loads cost.
    pub(super) fn asks_for_cost(&self) -> bool {
        matches!(self.early, Some(EarlyRefresh::XFetch { .. }))
    }

    /// The entry under `key`, whatever its age, unless it was invalidated.
    pub(crate) fn find<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.valid(self.store.get(key))
    }

    /// The token of the entry under `key`. No destructor of a value runs in it.
    #[cfg(feature = "redis")]
    pub(super) fn token_of(&self, key: &K) -> Option<Token> {
        let kept = self.store.get(key)?;
        kept.entry().filter(|entry| entry.is_valid(&self.generations)).map(Entry::token)
    }

    /// What [`find`](Self::find) finds, for a call that has looked already and most likely finds nothing again.
    pub(crate) fn find_again<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.valid(self.store.get_again(key))
    }

    /// The value under `key` if it is fresh and nothing is to be done about it, as nearly every lookup finds it; else
    /// what is there, of which [`valid`](Self::valid) knows more.
    #[expect(
        clippy::inline_always,
        reason = "a call of it moves what is found: a hit takes 33 instructions more"
    )]
    #[inline(always)]
    pub(super) fn look<Q>(&self, key: &Q) -> Result<V, Option<Kept<V>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        match self.store.get(key) {
            Some(kept) if self.early.is_none() && self.is_fresh(&kept) => kept.into_value().ok_or(None),
            found => Err(found),
        }
    }

    #[expect(clippy::inline_always, reason = "as `look`, whose condition it is")]
    #[inline(always)]
    fn is_fresh(&self, kept: &Kept<V>) -> bool {
        kept.entry().is_some_and(|entry| {
            entry.is_valid(&self.generations) && entry.is_fresh_at(|| self.timeline.instant())
        })
    }

    /// What a lookup found, unless it was invalidated.
    pub(super) fn valid(&self, found: Option<Kept<V>>) -> Option<Entry<V>> {
        found.and_then(Kept::into_entry).filter(|entry| entry.is_valid(&self.generations))
    }

    /// Whether a caller of the time `mine` must not have `arrival`, for which it waited: it was invalidated before the
    /// caller came.
    pub(crate) fn is_void_for(&self, mine: Born, arrival: &Arrival<K, V>) -> bool {
        let receipt = arrival.bound_for.receipt();
        receipt.is_some_and(|load| self.generations.is_void_for(mine, load.born, load.tags.as_deref()))
    }

    /// Whether `entry`, found earlier, has not been invalidated since.
    #[cfg(feature = "layer")]
    pub(crate) fn is_valid(&self, entry: &Entry<V>) -> bool {
        entry.is_valid(&self.generations)
    }

    /// True if `entry`, found earlier, may stand in for a load that failed or is slow.
    pub(crate) fn covers_failure(&self, entry: &Entry<V>) -> bool {
        entry.times().is_some_and(|times| times.covers_failure(self.timeline.now()))
            && entry.is_valid(&self.generations)
    }

    /// What `entry` is good for now.
    pub(crate) fn judge(&self, entry: &Entry<V>) -> Freshness {
        self.judge_at(entry, self.timeline.instant())
    }

    /// What `entry` is good for at `now`, for callers who need the present more than once: reading it is dear.
    pub(crate) fn judge_at(&self, entry: &Entry<V>, now: Instant) -> Freshness {
        match entry.times() {
            Some(times) => times.judge(self.timeline.tick(now), self.early, || self.random.unit()),
            None if entry.is_fresh_at(|| now) => Freshness::Fresh,
            None => Freshness::Dead,
        }
    }

    /// What a leader gets of `found` in place of its load, which was to replace `seen`: a newer value, or the old one
    /// if a load has failed meanwhile, so that the next is not due.
    pub(crate) fn spare_load(&self, found: &Entry<V>, seen: Option<&Entry<V>>) -> Option<Arrival<K, V>> {
        let bound_for = match self.judge(found) {
            Freshness::Fresh | Freshness::RefreshEarly
                if seen.is_none_or(|seen| found.is_newer_than(seen)) =>
            {
                Destination::Nowhere(found.receipt())
            }
            Freshness::Stale { refresh: false } | Freshness::IfError { load: false } if seen.is_some() => {
                Destination::BackingOff { age: found.age(self.timeline.now()), receipt: found.receipt() }
            }
            _ => return None,
        };
        Some(Arrival { value: found.value.clone(), bound_for })
    }

    /// The value under `key`, if it is fresh.
    #[inline]
    pub(crate) fn fresh<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        match self.store.get(key) {
            Some(kept) if self.is_fresh(&kept) => kept.into_value(),
            _ => None,
        }
    }

    /// A time to live with its jitter: `own`, or else the shelf's.
    #[cfg(feature = "redis")]
    pub(crate) fn jittered(&self, ttl: Duration, own: Option<f64>) -> Duration {
        shortened(ttl, own.unwrap_or(self.jitter), self.random.unit())
    }

    /// Stores `value` as of now.
    #[cfg(feature = "layer")]
    pub(crate) fn put(&self, key: K, value: V, storing: &Storing) {
        let kept = self.entry(&key, value, storing);
        self.store.insert(key, kept);
    }

    /// What stores `value` as of now.
    pub(crate) fn putting(&self, key: K, value: V, storing: &Storing) -> Change<K, V> {
        let kept = self.entry(&key, value, storing);
        Write::Put(key, kept).into()
    }

    fn entry(&self, key: &K, value: V, storing: &Storing) -> Kept<V> {
        let (now, random) = (self.timeline.instant(), self.random.unit());
        let jitter = if storing.is_jittered() { storing.jitter.unwrap_or(self.jitter) } else { 0.0 };
        let entry = if self.early.is_none() && storing.is_plain() {
            let ttl = storing.life.ttl;
            // For ever: no hit needs to know the time.
            let end =
                if ttl == MAX_DURATION { None } else { now.checked_add(shortened(ttl, jitter, random)) };
            Entry::plain(value, end, storing.born)
        } else {
            let now = self.timeline.tick(now);
            let mut times = Times::new(now, &storing.life, jitter, random, storing.cost);
            #[cfg(feature = "redis")]
            if let Some(stamp) = storing.shared {
                times = times.shared(stamp.age, stamp.fresh_for);
            }
            if storing.stands_in() {
                times = times.failed(now, random);
            }
            Entry::new(value, times, &self.timeline, storing)
        };
        self.weighed(key, entry)
    }

    fn weighed(&self, key: &K, entry: Entry<V>) -> Kept<V> {
        let weight = self.weigher.as_ref().map_or(1, |weigher| weigher(key, &entry.value));
        Kept::new(entry, weight)
    }

    /// Stores `entry` again, whose replacement came to nothing, and puts off the next load of its key. Nothing has
    /// left the cache, so the listener is not told.
    #[cfg(feature = "layer")]
    pub(crate) fn put_back(&self, key: K, entry: Entry<V>) {
        let kept = self.put_off(&key, entry);
        self.store.rewrite(key, kept);
    }

    /// Weighs what is under `key` anew, if it is `value` still: it has grown.
    #[cfg(feature = "layer")]
    pub(crate) fn reweigh(&self, key: K, is_it: impl FnOnce(&V) -> bool) {
        if let Some(entry) = self.find(&key).filter(|entry| is_it(&entry.value)) {
            let kept = self.weighed(&key, entry);
            self.store.rewrite(key, kept);
        }
    }

    fn put_off(&self, key: &K, mut entry: Entry<V>) -> Kept<V> {
        entry.map_times(|times| times.failed(self.timeline.now(), self.random.unit()));
        self.weighed(key, entry)
    }

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.store.remove(key);
    }

    /// Voids every entry and every load under way.
    pub(crate) fn clear(&self) {
        self.generations.invalidate_all();
        self.store.clear();
    }

    /// How many entries there are, dead ones included, and what they weigh.
    pub(crate) fn size(&self) -> (u64, u64) {
        let size = self.store.size();
        self.announce();
        size
    }

    /// Puts off the next load of `key`, if there is a value to serve meanwhile.
    fn backing_off(&self, key: &K) -> Write<K, V> {
        match self.find(key) {
            Some(entry) if entry.times().is_some_and(|times| !times.is_dead(self.timeline.now())) => {
                Write::PutBack(key.clone(), self.put_off(key, entry))
            }
            _ => Write::Nothing,
        }
    }

    /// Tells the listener what left. Never called under a lock.
    pub(crate) fn announce(&self) {
        if let Some(departures) = &self.departures {
            departures.announce();
        }
    }

    /// What a landing changes. Of where its arrival goes, only what those who wait are told is left in it.
    pub(crate) fn landing<E>(
        &self,
        key: &K,
        result: Result<&mut Arrival<K, V>, &mut LoadError<E>>,
    ) -> Change<K, V> {
        let arrival = match result {
            Ok(arrival) => arrival,
            Err(LoadError::Failed(_) | LoadError::Panicked(_) | LoadError::TimedOut(_)) => {
                return self.backing_off(key).into();
            }
            Err(_) => return Write::Nothing.into(),
        };
        let write = match &mut arrival.bound_for {
            Destination::Nowhere(_) | Destination::BackingOff { .. } | Destination::Landed(_) => {
                return Write::Nothing.into();
            }
            Destination::WaitersOnly(_) => return Write::Remove.into(),
            Destination::Usual { .. } => unreachable!("whoever knows what is usual keeps it"),
            Destination::Shelf(storing) => {
                let (kept, landed) = self.keep(key, &arrival.value, storing);
                #[cfg(feature = "redis")]
                let then = storing.then.take();
                arrival.bound_for = landed;
                #[cfg(feature = "redis")]
                return Change { then, ..kept.into() };
                #[cfg(not(feature = "redis"))]
                kept
            }
            Destination::Shelves(places) => {
                let places = std::mem::take(places);
                // The last is the value's own.
                let receipt = places.last().map(|(_, _, storing)| storing.receipt()).unwrap_or_default();
                arrival.bound_for = Destination::Landed(receipt);
                let keep = |(key, value, storing): (K, V, Storing)| {
                    let kept = self.entry(&key, value, &storing);
                    (key, kept)
                };
                Write::PutAll(places.into_iter().map(keep).collect())
            }
        };
        write.into()
    }

    /// What a landing changes whose arrival is to be stored under the flight's key.
    pub(super) fn keeping(&self, key: &K, arrival: &mut Arrival<K, V>, storing: &Storing) -> Change<K, V> {
        let (kept, landed) = self.keep(key, &arrival.value, storing);
        arrival.bound_for = landed;
        kept.into()
    }

    fn keep(&self, key: &K, value: &V, storing: &Storing) -> (Write<K, V>, Destination<K, V>) {
        let (key, value) = (key.clone(), value.clone());
        let kept = self.entry(&key, value, storing);
        (Write::Put(key, kept), Destination::Landed(storing.receipt()))
    }

    /// Makes a change, once. It may be done under a lock: of the user's code nothing runs but what stores cannot do
    /// without, `Hash` and `Eq` of keys and, in moka, a value's `Clone`.
    pub(crate) fn make(&self, key: &K, change: &mut Change<K, V>) {
        match std::mem::replace(&mut change.write, Write::Nothing) {
            Write::Nothing => {}
            Write::Remove => self.remove(key),
            Write::Put(key, kept) => self.store.insert(key, kept),
            Write::PutBack(key, kept) => self.store.rewrite(key, kept),
            Write::PutAll(places) => {
                for (key, kept) in places {
                    self.store.insert(key, kept);
                }
            }
        }
    }

    /// A change has been made, or was not to be, and no lock is held any more.
    #[cfg_attr(not(feature = "redis"), allow(unused_mut))]
    pub(crate) fn made(&self, mut change: Change<K, V>) {
        #[cfg(feature = "redis")]
        let then = change.then.take().filter(|_| change.is_made());
        drop(change);
        self.announce();
        #[cfg(feature = "redis")]
        if let Some(then) = then {
            then.run();
        }
    }
}

#[cfg(feature = "layer")]
impl<K, V> Shelf<K, V>
where
    K: Key,
    V: Value,
{
    /// Puts what a load brought outside all flights where a flight would put it.
    pub(crate) fn land<E>(&self, key: &K, mut landed: Result<Arrival<K, V>, LoadError<E>>) {
        let mut change = self.landing(key, landed.as_mut());
        self.make(key, &mut change);
        self.made(change);
    }
}

impl<K, V, E> Settle<K, Arrival<K, V>, E> for Shelf<K, V>
where
    K: Key,
    V: Value,
    E: Fault,
{
    type Change = Change<K, V>;

    fn prepare(&self, key: &K, result: &mut Result<Arrival<K, V>, LoadError<E>>) -> Change<K, V> {
        self.landing(key, result.as_mut())
    }

    fn settle(&self, key: &K, change: &mut Change<K, V>) {
        self.make(key, change);
    }

    fn settled(&self, change: Change<K, V>) {
        self.made(change);
    }
}

#[cfg(all(test, not(any(stampede_loom, stampede_shuttle))))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::generations::mark_of;
    use crate::policy::Lifetime;

    #[test]
    fn what_spares_a_load_is_void_for_who_comes_after_an_invalidation_of_its_tag() {
        let minute = Duration::from_secs(60);
        let lifes = [
            Lifetime::fresh_for(minute),
            // Past its freshness, and backing off.
            Lifetime { ttl: Duration::ZERO, stale_while_revalidate: minute, stale_if_error: minute },
        ];
        for life in lifes {
            let shelf: Shelf<u64, u64> = Shelf::new(ShelfConfig {
                store: StoreKind::default(),
                capacity: 10,
                weigher: None,
                listener: None,
                timeline: Timeline::new(None),
                random: Random::new(Some(1)),
                jitter: 0.0,
                early: None,
            });
            let before = shelf.generations.born();
            let tags = Some([mark_of("shoes")].into());
            let storing = Storing { tags, ..Storing::new(life, Duration::ZERO, before) };
            shelf.made({
                let mut change = shelf.putting(1, 10, &storing);
                shelf.make(&1, &mut change);
                change
            });
            if life.ttl.is_zero() {
                let mut change = Change::from(shelf.backing_off(&1));
                shelf.make(&1, &mut change);
                shelf.made(change);
            }
            let found = shelf.find(&1).unwrap();
            let seen = found.clone();
            let spared = shelf.spare_load(&found, life.ttl.is_zero().then_some(&seen)).unwrap();
            shelf.generations.invalidate(mark_of("hats"));
            assert!(!shelf.is_void_for(shelf.generations.born(), &spared));
            shelf.generations.invalidate(mark_of("shoes"));
            assert!(shelf.is_void_for(shelf.generations.born(), &spared));
            assert!(!shelf.is_void_for(before, &spared), "it waited already");
        }
    }
}
