//! What drives a load: its leader's first poll, then a task of its own.

#[cfg(feature = "cache")]
use std::borrow::Borrow;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;
use tokio::time::Sleep;

use super::bounds::{Fault, Key, Value};
use super::core::{Flight, Flights, Landing, Settle, drop_quietly};
use super::lineage::Scope;
#[cfg(feature = "cache")]
use super::plan::KeySource;
use super::plan::{BoxLoad, Plan};
use super::run::FirstPoll;
use crate::error::{LoadError, Panicked, TimedOut};
use crate::sync::{self, Arc};

/// A [`Lead`] that a task holds.
type TaskLead<K, V, E, H> = Lead<Arc<Flights<K, V, E, H>>, K, V, E, H>;

/// The duty to land a flight. Dropped before that, by a panic or a dying runtime, it lands it as `Cancelled`.
pub(super) struct Lead<C, K, V, E, H>
where
    C: Deref<Target = Flights<K, V, E, H>>,
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    flights: C,
    flight: Arc<Flight<K, V, E>>,
    done: bool,
}

impl<C, K, V, E, H> Lead<C, K, V, E, H>
where
    C: Deref<Target = Flights<K, V, E, H>>,
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    pub(super) fn new(flights: C, flight: Arc<Flight<K, V, E>>) -> Self {
        Self { flights, flight, done: false }
    }

    /// The same duty, held by the driver's task.
    fn into_task(mut self, flights: Arc<Flights<K, V, E, H>>) -> TaskLead<K, V, E, H> {
        self.done = true;
        Lead { flights, flight: Arc::clone(&self.flight), done: false }
    }

    /// Lands the flight; gives the result back if nobody waits for it.
    fn land(&mut self, result: Result<V, LoadError<E>>) -> Option<Result<V, LoadError<E>>> {
        let counters = &self.flights.counters;
        match &result {
            // Another instance counts a failure of its own.
            Ok(_) | Err(LoadError::Reentrant | LoadError::Overloaded(_) | LoadError::Remote { .. }) => {}
            Err(LoadError::Failed(_)) => counters.failed.add(),
            Err(LoadError::Panicked(_)) => counters.panicked.add(),
            Err(LoadError::TimedOut(_)) => counters.timed_out.add(),
            Err(LoadError::Cancelled) => counters.cancelled.add(),
        }
        let unclaimed = self.flights.land(&self.flight, Landing::Done(result));
        self.done = true;
        match unclaimed {
            Some(Landing::Done(result)) => Some(result),
            _ => None,
        }
    }

    /// Lands the flight and keeps a copy of the result for the leader.
    fn land_and_keep(mut self, result: Result<V, LoadError<E>>) -> Result<V, LoadError<E>> {
        if let Some(result) = self.land(result) {
            return result;
        }
        match self.flight.landing() {
            Some(Landing::Done(result)) => result,
            _ => Err(LoadError::Cancelled),
        }
    }

    /// One poll of the load, as part of this flight. A panic is a result like any other.
    fn poll_load(&self, load: &mut BoxLoad<V, E>, cx: &mut Context<'_>) -> Poll<Result<V, LoadError<E>>> {
        let scope = Scope::enter(self.flight.clone());
        let polled = catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(cx)));
        drop(scope);
        match polled {
            Ok(polled) => polled,
            Err(payload) => Poll::Ready(Err(LoadError::Panicked(Panicked::new(payload)))),
        }
    }

    /// Makes the load, as part of this flight.
    fn make_load(&self, plan: impl Plan<K, V, E>) -> Result<BoxLoad<V, E>, LoadError<E>> {
        self.flights.counters.loads.add();
        let scope = Scope::enter(self.flight.clone());
        let made = catch_unwind(AssertUnwindSafe(|| plan.load()));
        drop(scope);
        made.map_err(|payload| LoadError::Panicked(Panicked::new(payload)))
    }
}

impl<C, K, V, E, H> Drop for Lead<C, K, V, E, H>
where
    C: Deref<Target = Flights<K, V, E, H>>,
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    fn drop(&mut self) {
        if self.done || self.flight.landed() {
            return;
        }
        if let Some(load) = self.flight.take_load() {
            drop_quietly(load);
        }
        self.land(Err(LoadError::Cancelled));
    }
}

