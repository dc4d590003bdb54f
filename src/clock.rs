//! Time: where it comes from, and the compact form in which entries keep it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a cache's time comes from.
///
/// The default follows Tokio's clock, so `tokio::time::pause` and `advance` move it. Tests that run without a
/// paused runtime set a `ManualClock` (feature `test-util`).
///
/// ```
/// use std::time::Instant;
/// use stampede_guard::{Clock, StampedeCache};
///
/// struct Wall;
/// impl Clock for Wall {
///     fn now(&self) -> Instant {
///         Instant::now()
///     }
/// }
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder().clock(Wall).build()?;
/// # drop(cache); Ok(())
/// # }
/// ```
pub trait Clock: Send + Sync + 'static {
    /// The current instant. Must not go backwards.
    fn now(&self) -> Instant;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Instant {
        (**self).now()
    }
}

/// Nanoseconds since a cache was made: half of an `Instant`, and enough for 584 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u64);

impl Tick {
    pub(crate) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }

    /// The time from `earlier` to `self`; zero if it is the other way round.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// A clock and the instant it is read against.
#[derive(Clone)]
pub(crate) struct Timeline {
    clock: Option<Arc<dyn Clock>>,
    start: Instant,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Timeline {
    /// `None` is Tokio's clock, read without a virtual call.
    pub(crate) fn new(clock: Option<Arc<dyn Clock>>) -> Self {
        let start = read(clock.as_ref());
        Self { clock, start }
    }

    pub(crate) fn now(&self) -> Tick {
        self.tick(self.instant())
    }

    pub(crate) fn tick(&self, instant: Instant) -> Tick {
        Tick(nanos(instant.saturating_duration_since(self.start)))
    }

    /// The present, for comparing alone: a tick costs some forty instructions more.
    #[inline]
    pub(crate) fn instant(&self) -> Instant {
        read(self.clock.as_ref())
    }

    /// The instant of a tick; one beyond the clock's range is never reached.
    pub(crate) fn instant_of(&self, tick: Tick) -> Option<Instant> {
        self.start.checked_add(Duration::from_nanos(tick.0))
    }
}

#[inline]
fn read(clock: Option<&Arc<dyn Clock>>) -> Instant {
    match clock {
        None => tokio::time::Instant::now().into_std(),
        Some(clock) => clock.now(),
    }
}
