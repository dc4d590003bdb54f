//! What drives a load: its leader's first poll, then a task of its own.

#[cfg(feature = "cache")]
use std::borrow::Borrow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use pin_project::pin_project;
use tokio::time::Sleep;

use super::bounds::{Fault, Key, Value};
use super::core::{Ended, Flights, Settle, drop_quietly};
use super::lineage::{self, Link};
#[cfg(feature = "cache")]
use super::plan::KeySource;
use super::plan::{BoxLoad, Plan};
use super::run::FirstPoll;
use super::state::{Flight, HandedOver, Landing};
use super::table::Hold;
use crate::error::{LoadError, Panicked, TimedOut};
use crate::sync::{self, Arc};
use crate::trace::LoadSpan;

impl<K, V, E, H> Flights<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    /// A load is over. Its leader, if that waits, does so for what is here already: whoever that leader is tied to is
    /// let go first.
    fn conclude(&self, link: Option<&Arc<Link>>, result: &Result<V, LoadError<E>>) {
        if let Some(link) = link {
            link.cut();
        }
        let counters = &self.counters;
        match result {
            // Another instance counts a failure of its own.
            Ok(_) | Err(LoadError::Reentrant | LoadError::Overloaded(_) | LoadError::Remote { .. }) => {}
            Err(LoadError::Failed(_)) => counters.failed.add(),
            Err(LoadError::Panicked(_)) => counters.panicked.add(),
            Err(LoadError::TimedOut(_)) => counters.timed_out.add(),
            Err(LoadError::Cancelled) => counters.cancelled.add(),
        }
    }
}

/// What one poll of a load came to.
type Polled<V, E> = Poll<Result<V, LoadError<E>>>;

/// What a poll under [`lineage::within`] came to: a panic is a result like any other.
fn polled<V, E>(came: thread::Result<Polled<V, E>>) -> Polled<V, E> {
    came.unwrap_or_else(|payload| Poll::Ready(Err(LoadError::Panicked(Panicked::new(payload)))))
}

/// A leader's duty, in its own poll, to land its flight. Dropped before that, by a panic, it lands it as `Cancelled`.
pub(super) struct Lead<'a, K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    flights: &'a Arc<Flights<K, V, E, H>>,
    /// Until it is done.
    hold: Option<Hold<K, V, E>>,
    link: Option<Arc<Link>>,
    span: LoadSpan,
}

impl<'a, K, V, E, H> Lead<'a, K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    pub(super) fn new(flights: &'a Arc<Flights<K, V, E, H>>, hold: Hold<K, V, E>) -> Self {
        Self { flights, hold: Some(hold), link: None, span: LoadSpan::default() }
    }

    /// What the plan has without loading. An entry has been counted as a load already.
    fn recheck(&self, plan: &mut impl Plan<K, V, E>) -> Option<V> {
        match &self.hold {
            Some(Hold::Flight(flight)) => plan.recheck(&flight.key),
            _ => None,
        }
    }

    /// Makes the load and, if it is to, polls it once. The load is given back unless it was never made.
    fn load(
        &mut self,
        plan: impl Plan<K, V, E>,
        context: Option<&mut Context<'_>>,
    ) -> (Option<BoxLoad<V, E>>, Polled<V, E>) {
        let Some(hold) = &self.hold else { return (None, Poll::Pending) };
        let place = match hold {
            Hold::Entry(place) => *place,
            Hold::Flight(flight) => {
                self.flights.counters.loads.add();
                flight.place
            }
        };
        self.span = LoadSpan::new();
        if self.span.is_some()
            && let Hold::Flight(flight) = hold
        {
            flight.state.lock().span = self.span.clone();
        }
        let id = self.flights.table.id(place);
        let mut load = None;
        let (came, link) = lineage::within_first(id, || {
            self.span.within(|| {
                let load = load.insert(plan.load());
                context.map_or(Poll::Pending, |context| load.as_mut().poll(context))
            })
        });
        self.link = link;
        (load, polled(came))
    }

    /// Lands the flight and keeps a copy of the result for the leader.
    fn land(mut self, result: Result<V, LoadError<E>>) -> Result<V, LoadError<E>> {
        self.conclude(result).unwrap_or(Err(LoadError::Cancelled))
    }

    fn conclude(&mut self, result: Result<V, LoadError<E>>) -> Option<Result<V, LoadError<E>>> {
        let hold = self.hold.take()?;
        self.flights.conclude(self.link.as_ref(), &result);
        let landing = match self.flights.end(hold, Landing::Done(result)) {
            Ended::Unclaimed(landing) => Some(landing),
            Ended::Published(flight) => flight.landing(),
        };
        match landing? {
            Landing::Done(result) => Some(result),
            Landing::Abandoned => None,
        }
    }

    /// Lets a task drive the load from here on.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime.
    #[track_caller]
    fn hand_over(
        mut self,
        load: BoxLoad<V, E>,
        context: Option<&mut Context<'_>>,
    ) -> Option<Arc<Flight<K, V, E>>> {
        let leader = context.map(|context| context.waker().clone());
        let (link, span) = (self.link.take(), std::mem::take(&mut self.span));
        let mut over = Some(HandedOver { load, leader, link: link.clone(), span: span.clone() });
        let flight = match self.hold.take()? {
            Hold::Flight(flight) => flight,
            Hold::Entry(place) => self.flights.table.go_on(place, &mut over),
        };
        let (flights, joined) = (Arc::clone(self.flights), Arc::clone(&flight));
        let lead = TaskLead { flights, flight: joined, link, span, done: false };
        if let Some(over) = over {
            flight.hand_over(over);
        }
        let timeout = self.flights.config.load_timeout.map(tokio::time::sleep);
        let driver = Driver { lead, timeout };
        #[cfg(not(all(test, stampede_loom)))]
        sync::spawn(driver);
        #[cfg(all(test, stampede_loom))]
        flight.driven_by(sync::spawn(driver));
        Some(flight)
    }
}

