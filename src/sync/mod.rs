//! The seam between the crate and its concurrency primitives.
//!
//! Everything that two threads touch at once goes through the names here, so that one place decides what a
//! lock or a spawned task is. There are three worlds, with the same names in each:
//!
//! - the real one: the standard library's locks, Tokio's tasks;
//! - `--cfg stampede_loom`: loom's, for models small enough to try every interleaving (`tests/loom.rs`);
//! - `--cfg stampede_shuttle`: shuttle's, for larger ones under many random schedules (`tests/shuttle.rs`).

#[cfg(not(any(stampede_loom, stampede_shuttle)))]
mod real;
#[cfg(not(any(stampede_loom, stampede_shuttle)))]
pub(crate) use self::real::*;

#[cfg(stampede_loom)]
mod loom;
#[cfg(stampede_loom)]
pub(crate) use self::loom::*;

#[cfg(all(stampede_shuttle, not(stampede_loom)))]
mod shuttle;
#[cfg(all(stampede_shuttle, not(stampede_loom)))]
pub(crate) use self::shuttle::*;

#[cfg(any(stampede_loom, stampede_shuttle))]
mod once;
#[cfg(any(stampede_loom, stampede_shuttle))]
pub(crate) use self::once::OnceLock;

#[cfg(any(stampede_loom, stampede_shuttle))]
pub(crate) use ahash::RandomState;

/// The same in each run of a model.
#[cfg(any(stampede_loom, stampede_shuttle))]
pub(crate) fn random_state() -> RandomState {
    RandomState::with_seeds(1, 2, 3, 4)
}

/// A mutex whose lock survives a panic of its holder.
///
/// The states kept behind it are valid between any two statements, so poisoning carries no information.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(RawMutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RawMutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
