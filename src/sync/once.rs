//! A cell that is written once, for the worlds in which a scheduler decides what a thread sees.

use super::{AtomicBool, Ordering};

/// As `std::sync::OnceLock`: whoever sees the value sees all that was written before it, and a reader that is
/// not ordered after the writer by anything else may not see it yet.
pub(crate) struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    written: AtomicBool,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self { value: std::sync::OnceLock::new(), written: AtomicBool::new(false) }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if self.written.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        let value = self.value.get_or_init(make);
        self.written.store(true, Ordering::Release);
        value
    }
}
