//! The real world: dashmap, the standard library and Tokio.

use std::borrow::Borrow;
use std::hash::Hash;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex as RawMutex, MutexGuard, OnceLock};
pub(crate) use std::thread_local;
pub(crate) use tokio::task::AbortHandle;

/// Hashes with keys drawn at random for each map: clients that choose keys cannot choose collisions.
pub(crate) type RandomState = ahash::RandomState;

/// A sharded map of cheap handles. No method hands out a guard, so none can be held across an `.await`.
pub(crate) struct Map<K, V>(DashMap<K, V, RandomState>);

impl<K: Hash + Eq, V: Clone> Map<K, V> {
    pub(crate) fn new() -> Self {
        Self(DashMap::with_hasher(RandomState::new()))
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(key).map(|found| found.value().clone())
    }

    /// The value under `key`, or `None` after `make` was called under the key's lock and its value, if any,
    /// was put there. `make` must not come back to this map.
    pub(crate) fn get_or_try_insert(&self, key: K, make: impl FnOnce() -> Option<V>) -> Option<V> {
        match self.0.entry(key) {
            Entry::Occupied(found) => Some(found.get().clone()),
            Entry::Vacant(place) => {
                if let Some(made) = make() {
                    place.insert(made);
                }
                None
            }
        }
    }

    /// Takes out the value under `key` if it is `mine`, and gives its key back.
    pub(crate) fn remove_if<Q>(&self, key: &Q, mine: impl FnOnce(&V) -> bool) -> Option<K>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.remove_if(key, |_, value| mine(value)).map(|(key, _)| key)
    }

    #[cfg(feature = "cache")]
    pub(crate) fn values(&self) -> Vec<V> {
        self.0.iter().map(|entry| entry.value().clone()).collect()
    }
}

/// Starts `task` on the current Tokio runtime.
///
/// # Panics
///
/// Outside a Tokio runtime.
#[track_caller]
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

/// True where [`spawn`] works.
pub(crate) fn can_spawn() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}
