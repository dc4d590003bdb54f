//! One call's way through the cache: look, serve what is good enough, else fly.

use std::borrow::Borrow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::engine::{CacheFlights, CacheLanding, Engine, Loader, Miss, refresh};
#[cfg(feature = "redis")]
use super::entry::Receipt;
use super::entry::{Arrival, Destination, Entry};
use super::generations::Born;
use crate::clock::Tick;
use crate::error::LoadError;
use crate::event::{self, Outcome, StaleReason};
use crate::flight::{Fault, FirstPoll, Key, KeySource, Landed, Role, Run, Value};
use crate::policy::Freshness;

/// A value and how the call came by it, from
/// [`get_or_load_with`](crate::StampedeCache::get_or_load_with).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched<V> {
    /// The value.
    pub value: V,
    /// How the call came by it.
    pub outcome: Outcome,
}

type CacheRun<'a, K, V, E, S, L> = Run<'a, K, CacheLanding<K, V>, E, Engine<K, V>, S, Miss<'a, K, V, E, L>>;

type CacheLanded<'a, K, V, E, S, L> = Landed<CacheLanding<K, V>, E, S, Miss<'a, K, V, E, L>>;

/// A call's end; no value if a loader of several keys left this one out.
pub(super) type Answer<V, E> = Result<Option<Fetched<V>>, LoadError<E>>;

/// What a call falls back on if its load fails or is slow.
struct Fallback<V> {
    entry: Entry<V>,
    /// Runs from the moment the call first has to wait.
    soft_timeout: Option<Pin<Box<Sleep>>>,
}

/// The future of one call. Nothing happens before its first poll; until that finds nothing to serve, the run is
/// what a call brings along.
pub(crate) struct Fetch<'a, K, V, E, S, L>
where
    K: Key,
    V: Value,
    E: Fault,
{
    run: CacheRun<'a, K, V, E, S, L>,
    fallback: Option<Box<Fallback<V>>>,
}

impl<K, V, E, S, L> Unpin for Fetch<'_, K, V, E, S, L>
where
    K: Key,
    V: Value,
    E: Fault,
{
}

