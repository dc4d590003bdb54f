//! One call's way through the cache: look, serve what is good enough, else fly.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::mem;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::engine::{CacheFlights, CacheLanding, Engine, Loader, Miss, Nothing, refresh};
#[cfg(feature = "redis")]
use super::entry::Receipt;
use super::entry::{Destination, Entry};
use super::store::Kept;
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

type CacheRun<'a, K, V, E, S, L> =
    Run<&'a Arc<CacheFlights<K, V, E>>, K, CacheLanding<K, V>, E, Engine<K, V>, S, Miss<'a, K, V, E, L>>;

type CacheLanded<'a, K, V, E, S, L> = Landed<CacheLanding<K, V>, E, S, Miss<'a, K, V, E, L>>;

/// A call's end.
pub(super) type Answer<V, E> = Result<Result<Fetched<V>, Nothing>, LoadError<E>>;

/// What a call falls back on if its load fails or is slow.
struct Fallback<V> {
    entry: Entry<V>,
    /// Runs from the moment the call first has to wait.
    soft_timeout: Option<Pin<Box<Sleep>>>,
}

/// What a call answers with.
pub(super) trait Form<V, E> {
    type Output;
    fn hit(value: V) -> Self::Output;
    fn answer(answer: Answer<V, E>) -> Self::Output;
}

/// The value alone.
pub(super) struct Bare;

impl<V, E> Form<V, E> for Bare {
    type Output = Result<V, LoadError<E>>;

    #[inline]
    fn hit(value: V) -> Self::Output {
        Ok(value)
    }

    fn answer(answer: Answer<V, E>) -> Self::Output {
        WithOutcome::answer(answer).map(|fetched| fetched.value)
    }
}

/// The value and how the call came by it.
pub(super) struct WithOutcome;

impl<V, E> Form<V, E> for WithOutcome {
    type Output = Result<Fetched<V>, LoadError<E>>;

    #[inline]
    fn hit(value: V) -> Self::Output {
        Ok(Fetched { value, outcome: Outcome::Hit })
    }

    /// A loader of one key does not leave it out.
    fn answer(answer: Answer<V, E>) -> Self::Output {
        answer?.map_err(|_| LoadError::Cancelled)
    }
}

/// The same, unless the loader left the key out.
pub(super) struct IfLoaded;

impl<V, E> Form<V, E> for IfLoaded {
    type Output = Answer<V, E>;

    #[inline]
    fn hit(value: V) -> Self::Output {
        Ok(Ok(Fetched { value, outcome: Outcome::Hit }))
    }

    fn answer(answer: Answer<V, E>) -> Self::Output {
        answer
    }
}

/// The future of one call. Nothing happens before its first poll.
pub(super) struct Fetch<'a, K: Key, V: Value, E: Fault, S, L, A> {
    stage: Stage<'a, K, V, E, S, L>,
    form: PhantomData<A>,
}

enum Stage<'a, K: Key, V: Value, E: Fault, S, L> {
    /// Nobody has looked yet. A hit needs no more than this.
    Brought(Brought<'a, K, V, E, S, L>),
    Missed(Wait<'a, K, V, E, S, L>),
    Answered,
}

/// What a call comes with.
struct Brought<'a, K: Key, V: Value, E: Fault, S, L> {
    flights: &'a Arc<CacheFlights<K, V, E>>,
    source: S,
    loader: L,
}

/// A call that waits for a load.
struct Wait<'a, K: Key, V: Value, E: Fault, S, L> {
    run: CacheRun<'a, K, V, E, S, L>,
    fallback: Option<Box<Fallback<V>>>,
}

/// An answer, or a wait for a load.
type Decided<'a, K, V, E, S, L> = ControlFlow<Result<Fetched<V>, LoadError<E>>, Wait<'a, K, V, E, S, L>>;

