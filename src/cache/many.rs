//! Many keys in one call: one run of one loader for all that are neither cached nor in flight.
//!
//! Each key stays a flight of its own, which other callers join and which an insert overrules. The flights that
//! this call leads wait for their parts of one batch. Where instances share a tier, each flight asks it first, all at
//! once, and only those that are to load come aboard; the loader is called as soon as that is clear of all.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::unconstrained;
#[cfg(feature = "redis")]
use tokio::time::timeout;

use super::engine::{CacheFlights, Came, Loader, Nothing, refresh};
use super::entry::Entry;
#[cfg(feature = "redis")]
use super::errand::Gate;
use super::fetch::{Answer, Fetch, IfLoaded};
use super::loaded::{LoadContext, Loaded};
use crate::error::{LoadError, Panicked};
use crate::event;
use crate::flight::{self, Fault, Joint, Key, Lead, Owned, Value};
use crate::sync::{self, Mutex};
use crate::trace::LoadSpan;

/// How long a caller may take to call its loader once it is clear what that is to load.
#[cfg(feature = "redis")]
const CALLERS_TURN: Duration = Duration::from_secs(1);

/// What a batch has for one of its keys, and what it took.
pub(super) struct Part<V, E> {
    came: Result<Result<V, Nothing>, LoadError<E>>,
    cost: Duration,
}

/// A key that this call leads, and where its flight waits.
struct Seat<K, V, E> {
    key: K,
    lead: Option<Lead>,
    part: oneshot::Sender<Part<V, E>>,
}

impl<K, V, E> Seat<K, V, E> {
    fn answer(self, came: Result<Result<V, Nothing>, LoadError<E>>, cost: Duration) {
        // A flight that was dropped meanwhile has no use for it.
        let _ = self.part.send(Part { came, cost });
    }
}

/// Who flies in one call's batch.
struct Batch<K, V, E> {
    boarding: Mutex<Boarding<K, V, E>>,
    /// Told when the last key is decided, and when the round is over.
    news: Notify,
}

struct Boarding<K, V, E> {
    /// Whoever comes later has missed the loader's call.
    open: bool,
    /// How often it has been opened.
    round: usize,
    seats: Vec<Seat<K, V, E>>,
    /// Keys of which it is not clear yet whether they are to be loaded here.
    undecided: usize,
    /// Keys that were served, and whose values a load should replace.
    refreshes: Vec<(K, Entry<V>)>,
}

impl<K, V, E> Boarding<K, V, E> {
    /// Who is aboard, at the end of a round.
    fn depart(&mut self) -> Vec<Seat<K, V, E>> {
        self.round += 1;
        std::mem::take(&mut self.seats)
    }
}

/// One key's claim to a place in a batch.
pub(super) struct Member<K: Key, V, E> {
    batch: Arc<Batch<K, V, E>>,
    key: K,
    /// Of a key that other instances are asked for.
    ticket: Option<Arc<Ticket<K, V, E>>>,
}

/// Held while it is not clear whether a key is to be loaded here. Dropped, it is not.
struct Ticket<K: Key, V, E> {
    batch: Arc<Batch<K, V, E>>,
    decided: AtomicBool,
}

impl<K, V, E> Batch<K, V, E> {
    /// Takes nobody more aboard, and leaves out all who are: in this round, or in any. False if it is not clear yet who
    /// they are in this round.
    fn leave_out(&self, in_round: Option<usize>) -> bool {
        let mut boarding = self.boarding.lock();
        if in_round.is_some_and(|round| round == boarding.round && boarding.undecided > 0) {
            return false;
        }
        if in_round.is_some_and(|round| round != boarding.round) {
            return true;
        }
        boarding.open = false;
        let seats = boarding.depart();
        drop(boarding);
        self.news.notify_waiters();
        for seat in seats {
            seat.answer(Ok(Err(Nothing::NotAsked)), Duration::ZERO);
        }
        true
    }
}

