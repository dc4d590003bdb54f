//! What happened to a request, and counting it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "redis")]
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Tick, Timeline};
use crate::error::Overloaded;
use crate::sync::{AtomicU64, Ordering};

/// How a call came by its value.
///
/// ```
/// use stampede_guard::{Loaded, Outcome, StampedeCache};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder().build()?;
/// for expected in [Outcome::Loaded, Outcome::Hit] {
///     let fetched = cache.get_or_load_with(1, |_| async { Ok(Loaded::new(1)) }).await?;
///     assert_eq!(fetched.outcome, expected);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// From the cache, fresh.
    Hit,
    /// From the cache, past its freshness.
    Stale {
        /// The time since the value was stored.
        age: Duration,
        /// Why it was served all the same.
        reason: StaleReason,
    },
    /// This call's own loader ran.
    Loaded,
    /// It waited for a loader that another call had started.
    Coalesced,
    /// From the tier that instances share, fresh.
    SharedHit,
    /// From the tier that instances share, where another instance's load was waited for.
    SharedWait,
}

/// Why a stale value was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StaleReason {
    /// Within `stale_while_revalidate`: a background load replaces it.
    Revalidating,
    /// Within `stale_if_error`: the load failed.
    LoadFailed,
    /// Within `stale_if_error`: the load outlasted `soft_timeout`. It goes on.
    LoadSlow,
    /// Loads of this key failed lately, and the next is not due yet.
    BackingOff,
}

impl Outcome {
    /// The name under which it is counted.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale { .. } => "stale",
            Self::Loaded => "loaded",
            Self::Coalesced => "coalesced",
            Self::SharedHit => "shared_hit",
            Self::SharedWait => "shared_wait",
        }
    }
}

/// Counts one request, under the name of what became of it.
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
#[inline]
pub(crate) fn count_request(outcome: &'static str) {
    // A label that is a literal costs no allocation: a hit is to cost none, and of those who wait there are many.
    #[cfg(feature = "metrics")]
    match outcome {
        "hit" => metrics::counter!("stampede_requests_total", "outcome" => "hit").increment(1),
        "coalesced" => metrics::counter!("stampede_requests_total", "outcome" => "coalesced").increment(1),
        _ => metrics::counter!("stampede_requests_total", "outcome" => outcome).increment(1),
    }
}

/// The same of a request that has a value, and how old that is if it is past its freshness.
pub(crate) fn count_outcome(outcome: Outcome) {
    match outcome {
        Outcome::Stale { age, .. } => count_stale(age),
        _ => count_request(outcome.as_str()),
    }
}

/// Counts a request that was served a value of this age, past its freshness.
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn count_stale(age: Duration) {
    count_request("stale");
    #[cfg(feature = "metrics")]
    metrics::histogram!("stampede_stale_age_seconds").record(age.as_secs_f64());
}

/// Counts a request that found no place to wait or to load.
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn count_shed(cap: Overloaded) {
    #[cfg(feature = "metrics")]
    {
        let cap = match cap {
            Overloaded::InFlight { .. } => "in_flight",
            Overloaded::Waiters { .. } => "waiters",
        };
        metrics::counter!("stampede_shed_total", "cap" => cap).increment(1);
    }
}

/// Records how many callers had waited for a load when it ended.
#[cfg(feature = "metrics")]
pub(crate) fn count_waiters(waiters: usize) {
    #[allow(clippy::cast_precision_loss)]
    metrics::histogram!("stampede_waiters").record(waiters as f64);
}

/// Counts one background refresh.
#[inline]
pub(crate) fn count_refresh() {
    #[cfg(feature = "metrics")]
    metrics::counter!("stampede_refreshes_total").increment(1);
}

/// A load under way, which counts when it is over: one that panics as a failure, and one that is dropped, because it
/// took too long or nobody waits for it any more, as that.
pub(crate) struct Running<'a> {
    timeline: &'a Timeline,
    /// `None` if nobody asks how long it takes.
    started: Option<Tick>,
    is_counted: bool,
}

impl<'a> Running<'a> {
    /// `counts` is false for what another load brings. The clock is read only if somebody, the metrics or the caller,
    /// asks what [`took`](Self::took) says.
    pub(crate) fn new(timeline: &'a Timeline, counts: bool, asked: bool) -> Self {
        let is_timed = asked || (counts && cfg!(feature = "metrics"));
        Self { timeline, started: is_timed.then(|| timeline.now()), is_counted: !counts }
    }

