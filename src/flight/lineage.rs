//! Which loads the running code is part of, so that a loader that asks for its own key gets an error at once
//! instead of waiting for itself.
//!
//! While a loader is polled, its flight is the thread's current one. A flight that is led from there knows that this
//! one waits for it, for as long as its leader waits there. So does a flight that is joined from there, if both came of
//! one load: those that were started apart are no business of each other's. A caller whose key's flight waits for the
//! current one, directly or through others, would wait for itself.
//!
//! Flights are known by their numbers here, which are never used twice. A flight that neither leads to another nor
//! was led to from one, which is nearly every flight, has no [`Link`] and costs no allocation.

use std::cell::Cell;
use std::collections::HashSet;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Result;

use super::waiters::LEADER;
use crate::sync::{Arc, Mutex, thread_local};

/// Up to so many loads are polled for the first time within each other.
const DEEP: u32 = 64;

/// One flight among all of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlightId {
    /// The number of its group.
    pub(super) group: NonZeroU64,
    /// Its number within the group.
    pub(super) number: u64,
}

/// A flight, seen by the loads it started.
pub(super) struct Link {
    id: FlightId,
    /// The first of those that led to it.
    origin: FlightId,
    /// How many flights led to it.
    depth: u32,
    /// Taken under a flight's lock, too: nothing else is done under it.
    waiting: Mutex<Waiting>,
}

/// The flights whose loaders wait for one, by the seats in which they do.
#[derive(Default)]
struct Waiting {
    leader: Option<Arc<Link>>,
    followers: Vec<(u32, Arc<Link>)>,
}

impl Waiting {
    fn get(&self, slot: u32) -> Option<&Arc<Link>> {
        if slot == LEADER {
            return self.leader.as_ref();
        }
        self.followers.iter().find(|(taken, _)| *taken == slot).map(|(_, link)| link)
    }

    fn remove(&mut self, slot: u32) -> Option<Arc<Link>> {
        if slot == LEADER {
            return self.leader.take();
        }
        let at = self.followers.iter().position(|(taken, _)| *taken == slot)?;
        Some(self.followers.swap_remove(at).1)
    }

    fn add_to(&self, links: &mut Vec<Arc<Link>>) {
        links.extend(self.leader.iter().chain(self.followers.iter().map(|(_, link)| link)).cloned());
    }
}

impl Link {
    pub(super) fn new(id: FlightId, leader: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            id,
            origin: leader.as_ref().map_or(id, |leader| leader.origin),
            depth: leader.as_ref().map_or(0, |leader| leader.depth + 1),
            waiting: Mutex::new(Waiting { leader, followers: Vec::new() }),
        })
    }

    /// Whether its load is better polled in a task of its own: in its leader's poll it would be that of a load within a
    /// load, and so on, and the last of a long chain would not find room on the stack.
    pub(super) fn is_deep(&self) -> bool {
        self.depth >= DEEP
    }

    /// A follower whose code is part of `ours` has taken a seat. False if it would wait for itself, and has to leave it
    /// again.
    pub(super) fn tie(&self, slot: u32, ours: &Arc<Self>) -> bool {
        if ours.origin != self.origin {
            return true;
        }
        self.waiting.lock().followers.push((slot, Arc::clone(ours)));
        // Only now: of flights that come to wait for each other at the same time, the last finds the ring closed.
        !ours.is_awaited_by(self.id)
    }

    /// Whether a flight waits for this one, directly or through others.
    fn is_awaited_by(&self, id: FlightId) -> bool {
        if self.id == id {
            return true;
        }
        let mut links = Vec::new();
        self.waiting.lock().add_to(&mut links);
        // There may be several ways to one, and for a moment rings.
        let mut seen = HashSet::new();
        let mut next = 0;
        while let Some(link) = links.get(next).cloned() {
            if link.id == id {
                return true;
            }
            if seen.insert(Arc::as_ptr(&link)) {
                link.waiting.lock().add_to(&mut links);
            }
            next += 1;
        }
        false
    }

    /// Whether the loader that took a seat does not wait for the code that runs now, which is where the seat's caller
    /// waits: that was moved elsewhere.
    pub(super) fn is_left(&self, slot: u32) -> bool {
        let loader = self.waiting.lock().get(slot).map(|link| link.id);
        loader.is_some_and(|loader| !waits_for_us(loader))
    }

    /// Whoever has the seat waits no longer: what runs on is for others.
    pub(super) fn cut(&self, slot: u32) {
        let cut = self.waiting.lock().remove(slot);
        drop(cut);
    }

    /// Nobody waits any longer.
    pub(super) fn cut_all(&self) {
        let cut = std::mem::take(&mut *self.waiting.lock());
        drop(cut);
    }
}

