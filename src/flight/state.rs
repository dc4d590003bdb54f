//! One flight: who waits, where its load is, how it ended. Its mutex orders everything that happens to it.

use std::task::Waker;

use super::lineage::Link;
use super::plan::BoxLoad;
use super::table::Place;
use super::waiters::Waiters;
use crate::error::LoadError;
use crate::sync::{Arc, Mutex, OnceLock};
use crate::trace::LoadSpan;

/// How a flight ended.
pub(super) enum Landing<V, E> {
    Done(Result<V, LoadError<E>>),
    /// Its load was dropped because nobody waited. Whoever came while that happened starts over.
    Abandoned,
}

impl<V: Clone, E> Clone for Landing<V, E> {
    fn clone(&self) -> Self {
        match self {
            Self::Done(result) => Self::Done(result.clone()),
            Self::Abandoned => Self::Abandoned,
        }
    }
}

/// One run of one loader that more than its leader's first poll may see.
pub(super) struct Flight<K, V, E> {
    pub(super) key: K,
    pub(super) place: Place,
    pub(super) landing: OnceLock<Landing<V, E>>,
    pub(super) state: Mutex<State<V, E>>,
}

// Independent facts, each read on its own.
#[allow(clippy::struct_excessive_bools)]
pub(super) struct State<V, E> {
    /// Not, or no longer, in the table: nobody joins, and the result is not stored.
    pub(super) closed: bool,
    pub(super) landed: bool,
    /// The first poll of the load, in its leader's own poll, is not over: the leader is here, without a slot.
    pub(super) boarding: bool,
    /// Holds one of the `max_abandoned` places: it runs with nobody waiting.
    pub(super) unattended: bool,
    /// Started for nobody: it holds its place, and goes on, whoever comes to wait for it and goes away again.
    pub(super) standing: bool,
    /// Nobody wants the load, which is being polled right now or must not be dropped where it was given up: whoever
    /// polls it drops it.
    pub(super) unwanted: bool,
    pub(super) waiters: Waiters,
    /// Those who want to know when it lands and do not want its load.
    #[cfg(feature = "cache")]
    pub(super) watchers: Option<Box<Waiters>>,
    /// The load between two polls.
    pub(super) load: Option<BoxLoad<V, E>>,
    /// Wakes the task that drives the load, once it has found it pending.
    pub(super) driver: Option<Waker>,
    /// Of the load, if another started it or, by the end of its last poll, it has started another.
    pub(super) link: Option<Arc<Link>>,
    /// The load's, while it runs: who comes to wait is linked to it.
    pub(super) span: LoadSpan,
    #[cfg(all(test, stampede_loom))]
    task: Option<crate::sync::AbortHandle>,
}

impl<V, E> State<V, E> {
    fn new(boarding: bool) -> Self {
        Self {
            closed: false,
            landed: false,
            boarding,
            unattended: false,
            standing: false,
            unwanted: false,
            waiters: Waiters::new(),
            #[cfg(feature = "cache")]
            watchers: None,
            load: None,
            driver: None,
            link: None,
            span: LoadSpan::default(),
            #[cfg(all(test, stampede_loom))]
            task: None,
        }
    }
}

impl<K, V, E> Flight<K, V, E> {
    fn with(key: K, place: Place, state: State<V, E>) -> Arc<Self> {
        Arc::new(Self { key, place, landing: OnceLock::new(), state: Mutex::new(state) })
    }

    /// Of a leader that polls its load for the first time.
    pub(super) fn joined(key: K, place: Place) -> Arc<Self> {
        Self::with(key, place, State::new(true))
    }

    /// For nobody.
    #[cfg(feature = "cache")]
    pub(super) fn unattended(key: K, place: Place) -> Arc<Self> {
        Self::with(key, place, State { unattended: true, standing: true, ..State::new(false) })
    }

    pub(super) fn landing(&self) -> Option<Landing<V, E>>
    where
        V: Clone,
    {
        self.landing.get().cloned()
    }

