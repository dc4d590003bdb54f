//! Values that left the cache, on their way to the listener.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::store::Kept;
use crate::sync::Mutex;

/// Why an entry left the cache.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use stampede_guard::{EvictionCause, StampedeCache};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let left = Arc::new(Mutex::new(Vec::new()));
/// let seen = Arc::clone(&left);
/// let cache: StampedeCache<u64, u64> = StampedeCache::builder()
///     .eviction_listener(move |key, _value, cause| seen.lock().unwrap().push((*key, cause)))
///     .build()?;
/// cache.insert(1, 10);
/// cache.insert(1, 11);
/// cache.invalidate(&1);
/// assert_eq!(*left.lock().unwrap(), [(1, EvictionCause::Replaced), (1, EvictionCause::Invalidated)]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictionCause {
    /// It was invalidated, or its key's loader called the new value uncacheable.
    Invalidated,
    /// Another value took its place; also one that was invalidated by its tag, which leaves when that happens.
    Replaced,
    /// The capacity was full.
    Capacity,
}

/// Called with each value that leaves the cache, after all locks were given back.
pub(crate) type EvictionListener<K, V> = Box<dyn Fn(Arc<K>, V, EvictionCause) + Send + Sync>;

/// What a store writes down where locks are held, and the listener hears where none is.
pub(super) struct Departures<K, V> {
    listener: EvictionListener<K, V>,
    queue: Mutex<Vec<Departure<K, V>>>,
}

type Departure<K, V> = (Arc<K>, Kept<V>, EvictionCause);

impl<K, V> Departures<K, V> {
    pub(super) fn new(listener: EvictionListener<K, V>) -> Self {
        Self { listener, queue: Mutex::new(Vec::new()) }
    }

    pub(super) fn note(&self, key: Arc<K>, kept: Kept<V>, cause: EvictionCause) {
        self.queue.lock().push((key, kept, cause));
    }

    /// Tells the listener what left. Never called under a lock. Whoever calls has other business, which no panic of
    /// the listener's may end.
    pub(super) fn announce(&self) {
        loop {
            let batch = std::mem::take(&mut *self.queue.lock());
            if batch.is_empty() {
                return;
            }
            for (key, kept, cause) in batch {
                if let Some(value) = kept.into_value() {
                    let _ = catch_unwind(AssertUnwindSafe(|| (self.listener)(key, value, cause)));
                }
            }
        }
    }
}