/// What the thread runs now. Plain values: nearly every flight has no link, and then nothing else is looked at.
struct Current {
    id: Cell<Option<FlightId>>,
    /// Whether [`LINK`] holds its link.
    linked: Cell<bool>,
}

thread_local! {
    static CURRENT: Current = const { Current { id: Cell::new(None), linked: Cell::new(false) } };
}
thread_local! {
    static LINK: Cell<Option<Arc<Link>>> = const { Cell::new(None) };
}

/// Makes `link` the current flight's, and gives back what was there. A thread that is being torn down has no links.
#[cold]
fn replace_link(link: Option<Arc<Link>>) -> Option<Arc<Link>> {
    LINK.try_with(|place| place.replace(link)).ok().flatten()
}

/// Makes a flight, or none, the thread's current one, and gives back what was before.
#[inline]
fn replace(id: Option<FlightId>, link: Option<Arc<Link>>) -> (Option<FlightId>, Option<Arc<Link>>) {
    let linked = link.is_some();
    let outer = CURRENT.with(|current| current.id.replace(id));
    let outer_linked = CURRENT.with(|current| current.linked.replace(linked));
    (outer, if linked || outer_linked { replace_link(link) } else { None })
}

/// The current flight's link, made now if it had none.
fn current_link(id: FlightId) -> Arc<Link> {
    let link = replace_link(None).unwrap_or_else(|| Link::new(id, None));
    replace_link(Some(Arc::clone(&link)));
    CURRENT.with(|current| current.linked.set(true));
    link
}

/// Runs code of the flight's loader, with the flight as the current one. Its link is left in `link`, since it may get
/// one meanwhile.
#[inline]
pub(super) fn within(id: FlightId, link: &mut Option<Arc<Link>>, run: impl FnOnce()) -> Result<()> {
    let (outer, outer_link) = replace(Some(id), link.take());
    let came = catch_unwind(AssertUnwindSafe(run));
    *link = replace(outer, outer_link).1;
    came
}

/// The link of a flight that is about to be [`within`] for the first time: to the one that is current now, if one is,
/// which waits for it.
#[inline]
pub(super) fn link_to_current(id: FlightId) -> Option<Arc<Link>> {
    let leader = CURRENT.with(|current| current.id.get())?;
    Some(Link::new(id, Some(current_link(leader))))
}

/// The link of the flight that the code that runs now is part of, if it has one.
#[inline]
pub(super) fn ours() -> Option<Arc<Link>> {
    if CURRENT.with(|current| current.linked.get()) { copy_link() } else { None }
}

#[cold]
fn copy_link() -> Option<Arc<Link>> {
    let link = replace_link(None);
    replace_link(link.clone());
    link
}

/// The flight that the code that runs now is part of, if it is of one.
#[cfg(feature = "cache")]
pub(crate) fn current() -> Option<Lead> {
    let id = CURRENT.with(|current| current.id.get())?;
    Some(Lead(current_link(id)))
}

/// A flight that waits for a load which several share.
#[cfg(feature = "cache")]
pub(crate) struct Lead(Arc<Link>);

/// Flights that wait for one load.
#[cfg(feature = "cache")]
pub(crate) struct Joint(Arc<Link>);

#[cfg(feature = "cache")]
impl Joint {
    /// None without any. All were led by one caller, and so by the same flights.
    pub(crate) fn new<'a>(leads: impl Iterator<Item = &'a Lead>) -> Option<Self> {
        let followers: Vec<_> = (0..).zip(leads.map(|Lead(link)| Arc::clone(link))).collect();
        let (_, first) = followers.first()?;
        let (id, origin, depth) = (first.id, first.origin, first.depth);
        let waiting = Mutex::new(Waiting { leader: None, followers });
        Some(Self(Arc::new(Link { id, origin, depth, waiting })))
    }

    /// Runs code of the load that they wait for.
    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> Result<T> {
        let mut came = None;
        within(self.0.id, &mut Some(Arc::clone(&self.0)), || came = Some(run()))?;
        Ok(came.expect("code that did not panic has come to its end"))
    }
}

/// True if the code that runs now is part of a load.
#[cfg(feature = "layer")]
pub(super) fn is_inside() -> bool {
    CURRENT.with(|current| current.id.get()).is_some()
}

/// True if the flight is waiting, directly or through others, for the code that runs now.
pub(super) fn waits_for_us(id: FlightId) -> bool {
    let (current, linked) = CURRENT.with(|current| (current.id.get(), current.linked.get()));
    if !linked {
        return current == Some(id);
    }
    current == Some(id) || copy_link().is_some_and(|link| link.is_awaited_by(id))
}
