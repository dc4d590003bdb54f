//! One caller's way through a flight: lead or join, wait, land.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::pin::Pin;
#[cfg(feature = "layer")]
use std::sync::Weak;
use std::task::{Context, Poll};

use super::bounds::{Fault, Key, Value};
use super::core::{Boarding, Flights, Settle};
use super::driver::{Departed, Lead, depart};
use super::plan::{KeySource, Plan};
use super::state::{Flight, Landing};
use super::waiters::LEADER;
use crate::error::LoadError;
use crate::sync::Arc;

/// What a caller was in the flight that gave it its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Its loader ran.
    Leader,
    /// It waited for another caller's loader.
    Follower,
}

/// Where the first poll of a load happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstPoll {
    /// In the leader's own poll: a load that is ready at once costs no task.
    Inline,
    /// In the task: nothing of the load runs on the caller's time, or inside its task-locals.
    #[cfg(feature = "layer")]
    Spawned,
    /// Nowhere: the caller joins a flight that is under way or gets `Cancelled`, with what it brought.
    #[cfg(feature = "layer")]
    Never,
}

/// The end of a [`Run`].
pub(crate) struct Landed<V, E, S, P> {
    pub(crate) result: Result<V, LoadError<E>>,
    pub(crate) role: Role,
    /// What the caller brought, if it was not needed.
    #[cfg_attr(not(feature = "cache"), allow(dead_code))]
    pub(crate) unused: Option<(S, P)>,
    /// The plan of a leader that found a value and did not load.
    #[cfg_attr(not(feature = "layer"), allow(dead_code))]
    pub(crate) spared: Option<P>,
}

/// The future of one caller. Nothing happens before its first poll; dropped at any time, it leaves the flight
/// to the others.
pub(crate) struct Run<F, K, V, E, H, S, P, T = ()>
where
    F: Borrow<Arc<Flights<K, V, E, H>>>,
    H: Settle<K, V, E>,
{
    flights: F,
    /// The key and how to load it, until they are needed.
    brought: Option<(S, P)>,
    /// Where it waits. Slot and role belong to it; side by side they share the padding that a type of their own
    /// would have.
    seat: Option<Arc<Flight<K, V, E>>>,
    slot: u32,
    role: Role,
    first_poll: FirstPoll,
    /// What its plan leaves in its hands, should it lead.
    kept: T,
    hook: PhantomData<fn() -> H>,
}

// Nothing in it is pinned: the load lives in its own box.
impl<F, K, V, E, H, S, P, T> Unpin for Run<F, K, V, E, H, S, P, T>
where
    F: Borrow<Arc<Flights<K, V, E, H>>>,
    H: Settle<K, V, E>,
{
}

impl<F, K, V, E, H, S, P, T> Run<F, K, V, E, H, S, P, T>
where
    F: Borrow<Arc<Flights<K, V, E, H>>>,
    H: Settle<K, V, E>,
    T: Default,
{
    pub(crate) fn new(flights: F, source: S, plan: P, first_poll: FirstPoll) -> Self {
        let brought = Some((source, plan));
        let (slot, role) = (0, Role::Follower);
        Self { flights, brought, seat: None, slot, role, first_poll, kept: T::default(), hook: PhantomData }
    }
}

impl<F, K, V, E, H, S, P, T> Run<F, K, V, E, H, S, P, T>
where
    F: Borrow<Arc<Flights<K, V, E, H>>>,
    H: Settle<K, V, E>,
{
    /// What the caller is, once it has been polled.
    #[cfg(feature = "layer")]
    pub(crate) fn role(&self) -> Option<Role> {
        self.seat.as_ref().map(|_| self.role)
    }

    #[cfg(feature = "cache")]
    pub(crate) fn flights(&self) -> &F {
        &self.flights
    }

    /// Leaves the caller's place to what it makes of it, if it has one.
    #[cfg(feature = "layer")]
    pub(crate) fn into_seat(mut self) -> Option<Seat<K, V, E, H>> {
        let flight = self.seat.take()?;
        Some(Seat {
            flights: Arc::clone(self.flights.borrow()),
            flight: Arc::downgrade(&flight),
            slot: self.slot,
        })
    }

    #[cfg(feature = "layer")]
    pub(crate) fn kept(&mut self) -> &mut T {
        &mut self.kept
    }

    fn wait(&mut self, flight: Arc<Flight<K, V, E>>, slot: u32, role: Role) {
        (self.seat, self.slot, self.role) = (Some(flight), slot, role);
    }

    /// What the caller brought, if it is still there.
    pub(crate) fn unused(&mut self) -> Option<(S, P)> {
        self.brought.take()
    }

    fn refused(&mut self, error: LoadError<E>) -> Poll<Landed<V, E, S, P>> {
        let unused = self.unused();
        Poll::Ready(Landed { result: Err(error), role: Role::Follower, unused, spared: None })
    }
}