// Nothing in it is pinned.
impl<K: Key, V: Value, E: Fault, S, L, A> Unpin for Fetch<'_, K, V, E, S, L, A> {}

impl<'a, K, V, E, S, L, A> Fetch<'a, K, V, E, S, L, A>
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
    A: Form<V, E>,
{
    #[inline]
    pub(super) fn new(flights: &'a Arc<CacheFlights<K, V, E>>, source: S, loader: L) -> Self {
        Self { stage: Stage::Brought(Brought { flights, source, loader }), form: PhantomData }
    }

    /// A first poll that is no plain hit. Apart, as [`wait`](Self::wait) is, so that a hit pays for none of it.
    #[inline(never)]
    fn miss(&mut self, found: Option<Kept<V>>, cx: &mut Context<'_>) -> Poll<A::Output> {
        let Stage::Brought(brought) = mem::replace(&mut self.stage, Stage::Answered) else {
            return self.wait(cx);
        };
        let found = brought.flights.hook.shelf.valid(found);
        match brought.decide(found) {
            ControlFlow::Break(answer) => Poll::Ready(A::answer(answer.map(Ok))),
            ControlFlow::Continue(wait) => {
                self.stage = Stage::Missed(wait);
                self.wait(cx)
            }
        }
    }

    #[inline(never)]
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<A::Output> {
        let Stage::Missed(wait) = &mut self.stage else {
            panic!("a future is not polled after it was ready");
        };
        let answer = ready!(wait.poll(cx));
        self.stage = Stage::Answered;
        Poll::Ready(A::answer(answer))
    }
}

impl<K, V, E, S, L, A> Future for Fetch<'_, K, V, E, S, L, A>
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
    A: Form<V, E>,
{
    type Output = A::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Stage::Brought(Brought { flights, source, .. }) = &self.stage else { return self.wait(cx) };
        let engine = &flights.hook;
        match engine.shelf.look(source.query()) {
            Ok(value) => {
                engine.count_hit();
                self.stage = Stage::Answered;
                Poll::Ready(A::hit(value))
            }
            Err(found) => self.miss(found, cx),
        }
    }
}

impl<'a, K, V, E, S, L> Brought<'a, K, V, E, S, L>
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    /// The answer to a call that found `found`, or its wait for a load.
    fn decide(self, found: Option<Entry<V>>) -> Decided<'a, K, V, E, S, L> {
        let Some(entry) = found else { return self.take_off(None, None) };
        let engine = &self.flights.hook;
        let hit = |value| {
            engine.count_hit();
            Fetched { value, outcome: Outcome::Hit }
        };
        ControlFlow::Break(Ok(match engine.shelf.judge(&entry) {
            Freshness::Fresh => hit(entry.value),
            Freshness::RefreshEarly => {
                let value = entry.value.clone();
                self.renew(entry);
                hit(value)
            }
            Freshness::Stale { refresh: false } | Freshness::IfError { load: false } => {
                engine.stale(entry, StaleReason::BackingOff)
            }
            Freshness::Stale { refresh: true } => {
                let answer = engine.stale(entry.clone(), StaleReason::Revalidating);
                self.renew(entry);
                answer
            }
            Freshness::IfError { load: true } => {
                let fallback = Fallback { entry: entry.clone(), soft_timeout: None };
                return self.take_off(Some(entry), Some(fallback));
            }
            Freshness::Dead => return self.take_off(Some(entry), None),
        }))
    }

    /// Has `stale` replaced in the background.
    fn renew(self, stale: Entry<V>) {
        if let Some((loader, stale)) = self.loader.put_off(stale) {
            refresh(self.flights, self.source, loader, Some(stale), false);
        }
    }

    fn take_off(self, stale: Option<Entry<V>>, fallback: Option<Fallback<V>>) -> Decided<'a, K, V, E, S, L> {
        let Self { flights, source, loader } = self;
        let engine = &flights.hook;
        engine.counters.misses.fetch_add(1, Ordering::Relaxed);
        let miss = Miss {
            flights,
            loader,
            stale: stale.map(Box::new),
            born: engine.shelf.generations.born(),
            #[cfg(feature = "redis")]
            errand: None,
        };
        let run = Run::new(flights, source, miss, FirstPoll::Inline);
        let mut wait = Wait { run, fallback: fallback.map(Box::new) };
        if engine.is_closed() {
            return ControlFlow::Break(wait.failed(LoadError::Cancelled));
        }
        ControlFlow::Continue(wait)
    }
}

