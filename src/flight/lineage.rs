//! Which loads the running code is part of, so that a loader that asks for its own key gets an error at once
//! instead of waiting for itself.
//!
//! While a loader is polled, its flight is the thread's current one; a flight led from there has it as parent
//! for as long as its leader waits. A caller whose key is in flight under one of its own ancestors would wait
//! for itself.
//!
//! Flights are known by their numbers here, which are never used twice. A flight that neither leads to another nor
//! was led to from one, which is nearly every flight, has no [`Link`] and costs no allocation.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Result;

use crate::sync::{Arc, Mutex, thread_local};

/// One flight among all of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlightId {
    /// The number of its group.
    pub(super) group: u64,
    /// Its number within the group.
    pub(super) number: u64,
}

/// A flight, seen by the loads it started.
pub(super) struct Link {
    id: FlightId,
    /// Those that wait for the same load as this one.
    #[cfg(feature = "cache")]
    beside: Vec<FlightId>,
    /// The flight whose loader waits for this one.
    parent: Mutex<Option<Arc<Link>>>,
}

impl Link {
    fn new(id: FlightId, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            id,
            #[cfg(feature = "cache")]
            beside: Vec::new(),
            parent: Mutex::new(parent),
        })
    }

    fn is(&self, id: FlightId) -> bool {
        #[cfg(feature = "cache")]
        if self.beside.contains(&id) {
            return true;
        }
        self.id == id
    }

    /// The leader waits no longer: what runs on is for others.
    pub(super) fn cut(&self) {
        let parent = self.parent.lock().take();
        drop(parent);
    }
}

struct Current {
    id: FlightId,
    link: Option<Arc<Link>>,
}

thread_local! {
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
}

/// Makes `current` the thread's current flight, and gives back the one before it.
fn replace(current: Option<Current>) -> Option<Current> {
    // A thread that is being torn down has no current flight.
    CURRENT.try_with(|place| place.replace(current)).ok().flatten()
}

/// What `look` says of the current flight.
fn look<T>(look: impl FnOnce(&Current) -> T) -> Option<T> {
    let seen = |place: &Cell<Option<Current>>| {
        let current = place.take();
        let seen = current.as_ref().map(look);
        place.set(current);
        seen
    };
    CURRENT.try_with(seen).ok().flatten()
}

/// Runs code of the flight's loader, with the flight as the current one. Gives its link back, which it may have
/// got meanwhile.
pub(super) fn within<T>(
    id: FlightId,
    link: Option<Arc<Link>>,
    run: impl FnOnce() -> T,
) -> (Result<T>, Option<Arc<Link>>) {
    let outer = replace(Some(Current { id, link }));
    let came = catch_unwind(AssertUnwindSafe(run));
    (came, replace(outer).and_then(|current| current.link))
}

/// [`within`] for the first time: the flight that is current now, if one is, becomes the parent.
pub(super) fn within_first<T>(id: FlightId, run: impl FnOnce() -> T) -> (Result<T>, Option<Arc<Link>>) {
    let mut outer = replace(Some(Current { id, link: None }));
    if let Some(parent) = &mut outer {
        let link = parent.link.get_or_insert_with(|| Link::new(parent.id, None));
        replace(Some(Current { id, link: Some(Link::new(id, Some(Arc::clone(link)))) }));
    }
    let came = catch_unwind(AssertUnwindSafe(run));
    (came, replace(outer).and_then(|current| current.link))
}

/// The flight that the code that runs now is part of, if it is of one.
#[cfg(feature = "cache")]
pub(crate) fn current() -> Option<Lead> {
    let mut current = replace(None)?;
    let link = Arc::clone(current.link.get_or_insert_with(|| Link::new(current.id, None)));
    replace(Some(current));
    Some(Lead(link))
}

/// A flight that waits for a load which several share.
#[cfg(feature = "cache")]
pub(crate) struct Lead(Arc<Link>);

/// Flights that wait for one load.
#[cfg(feature = "cache")]
pub(crate) struct Joint(Arc<Link>);

#[cfg(feature = "cache")]
impl Joint {
    /// None without any. All were led by one caller, so what waits for the first waits for all.
    pub(crate) fn new<'a>(mut leads: impl Iterator<Item = &'a Lead>) -> Option<Self> {
        let Lead(first) = leads.next()?;
        let beside = leads.map(|Lead(link)| link.id).collect();
        let parent = Mutex::new(Some(Arc::clone(first)));
        Some(Self(Arc::new(Link { id: first.id, beside, parent })))
    }

    /// Runs code of the load that they wait for.
    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> Result<T> {
        within(self.0.id, Some(Arc::clone(&self.0)), run).0
    }
}

/// True if the code that runs now is part of a load.
#[cfg(feature = "layer")]
pub(super) fn is_inside() -> bool {
    look(|_| ()).is_some()
}

/// True if the flight is waiting, directly or through others, for the code that runs now.
pub(super) fn waits_for_us(id: FlightId) -> bool {
    let waits = |current: &Current| {
        if current.id == id {
            return true;
        }
        let mut next = current.link.clone();
        while let Some(ancestor) = next {
            if ancestor.is(id) {
                return true;
            }
            let above = ancestor.parent.lock().clone();
            next = above;
        }
        false
    };
    look(waits).unwrap_or(false)
}