/// What the leader's poll came to.
pub(super) enum Departed<K, V, E, P> {
    /// With the plan, if it was not needed.
    Landed(Result<V, LoadError<E>>, Option<P>),
    /// The load goes on in its task; the leader waits in this slot.
    Away(Arc<Flight<K, V, E>>, u32),
}

/// The leader's part: look once more, then load.
///
/// # Panics
///
/// Outside a Tokio runtime, if the load is not ready at its first poll.
#[track_caller]
pub(super) fn depart<K, V, E, H, P>(
    flights: &Arc<Flights<K, V, E, H>>,
    lead: Lead<&Flights<K, V, E, H>, K, V, E, H>,
    mut plan: P,
    first_poll: FirstPoll,
    cx: &mut Context<'_>,
) -> Departed<K, V, E, P>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
    P: Plan<K, V, E>,
{
    if let Some(value) = plan.recheck(&lead.flight.key) {
        return Departed::Landed(lead.land_and_keep(Ok(value)), Some(plan));
    }
    let mut load = match lead.make_load(plan) {
        Ok(load) => load,
        Err(error) => return Departed::Landed(lead.land_and_keep(Err(error)), None),
    };
    if first_poll == FirstPoll::Inline
        && let Poll::Ready(result) = lead.poll_load(&mut load, cx)
    {
        drop_quietly(load);
        return Departed::Landed(lead.land_and_keep(result), None);
    }
    let flight = Arc::clone(&lead.flight);
    let slot = flight.hand_over(load, Some(cx.waker()));
    drive(flights, lead);
    Departed::Away(flight, slot)
}

#[cfg(feature = "cache")]
impl<K, V, E, H> Flights<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    /// Starts a load that nobody waits for, unless the key is in flight, the places for such loads are taken or
    /// there is no runtime to run it. True if it was started.
    pub(crate) fn launch<S, P>(self: &Arc<Self>, source: S, mut plan: P) -> bool
    where
        S: KeySource<K>,
        K: Borrow<S::Query>,
        P: Plan<K, V, E>,
    {
        if !sync::can_spawn() {
            return false;
        }
        let Some(flight) = self.start_unattended(source) else { return false };
        let mut lead = Lead::new(&**self, flight);
        if let Some(value) = plan.recheck(&lead.flight.key) {
            lead.land(Ok(value));
            return false;
        }
        match lead.make_load(plan) {
            Ok(load) => {
                lead.flight.hand_over(load, None);
                drive(self, lead);
            }
            Err(error) => drop(lead.land(Err(error))),
        }
        true
    }
}

#[track_caller]
fn drive<K, V, E, H>(flights: &Arc<Flights<K, V, E, H>>, lead: Lead<&Flights<K, V, E, H>, K, V, E, H>)
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    let flight = Arc::clone(&lead.flight);
    let lead = lead.into_task(Arc::clone(flights));
    let timeout = flights.config.load_timeout.map(tokio::time::sleep);
    flight.driven_by(sync::spawn(Driver { lead, timeout }));
}

/// The task that polls a load until it lands.
#[pin_project]
struct Driver<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    lead: TaskLead<K, V, E, H>,
    #[pin]
    timeout: Option<Sleep>,
}

impl<K, V, E, H> Future for Driver<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let lead = this.lead;
        let Some(mut load) = lead.flight.take_load() else {
            // Whoever took the load to drop it lands the flight and ends this task.
            return if lead.flight.landed() { Poll::Ready(()) } else { Poll::Pending };
        };
        if let Poll::Ready(result) = lead.poll_load(&mut load, cx) {
            drop_quietly(load);
            lead.land(result);
            return Poll::Ready(());
        }
        if let Some(timeout) = this.timeout.as_pin_mut()
            && timeout.poll(cx).is_ready()
        {
            drop_quietly(load);
            let after = lead.flights.config.load_timeout.unwrap_or_default();
            lead.land(Err(LoadError::TimedOut(TimedOut { after })));
            return Poll::Ready(());
        }
        match lead.flight.park_load(load) {
            None => Poll::Pending,
            Some(unwanted) => {
                lead.flights.abandon(&lead.flight, unwanted);
                Poll::Ready(())
            }
        }
    }
}
