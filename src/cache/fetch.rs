//! One call's way through the cache: look, serve what is good enough, else fly.

use std::borrow::Borrow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::time::{Sleep, sleep};

use super::engine::{CacheLanding, CacheLoad, Engine, Loader};
use super::generations::Born;
use super::shelf::{Arrival, Destination, Entry, Shelf};
#[cfg(feature = "redis")]
use super::shelf::{Stamp, Storing};
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

type CacheRun<'a, K, V, E, S, L> = Run<'a, K, CacheLanding<K, V>, E, Shelf<K, V>, S, CacheLoad<K, V, E, L>>;

type CacheLanded<K, V, E, S, L> = Landed<CacheLanding<K, V>, E, S, CacheLoad<K, V, E, L>>;

/// A call's end; no value if a loader of several keys left this one out.
pub(super) type Answer<V, E> = Result<Option<Fetched<V>>, LoadError<E>>;

/// What a call falls back on if its load fails or is slow.
struct Fallback<V> {
    entry: Entry<V>,
    /// Runs from the moment the call first has to wait.
    soft_timeout: Option<Pin<Box<Sleep>>>,
}

/// The future of one call. Nothing happens before its first poll.
pub(crate) struct Fetch<'a, K, V, E, S, L>
where
    K: Key,
    V: Value,
    E: Fault,
{
    engine: &'a Arc<Engine<K, V, E>>,
    state: State<'a, K, V, E, S, L>,
    /// When it took off.
    born: Option<Born>,
    fallback: Option<Box<Fallback<V>>>,
}

