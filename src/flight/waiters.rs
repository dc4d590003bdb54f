//! The callers that wait for one flight: a slab of wakers.
//!
//! Sixteen bytes a waiter, no allocation but the slab's own growth, and a waiter leaves in constant time: its
//! slot goes on a free list threaded through the empty slots, so callers that come and go for as long as a load
//! runs take no more room than those who wait at the same time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use crate::sync;

/// Where the free list ends.
const END: u32 = u32::MAX;
/// A herd up to this size is woken in place.
const IN_PLACE: usize = if cfg!(stampede_shuttle) { 2 } else { 64 };
/// Of a larger herd, this many are woken in place, and then this many in each turn of the waking task.
const BATCH: usize = if cfg!(stampede_shuttle) { 1 } else { 32 };

#[derive(Debug)]
enum Slot {
    Waiting(Waker),
    Free(u32),
}

#[derive(Debug)]
pub(super) struct Waiters {
    slots: Vec<Slot>,
    free: u32,
    count: u32,
}

impl Waiters {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: END, count: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    /// Takes a slot for `waker`, or `None` when four billion callers wait already.
    pub(super) fn add(&mut self, waker: &Waker) -> Option<u32> {
        let slot = if self.free == END {
            let next = u32::try_from(self.slots.len()).ok().filter(|&next| next != END)?;
            self.slots.push(Slot::Waiting(waker.clone()));
            next
        } else {
            let slot = self.free;
            let place = &mut self.slots[slot as usize];
            if let Slot::Free(next) = *place {
                self.free = next;
            }
            *place = Slot::Waiting(waker.clone());
            slot
        };
        self.count += 1;
        Some(slot)
    }

    /// Replaces the slot's waker. The old one is returned, to be dropped outside the flight's lock.
    pub(super) fn update(&mut self, slot: u32, waker: &Waker) -> Option<Waker> {
        match self.slots.get_mut(slot as usize) {
            Some(Slot::Waiting(mine)) if !mine.will_wake(waker) => {
                Some(std::mem::replace(mine, waker.clone()))
            }
            _ => None,
        }
    }

    /// Gives the slot back. The waker is returned, to be dropped outside the flight's lock.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Waker> {
        let place = self.slots.get_mut(slot as usize)?;
        if matches!(place, Slot::Free(_)) {
            return None;
        }
        let Slot::Waiting(waker) = std::mem::replace(place, Slot::Free(self.free)) else { return None };
        self.free = slot;
        self.count -= 1;
        Some(waker)
    }

    /// Everyone who waits, `first` before the others; this slab is empty afterwards.
    pub(super) fn take(&mut self, first: Option<u32>) -> Herd {
        let mut slots = std::mem::take(&mut self.slots);
        if let Some(first) = first {
            slots.swap(0, first as usize);
        }
        *self = Self::new();
        Herd(slots.into_iter())
    }
}

/// Callers to wake. Dropped half-way, it wakes the rest.
pub(super) struct Herd(std::vec::IntoIter<Slot>);

impl Herd {
    /// Wakes everyone, without keeping the calling thread for long: a large herd is woken from a task.
    pub(super) fn wake(mut self) {
        if self.0.len() <= IN_PLACE {
            return;
        }
        self.wake_batch();
        if sync::can_spawn() {
            sync::spawn(self);
        }
    }

    fn wake_batch(&mut self) {
        self.0.by_ref().take(BATCH).for_each(wake_quietly);
    }
}

/// Wakes who waits. A panic of the waker ends there: it is neither the waking caller's nor those' who come after.
fn wake_quietly(slot: Slot) {
    if let Slot::Waiting(waker) = slot {
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}

impl Future for Herd {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.wake_batch();
        if self.0.len() == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.0.by_ref().for_each(wake_quietly);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_slot_is_sixteen_bytes() {
        assert_eq!(size_of::<Slot>(), 16);
    }

    #[test]
    fn slots_are_used_again() {
        let mut waiters = Waiters::new();
        let first = waiters.add(Waker::noop()).unwrap();
        let second = waiters.add(Waker::noop()).unwrap();
        for _ in 0..1_000 {
            assert!(waiters.remove(first).is_some());
            assert!(waiters.remove(first).is_none(), "removing twice frees nothing twice");
            assert!(waiters.remove(second).is_some());
            assert_eq!(waiters.add(Waker::noop()), Some(second));
            assert_eq!(waiters.add(Waker::noop()), Some(first));
        }
        assert_eq!(waiters.slots.len(), 2);
        assert_eq!(waiters.count(), 2);
        assert_eq!(waiters.add(Waker::noop()), Some(2), "nobody's slot is given away");
    }

    #[test]
    fn everyone_is_woken_once_whatever_the_size() {
        for size in [0, 1, IN_PLACE, IN_PLACE + 1, 10_000] {
            let count = Arc::new(Count::default());
            let mut waiters = Waiters::new();
            for _ in 0..size {
                waiters.add(&Waker::from(Arc::clone(&count)));
            }
            waiters.take(None).wake();
            assert_eq!(count.0.load(Ordering::Relaxed), size, "outside a runtime");
            assert_eq!(waiters.count(), 0);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_large_herd_is_woken_from_a_task_and_the_leader_before_it() {
        let (leader, others) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut waiters = Waiters::new();
        for _ in 0..1_000 {
            waiters.add(&Waker::from(Arc::clone(&others)));
        }
        let slot = waiters.add(&Waker::from(Arc::clone(&leader))).unwrap();
        waiters.take(Some(slot)).wake();
        assert_eq!(leader.0.load(Ordering::Relaxed), 1);
        assert_eq!(others.0.load(Ordering::Relaxed), BATCH - 1);
        while others.0.load(Ordering::Relaxed) < 1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(leader.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_herd_whose_runtime_dies_is_woken() {
        let count = Arc::new(Count::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        {
            let _inside = runtime.enter();
            let mut waiters = Waiters::new();
            for _ in 0..1_000 {
                waiters.add(&Waker::from(Arc::clone(&count)));
            }
            waiters.take(None).wake();
        }
        assert_eq!(count.0.load(Ordering::Relaxed), BATCH);
        drop(runtime);
        assert_eq!(count.0.load(Ordering::Relaxed), 1_000);
    }
}