impl<F, K, V, E, H, S, P> Future for Run<F, K, V, E, H, S, P, P::Kept>
where
    F: Borrow<Arc<Flights<K, V, E, H>>>,
    K: Key + Borrow<S::Query>,
    V: Value,
    E: Fault,
    H: Settle<K, V, E>,
    S: KeySource<K>,
    P: Plan<K, V, E>,
{
    type Output = Landed<V, E, S, P>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let flights: &Arc<Flights<K, V, E, H>> = this.flights.borrow();
        loop {
            if let Some(flight) = &this.seat {
                let Some(landing) = flight.landing() else {
                    if flight.keep_waiting(this.slot, cx.waker()) {
                        return Poll::Pending;
                    }
                    continue;
                };
                let role = this.role;
                this.seat = None;
                match (landing, this.brought.is_some()) {
                    (Landing::Done(result), _) => {
                        return Poll::Ready(Landed { result, role, unused: this.unused(), spared: None });
                    }
                    (Landing::Abandoned, true) => {}
                    (Landing::Abandoned, false) => return this.refused(LoadError::Cancelled),
                }
            }
            #[cfg(feature = "layer")]
            if this.first_poll == FirstPoll::Never {
                let existing = this.brought.as_ref();
                let existing = existing.and_then(|(key, _)| flights.board_existing(key.query(), cx.waker()));
                return match existing {
                    Some(Boarding::Waits(flight, slot)) => {
                        this.wait(flight, slot, Role::Follower);
                        Poll::Pending
                    }
                    Some(Boarding::Refused(error)) => this.refused(error),
                    None => this.refused(LoadError::Cancelled),
                };
            }
            match flights.board(&mut this.brought, cx.waker()) {
                Boarding::Refused(error) => return this.refused(error),
                Boarding::Waits(flight, slot) => {
                    this.wait(flight, slot, Role::Follower);
                    return Poll::Pending;
                }
                Boarding::Leads(hold, plan) => {
                    let lead = Lead::new(flights, hold);
                    return match depart(lead, plan, &mut this.kept, this.first_poll, cx) {
                        Departed::Landed(result, spared) => {
                            Poll::Ready(Landed { result, role: Role::Leader, unused: None, spared })
                        }
                        Departed::Away(flight) => {
                            this.wait(flight, LEADER, Role::Leader);
                            Poll::Pending
                        }
                    };
                }
            }
        }
    }
}

impl<F, K, V, E, H, S, P, T> Drop for Run<F, K, V, E, H, S, P, T>
where
    F: Borrow<Arc<Flights<K, V, E, H>>>,
    H: Settle<K, V, E>,
{
    #[inline]
    fn drop(&mut self) {
        if let Some(flight) = self.seat.take() {
            self.flights.borrow().leave(&flight, self.slot);
        }
    }
}

/// The place of a caller that has what it came for while its load goes on: for as long as it is held, somebody waits.
#[cfg(feature = "layer")]
pub(crate) struct Seat<K, V, E, H: Settle<K, V, E>> {
    flights: Arc<Flights<K, V, E, H>>,
    /// Once it has landed it is for those who still want what it brought.
    flight: Weak<Flight<K, V, E>>,
    slot: u32,
}

#[cfg(feature = "layer")]
impl<K, V, E, H: Settle<K, V, E>> Drop for Seat<K, V, E, H> {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.upgrade() {
            self.flights.leave(&flight, self.slot);
        }
    }
}

/// A run, and what its caller wants of its end. A plain struct: an `async` block would hold key and loader twice.
pub(crate) struct Finish<R, M> {
    pub(crate) run: R,
    pub(crate) finish: M,
}

impl<R, M, O> Future for Finish<R, M>
where
    R: Future + Unpin,
    M: Fn(R::Output) -> O + Unpin,
{
    type Output = O;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O> {
        Pin::new(&mut self.run).poll(cx).map(&self.finish)
    }
}

/// Ready when a flight has landed, for one who is not part of it.
#[cfg(feature = "cache")]
pub(crate) struct Watch<K, V, E> {
    flight: Arc<Flight<K, V, E>>,
    slot: Option<u32>,
}

#[cfg(feature = "cache")]
impl<K, V, E, H: Settle<K, V, E>> Flights<K, V, E, H> {
    /// The ends of all flights under way.
    pub(crate) fn landings(&self) -> Vec<Watch<K, V, E>> {
        let watch = |flight| Watch { flight, slot: None };
        self.linked().into_iter().map(watch).collect()
    }
}

#[cfg(feature = "cache")]
impl<K, V, E> Future for Watch<K, V, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.flight.landed_or_watched(&mut this.slot, cx.waker()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(feature = "cache")]
impl<K, V, E> Drop for Watch<K, V, E> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.flight.unwatch(slot);
        }
    }
}
