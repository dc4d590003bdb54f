//! Which loads the running code is part of, so that a loader that asks for its own key gets an error at once
//! instead of waiting for itself.
//!
//! While a loader is polled, its flight is the thread's current one; a flight led from there has it as parent
//! for as long as its leader waits. A caller whose key is in flight under one of its own ancestors would wait
//! for itself.

use std::cell::RefCell;

use crate::sync::{Arc, thread_local};

/// A flight, seen by the loads it started.
pub(super) trait Ancestor: Send + Sync {
    /// The flight whose loader waits for this one.
    fn parent(&self) -> Option<Arc<dyn Ancestor>>;
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Ancestor>>> = const { RefCell::new(None) };
}

/// Makes a flight the current one until dropped.
pub(super) struct Scope(Option<Arc<dyn Ancestor>>);

impl Scope {
    pub(super) fn enter(flight: Arc<dyn Ancestor>) -> Self {
        Self(CURRENT.with(|current| current.replace(Some(flight))))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let outer = self.0.take();
        // A thread that is being torn down has no current flight to restore.
        let _ = CURRENT.try_with(|current| std::mem::replace(&mut *current.borrow_mut(), outer));
    }
}

/// The flight whose loader is being polled on this thread.
pub(super) fn current() -> Option<Arc<dyn Ancestor>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// True if `flight` is waiting, directly or through others, for the code that runs now.
pub(super) fn waits_for_us<T>(flight: &Arc<T>) -> bool {
    let mut next = current();
    while let Some(ancestor) = next {
        if std::ptr::addr_eq(Arc::as_ptr(&ancestor), Arc::as_ptr(flight)) {
            return true;
        }
        next = ancestor.parent();
    }
    false
}
