//! The load of a cache on a tier: before it, the tier is asked; after it, the tier is told.
//!
//! The engine's own way stays as it is. A flight's load becomes: ask the tier, and have what it has, or load and
//! publish.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::engine::{CacheFlights, CacheLanding, Nothing};
use super::entry::{Arrival, Destination, Stamp, Storing, Then};
use super::generations::Born;
use super::shared::{Opened, capped, drop_up_to, groups, rest_of};
use crate::coordinate::{
    Ask, Lease, LeaseOfLoad, Patience, Publication, Published, SharedValue, Token, Turn,
};
use crate::error::{LoadError, Panicked, RemoteKind};
use crate::event::{Outcome, StaleReason};
use crate::flight::{BoxLoad, Fault, Key, Owned, Plan, Value};
use crate::policy::Lifetime;
use crate::sync;

/// What one flight asks the tier for.
pub(super) struct Errand<K> {
    pub(super) key: K,
    /// Nobody waits for it, so it may wait for others.
    pub(super) background: bool,
    /// Of what the flight is to replace, if it is to replace something.
    pub(super) newer_than: Option<Token>,
    pub(super) gate: Option<Arc<dyn Gate>>,
}

/// Somebody who waits until it is clear whether a load is to run here. A load that is polled, or dropped, says so itself.
pub(super) trait Gate: Send + Sync {
    /// It is not to run for now: another instance loads.
    fn others_load(&self);
}

/// A load as it would be without a tier. It waits for a permit, unless it is given one.
pub(super) type Own<K, V, E> =
    Box<dyn FnOnce(Option<OwnedSemaphorePermit>) -> BoxLoad<CacheLanding<K, V>, E> + Send>;

/// The shared form of a cache's load.
///
/// `own` is the load as it would be without a tier; it runs if this instance is told to, and is dropped unpolled if
/// not.
pub(super) fn load<K, V, E>(
    flights: Arc<CacheFlights<K, V, E>>,
    errand: Errand<K>,
    own: Own<K, V, E>,
) -> BoxLoad<CacheLanding<K, V>, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    let Errand { key, background, newer_than, gate } = errand;
    let errander = Errander { flights, key, began: Instant::now() };
    Box::pin(errander.run(background, newer_than, gate, own))
}

struct Errander<K, V, E> {
    flights: Arc<CacheFlights<K, V, E>>,
    key: K,
    /// No later than its flight's time-out counts from.
    began: Instant,
}

impl<K: Clone, V, E> Clone for Errander<K, V, E> {
    fn clone(&self) -> Self {
        Self { flights: Arc::clone(&self.flights), key: self.key.clone(), began: self.began }
    }
}

/// A flight that goes on with what another one began.
struct GoesOn<K, V, E> {
    flights: Arc<CacheFlights<K, V, E>>,
    load: BoxLoad<CacheLanding<K, V>, E>,
    /// Of the value that it is to replace.
    token: Token,
}

impl<K, V, E> Plan<K, CacheLanding<K, V>, E> for GoesOn<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    type Kept = ();

    /// Between the two flights the value may have been voided or replaced, and the cache closed.
    fn recheck(&mut self, key: &K) -> Option<CacheLanding<K, V>> {
        let engine = &self.flights.hook;
        let is_due = !engine.is_closed() && engine.shelf.token_of(key) == Some(self.token);
        (!is_due).then_some(Err(Nothing::NotAsked))
    }

    fn load(self, (): &mut ()) -> BoxLoad<CacheLanding<K, V>, E> {
        self.load
    }
}