impl<K: Key, V, E> Ticket<K, V, E> {
    fn decide(&self) {
        if self.decided.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut boarding = self.batch.boarding.lock();
        boarding.undecided -= 1;
        if boarding.undecided == 0 {
            self.batch.news.notify_waiters();
        }
    }
}

impl<K: Key, V, E> Drop for Ticket<K, V, E> {
    fn drop(&mut self) {
        self.decide();
    }
}

#[cfg(feature = "redis")]
impl<K, V, E> Gate for Ticket<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    fn others_load(&self) {
        self.decide();
    }
}

/// The load of one key: its part of the batch.
pub(super) enum Aboard<K: Key, V, E> {
    /// Its first poll says that it is to run, and takes the seat.
    Called(Member<K, V, E>),
    /// No part comes if the batch left without it.
    Seated(Option<oneshot::Receiver<Part<V, E>>>),
}

// Nothing in it is pinned.
impl<K: Key, V, E> Unpin for Aboard<K, V, E> {}

impl<K: Key, V, E> Future for Aboard<K, V, E> {
    type Output = Part<V, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Part<V, E>> {
        if let Self::Called(member) = &*self {
            *self = Self::Seated(member.board());
        }
        let came = match &mut *self {
            Self::Seated(Some(part)) => match Pin::new(part).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(part)) => return Poll::Ready(part),
                Poll::Ready(Err(_)) => Err(LoadError::Cancelled),
            },
            _ => Ok(Err(Nothing::NotAsked)),
        };
        Poll::Ready(Part { came, cost: Duration::ZERO })
    }
}

impl<K: Key, V, E> Member<K, V, E> {
    fn board(&self) -> Option<oneshot::Receiver<Part<V, E>>> {
        let (part, load) = oneshot::channel();
        let mut boarding = self.batch.boarding.lock();
        if !boarding.open {
            return None;
        }
        boarding.seats.push(Seat { key: self.key.clone(), lead: flight::current(), part });
        drop(boarding);
        // Only now: who waits for the last decision finds the seat taken.
        if let Some(ticket) = &self.ticket {
            ticket.decide();
        }
        Some(load)
    }
}

impl<K, V, E> Loader<V, E> for Member<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    type Load = Aboard<K, V, E>;

    const ALONE: bool = false;

    fn load(self, _: LoadContext<V>) -> Self::Load {
        if self.ticket.is_some() { Aboard::Called(self) } else { Aboard::Seated(self.board()) }
    }

    fn came(part: Part<V, E>, _: Duration) -> (Came<V, E>, Duration) {
        (part.came.map(|value| value.map(Loaded::new)), part.cost)
    }

    #[cfg(feature = "redis")]
    fn gate(&mut self) -> Option<Arc<dyn Gate>> {
        self.batch.boarding.lock().undecided += 1;
        let ticket = Arc::new(Ticket { batch: Arc::clone(&self.batch), decided: AtomicBool::new(false) });
        self.ticket = Some(Arc::clone(&ticket));
        Some(ticket)
    }

    fn put_off(self, stale: Entry<V>) -> Option<(Self, Entry<V>)> {
        self.batch.boarding.lock().refreshes.push((self.key, stale));
        None
    }
}

#[cfg(feature = "redis")]
impl<K, V, E> Batch<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    /// Once it is clear of every key whether it comes, flights wait for the caller to call the loader; one that is not
    /// polled any more keeps them no longer than [`CALLERS_TURN`].
    fn watch(self: &Arc<Self>) {
        let (batch, round) = (Arc::clone(self), self.boarding.lock().round);
        sync::spawn(async move {
            loop {
                let news = batch.news.notified();
                let undecided = {
                    let boarding = batch.boarding.lock();
                    if boarding.round != round {
                        return;
                    }
                    boarding.undecided
                };
                if undecided > 0 {
                    news.await;
                } else if timeout(CALLERS_TURN, news).await.is_err() && batch.leave_out(Some(round)) {
                    return;
                }
            }
        });
    }
}