    pub(super) fn landed(&self) -> bool {
        self.state.lock().landed
    }

    /// Waits on with another waker, unless the flight has landed meanwhile.
    pub(super) fn keep_waiting(&self, slot: u32, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.landed {
            return false;
        }
        if let Some(link) = &state.link
            && link.is_left(slot)
        {
            link.cut(slot);
        }
        let is_known = state.waiters.will_wake(slot, waker);
        drop(state);
        if is_known {
            return true;
        }
        // A waker's clone is code of others, as its end is.
        let waker = waker.clone();
        let mut state = self.state.lock();
        if state.landed {
            return false;
        }
        let old = state.waiters.update(slot, waker);
        drop(state);
        drop(old);
        true
    }

    /// Puts the leader, if there is one, in its slot now that its poll ends, and its load where the driver finds it.
    pub(super) fn hand_over(
        &self,
        load: BoxLoad<V, E>,
        leader: Option<Waker>,
        link: Option<Arc<Link>>,
        span: LoadSpan,
    ) {
        let mut state = self.state.lock();
        state.load = Some(load);
        state.link = link;
        state.span = span;
        state.waiters.lead(leader);
        state.boarding = false;
    }

    /// True if the flight has landed; else `waker` is told when it has, from the `slot` that it is given.
    #[cfg(feature = "cache")]
    pub(super) fn landed_or_watched(&self, slot: &mut Option<u32>, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut state = self.state.lock();
        if state.landed {
            return true;
        }
        let watchers = state.watchers.get_or_insert_with(|| Box::new(Waiters::new()));
        let old = if let Some(slot) = *slot {
            watchers.update(slot, waker)
        } else {
            *slot = watchers.add(waker);
            None
        };
        drop(state);
        drop(old);
        false
    }

    #[cfg(feature = "cache")]
    pub(super) fn unwatch(&self, slot: u32) {
        let mut state = self.state.lock();
        let waker = state.watchers.as_mut().and_then(|watchers| watchers.remove(slot));
        drop(state);
        drop(waker);
    }

    /// The load, and whether nobody wants it.
    pub(super) fn take_load(&self) -> Option<(BoxLoad<V, E>, bool)> {
        let mut state = self.state.lock();
        let load = state.load.take()?;
        Some((load, state.unwanted))
    }

    /// Keeps a pending load until its next poll, which `driver` brings about, or gives it back because nobody wants it
    /// any more. Its poll may have given it a `link`.
    pub(super) fn park_load(
        &self,
        load: BoxLoad<V, E>,
        link: Option<&Arc<Link>>,
        driver: &Waker,
    ) -> Option<BoxLoad<V, E>> {
        let mut state = self.state.lock();
        if state.unwanted {
            return Some(load);
        }
        state.load = Some(load);
        if state.link.is_none() {
            state.link = link.cloned();
        }
        if state.driver.as_ref().is_some_and(|known| known.will_wake(driver)) {
            return None;
        }
        let old = state.driver.replace(driver.clone());
        drop(state);
        drop(old);
        None
    }

    /// True if the flight has landed; else `driver` is told when it has.
    pub(super) fn landed_or_tells(&self, driver: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.landed {
            return true;
        }
        let old = state.driver.replace(driver.clone());
        drop(state);
        drop(old);
        false
    }

    /// The driver's task, for a model to end as a dying runtime would.
    #[cfg(all(test, stampede_loom))]
    pub(super) fn driven_by(&self, task: crate::sync::AbortHandle) {
        self.state.lock().task = Some(task);
    }

    #[cfg(all(test, stampede_loom))]
    pub(super) fn take_task(&self) -> Option<crate::sync::AbortHandle> {
        self.state.lock().task.take()
    }
}

impl<V, E> State<V, E> {
    /// Takes the waiter out of its slot, and what ties the load to it. The waker belongs to others: it is dropped outside
    /// the flight's lock.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Waker> {
        // Before the slot is another's.
        if let Some(link) = &self.link {
            link.cut(slot);
        }
        self.waiters.remove(slot)
    }
}