impl<K, V, E, H> Drop for Lead<'_, K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    fn drop(&mut self) {
        if self.hold.is_some() {
            drop(self.conclude(Err(LoadError::Cancelled)));
        }
    }
}

/// What the leader's poll came to.
pub(super) enum Departed<K, V, E, P> {
    /// With the plan, if it was not needed.
    Landed(Result<V, LoadError<E>>, Option<P>),
    /// The load goes on in its task, and the leader waits.
    Away(Arc<Flight<K, V, E>>),
}

/// The leader's part: look once more, then load.
///
/// # Panics
///
/// Outside a Tokio runtime, if the load is not ready at its first poll.
#[track_caller]
pub(super) fn depart<K, V, E, H, P>(
    mut lead: Lead<'_, K, V, E, H>,
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
    if let Some(value) = lead.recheck(&mut plan) {
        return Departed::Landed(lead.land(Ok(value)), Some(plan));
    }
    let inline = first_poll == FirstPoll::Inline;
    let (load, polled) = lead.load(plan, inline.then_some(&mut *cx));
    match (load, polled) {
        (Some(load), Poll::Pending) => match lead.hand_over(load, Some(cx)) {
            Some(flight) => Departed::Away(flight),
            None => Departed::Landed(Err(LoadError::Cancelled), None),
        },
        (load, Poll::Ready(result)) => {
            if let Some(load) = load {
                drop_quietly(load);
            }
            Departed::Landed(lead.land(result), None)
        }
        (None, Poll::Pending) => Departed::Landed(lead.land(Err(LoadError::Cancelled)), None),
    }
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
        let mut lead = Lead::new(self, Hold::Flight(flight));
        if let Some(value) = lead.recheck(&mut plan) {
            drop(lead.land(Ok(value)));
            return false;
        }
        match lead.load(plan, None) {
            (Some(load), Poll::Pending) => drop(lead.hand_over(load, None)),
            (_, Poll::Ready(result)) => drop(lead.land(result)),
            (None, Poll::Pending) => {}
        }
        true
    }
}

/// The duty to land a flight, held by its driver. Dropped before that, by a dying runtime, it lands it as `Cancelled`.
struct TaskLead<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    flights: Arc<Flights<K, V, E, H>>,
    flight: Arc<Flight<K, V, E>>,
    link: Option<Arc<Link>>,
    span: LoadSpan,
    done: bool,
}

impl<K, V, E, H> TaskLead<K, V, E, H>
where
    K: Key,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
{
    /// One poll of the load, as part of this flight.
    fn poll_load(&mut self, load: &mut BoxLoad<V, E>, cx: &mut Context<'_>) -> Polled<V, E> {
        let id = self.flights.table.id(self.flight.place);
        let (came, link) =
            lineage::within(id, self.link.take(), || self.span.within(|| load.as_mut().poll(cx)));
        self.link = link;
        polled(came)
    }

    fn land(&mut self, result: Result<V, LoadError<E>>) {
        self.flights.conclude(self.link.as_ref(), &result);
        drop(self.flights.land(&self.flight, Landing::Done(result)));
        self.done = true;
    }
}

impl<K, V, E, H> Drop for TaskLead<K, V, E, H>
where
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
            // Whoever took the load to drop it lands the flight.
            return if lead.flight.landed_or_tells(cx.waker()) { Poll::Ready(()) } else { Poll::Pending };
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
        match lead.flight.park_load(load, cx.waker()) {
            None => Poll::Pending,
            Some(unwanted) => {
                lead.flights.abandon(&lead.flight, unwanted);
                Poll::Ready(())
            }
        }
    }
}
