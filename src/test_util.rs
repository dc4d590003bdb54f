//! Helpers for tests of code that uses this crate (feature `test-util`).

#[cfg(feature = "redis")]
mod chaos;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock::{Clock, nanos};

#[cfg(feature = "redis")]
pub use chaos::{Chaos, ChaosStats, ChaosTier};

/// A clock that stands still until it is moved. Clones share one time.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::{ManualClock, StampedeCache};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let clock = ManualClock::new();
/// let cache: StampedeCache<u64, u64> =
///     StampedeCache::builder().ttl(Duration::from_secs(60)).clock(clock.clone()).build()?;
/// cache.insert(1, 1);
/// clock.advance(Duration::from_secs(61));
/// assert_eq!(cache.get(&1), None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    start: Instant,
    passed: Arc<AtomicU64>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl ManualClock {
    /// A clock at the present instant.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now(), passed: Arc::default() }
    }

    /// Moves the time on, to 584 years after the clock was made at most.
    pub fn advance(&self, by: Duration) {
        let add = |passed: u64| Some(passed.saturating_add(nanos(by)));
        // `add` always has an answer.
        let _ = self.passed.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.passed.load(Ordering::Acquire))
    }
}

/// What another instance makes of the bytes of a stored response, as a guard on a tier keeps it in Redis: the same
/// response, written once more. `None` if they are no such response.
///
/// ```
/// use stampede_guard::test_util::reread_response;
///
/// assert_eq!(reread_response(b"anything"), None);
/// ```
#[cfg(feature = "layer")]
#[must_use]
pub fn reread_response(bytes: &[u8]) -> Option<Vec<u8>> {
    crate::http::wire::Stored::decode(bytes::Bytes::copy_from_slice(bytes))?.encode()
}