    /// Zero if nobody asked.
    pub(crate) fn took(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| self.timeline.now().since(started))
    }

    /// It has come to an end of its own.
    pub(crate) fn end(mut self, is_ok: bool, took: Duration) {
        if !std::mem::replace(&mut self.is_counted, true) {
            count_load(if is_ok { "ok" } else { "error" }, Some(took));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.is_counted {
            // Perhaps it is the clock that panics.
            let took = catch_unwind(AssertUnwindSafe(|| self.took())).ok();
            count_load(if std::thread::panicking() { "error" } else { "dropped" }, took);
        }
    }
}

/// Counts one loader run, and its duration if that is known.
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
#[inline]
fn count_load(result: &'static str, took: Option<Duration>) {
    #[cfg(feature = "metrics")]
    {
        metrics::counter!("stampede_loads_total", "result" => result).increment(1);
        if let Some(took) = took {
            metrics::histogram!("stampede_load_seconds").record(took.as_secs_f64());
        }
    }
}

/// Records how long somebody waited for a lease that another instance held: a load's, or a lock.
#[cfg(feature = "redis")]
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn count_lock_wait(of: &'static str, took: Duration) {
    #[cfg(feature = "metrics")]
    metrics::histogram!("stampede_lock_wait_seconds", "of" => of).record(took.as_secs_f64());
}

/// Counts an operation on Redis that brought nothing.
#[cfg(feature = "redis")]
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn count_redis_error(kind: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!("stampede_redis_errors_total", "kind" => kind).increment(1);
}

/// Counts what became of a value that was to be shared.
#[cfg(feature = "redis")]
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn count_publication(result: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!("stampede_publications_total", "result" => result).increment(1);
}

/// Says whether callers of a tier go on without Redis.
#[cfg(feature = "redis")]
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn set_circuit(namespace: &Arc<str>, open: bool) {
    #[cfg(feature = "metrics")]
    metrics::gauge!("stampede_redis_circuit_open", "namespace" => Arc::clone(namespace))
        .set(f64::from(u8::from(open)));
}

/// Says whether a tier hears of what other instances do.
#[cfg(feature = "redis")]
#[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
pub(crate) fn set_subscribed(namespace: &Arc<str>, subscribed: bool) {
    #[cfg(feature = "metrics")]
    metrics::gauge!("stampede_redis_subscribed", "namespace" => Arc::clone(namespace))
        .set(f64::from(u8::from(subscribed)));
}

const STRIPES: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

/// A counter for the hit path: threads add to cache lines of their own.
#[derive(Debug, Default)]
pub(crate) struct Striped([Stripe; STRIPES]);

thread_local! {
    /// This thread's stripe, once it has one.
    static MINE: Cell<usize> = const { Cell::new(STRIPES) };
}

impl Striped {
    #[inline]
    pub(crate) fn add(&self) {
        let mine = MINE.try_with(Cell::get).unwrap_or(STRIPES);
        let stripe = self.0.get(mine).unwrap_or_else(|| self.assign());
        stripe.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives this thread a stripe. One that is being torn down has none of its own any more.
    #[cold]
    fn assign(&self) -> &Stripe {
        // Hands out numbers and orders nothing, so it is no part of the models.
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
        let _ = MINE.try_with(|mine| mine.set(number));
        &self.0[number]
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::clock::Clock;

    /// Goes on by a second each time it is read.
    struct Steps(Instant, AtomicU64);

    impl Clock for Steps {
        fn now(&self) -> Instant {
            self.0 + Duration::from_secs(self.1.fetch_add(1, Ordering::Relaxed))
        }
    }

    /// Works once.
    struct Once(AtomicU64);

    impl Clock for Once {
        fn now(&self) -> Instant {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) < 2, "the clock is broken");
            Instant::now()
        }
    }

    #[test]
    fn a_clock_that_panics_while_a_load_ends_ends_it_and_not_the_process() {
        let timeline = Timeline::new(Some(Arc::new(Once(AtomicU64::new(0)))));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let running = Running::new(&timeline, true, true);
            let took = running.took();
            running.end(true, took);
        }));
        assert!(ended.is_err());
    }

    #[test]
    fn the_clock_is_read_for_those_who_ask_how_long_a_load_took() {
        let clock = Arc::new(Steps(Instant::now(), AtomicU64::new(0)));
        let timeline = Timeline::new(Some(Arc::new(Arc::clone(&clock))));
        let is_read = |counts, asked| {
            let before = clock.1.load(Ordering::Relaxed);
            let running = Running::new(&timeline, counts, asked);
            let took = running.took();
            running.end(true, took);
            let reads = clock.1.load(Ordering::Relaxed) - before;
            assert_eq!(
                (took, reads),
                if reads == 0 { (Duration::ZERO, 0) } else { (Duration::from_secs(1), 2) }
            );
            reads > 0
        };
        assert!(is_read(true, true) && is_read(false, true));
        assert!(!is_read(false, false));
        assert_eq!(is_read(true, false), cfg!(feature = "metrics"));
    }
}
