//! What the shelf keeps of a value, and how a load says what is to be kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::generations::{Born, Generations, Mark};
use crate::clock::{Tick, Timeline};
#[cfg(feature = "redis")]
use crate::coordinate::Token;
#[cfg(feature = "redis")]
use crate::event::{Outcome, StaleReason};
use crate::policy::{Lifetime, Times};
#[cfg(feature = "redis")]
use crate::sync::Mutex;

/// A value on the shelf. A store copies all of it at each hit, so what a hit has no use for is behind one pointer,
/// which most entries do without.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    /// `None`: for ever.
    fresh_until: Option<Instant>,
    born: Born,
    more: Option<Arc<More>>,
}

/// What only some entries have: a use after their freshness or before its end, or tags.
#[derive(Debug)]
struct More {
    times: Times,
    tags: Option<Arc<[Mark]>>,
    /// Among the loads of all instances; 0 for one that no other instance heard of.
    #[cfg(feature = "redis")]
    token: Token,
}

/// What a flight brings: a value, and where it goes. Once it has landed, those who wait get a copy each, so by then
/// it is small.
#[derive(Clone, Debug)]
pub(crate) struct Arrival<K, V> {
    pub(crate) value: V,
    pub(crate) bound_for: Destination<K, V>,
}

#[derive(Clone, Debug)]
pub(crate) enum Destination<K, V> {
    /// It comes from the shelf.
    Nowhere(Receipt),
    /// It comes from the shelf, is past its freshness, and the next load of its key is not due yet.
    BackingOff {
        /// The time since it was stored.
        age: Duration,
        receipt: Receipt,
    },
    /// It is for those who wait alone, and voids what the shelf has.
    WaitersOnly(Receipt),
    /// Under the flight's key, for as long as is usual.
    Usual { born: Born, cost: Duration },
    /// Under the flight's key.
    Shelf(Box<Storing>),
    /// Under these keys, each with the value that goes there; the last is the arrival's own.
    #[cfg_attr(not(feature = "layer"), allow(dead_code))]
    Shelves(Vec<(K, V, Storing)>),
    /// It has landed, wherever it was bound for.
    Landed(Receipt),
}

impl<K, V> Destination<K, V> {
    /// Nothing before it has landed.
    pub(crate) fn receipt(&self) -> Option<&Receipt> {
        match self {
            Self::Nowhere(receipt)
            | Self::BackingOff { receipt, .. }
            | Self::WaitersOnly(receipt)
            | Self::Landed(receipt) => Some(receipt),
            Self::Usual { .. } | Self::Shelf(_) | Self::Shelves(_) => None,
        }
    }
}

/// What those who waited for a value are told of its load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receipt {
    /// With its tags, says what voids it.
    pub(crate) born: Born,
    pub(crate) tags: Option<Arc<[Mark]>>,
    /// How the flight came by it, if not by its own load.
    #[cfg(feature = "redis")]
    pub(crate) outcome: Option<Outcome>,
}

/// How a value is stored.
#[derive(Clone, Debug)]
pub(crate) struct Storing {
    pub(crate) life: Lifetime,
    pub(crate) cost: Duration,
    pub(crate) born: Born,
    pub(crate) tags: Option<Arc<[Mark]>>,
    /// In place of the shelf's own.
    pub(crate) jitter: Option<f64>,
    /// Of a cache that shares its values.
    #[cfg(feature = "redis")]
    pub(crate) shared: Option<Stamp>,
    /// What is due once the value has landed.
    #[cfg(feature = "redis")]
    pub(crate) then: Option<Then>,
}

/// What follows a landing, once. Dropped before, it does not.
#[cfg(feature = "redis")]
#[derive(Clone)]
pub(crate) struct Then(Arc<Mutex<Option<Due>>>);

#[cfg(feature = "redis")]
type Due = Box<dyn FnOnce() + Send>;

#[cfg(feature = "redis")]
impl Then {
    pub(super) fn new(then: impl FnOnce() + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(then)))))
    }

    pub(super) fn run(&self) {
        let then = self.0.lock().take();
        if let Some(then) = then {
            then();
        }
    }
}

#[cfg(feature = "redis")]
impl std::fmt::Debug for Then {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Then").finish_non_exhaustive()
    }
}

/// What a shared cache knows of a value beyond its life, which then is exact: its jitter is in it.
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) token: Token,
    /// How the flight came by the value, if not by its own load.
    pub(crate) outcome: Option<Outcome>,
    /// How old it is.
    pub(crate) age: Duration,
    /// How long it is fresh, for all; this instance may ask again sooner.
    pub(crate) fresh_for: Duration,
}

