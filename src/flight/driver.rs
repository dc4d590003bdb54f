//! What drives a load: its leader's first poll, then a task of its own.

#[cfg(feature = "cache")]
use std::borrow::Borrow;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;
use tokio::task::{Unconstrained, unconstrained};
use tokio::time::Sleep;

use super::bounds::{Fault, Key, Value};
use super::core::{Flights, Settle};
use super::drop_load::drop_load;
use super::lineage::{self, FlightId, Link};
#[cfg(feature = "cache")]
use super::plan::KeySource;
use super::plan::{BoxLoad, Plan};
use super::run::FirstPoll;
use super::state::{Flight, Landing};
use super::table::{Hold, PickedUp};
#[cfg(feature = "cache")]
use super::waiters::LEADER;
use crate::error::{LoadError, Panicked, TimedOut};
use crate::quietly::quietly;
use crate::sync::{self, Arc};
use crate::trace::LoadSpan;

impl<K, V, E, H> Flights<K, V, E, H> {
    /// A load is over. Who waits for it does so for what is here already: the loaders that they are part of are let go
    /// first.
    #[inline]
    fn conclude(&self, link: Option<&Arc<Link>>, result: Option<&Result<V, LoadError<E>>>) {
        if let Some(link) = link {
            link.cut_all();
        }
        let counters = &self.counters;
        match result {
            // Another instance counts a failure of its own.
            None
            | Some(Ok(_) | Err(LoadError::Reentrant | LoadError::Overloaded(_) | LoadError::Remote { .. })) =>
                {}
            Some(Err(LoadError::Failed(_))) => counters.failed.add(),
            Some(Err(LoadError::Panicked(_))) => counters.panicked.add(),
            Some(Err(LoadError::TimedOut(_))) => counters.timed_out.add(),
            Some(Err(LoadError::Cancelled)) => counters.cancelled.add(),
        }
    }
}

/// A load on its way, or how it ended: never both once [`within`](Self::within) is over, and one of them if it has made
/// a load.
struct Load<V, E> {
    pending: Option<BoxLoad<V, E>>,
    result: Option<Result<V, LoadError<E>>>,
}

impl<V, E> Load<V, E> {
    /// Runs a part of it, as part of its flight. A panic is a result like any other, unless there is one already: then
    /// it comes from what the load leaves behind, and ends here.
    #[inline]
    fn within(
        &mut self,
        id: FlightId,
        link: &mut Option<Arc<Link>>,
        span: &LoadSpan,
        run: impl FnOnce(&mut Self),
    ) {
        if let Err(payload) = lineage::within(id, link, || span.within(|| run(self))) {
            if self.result.is_none() {
                self.fail(|| LoadError::Panicked(Panicked::new(payload)));
            } else {
                quietly(|| drop(payload));
            }
            if let Some(pending) = self.pending.take() {
                drop_load(pending);
            }
        }
    }

    #[inline]
    fn poll(&mut self, context: &mut Context<'_>) {
        let Some(pending) = &mut self.pending else { return };
        // A value moves alone: as part of its result it would be copied at the width of the largest error.
        match pending.as_mut().poll(context) {
            Poll::Ready(Ok(value)) => _ = self.result.get_or_insert(Ok(value)),
            Poll::Ready(Err(error)) => self.fail(|| error),
            Poll::Pending => return,
        }
        self.pending = None;
    }

    #[cold]
    fn fail(&mut self, error: impl FnOnce() -> LoadError<E>) {
        self.result.get_or_insert_with(|| Err(error()));
    }
}

/// A leader's duty, in its own poll, to land its flight. Dropped before that, by a panic, it lands it as `Cancelled`.
pub(super) struct Lead<'a, K, V, E, H: Settle<K, V, E>> {
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

    /// Makes the load and, if it is to, polls it once.
    #[inline]
    fn load<P>(
        &mut self,
        load: &mut Load<V, E>,
        plan: P,
        kept: &mut P::Kept,
        context: Option<&mut Context<'_>>,
    ) where
        P: Plan<K, V, E>,
    {
        let Some(hold) = &self.hold else { return };
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
        self.link = lineage::link_to_current(id);
        // Where there is no task to be had, the stack has to do.
        let is_too_deep = self.link.as_ref().is_some_and(|link| link.is_deep()) && sync::can_spawn();
        let context = context.filter(|_| !is_too_deep);
        load.within(id, &mut self.link, &self.span, |load| {
            load.pending = Some(plan.load(kept));
            if let Some(context) = context {
                load.poll(context);
            }
        });
    }

    /// Lands the flight. The leader keeps the result, or a copy of it if somebody waits.
    #[inline]
    fn land(&mut self, result: &mut Option<Result<V, LoadError<E>>>) {
        if let Some(flight) = self.end(result)
            && let Some(Landing::Done(landed)) = flight.landing()
        {
            *result = Some(landed);
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
        let flight = match self.hold.take()? {
            Hold::Flight(flight) => flight,
            Hold::Entry(place) => self.flights.table.go_on(place),
        };
        flight.hand_over(load, leader, link.clone(), span.clone());
        let (flights, driven) = (Arc::clone(self.flights), Arc::clone(&flight));
        let driver = Driver { flights, flight: driven, link, span, done: false };
        #[cfg_attr(not(all(test, stampede_loom)), allow(unused_variables, clippy::let_unit_value))]
        let task = match self.flights.config.load_timeout.map(tokio::time::sleep) {
            None => sync::spawn(driver),
            Some(timeout) => sync::spawn(Limited { driver, timeout: unconstrained(timeout) }),
        };
        #[cfg(all(test, stampede_loom))]
        flight.driven_by(task);
        Some(flight)
    }
}

