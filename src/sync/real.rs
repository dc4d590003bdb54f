//! The real world: the standard library and Tokio.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex as RawMutex, MutexGuard, OnceLock};
pub(crate) use std::thread_local;

/// Hashes with keys drawn at random for each map: clients that choose keys cannot choose collisions.
pub(crate) use ahash::RandomState;

pub(crate) fn random_state() -> RandomState {
    RandomState::new()
}

/// Into how many parts a map is cut, so that threads seldom meet at one: four for each of them.
pub(crate) fn shards() -> usize {
    static SHARDS: OnceLock<usize> = OnceLock::new();
    *SHARDS.get_or_init(|| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (threads * 4).next_power_of_two()
    })
}

/// Starts `task` on the current Tokio runtime.
///
/// # Panics
///
/// Outside a Tokio runtime.
#[track_caller]
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// True where [`spawn`] works.
pub(crate) fn can_spawn() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}

/// True where what is [spawned](spawn) runs whatever this thread does next: a runtime of one thread stands still as soon
/// as the call that drives it is over.
pub(crate) fn spawns_aside() -> bool {
    use tokio::runtime::{Handle, RuntimeFlavor};

    Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() != RuntimeFlavor::CurrentThread)
}
