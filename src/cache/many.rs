//! Many keys in one call: one run of one loader for all that are neither cached nor in flight.
//!
//! Each key stays a flight of its own, which other callers join and which an insert overrules. The flights that
//! this call leads wait for their parts of one batch.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot::{self, error::RecvError};

use super::engine::{CacheFlights, Came, Loader, refresh};
use super::entry::Entry;
use super::fetch::{Answer, Fetch};
use super::loaded::{LoadContext, Loaded};
use crate::error::{LoadError, Panicked};
use crate::event;
use crate::flight::{Fault, Key, Owned, Value};
use crate::sync::{self, Mutex};

/// What a batch has for one of its keys, and what it took; no value if the loader left the key out.
pub(super) struct Part<V, E> {
    came: Result<Option<V>, LoadError<E>>,
    cost: Duration,
}

/// A key that this call leads, and where its flight waits.
struct Seat<K, V, E> {
    key: K,
    part: oneshot::Sender<Part<V, E>>,
}

impl<K, V, E> Seat<K, V, E> {
    fn answer(self, came: Result<Option<V>, LoadError<E>>, cost: Duration) {
        // A flight that was dropped meanwhile has no use for it.
        let _ = self.part.send(Part { came, cost });
    }
}

/// Who flies in one call's batch.
struct Batch<K, V, E>(Mutex<Boarding<K, V, E>>);

struct Boarding<K, V, E> {
    /// Whoever comes later has missed the loader's call.
    open: bool,
    seats: Vec<Seat<K, V, E>>,
    /// Keys that were served, and whose values a load should replace.
    refreshes: Vec<(K, Entry<V>)>,
}

/// One key's place in a batch.
pub(super) struct Member<K, V, E> {
    batch: Arc<Batch<K, V, E>>,
    key: K,
}

impl<K, V, E> Loader<V, E> for Member<K, V, E>
where
    V: Send + 'static,
    E: Fault,
{
    type Load = oneshot::Receiver<Part<V, E>>;

    const ALONE: bool = false;

    fn load(self, _: LoadContext<V>) -> Self::Load {
        let (part, load) = oneshot::channel();
        let mut boarding = self.batch.0.lock();
        if boarding.open {
            boarding.seats.push(Seat { key: self.key, part });
        }
        load
    }

    fn came(output: Result<Part<V, E>, RecvError>, took: Duration) -> (Came<V, E>, Duration) {
        match output {
            Ok(part) => (part.came.map(|value| value.map(Loaded::new)), part.cost),
            Err(_) => (Err(LoadError::Cancelled), took),
        }
    }

    fn put_off(self, stale: Entry<V>) -> Option<(Self, Entry<V>)> {
        self.batch.0.lock().refreshes.push((self.key, stale));
        None
    }
}

impl<K, V, E> Batch<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Boarding { open: false, seats: Vec::new(), refreshes: Vec::new() })))
    }

    fn set_open(&self, open: bool) {
        self.0.lock().open = open;
    }

    fn is_led(&self) -> bool {
        !self.0.lock().seats.is_empty()
    }

    fn member(self: &Arc<Self>, key: K) -> Member<K, V, E> {
        Member { batch: Arc::clone(self), key }
    }

    /// Calls the loader for everyone aboard; background loads ride along. Without a call that waits, the batch is
    /// a background load itself, and is skipped if there is no permit for it.
    fn depart<F, Fut>(self: &Arc<Self>, flights: &Arc<CacheFlights<K, V, E>>, load: &mut Option<F>)
    where
        F: FnOnce(Vec<K>) -> Fut,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
    {
        let refreshes = std::mem::take(&mut self.0.lock().refreshes);
        let is_led = self.is_led();
        if refreshes.is_empty() && !is_led {
            return;
        }
        let governor = flights.hook.governor.as_ref();
        let permit = governor.and_then(|governor| Arc::clone(governor).try_acquire_owned().ok());
        if governor.is_some() && permit.is_none() && !is_led {
            return;
        }
        self.set_open(true);
        for (key, stale) in refreshes {
            refresh(flights, Owned(key.clone()), self.member(key), Some(stale), false);
        }
        self.set_open(false);
        let seats = std::mem::take(&mut self.0.lock().seats);
        if seats.is_empty() {
            return;
        }
        let Some(load) = load.take() else { return };
        let keys = seats.iter().map(|seat| seat.key.clone()).collect();
        match catch_unwind(AssertUnwindSafe(|| load(keys))) {
            Ok(load) => {
                sync::spawn(fly(Arc::clone(flights), permit, load, seats));
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

/// The task of a batch: the load, for as long as a flight waits for a part of it, and then the parts.
async fn fly<K, V, E, Fut>(
    flights: Arc<CacheFlights<K, V, E>>,
    permit: Option<OwnedSemaphorePermit>,
    load: Fut,
    mut seats: Vec<Seat<K, V, E>>,
) where
    K: Key,
    V: Value,
    E: Fault,
    Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
{
    let engine = &flights.hook;
    let governed = async {
        let permit = engine.permit(permit).await;
        let started = engine.shelf.timeline.now();
        let loaded = load.await;
        let cost = engine.shelf.timeline.now().since(started);
        drop(permit);
        event::count_load(loaded.is_ok(), cost);
        (loaded, cost)
    };
    let landed = {
        let mut governed = pin!(governed);
        let mut deserted = pin!(async {
            for seat in &mut seats {
                seat.part.closed().await;
            }
        });
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| governed.as_mut().poll(cx))) {
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
                let value = values.remove(&seat.key);
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
    let batch = Batch::new();
    let mut load = Some(load);
    let mut seen = HashSet::new();
    let mut keys: Vec<K> = keys.into_iter().filter(|key| seen.insert(key.clone())).collect();
    drop(seen);
    let mut answers = HashMap::with_capacity(keys.len());
    loop {
        let mut declined = Vec::new();
        let mut answer = |key: K, fetched: Answer<V, E>| match fetched {
            Ok(Some(fetched)) => drop(answers.insert(key, Ok(fetched.value))),
            Ok(None) => declined.push(key),
            Err(error) => drop(answers.insert(key, Err(error))),
        };
        let mut waiting = Vec::new();
        // Boarding and the loader's call are one poll: no flight waits for a call that its caller has yet to make.
        poll_fn(|cx| {
            batch.set_open(true);
            for key in keys.drain(..) {
                let mut fetch = Fetch::new(flights, Owned(key.clone()), batch.member(key.clone()));
                match Pin::new(&mut fetch).poll(cx) {
                    Poll::Ready(fetched) => answer(key, fetched),
                    Poll::Pending => waiting.push((key, fetch)),
                }
            }
            batch.set_open(false);
            if batch.is_led() || waiting.is_empty() {
                batch.depart(flights, &mut load);
            }
            Poll::Ready(())
        })
        .await;
        // In turn: a flight that lands before its turn keeps its result, and one wake-up costs one poll.
        for (key, fetch) in waiting {
            answer(key, fetch.await);
        }
        // Keys that others' loaders left out are this call's to load, if its loader has not been called.
        if load.is_none() || declined.is_empty() {
            break;
        }
        keys = declined;
    }
    batch.depart(flights, &mut load);
    answers
}
