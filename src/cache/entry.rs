//! What the shelf keeps of a value, and how a load says what is to be kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generations::{Born, Generations, Mark};
use crate::clock::{Tick, Timeline};
use crate::policy::{Lifetime, Times};

/// A value on the shelf. A store copies all of it at each hit, so what a hit has no use for is behind one pointer,
/// which most entries do without.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    /// `None`: beyond the clock's range.
    fresh_until: Option<Instant>,
    born: Born,
    more: Option<Arc<More>>,
}

/// What only some entries have: a use after their freshness or before its end, or tags.
#[derive(Debug)]
struct More {
    times: Times,
    tags: Option<Arc<[Mark]>>,
}

/// What a flight brings: a value, and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Arrival<K, V> {
    pub(crate) value: V,
    pub(crate) bound_for: Destination<K, V>,
}

#[derive(Clone, Debug)]
pub(crate) enum Destination<K, V> {
    /// It comes from the shelf.
    Nowhere,
    /// It comes from the shelf, is past its freshness, and the next load of its key is not due yet.
    BackingOff {
        /// When it was stored.
        stored: Tick,
    },
    /// It is for those who wait alone, and voids what the shelf has.
    WaitersOnly,
    /// Under the flight's key.
    Shelf(Storing),
    /// Under these keys, each with the value that goes there.
    #[cfg_attr(not(feature = "layer"), allow(dead_code))]
    Shelves(Arc<[(K, V, Storing)]>),
}

/// How a value is stored.
#[derive(Clone, Debug)]
pub(crate) struct Storing {
    pub(crate) life: Lifetime,
    pub(crate) cost: Duration,
    pub(crate) born: Born,
    pub(crate) tags: Option<Arc<[Mark]>>,
}

impl<V> Entry<V> {
    /// `lean`: nobody asks for its times, as long as it has no stale windows.
    pub(super) fn new(value: V, times: Times, timeline: &Timeline, storing: &Storing, lean: bool) -> Self {
        let more = (!lean || storing.life.has_windows() || storing.tags.is_some())
            .then(|| Arc::new(More { times, tags: storing.tags.clone() }));
        Self { value, fresh_until: timeline.instant_of(times.fresh_until), born: storing.born, more }
    }

    /// When its freshness ends; `None`: beyond the clock's range.
    #[cfg(feature = "layer")]
    pub(crate) fn fresh_until(&self) -> Option<Instant> {
        self.fresh_until
    }

    #[inline]
    pub(super) fn is_fresh(&self, timeline: &Timeline) -> bool {
        self.fresh_until.is_none_or(|end| timeline.instant() < end)
    }

    #[inline]
    pub(super) fn is_valid(&self, generations: &Generations) -> bool {
        generations.is_valid(self.born, self.tags().map(|tags| &**tags))
    }

    pub(super) fn tags(&self) -> Option<&Arc<[Mark]>> {
        self.more.as_ref()?.tags.as_ref()
    }

    /// Its moments; an entry that has none is fresh until it is dead.
    pub(super) fn times(&self) -> Option<&Times> {
        self.more.as_ref().map(|more| &more.times)
    }

    /// The same entry with other times, if it has any.
    pub(super) fn map_times(&mut self, change: impl FnOnce(Times) -> Times) {
        if let Some(more) = &mut self.more {
            *more = Arc::new(More { times: change(more.times), tags: more.tags.clone() });
        }
    }

    /// True if `self`, which is fresh, was stored after `seen`, which a load was to replace. An entry without moments
    /// is replaced once it is dead, so what is fresh is another.
    pub(super) fn is_newer_than(&self, seen: &Self) -> bool {
        match (self.times(), seen.times()) {
            (Some(own), Some(seen)) => own.stored > seen.stored,
            _ => true,
        }
    }
}