impl<K, V, E> Batch<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    fn new() -> Arc<Self> {
        let boarding =
            Boarding { open: false, round: 0, seats: Vec::new(), undecided: 0, refreshes: Vec::new() };
        Arc::new(Self { boarding: Mutex::new(boarding), news: Notify::new() })
    }

    fn open(&self) {
        let mut boarding = self.boarding.lock();
        boarding.open = true;
        boarding.round += 1;
    }

    /// Takes no more aboard, once it is clear of every key whether it comes: at once, unless other instances are asked.
    async fn close(self: &Arc<Self>) {
        let mut is_watched = false;
        loop {
            let news = self.news.notified();
            if self.try_close() {
                return;
            }
            if !std::mem::replace(&mut is_watched, true) {
                #[cfg(feature = "redis")]
                self.watch();
            }
            news.await;
        }
    }

    fn try_close(&self) -> bool {
        let mut boarding = self.boarding.lock();
        boarding.open = boarding.undecided > 0;
        !boarding.open
    }

    fn is_led(&self) -> bool {
        !self.boarding.lock().seats.is_empty()
    }

    fn member(self: &Arc<Self>, key: K) -> Member<K, V, E> {
        Member { batch: Arc::clone(self), key, ticket: None }
    }

    /// Calls the loader for everyone aboard; background loads ride along. Without a call that waits, the batch is
    /// a background load itself, and is skipped if there is no permit for it.
    async fn depart<F, Fut>(self: &Arc<Self>, flights: &Arc<CacheFlights<K, V, E>>, load: &mut Option<F>)
    where
        F: FnOnce(Vec<K>) -> Fut,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
    {
        let refreshes = std::mem::take(&mut self.boarding.lock().refreshes);
        let is_led = self.is_led();
        if refreshes.is_empty() && !is_led {
            return;
        }
        let governor = flights.hook.governor.as_ref();
        let permit = governor.and_then(|governor| Arc::clone(governor).try_acquire_owned().ok());
        if governor.is_some() && permit.is_none() && !is_led {
            return;
        }
        self.open();
        for (key, stale) in refreshes {
            refresh(flights, Owned(key.clone()), self.member(key), Some(stale), false);
        }
        self.close().await;
        let seats = self.boarding.lock().depart();
        self.news.notify_waiters();
        if seats.is_empty() {
            return;
        }
        let Some(load) = load.take() else { return };
        let keys = seats.iter().map(|seat| seat.key.clone()).collect();
        let span = LoadSpan::new();
        match catch_unwind(AssertUnwindSafe(|| span.within(|| load(keys)))) {
            Ok(load) => {
                sync::spawn(fly(Arc::clone(flights), permit, load, seats, span));
            }
            Err(payload) => {
                let panic = Panicked::new(payload);
                for seat in seats {
                    seat.answer(Err(LoadError::Panicked(panic.clone())), Duration::ZERO);
                }
            }
        }
    }
}

/// The caller's end of a batch. Dropped before the loader was called, it leaves out all who are aboard.
struct Desk<K: Key, V: Value, E: Fault>(Arc<Batch<K, V, E>>);

impl<K: Key, V: Value, E: Fault> Drop for Desk<K, V, E> {
    fn drop(&mut self) {
        self.0.leave_out(None);
    }
}