impl<K, V> Engine<K, V>
where
    K: Key,
    V: Value,
{
    #[inline]
    fn count_hit(&self) {
        self.counters.hits.add();
        event::count_request("hit");
    }

    fn stale(&self, entry: Entry<V>, reason: StaleReason) -> Fetched<V> {
        let age = entry.age(self.shelf.timeline.now());
        Fetched { value: entry.value, outcome: self.count_stale(age, reason) }
    }

    fn count_stale(&self, age: Duration, reason: StaleReason) -> Outcome {
        self.counters.stale.fetch_add(1, Ordering::Relaxed);
        let outcome = Outcome::Stale { age, reason };
        event::count_outcome(outcome);
        outcome
    }
}

impl<'a, K, V, E, S, L> Wait<'a, K, V, E, S, L>
where
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    fn engine(&self) -> &'a Engine<K, V> {
        let flights: &'a Arc<_> = self.run.flights();
        &flights.hook
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Answer<V, E>> {
        while let Poll::Ready(landed) = Pin::new(&mut self.run).poll(cx) {
            if let Some(answer) = self.landed(landed) {
                return Poll::Ready(answer);
            }
        }
        if self.fallback.is_some()
            && let Some(entry) = self.overdue(cx)
        {
            return Poll::Ready(Ok(Ok(self.engine().stale(entry, StaleReason::LoadSlow))));
        }
        Poll::Pending
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
            return Ok(self.engine().stale(entry, StaleReason::LoadFailed));
        }
        event::count_request("error");
        Err(error)
    }

    /// A call's end to which its flight brought nothing.
    #[cold]
    fn nothing(&mut self, nothing: Nothing) -> Result<Fetched<V>, Nothing> {
        if nothing == Nothing::NotAsked
            && let Some(entry) = self.stand_in()
        {
            return Ok(self.engine().stale(entry, StaleReason::LoadFailed));
        }
        event::count_request("absent");
        Err(nothing)
    }

    /// `None` if the call is in the air again: what landed is not for it.
    fn landed(&mut self, landed: CacheLanded<'a, K, V, E, S, L>) -> Option<Answer<V, E>> {
        let mut arrival = match landed.result {
            Ok(arrival) => arrival,
            Err(error) => return Some(self.failed(error).map(Ok)),
        };
        if let Some((source, miss)) = landed.unused
            && arrival.as_ref().map_or(true, |arrival| self.engine().shelf.is_void_for(miss.born, arrival))
        {
            if L::ALONE {
                self.run = Run::new(miss.flights, source, miss, FirstPoll::Inline);
                return None;
            }
            // What is void for it says nothing of what there is now.
            arrival = Err(arrival.err().unwrap_or(Nothing::NotAsked));
        }
        let arrival = match arrival {
            Ok(arrival) => arrival,
            Err(nothing) => return Some(Ok(self.nothing(nothing))),
        };
        self.fallback = None;
        let outcome = match (arrival.bound_for, landed.role) {
            (Destination::BackingOff { age, .. }, _) => {
                self.engine().count_stale(age, StaleReason::BackingOff)
            }
            (bound_for, role) => {
                let outcome = match (bound_for, role) {
                    (Destination::Nowhere(_), Role::Leader) => Outcome::Hit,
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
        Some(Ok(Ok(Fetched { value: arrival.value, outcome })))
    }
}