#[cfg(feature = "redis")]
impl Stamp {
    /// Of a value that this instance has just loaded.
    pub(crate) fn own(token: Token, fresh_for: Duration) -> Self {
        Self { token, outcome: None, age: Duration::ZERO, fresh_for }
    }
}

impl Receipt {
    pub(crate) fn new(born: Born, tags: Option<Arc<[Mark]>>) -> Self {
        Self {
            born,
            tags,
            #[cfg(feature = "redis")]
            outcome: None,
        }
    }
}

impl Storing {
    /// A life that is as long as its setting says, less jitter.
    pub(crate) fn new(life: Lifetime, cost: Duration, born: Born) -> Self {
        Self {
            life,
            cost,
            born,
            tags: None,
            jitter: None,
            #[cfg(feature = "redis")]
            shared: None,
            #[cfg(feature = "redis")]
            then: None,
        }
    }

    pub(super) fn receipt(&self) -> Receipt {
        Receipt {
            born: self.born,
            tags: self.tags.clone(),
            #[cfg(feature = "redis")]
            outcome: self.shared.and_then(|stamp| stamp.outcome),
        }
    }

    /// True if a load has failed, and the value, which other instances share, stands in for what it was to bring.
    #[cfg_attr(not(feature = "redis"), allow(clippy::unused_self))]
    pub(super) fn stands_in(&self) -> bool {
        #[cfg(feature = "redis")]
        return self.shared.and_then(|stamp| stamp.outcome).is_some_and(|outcome| {
            matches!(outcome, Outcome::Stale { reason: StaleReason::LoadFailed, .. })
        });
        #[cfg(not(feature = "redis"))]
        false
    }

    /// True if it says nothing but how long the value is fresh.
    pub(super) fn is_plain(&self) -> bool {
        !self.life.has_windows() && self.tags.is_none() && self.is_jittered()
    }

    /// True if jitter is still to shorten it.
    #[cfg_attr(not(feature = "redis"), allow(clippy::unused_self))]
    pub(super) fn is_jittered(&self) -> bool {
        #[cfg(feature = "redis")]
        return self.shared.is_none();
        #[cfg(not(feature = "redis"))]
        true
    }
}

impl<V> Entry<V> {
    /// One that has no use but its freshness, of which nobody asks when it began.
    pub(super) fn plain(value: V, fresh_until: Option<Instant>, born: Born) -> Self {
        Self { value, fresh_until, born, more: None }
    }

    pub(super) fn new(value: V, times: Times, timeline: &Timeline, storing: &Storing) -> Self {
        let more = Arc::new(More {
            times,
            tags: storing.tags.clone(),
            #[cfg(feature = "redis")]
            token: storing.shared.map_or(0, |stamp| stamp.token),
        });
        let fresh_until = timeline.instant_of(times.fresh_until);
        Self { value, fresh_until, born: storing.born, more: Some(more) }
    }

    /// When its freshness ends; `None`: beyond the clock's range.
    #[cfg(feature = "layer")]
    pub(crate) fn fresh_until(&self) -> Option<Instant> {
        self.fresh_until
    }

    #[inline]
    pub(super) fn is_fresh_at(&self, now: impl FnOnce() -> Instant) -> bool {
        self.fresh_until.is_none_or(|end| now() < end)
    }

    #[inline]
    pub(super) fn is_valid(&self, generations: &Generations) -> bool {
        generations.is_valid(self.born, self.tags().map(|tags| &**tags))
    }

    /// What those who get its value from a flight are told.
    pub(crate) fn receipt(&self) -> Receipt {
        Receipt::new(self.born, self.tags().cloned())
    }

    pub(super) fn tags(&self) -> Option<&Arc<[Mark]>> {
        self.more.as_ref()?.tags.as_ref()
    }

    /// Its moments; an entry that has none is fresh until it is dead.
    pub(crate) fn times(&self) -> Option<&Times> {
        self.more.as_ref().map(|more| &more.times)
    }

    /// The time since it was stored, in whichever instance; zero if nobody asks.
    pub(crate) fn age(&self, now: Tick) -> Duration {
        self.times().map_or(Duration::ZERO, |times| times.age(now))
    }

    #[cfg(feature = "redis")]
    pub(crate) fn token(&self) -> Token {
        self.more.as_ref().map_or(0, |more| more.token)
    }

    /// The same entry with other times, if it has any.
    pub(super) fn map_times(&mut self, change: impl FnOnce(Times) -> Times) {
        if let Some(more) = &mut self.more {
            *more = Arc::new(More {
                times: change(more.times),
                tags: more.tags.clone(),
                #[cfg(feature = "redis")]
                token: more.token,
            });
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