impl<K, V, E, H: Settle<K, V, E>> Lead<'_, K, V, E, H> {
    /// Lands the flight. It is given back if the result was taken, for those who wait in it.
    #[inline]
    fn end(&mut self, result: &mut Option<Result<V, LoadError<E>>>) -> Option<Arc<Flight<K, V, E>>> {
        self.flights.conclude(self.link.as_ref(), result.as_ref());
        // Looked at in its place: nearly every flight ends here, and moves would cost as much as the rest.
        let picked_up = match &self.hold {
            Some(Hold::Entry(place)) => Some(self.flights.pick_up(*place)),
            Some(Hold::Flight(_)) | None => None,
        };
        let flight = match (self.hold.take(), picked_up) {
            (_, Some(PickedUp::Joined(flight))) | (Some(Hold::Flight(flight)), None) => flight,
            // Nobody to wake, nothing to publish and, since nothing is kept, nothing to store.
            (_, Some(PickedUp::Alone(_)) | None) => return None,
        };
        self.flights.land(&flight, result);
        result.is_none().then_some(flight)
    }

    #[cold]
    fn cancel(&mut self) {
        self.end(&mut Some(Err(LoadError::Cancelled)));
    }
}

impl<K, V, E, H: Settle<K, V, E>> Drop for Lead<'_, K, V, E, H> {
    fn drop(&mut self) {
        if self.hold.is_some() {
            self.cancel();
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
#[inline]
#[track_caller]
pub(super) fn depart<K, V, E, H, P>(
    mut lead: Lead<'_, K, V, E, H>,
    mut plan: P,
    kept: &mut P::Kept,
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
    let mut load = Load { pending: None, result: lead.recheck(&mut plan).map(Ok) };
    let mut spared = None;
    if load.result.is_some() {
        spared = Some(plan);
    } else {
        let inline = first_poll == FirstPoll::Inline;
        lead.load(&mut load, plan, kept, inline.then_some(&mut *cx));
    }
    if load.result.is_some() {
        lead.land(&mut load.result);
    } else if let Some(flight) = load.pending.and_then(|load| lead.hand_over(load, Some(cx))) {
        return Departed::Away(flight);
    }
    Departed::Landed(load.result.unwrap_or(Err(LoadError::Cancelled)), spared)
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
        let mut load = Load { pending: None, result: lead.recheck(&mut plan).map(Ok) };
        let spared = load.result.is_some();
        if !spared {
            lead.load(&mut load, plan, &mut P::Kept::default(), None);
        }
        if load.result.is_some() {
            lead.land(&mut load.result);
        } else if let Some(pending) = load.pending {
            // The load that started it does not wait for it.
            if let Some(link) = &lead.link {
                link.cut(LEADER);
            }
            lead.hand_over(pending, None);
        }
        !spared
    }
}

/// The task that polls a load until it lands. Dropped before that, by a dying runtime, it lands the flight as
/// `Cancelled`.
struct Driver<K, V, E, H: Settle<K, V, E>> {
    flights: Arc<Flights<K, V, E, H>>,
    flight: Arc<Flight<K, V, E>>,
    link: Option<Arc<Link>>,
    span: LoadSpan,
    done: bool,
}

impl<K, V, E, H: Settle<K, V, E>> Driver<K, V, E, H> {
    /// One poll of the load, which may be `late`.
    fn drive(&mut self, cx: &mut Context<'_>, late: impl FnOnce(&mut Context<'_>) -> bool) -> Poll<()> {
        let Some((pending, unwanted)) = self.flight.take_load() else {
            // Whoever took the load to drop it lands the flight.
            return if self.flight.landed_or_tells(cx.waker()) { Poll::Ready(()) } else { Poll::Pending };
        };
        if unwanted {
            self.flights.abandon(&self.flight, pending);
            return Poll::Ready(());
        }
        let mut load = Load { pending: Some(pending), result: None };
        let id = self.flights.table.id(self.flight.place);
        load.within(id, &mut self.link, &self.span, |load| load.poll(cx));
        if let Some(pending) = load.pending {
            if late(cx) {
                drop_load(pending);
                let after = self.flights.config.load_timeout.unwrap_or_default();
                load.result = Some(Err(LoadError::TimedOut(TimedOut { after })));
            } else {
                let Some(unwanted) = self.flight.park_load(pending, self.link.as_ref(), cx.waker()) else {
                    return Poll::Pending;
                };
                self.flights.abandon(&self.flight, unwanted);
            }
        }
        if load.result.is_some() {
            self.land(&mut load.result);
        }
        Poll::Ready(())
    }

    fn land(&mut self, result: &mut Option<Result<V, LoadError<E>>>) {
        self.flights.conclude(self.link.as_ref(), result.as_ref());
        self.flights.land(&self.flight, result);
        self.done = true;
    }
}

impl<K, V, E, H: Settle<K, V, E>> Future for Driver<K, V, E, H> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx, |_| false)
    }
}

impl<K, V, E, H: Settle<K, V, E>> Drop for Driver<K, V, E, H> {
    fn drop(&mut self) {
        if self.done || self.flight.landed() {
            return;
        }
        if let Some((load, _)) = self.flight.take_load() {
            drop_load(load);
        }
        self.land(&mut Some(Err(LoadError::Cancelled)));
    }
}

/// A driver of a load that may take so long. Apart from it, since a timer would be most of its task.
#[pin_project]
struct Limited<K, V, E, H: Settle<K, V, E>> {
    driver: Driver<K, V, E, H>,
    /// Looked at whether or not the load has used up what its task may do in one turn: one that always does would never
    /// be late.
    #[pin]
    timeout: Unconstrained<Sleep>,
}

impl<K, V, E, H: Settle<K, V, E>> Future for Limited<K, V, E, H> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        this.driver.drive(cx, |cx| this.timeout.poll(cx).is_ready())
    }
}
