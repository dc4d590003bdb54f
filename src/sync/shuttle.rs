//! shuttle's world: larger models, many random schedules.

/// Counters, which nobody decides by: the scheduler need not stop at each.
pub(crate) use std::sync::atomic::AtomicU64;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use shuttle::sync::{Arc, Mutex as RawMutex, MutexGuard};
pub(crate) use shuttle::thread_local;

/// Keys meet in a shard, and do not.
pub(crate) fn shards() -> usize {
    2
}

/// Starts `task` under shuttle's executor.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    shuttle::future::spawn(task);
}

/// True where [`spawn`] works.
pub(crate) fn can_spawn() -> bool {
    true
}

/// True where what is [spawned](spawn) runs whatever this thread does next.
pub(crate) fn spawns_aside() -> bool {
    true
}