enum State<'a, K, V, E, S, L>
where
    K: Key,
    V: Value,
    E: Fault,
{
    Look(S, L),
    Fly(CacheRun<'a, K, V, E, S, L>),
    Done,
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
    pub(crate) fn new(engine: &'a Arc<Engine<K, V, E>>, source: S, loader: L) -> Self {
        Self { engine, state: State::Look(source, loader), born: None, fallback: None }
    }

    /// What the shelf has to say; `None` if a load must be waited for, and then this call is in the air.
    fn look(&mut self) -> Option<Result<Fetched<V>, LoadError<E>>> {
        let State::Look(source, _) = &self.state else { return None };
        let found = self.engine.shelf().find(source.query());
        match found {
            Some(entry) if self.engine.shelf().is_plain_hit(&entry) => Some(Ok(self.hit(entry.value))),
            found => self.decide(found),
        }
    }

    fn hit(&self, value: V) -> Fetched<V> {
        self.engine.counters.hits.add();
        event::count_request("hit");
        Fetched { value, outcome: Outcome::Hit }
    }

    /// The rarer cases. Apart, so that a hit moves neither key nor loader.
    #[inline(never)]
    fn decide(&mut self, found: Option<Entry<V>>) -> Option<Result<Fetched<V>, LoadError<E>>> {
        let State::Look(source, loader) = std::mem::replace(&mut self.state, State::Done) else {
            return None;
        };
        let Some(entry) = found else { return self.take_off(source, loader, None) };
        match self.engine.shelf().judge(&entry) {
            Freshness::Fresh => Some(Ok(self.hit(entry.value))),
            Freshness::RefreshEarly => {
                let value = entry.value.clone();
                self.refresh(source, loader, entry);
                Some(Ok(self.hit(value)))
            }
            Freshness::Stale { refresh: false } | Freshness::IfError { load: false } => {
                Some(Ok(self.stale(entry, StaleReason::BackingOff)))
            }
            Freshness::Stale { refresh: true } => {
                let answer = self.stale(entry.clone(), StaleReason::Revalidating);
                self.refresh(source, loader, entry);
                Some(Ok(answer))
            }
            Freshness::IfError { load: true } => {
                self.fallback = Some(Box::new(Fallback { entry: entry.clone(), soft_timeout: None }));
                self.take_off(source, loader, Some(entry))
            }
            Freshness::Dead => self.take_off(source, loader, Some(entry)),
        }
    }

    fn refresh(&self, source: S, loader: L, stale: Entry<V>) {
        if let Some((loader, stale)) = loader.put_off(stale) {
            self.engine.refresh(source, loader, Some(stale), false);
        }
    }

    fn take_off(
        &mut self,
        source: S,
        loader: L,
        stale: Option<Entry<V>>,
    ) -> Option<Result<Fetched<V>, LoadError<E>>> {
        self.engine.counters.misses.fetch_add(1, Ordering::Relaxed);
        if self.engine.is_closed() {
            return Some(self.failed(LoadError::Cancelled));
        }
        self.born = Some(self.engine.shelf().generations.born());
        let load = CacheLoad::new(self.engine, loader, stale);
        self.fly(source, load);
        None
    }

    fn fly(&mut self, source: S, load: CacheLoad<K, V, E, L>) {
        self.state = State::Fly(Run::new(&self.engine.flights, source, load, FirstPoll::Inline));
    }

    fn stale(&self, entry: Entry<V>, reason: StaleReason) -> Fetched<V> {
        self.engine.counters.stale.fetch_add(1, Ordering::Relaxed);
        event::count_request("stale");
        let age = self.engine.shelf().timeline.now().since(entry.times.stored);
        Fetched { value: entry.value, outcome: Outcome::Stale { age, reason } }
    }

    /// What may be served in place of a load's result, at this moment.
    fn stand_in(&mut self) -> Option<Entry<V>> {
        let entry = self.fallback.take()?.entry;
        self.engine.shelf().covers_failure(&entry).then_some(entry)
    }

    fn failed(&mut self, error: LoadError<E>) -> Result<Fetched<V>, LoadError<E>> {
        if let Some(entry) = self.stand_in() {
            return Ok(self.stale(entry, StaleReason::LoadFailed));
        }
        event::count_request("error");
        Err(error)
    }

    /// True if what landed began before an invalidation that this call came after.
    fn is_void(&self, arrival: &Arrival<K, V>) -> bool {
        let Destination::Shelf(storing) = &arrival.bound_for else { return false };
        let generations = &self.engine.shelf().generations;
        self.born.is_some_and(|mine| generations.is_void_for(mine, storing.born, storing.tags.as_deref()))
    }

    /// `None` if the call is in the air again: what landed is not for it.
    fn landed(&mut self, landed: CacheLanded<K, V, E, S, L>) -> Option<Answer<V, E>> {
        let arrival = match landed.result {
            Ok(arrival) => arrival,
            Err(error) => return Some(self.failed(error).map(Some)),
        };
        if L::ALONE
            && arrival.as_ref().is_none_or(|arrival| self.is_void(arrival))
            && let Some((source, load)) = landed.unused
        {
            self.fly(source, load);
            return None;
        }
        self.fallback = None;
        let Some(arrival) = arrival else {
            event::count_request("absent");
            return Some(Ok(None));
        };
        let outcome = match (arrival.bound_for, landed.role) {
            (Destination::Nowhere, Role::Leader) => Outcome::Hit,
            #[cfg(feature = "redis")]
            (
                Destination::Shelf(Storing { shared: Some(Stamp { outcome: Some(outcome), .. }), .. }),
                role,
            ) => {
                // A stale value is as stale for those who waited for it.
                if role == Role::Leader || matches!(outcome, Outcome::Stale { .. }) {
                    outcome
                } else {
                    Outcome::Coalesced
                }
            }
            (_, Role::Leader) => Outcome::Loaded,
            (_, Role::Follower) => Outcome::Coalesced,
        };
        event::count_request(outcome.as_str());
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

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Look(..) = self.state
            && let Some(answer) = self.look()
        {
            return Poll::Ready(answer.map(Some));
        }
        loop {
            let State::Fly(run) = &mut self.state else { panic!("polled after it was ready") };
            let Poll::Ready(landed) = Pin::new(run).poll(cx) else { break };
            self.state = State::Done;
            if let Some(answer) = self.landed(landed) {
                return Poll::Ready(answer);
            }
        }
        if let Some(limit) = self.engine.soft_timeout
            && let Some(fallback) = &mut self.fallback
            && fallback
                .soft_timeout
                .get_or_insert_with(|| Box::pin(sleep(limit)))
                .as_mut()
                .poll(cx)
                .is_ready()
            && let Some(entry) = self.stand_in()
        {
            self.state = State::Done;
            return Poll::Ready(Ok(Some(self.stale(entry, StaleReason::LoadSlow))));
        }
        Poll::Pending
    }
}