impl<'a, K, V, E, S, L> Fetch<'a, K, V, E, S, L>
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    pub(crate) fn new(flights: &'a Arc<CacheFlights<K, V, E>>, source: S, loader: L) -> Self {
        let miss = Miss {
            flights,
            loader,
            stale: None,
            born: Born::default(),
            #[cfg(feature = "redis")]
            errand: None,
        };
        Self { run: Run::new(flights, source, miss, FirstPoll::Inline), fallback: None }
    }

    fn engine(&self) -> &'a Engine<K, V> {
        &self.run.flights().hook
    }

    #[inline]
    fn hit(&self, value: V) -> Fetched<V> {
        self.engine().counters.hits.add();
        event::count_request("hit");
        Fetched { value, outcome: Outcome::Hit }
    }

    /// The rarer findings; `None` if a load must be waited for. Apart, as [`fly`](Self::fly) is, so that a hit pays
    /// for none of it.
    #[inline(never)]
    fn decide(&mut self, found: Option<Entry<V>>) -> Option<Result<Fetched<V>, LoadError<E>>> {
        let Some(entry) = found else { return self.take_off(None) };
        match self.engine().shelf.judge(&entry) {
            Freshness::Fresh => Some(Ok(self.hit(entry.value))),
            Freshness::RefreshEarly => {
                let value = entry.value.clone();
                self.refresh(entry);
                Some(Ok(self.hit(value)))
            }
            Freshness::Stale { refresh: false } | Freshness::IfError { load: false } => {
                Some(Ok(self.stale(entry, StaleReason::BackingOff)))
            }
            Freshness::Stale { refresh: true } => {
                let answer = self.stale(entry.clone(), StaleReason::Revalidating);
                self.refresh(entry);
                Some(Ok(answer))
            }
            Freshness::IfError { load: true } => {
                self.fallback = Some(Box::new(Fallback { entry: entry.clone(), soft_timeout: None }));
                self.take_off(Some(Box::new(entry)))
            }
            Freshness::Dead => self.take_off(Some(Box::new(entry))),
        }
    }

    fn refresh(&mut self, stale: Entry<V>) {
        if let Some((source, miss)) = self.run.unused()
            && let Some((loader, stale)) = miss.loader.put_off(stale)
        {
            refresh(self.run.flights(), source, loader, Some(stale), false);
        }
    }

    fn take_off(&mut self, stale: Option<Box<Entry<V>>>) -> Option<Result<Fetched<V>, LoadError<E>>> {
        let engine = self.engine();
        engine.counters.misses.fetch_add(1, Ordering::Relaxed);
        if engine.is_closed() {
            return Some(self.failed(LoadError::Cancelled));
        }
        if let Some(miss) = self.run.plan_mut() {
            miss.stale = stale;
            miss.born = engine.shelf.generations.born();
        }
        None
    }

    fn stale(&self, entry: Entry<V>, reason: StaleReason) -> Fetched<V> {
        let stored = entry.times().map(|times| times.stored);
        Fetched { value: entry.value, outcome: self.stale_since(stored, reason) }
    }

    fn stale_since(&self, stored: Option<Tick>, reason: StaleReason) -> Outcome {
        let engine = self.engine();
        engine.counters.stale.fetch_add(1, Ordering::Relaxed);
        let age = stored.map_or(Duration::ZERO, |stored| engine.shelf.timeline.now().since(stored));
        let outcome = Outcome::Stale { age, reason };
        event::count_outcome(outcome);
        outcome
    }

    /// What may be served in place of a load's result, at this moment.
    fn stand_in(&mut self) -> Option<Entry<V>> {
        let entry = self.fallback.take()?.entry;
        self.engine().shelf.covers_failure(&entry).then_some(entry)
    }

    /// What is served because the load has taken `soft_timeout`.
    fn overdue(&mut self, cx: &mut Context<'_>) -> Option<Entry<V>> {
        let limit = self.engine().soft_timeout?;
        let timer = &mut self.fallback.as_mut()?.soft_timeout;
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if timer.as_mut().poll(cx).is_pending() {
            return None;
        }
        self.stand_in()
    }

    fn failed(&mut self, error: LoadError<E>) -> Result<Fetched<V>, LoadError<E>> {
        if let LoadError::Overloaded(cap) = &error {
            event::count_shed(*cap);
        }
        if let Some(entry) = self.stand_in() {
            return Ok(self.stale(entry, StaleReason::LoadFailed));
        }
        event::count_request("error");
        Err(error)
    }

    /// True if what landed began before an invalidation that this call, of the time `mine`, came after.
    fn is_void(&self, mine: Born, arrival: &Arrival<K, V>) -> bool {
        let Destination::Landed(load) = &arrival.bound_for else { return false };
        self.engine().shelf.generations.is_void_for(mine, load.born, load.tags.as_deref())
    }

    #[inline(never)]
    fn fly(&mut self, cx: &mut Context<'_>) -> Poll<Answer<V, E>> {
        while let Poll::Ready(landed) = Pin::new(&mut self.run).poll(cx) {
            if let Some(answer) = self.landed(landed) {
                return Poll::Ready(answer);
            }
        }
        if self.fallback.is_some()
            && let Some(entry) = self.overdue(cx)
        {
            return Poll::Ready(Ok(Some(self.stale(entry, StaleReason::LoadSlow))));
        }
        Poll::Pending
    }

    /// `None` if the call is in the air again: what landed is not for it.
    fn landed(&mut self, landed: CacheLanded<'a, K, V, E, S, L>) -> Option<Answer<V, E>> {
        let arrival = match landed.result {
            Ok(arrival) => arrival,
            Err(error) => return Some(self.failed(error).map(Some)),
        };
        if L::ALONE
            && let Some((source, miss)) = landed.unused
            && arrival.as_ref().is_none_or(|arrival| self.is_void(miss.born, arrival))
        {
            self.run = Run::new(miss.flights, source, miss, FirstPoll::Inline);
            return None;
        }
        self.fallback = None;
        let Some(arrival) = arrival else {
            event::count_request("absent");
            return Some(Ok(None));
        };
        let outcome = match (arrival.bound_for, landed.role) {
            (Destination::BackingOff { stored }, _) => {
                self.stale_since(Some(stored), StaleReason::BackingOff)
            }
            (bound_for, role) => {
                let outcome = match (bound_for, role) {
                    (Destination::Nowhere, Role::Leader) => Outcome::Hit,
                    #[cfg(feature = "redis")]
                    (Destination::Landed(Receipt { outcome: Some(from), .. }), role)
                        if role == Role::Leader || matches!(from, Outcome::Stale { .. }) =>
                    {
                        from
                    }
                    (_, Role::Leader) => Outcome::Loaded,
                    (_, Role::Follower) => Outcome::Coalesced,
                };
                event::count_outcome(outcome);
                outcome
            }
        };
        Some(Ok(Some(Fetched { value: arrival.value, outcome })))
    }
}

impl<K, V, E, S, L> Future for Fetch<'_, K, V, E, S, L>
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    type Output = Answer<V, E>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.run.is_waiting() {
            let source = self.run.source().expect("a future is not polled after it was ready");
            match self.engine().shelf.look(source.query()) {
                Ok(value) => return Poll::Ready(Ok(Some(self.hit(value)))),
                Err(found) => {
                    if let Some(answer) = self.decide(found) {
                        return Poll::Ready(answer.map(Some));
                    }
                }
            }
        }
        self.fly(cx)
    }
}