/// The task of a batch: the load, for as long as a flight waits for a part of it, and then the parts.
async fn fly<K, V, E, Fut>(
    flights: Arc<CacheFlights<K, V, E>>,
    permit: Option<OwnedSemaphorePermit>,
    load: Fut,
    mut seats: Vec<Seat<K, V, E>>,
    span: LoadSpan,
) where
    K: Key,
    V: Value,
    E: Fault,
    Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
{
    let engine = &flights.hook;
    let joint = Joint::new(seats.iter().filter_map(|seat| seat.lead.as_ref()));
    let governed = async {
        let permit = engine.permit(permit).await;
        let running = event::Running::new(&engine.shelf.timeline, true, engine.asks_for_cost());
        let loaded = load.await;
        let cost = running.took();
        drop(permit);
        running.end(loaded.is_ok(), cost);
        (loaded, cost)
    };
    let landed = {
        let mut governed = pin!(governed);
        // Looked at even if the load has used up what its task may do in one turn: one that always does would never be given
        // up.
        let mut deserted = pin!(unconstrained(async {
            for seat in &mut seats {
                seat.part.closed().await;
            }
        }));
        // As part of all its flights: a loader that asks for one of their keys would wait for itself.
        let mut within = |cx: &mut Context<'_>| {
            let poll = || span.within(|| governed.as_mut().poll(cx));
            match &joint {
                Some(joint) => joint.within(poll),
                None => catch_unwind(AssertUnwindSafe(poll)),
            }
        };
        poll_fn(|cx| match within(cx) {
            Err(payload) => Poll::Ready(Some(Err(Panicked::new(payload)))),
            Ok(Poll::Ready(landed)) => Poll::Ready(Some(Ok(landed))),
            Ok(Poll::Pending) => deserted.as_mut().poll(cx).map(|()| None),
        })
        .await
    };
    let (error, cost) = match landed {
        None => return,
        Some(Ok((Ok(mut values), cost))) => {
            for seat in seats {
                let value = values.remove(&seat.key).ok_or(Nothing::LeftOut);
                seat.answer(Ok(value), cost);
            }
            return;
        }
        Some(Ok((Err(error), cost))) => (LoadError::Failed(Arc::new(error)), cost),
        Some(Err(panic)) => (LoadError::Panicked(panic), Duration::ZERO),
    };
    for seat in seats {
        seat.answer(Err(error.clone()), cost);
    }
}

/// One call for many keys; see [`get_or_load_many`](crate::StampedeCache::get_or_load_many).
pub(super) async fn fetch_many<K, V, E, F, Fut>(
    flights: &Arc<CacheFlights<K, V, E>>,
    keys: impl IntoIterator<Item = K>,
    load: F,
) -> HashMap<K, Result<V, LoadError<E>>>
where
    K: Key,
    V: Value,
    E: Fault,
    F: FnOnce(Vec<K>) -> Fut,
    Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
{
    let desk = Desk(Batch::new());
    let batch = &desk.0;
    let mut load = Some(load);
    let mut seen = HashSet::new();
    let mut keys: Vec<K> = keys.into_iter().filter(|key| seen.insert(key.clone())).collect();
    drop(seen);
    let mut answers = HashMap::with_capacity(keys.len());
    loop {
        let mut declined = Vec::new();
        let mut answer = |key: K, fetched: Answer<V, E>| match fetched {
            Ok(Ok(fetched)) => drop(answers.insert(key, Ok(fetched.value))),
            Ok(Err(nothing)) => declined.push((key, nothing)),
            Err(error) => drop(answers.insert(key, Err(error))),
        };
        let mut waiting = Vec::new();
        // Boarding and the loader's call are one poll, unless other instances are asked in between: no flight waits for a
        // call that its caller has yet to make.
        poll_fn(|cx| {
            batch.open();
            for key in keys.drain(..) {
                let mut fetch = Fetch::<_, _, _, _, _, IfLoaded>::new(
                    flights,
                    Owned(key.clone()),
                    batch.member(key.clone()),
                );
                match Pin::new(&mut fetch).poll(cx) {
                    Poll::Ready(fetched) => answer(key, fetched),
                    Poll::Pending => waiting.push((key, fetch)),
                }
            }
            Poll::Ready(())
        })
        .await;
        batch.close().await;
        if batch.is_led() || waiting.is_empty() {
            batch.depart(flights, &mut load).await;
        }
        // In turn: a flight that lands before its turn keeps its result, and one wake-up costs one poll.
        for (key, fetch) in waiting {
            answer(key, fetch.await);
        }
        // Keys that others' loaders left out are this call's to load, if its loader has not been called.
        if load.is_none() || declined.is_empty() {
            let unknown = declined.into_iter().filter(|(_, nothing)| *nothing == Nothing::NotAsked);
            answers.extend(unknown.map(|(key, _)| (key, Err(flights.hook.not_asked()))));
            break;
        }
        keys = declined.into_iter().map(|(key, _)| key).collect();
    }
    batch.depart(flights, &mut load).await;
    answers
}
