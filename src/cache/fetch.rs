//! One call's way through the cache: look, serve what is good enough, else fly.

use std::borrow::Borrow;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::time::Sleep;

use super::engine::{CacheLoad, Engine, Loader};
use super::shelf::{Arrival, Destination, Entry, Shelf};
use crate::error::LoadError;
use crate::event::{self, Outcome, StaleReason};
use crate::flight::{FirstPoll, KeySource, Landed, Role, Run};
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

type CacheRun<'a, K, V, E, S, L> = Run<'a, K, Arrival<K, V>, E, Shelf<K, V>, S, CacheLoad<K, V, E, L>>;

/// What a call falls back on if its load fails or is slow.
struct Fallback<V> {
    entry: Entry<V>,
    soft_timeout: Option<Pin<Box<Sleep>>>,
}

/// The future of one call. Nothing happens before its first poll.
pub(crate) struct Fetch<'a, K, V, E, S, L>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    engine: &'a Arc<Engine<K, V, E>>,
    state: State<'a, K, V, E, S, L>,
    fallback: Option<Box<Fallback<V>>>,
}

enum State<'a, K, V, E, S, L>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    Look(S, L),
    Fly(CacheRun<'a, K, V, E, S, L>),
    Done,
}

impl<K, V, E, S, L> Unpin for Fetch<'_, K, V, E, S, L>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
}

impl<'a, K, V, E, S, L> Fetch<'a, K, V, E, S, L>
where
    K: Hash + Eq + Clone + Send + Sync + 'static + Borrow<S::Query>,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    pub(crate) fn new(engine: &'a Arc<Engine<K, V, E>>, source: S, loader: L) -> Self {
        Self { engine, state: State::Look(source, loader), fallback: None }
    }

    /// What the shelf has to say; `None` if a load must be waited for, and then this call is in the air.
    fn look(&mut self) -> Option<Result<Fetched<V>, LoadError<E>>> {
        let State::Look(source, loader) = std::mem::replace(&mut self.state, State::Done) else {
            return None;
        };
        let shelf = self.engine.shelf();
        let Some(entry) = shelf.find(source.query()) else { return self.take_off(source, loader, None) };
        match shelf.judge(&entry) {
            Freshness::Fresh => {
                self.engine.counters.hits.add();
                event::count_request("hit");
                Some(Ok(Fetched { value: entry.value, outcome: Outcome::Hit }))
            }
            Freshness::RefreshEarly => {
                let value = entry.value.clone();
                self.engine.refresh(source, loader, Some(entry), false);
                self.engine.counters.hits.add();
                event::count_request("hit");
                Some(Ok(Fetched { value, outcome: Outcome::Hit }))
            }
            Freshness::Stale { refresh: false } | Freshness::IfError { load: false } => {
                Some(Ok(self.stale(entry, StaleReason::BackingOff)))
            }
            Freshness::Stale { refresh: true } => {
                let answer = self.stale(entry.clone(), StaleReason::Revalidating);
                self.engine.refresh(source, loader, Some(entry), false);
                Some(Ok(answer))
            }
            Freshness::IfError { load: true } => {
                let soft_timeout = self.engine.soft_timeout.map(|limit| Box::pin(tokio::time::sleep(limit)));
                self.fallback = Some(Box::new(Fallback { entry: entry.clone(), soft_timeout }));
                self.take_off(source, loader, Some(entry))
            }
            Freshness::Dead => self.take_off(source, loader, Some(entry)),
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
            return Some(Err(LoadError::Cancelled));
        }
        let load = CacheLoad { engine: Arc::clone(self.engine), loader, stale, forced: false, permit: None };
        self.state = State::Fly(Run::new(&self.engine.flights, source, load, FirstPoll::Inline));
        None
    }

    fn stale(&self, entry: Entry<V>, reason: StaleReason) -> Fetched<V> {
        self.engine.counters.stale.fetch_add(1, Ordering::Relaxed);
        event::count_request("stale");
        let age = self.engine.shelf().timeline.now().since(entry.times.stored);
        Fetched { value: entry.value, outcome: Outcome::Stale { age, reason } }
    }

    fn landed<P>(&mut self, landed: Landed<Arrival<K, V>, E, S, P>) -> Result<Fetched<V>, LoadError<E>> {
        let arrival = match (landed.result, self.fallback.take()) {
            (Ok(arrival), _) => arrival,
            (Err(_), Some(fallback)) => return Ok(self.stale(fallback.entry, StaleReason::LoadFailed)),
            (Err(error), None) => {
                event::count_request("error");
                return Err(error);
            }
        };
        let outcome = match (arrival.bound_for, landed.role) {
            (Destination::Nowhere, Role::Leader) => Outcome::Hit,
            (_, Role::Leader) => Outcome::Loaded,
            (_, Role::Follower) => Outcome::Coalesced,
        };
        event::count_request(outcome.as_str());
        Ok(Fetched { value: arrival.value, outcome })
    }
}

impl<K, V, E, S, L> Future for Fetch<'_, K, V, E, S, L>
where
    K: Hash + Eq + Clone + Send + Sync + 'static + Borrow<S::Query>,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: KeySource<K>,
    L: Loader<V, E>,
{
    type Output = Result<Fetched<V>, LoadError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Look(..) = self.state
            && let Some(answer) = self.look()
        {
            return Poll::Ready(answer);
        }
        let State::Fly(run) = &mut self.state else { panic!("polled after it was ready") };
        if let Poll::Ready(landed) = Pin::new(run).poll(cx) {
            self.state = State::Done;
            return Poll::Ready(self.landed(landed));
        }
        if let Some(fallback) = &mut self.fallback
            && let Some(limit) = &mut fallback.soft_timeout
            && limit.as_mut().poll(cx).is_ready()
            && let Some(fallback) = self.fallback.take()
        {
            self.state = State::Done;
            return Poll::Ready(Ok(self.stale(fallback.entry, StaleReason::LoadSlow)));
        }
        Poll::Pending
    }
}
