//! What bodies under way may hold together, and those that are read though the store has them no more.

use crate::sync::{Arc, AtomicU64, Ordering};

/// Bytes of bodies that are being recorded, or read and not stored, all of them together.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    taken: AtomicU64,
}

impl Budget {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { max, taken: AtomicU64::new(0) })
    }

    /// The bytes that all of them may hold, and so any one of them.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Room for a body, growing.
    pub(super) fn open(self: &Arc<Self>) -> Room {
        Room { budget: Arc::clone(self), taken: 0 }
    }
}

/// What one body holds of a [`Budget`], given back when it is dropped at the latest.
#[derive(Debug)]
pub(super) struct Room {
    budget: Arc<Budget>,
    taken: u64,
}

impl Room {
    /// Makes it hold `bytes` altogether. False, and as before, if there is no room for them.
    pub(super) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.taken);
        if more == 0 {
            return true;
        }
        let Budget { max, taken } = &*self.budget;
        let grow = |taken: u64| taken.checked_add(more).filter(|taken| taken <= max);
        let has_grown = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok();
        if has_grown {
            self.taken = bytes;
        }
        has_grown
    }

    /// Makes it hold `bytes` at least, whether or not there is room for them: they are there already.
    pub(super) fn hold(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.taken);
        self.budget.taken.fetch_add(more, Ordering::Relaxed);
        self.taken += more;
    }

    /// Gives back all that it holds.
    pub(super) fn release(&mut self) {
        self.budget.taken.fetch_sub(std::mem::take(&mut self.taken), Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_share_a_budget_and_give_back_what_they_took() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.open(), budget.open());
        assert!(one.grow_to(6) && one.grow_to(6) && one.grow_to(3));
        assert!(!other.grow_to(5));
        assert!(other.grow_to(4));
        assert!(!one.grow_to(u64::MAX));
        drop(one);
        assert!(other.grow_to(10));
        let mut third = budget.open();
        third.hold(5);
        other.release();
        assert!(!other.grow_to(6) && other.grow_to(5));
        drop((other, third));
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }
}
