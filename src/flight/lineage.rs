//! Which loads the running code is part of, so that a loader that asks for its own key gets an error at once
//! instead of waiting for itself.
//!
//! While a loader is polled, its flight is the thread's current one; a flight led from there has it as parent
//! for as long as its leader waits there. A caller whose key is in flight under one of its own ancestors would wait
//! for itself.
//!
//! Flights are known by their numbers here, which are never used twice. A flight that neither leads to another nor
//! was led to from one, which is nearly every flight, has no [`Link`] and costs no allocation.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Result;

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
    /// Those that wait for the same load as this one.
    #[cfg(feature = "cache")]
    beside: Vec<FlightId>,
    /// How many flights led to it.
    depth: u32,
    /// The flight whose loader waits for this one.
    parent: Mutex<Option<Arc<Link>>>,
}

impl Link {
    fn new(id: FlightId, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            id,
            #[cfg(feature = "cache")]
            beside: Vec::new(),
            depth: parent.as_ref().map_or(0, |parent| parent.depth + 1),
            parent: Mutex::new(parent),
        })
    }

    /// Whether its load is better polled in a task of its own: in its leader's poll it would be that of a load within a
    /// load, and so on, and the last of a long chain would not find room on the stack.
    pub(super) fn is_deep(&self) -> bool {
        self.depth >= DEEP
    }

    fn is(&self, id: FlightId) -> bool {
        #[cfg(feature = "cache")]
        if self.beside.contains(&id) {
            return true;
        }
        self.id == id
    }

    /// Whether the loader that led to it does not wait for the code that runs now, which is where its leader waits: that
    /// was moved elsewhere.
    pub(super) fn is_left(&self) -> bool {
        let parent = self.parent.lock().as_ref().map(|parent| parent.id);
        parent.is_some_and(|parent| !waits_for_us(parent))
    }

    /// The leader waits no longer: what runs on is for others.
    pub(super) fn cut(&self) {
        let parent = self.parent.lock().take();
        drop(parent);
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
/// which becomes its parent.
#[inline]
pub(super) fn link_to_current(id: FlightId) -> Option<Arc<Link>> {
    let parent = CURRENT.with(|current| current.id.get())?;
    Some(Link::new(id, Some(current_link(parent))))
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
    /// None without any. All were led by one caller, so what waits for the first waits for all.
    pub(crate) fn new<'a>(mut leads: impl Iterator<Item = &'a Lead>) -> Option<Self> {
        let Lead(first) = leads.next()?;
        let beside = leads.map(|Lead(link)| link.id).collect();
        let parent = Mutex::new(Some(Arc::clone(first)));
        Some(Self(Arc::new(Link { id: first.id, beside, depth: first.depth, parent })))
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
    let link = replace_link(None);
    let mut next = link.clone();
    replace_link(link);
    while let Some(ancestor) = next {
        if ancestor.is(id) {
            return true;
        }
        let above = ancestor.parent.lock().clone();
        next = above;
    }
    current == Some(id)
}