impl<K, V, E> Errander<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    async fn run(
        self,
        background: bool,
        newer_than: Option<Token>,
        gate: Option<Arc<dyn Gate>>,
        own: Own<K, V, E>,
    ) -> Result<CacheLanding<K, V>, LoadError<E>> {
        // It is as old as the question: an invalidation while it is on its way voids it.
        let born = self.flights.hook.shelf.generations.born();
        let patience = match gate {
            Some(_) => Patience::None,
            None if background => Patience::Full,
            None => Patience::UnlessStale,
        };
        let ask = Ask { group: None, newer_than, takes_stale: !background, awaited: None, patience };
        self.ask(ask, born, background, gate, own).await
    }

    async fn ask(
        self,
        mut ask: Ask,
        born: Born,
        background: bool,
        gate: Option<Arc<dyn Gate>>,
        own: Own<K, V, E>,
    ) -> Result<CacheLanding<K, V>, LoadError<E>> {
        let Some(shared) = self.flights.hook.shared() else { return own(None).await };
        let name = shared.name_of(&self.key);
        // A batch takes one permit for all.
        let spares = |is_background: bool| is_background && gate.is_none();
        loop {
            let (value, outcome) = match shared.member.enter(&name, ask).await {
                Turn::Alone => {
                    let Some(permit) = self.permit(spares(background)) else {
                        return Ok(Err(Nothing::NotAsked));
                    };
                    return Ok(own(permit).await?.map(|arrival| self.alone(arrival)));
                }
                Turn::Busy { awaited, stale } => {
                    if let Some(gate) = &gate {
                        gate.others_load();
                    }
                    (ask.awaited, ask.patience) = (Some(awaited), Patience::Full);
                    let stale = match stale {
                        Some(value) if !background => shared.open(&value).await.map(|opened| (opened, value)),
                        _ => None,
                    };
                    let Some((opened, value)) = stale else { continue };
                    let rest = self.clone().rest(ask, born, gate, own);
                    return Ok(self.or_stale(rest, opened, &value, born).await);
                }
                Turn::Failed(kind) => {
                    self.flights.hook.counters.spare_load();
                    return Err(LoadError::Remote { kind });
                }
                Turn::Hit { value, waited } => {
                    (value, if waited { Outcome::SharedWait } else { Outcome::SharedHit })
                }
                Turn::Stale(value) => {
                    let outcome = Outcome::Stale { age: value.age, reason: value.stale_reason() };
                    (value, outcome)
                }
                Turn::Lead { lease, stale } => {
                    let stale = match stale {
                        Some(value) if !background => shared.open(&value).await.map(|opened| (opened, value)),
                        _ => None,
                    };
                    match stale {
                        Some((opened, value)) if value.stale_since < value.stale_while_revalidate => {
                            // Served at once; the load goes on in a flight of its own.
                            self.flights.hook.counters.spare_load();
                            let outcome = Outcome::Stale { age: value.age, reason: value.stale_reason() };
                            let arrival = self.arrival(opened, &value, born, outcome);
                            let Some(permit) = self.permit(spares(true)) else { return Ok(Ok(arrival)) };
                            let load = Box::pin(self.clone().fly(lease, own(permit)));
                            return Ok(Ok(self.go_on(arrival, load, false)));
                        }
                        Some((opened, value)) if value.stale_since < value.stale_if_error => {
                            let load = Box::pin(self.clone().fly(lease, own(None)));
                            return Ok(self.or_stale(load, opened, &value, born).await);
                        }
                        _ => {}
                    }
                    let Some(permit) = self.permit(spares(background)) else {
                        return Ok(Err(Nothing::NotAsked));
                    };
                    return self.clone().fly(lease, own(permit)).await;
                }
            };
            if let Some(opened) = shared.open(&value).await {
                self.flights.hook.counters.spare_load();
                return Ok(Ok(self.arrival(opened, &value, born, outcome)));
            }
            // Nothing to have, so something newer.
            ask.newer_than = Some(value.token.max(ask.newer_than.unwrap_or(0)));
        }
    }

    /// The wait for another instance's load, and what comes of it.
    fn rest(
        self,
        ask: Ask,
        born: Born,
        gate: Option<Arc<dyn Gate>>,
        own: Own<K, V, E>,
    ) -> BoxLoad<CacheLanding<K, V>, E> {
        Box::pin(self.ask(ask, born, false, gate, own))
    }

    /// A place among the loads that run, for one that goes without rather than wait; others wait for theirs later.
    #[allow(clippy::option_option)] // none to be had, or none needed
    fn permit(&self, is_spare: bool) -> Option<Option<OwnedSemaphorePermit>> {
        match self.flights.hook.governor.as_ref().filter(|_| is_spare) {
            None => Some(None),
            Some(governor) => Arc::clone(governor).try_acquire_owned().ok().map(Some),
        }
    }

    /// Has the load go on in a flight that nobody waits for, once the arrival has landed and its key is free. If that
    /// finds no place, or another is under way, the load is dropped, and with it its lease. One that `is_begun` is counted
    /// by this flight.
    fn go_on(
        &self,
        mut arrival: Arrival<K, V>,
        load: BoxLoad<CacheLanding<K, V>, E>,
        is_begun: bool,
    ) -> Arrival<K, V> {
        if let Destination::Shelf(storing) = &mut arrival.bound_for {
            let token = storing.shared.map_or(0, |stamp| stamp.token);
            let Self { flights, key, .. } = self.clone();
            storing.then = Some(Then::new(move || {
                let goes_on = GoesOn { flights: Arc::clone(&flights), load, token };
                if flights.launch(Owned(key), goes_on) {
                    flights.hook.counters.count_refresh();
                    if is_begun {
                        flights.hook.counters.spare_load();
                    }
                }
            }));
        }
        arrival
    }

    /// What a load comes to that has a value to fall back on: should it fail, be too slow or take its whole time.
    async fn or_stale(
        &self,
        mut load: BoxLoad<CacheLanding<K, V>, E>,
        opened: Opened<V>,
        value: &SharedValue,
        born: Born,
    ) -> CacheLanding<K, V> {
        let after = |limit: Option<Duration>| limit.and_then(|limit| self.began.checked_add(limit));
        let (end, soft) = (after(self.flights.load_timeout()), after(self.flights.hook.soft_timeout));
        let until = [end, soft].into_iter().flatten().min();
        let came = match until {
            None => Some(caught(&mut load).await),
            Some(until) => timeout_at(until, caught(&mut load)).await.ok(),
        };
        let reason = match came {
            Some(Ok(landing)) => return landing,
            None if until != end => StaleReason::LoadSlow,
            Some(Err(_)) | None => StaleReason::LoadFailed,
        };
        let arrival = self.arrival(opened, value, born, Outcome::Stale { age: value.age, reason });
        Ok(if reason == StaleReason::LoadSlow { self.go_on(arrival, load, true) } else { arrival })
    }

    /// The value of another instance's load.
    fn arrival(&self, opened: Opened<V>, value: &SharedValue, born: Born, outcome: Outcome) -> Arrival<K, V> {
        let life = rest_of(value);
        let stamp = Stamp { token: value.token, outcome: Some(outcome), age: value.age, fresh_for: life.ttl };
        let (life, shared) = (capped(life, self.cap()), Some(stamp));
        let storing = Storing { shared, tags: opened.marks, ..Storing::new(life, value.cost, born) };
        Arrival { value: opened.value, bound_for: Destination::Shelf(Box::new(storing)) }
    }

    fn cap(&self) -> Duration {
        self.flights.hook.shared().map_or(Duration::MAX, |shared| shared.member.local_ttl_cap())
    }

    /// A load that no other instance hears of.
    fn alone(&self, mut arrival: Arrival<K, V>) -> Arrival<K, V> {
        if let Destination::Shelf(storing) = &mut arrival.bound_for {
            storing.life = capped(self.settled(storing), self.cap());
            storing.shared = Some(Stamp::own(0, storing.life.ttl));
        }
        arrival
    }

    /// The life of a value with its jitter, which all instances then share.
    fn settled(&self, storing: &Storing) -> Lifetime {
        Lifetime { ttl: self.flights.hook.shelf.jittered(storing.life.ttl, storing.jitter), ..storing.life }
    }

    /// Loads and publishes. Dropped, it gives the lease back.
    async fn fly(
        self,
        lease: Box<dyn Lease>,
        own: BoxLoad<CacheLanding<K, V>, E>,
    ) -> Result<CacheLanding<K, V>, LoadError<E>> {
        let cache = self.flights.hook.shared().map(|shared| &*shared.name);
        let span = tracing::debug_span!("shared_load", cache, token = lease.token());
        let end = self.flights.load_timeout().and_then(|limit| self.began.checked_add(limit));
        let lease = LeaseOfLoad::new(lease, end);
        let came = own.instrument(span).await;
        let lease = lease.take();
        let mut arrival = match came {
            Ok(Ok(arrival)) => arrival,
            // Left out by a loader of many keys. Those who wait elsewhere load for themselves.
            Ok(Err(nothing)) => return Ok(Err(nothing)),
            Err(error) => {
                match &error {
                    LoadError::Failed(_) => lease.fail(RemoteKind::Failed),
                    LoadError::Panicked(_) => lease.fail(RemoteKind::Panicked),
                    LoadError::TimedOut(_) => lease.fail(RemoteKind::TimedOut),
                    _ => drop(lease),
                }
                return Err(error);
            }
        };
        let Destination::Shelf(storing) = &mut arrival.bound_for else {
            lease.keep_local();
            return Ok(Ok(self.alone(arrival)));
        };
        let life = self.settled(storing);
        storing.life = capped(life, self.cap());
        storing.shared = Some(Stamp::own(lease.token(), life.ttl));
        self.publish(lease, &arrival.value, life, storing);
        Ok(Ok(arrival))
    }

    /// In the background: nobody who waits for the value waits for this.
    fn publish(&self, lease: Box<dyn Lease>, value: &V, life: Lifetime, storing: &Storing) {
        let Some(shared) = self.flights.hook.shared() else { return };
        let mut payload = Vec::new();
        let encoded = catch_unwind(AssertUnwindSafe(|| shared.codec.encode(value, &mut payload)));
        if !matches!(encoded, Ok(Ok(()))) {
            shared.complain("values of a cache cannot be encoded; they stay in this instance");
            return lease.keep_local();
        }
        let what = Publication {
            payload,
            codec: shared.codec.id(),
            fresh: life.ttl,
            stale_while_revalidate: life.stale_while_revalidate,
            stale_if_error: life.stale_if_error,
            cost: storing.cost,
            groups: groups(storing.tags.as_ref()),
        };
        let (flights, key, token) = (Arc::downgrade(&self.flights), self.key.clone(), lease.token());
        sync::spawn(async move {
            if lease.publish(what).await == Published::Superseded
                && let Some(flights) = flights.upgrade()
            {
                drop_up_to(&flights.hook.shelf, &key, token);
            }
        });
    }
}

/// The end of a load, a panic of it as an error.
async fn caught<T, E>(load: &mut BoxLoad<T, E>) -> Result<T, LoadError<E>> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(cx))) {
        Ok(polled) => polled,
        Err(payload) => Poll::Ready(Err(LoadError::Panicked(Panicked::new(payload)))),
    })
    .await
}
