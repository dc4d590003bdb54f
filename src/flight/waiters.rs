//! The callers that wait for one flight: its leader, and a slab of wakers.
//!
//! Sixteen bytes a waiter, no allocation but the slab's own growth, and a waiter leaves in constant time: its
//! slot goes on a free list threaded through the empty slots, so callers that come and go for as long as a load
//! runs take no more room than those who wait at the same time. A leader that waits alone takes no slab.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::quietly::quietly;
use crate::sync;

/// Where the free list ends.
const END: u32 = u32::MAX;
/// The leader's slot, which is none of the slab's.
pub(super) const LEADER: u32 = u32::MAX;
/// Up to this many followers are woken in place.
const IN_PLACE: usize = if cfg!(stampede_shuttle) { 2 } else { 32 };
/// More are woken from a task where there are threads for it, this many in each of its turns.
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
    /// Followers.
    count: u32,
    leader: Option<Waker>,
}

impl Waiters {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: END, count: 0, leader: None }
    }

    pub(super) fn count(&self) -> usize {
        self.count as usize + usize::from(self.leader.is_some())
    }

    /// Takes the [`LEADER`]'s slot.
    pub(super) fn lead(&mut self, waker: Option<Waker>) {
        self.leader = waker;
    }

    fn place(&mut self, slot: u32) -> Option<&mut Waker> {
        if slot == LEADER {
            return self.leader.as_mut();
        }
        match self.slots.get_mut(slot as usize) {
            Some(Slot::Waiting(waker)) => Some(waker),
            _ => None,
        }
    }

    /// Takes a slot for `waker`, or `None` when four billion callers wait already.
    pub(super) fn add(&mut self, waker: Waker) -> Option<u32> {
        let slot = if self.free == END {
            let next = u32::try_from(self.slots.len()).ok().filter(|&next| next != END)?;
            self.slots.push(Slot::Waiting(waker));
            next
        } else {
            let slot = self.free;
            let place = &mut self.slots[slot as usize];
            if let Slot::Free(next) = *place {
                self.free = next;
            }
            *place = Slot::Waiting(waker);
            slot
        };
        self.count += 1;
        Some(slot)
    }

    /// Whether the slot's waker wakes what `waker` does.
    pub(super) fn will_wake(&mut self, slot: u32, waker: &Waker) -> bool {
        self.place(slot).is_some_and(|mine| mine.will_wake(waker))
    }

    /// Replaces the slot's waker. The old one is returned, to be dropped outside the flight's lock.
    pub(super) fn update(&mut self, slot: u32, waker: Waker) -> Option<Waker> {
        Some(std::mem::replace(self.place(slot)?, waker))
    }

    /// Gives the slot back. The waker is returned, to be dropped outside the flight's lock.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Waker> {
        if slot == LEADER {
            return self.leader.take();
        }
        let place = self.slots.get_mut(slot as usize)?;
        if matches!(place, Slot::Free(_)) {
            return None;
        }
        let Slot::Waiting(waker) = std::mem::replace(place, Slot::Free(self.free)) else { return None };
        self.free = slot;
        self.count -= 1;
        Some(waker)
    }

    /// Everyone who waits; nobody does afterwards.
    #[inline]
    pub(super) fn take(&mut self) -> Herd {
        let leader = self.leader.take();
        if self.slots.is_empty() {
            return Herd { leader, followers: Vec::new().into_iter() };
        }
        (self.free, self.count) = (END, 0);
        Herd { leader, followers: std::mem::take(&mut self.slots).into_iter() }
    }
}

/// Callers to wake, the leader before the others. Dropped half-way, it wakes the rest.
pub(super) struct Herd {
    leader: Option<Waker>,
    followers: std::vec::IntoIter<Slot>,
}

impl Herd {
    /// Wakes everyone, without keeping the calling thread for long: a large herd is woken from a task.
    #[inline]
    pub(super) fn wake(mut self) {
        if self.followers.len() > IN_PLACE && sync::spawns_aside() {
            // The leader's task is the last that this thread schedules, and so the first that runs: on this thread, which
            // does nothing else before. Also if `spawn` fails and the others are woken here and now.
            let leader = self.leader.take();
            let first = Self { leader, followers: Vec::new().into_iter() };
            sync::spawn(self);
            drop(first);
        }
    }
}

/// Wakes who waits. A panic of the waker is neither the waking caller's nor those' who come after.
fn wake_quietly(waker: Waker) {
    quietly(|| waker.wake());
}

fn wake_slot(slot: Slot) {
    if let Slot::Waiting(waker) = slot {
        wake_quietly(waker);
    }
}

impl Future for Herd {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.followers.by_ref().take(BATCH).for_each(wake_slot);
        if self.followers.len() == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Herd {
    #[inline]
    fn drop(&mut self) {
        if let Some(leader) = self.leader.take() {
            wake_quietly(leader);
        }
        if self.followers.len() > 0 {
            self.followers.by_ref().for_each(wake_slot);
        }
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
        let first = waiters.add(Waker::noop().clone()).unwrap();
        let second = waiters.add(Waker::noop().clone()).unwrap();
        for _ in 0..1_000 {
            assert!(waiters.remove(first).is_some());
            assert!(waiters.remove(first).is_none(), "removing twice frees nothing twice");
            assert!(waiters.remove(second).is_some());
            assert_eq!(waiters.add(Waker::noop().clone()), Some(second));
            assert_eq!(waiters.add(Waker::noop().clone()), Some(first));
        }
        assert_eq!(waiters.slots.len(), 2);
        assert_eq!(waiters.count(), 2);
        assert_eq!(waiters.add(Waker::noop().clone()), Some(2), "nobody's slot is given away");
    }

    #[test]
    fn everyone_is_woken_once_whatever_the_size() {
        for size in [0, 1, IN_PLACE, IN_PLACE + 1, 10_000] {
            let count = Arc::new(Count::default());
            let mut waiters = Waiters::new();
            for _ in 0..size {
                waiters.add(Waker::from(Arc::clone(&count)));
            }
            waiters.take().wake();
            assert_eq!(count.0.load(Ordering::Relaxed), size, "outside a runtime");
            assert_eq!(waiters.count(), 0);
        }
    }

    /// Not in the models' worlds: they have no runtime of several threads.
    #[cfg(not(any(stampede_loom, stampede_shuttle)))]
    #[test]
    fn a_large_herd_is_woken_from_a_task_and_the_leader_before_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (busy, is_busy) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move {
            busy.send(()).unwrap();
            let _ = ends.recv();
        });
        is_busy.recv().unwrap();
        let (leader, others) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut waiters = Waiters::new();
        waiters.lead(Some(Waker::from(Arc::clone(&leader))));
        for _ in 0..1_000 {
            waiters.add(Waker::from(Arc::clone(&others)));
        }
        {
            let _inside = runtime.enter();
            waiters.take().wake();
        }
        assert_eq!(leader.0.load(Ordering::Relaxed), 1);
        assert_eq!(others.0.load(Ordering::Relaxed), 0, "the runtime's thread has other things to do");
        drop(end);
        while others.0.load(Ordering::Relaxed) < 1_000 {
            std::thread::yield_now();
        }
        assert_eq!(leader.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_herd_that_is_dropped_half_way_is_woken() {
        let count = Arc::new(Count::default());
        let mut waiters = Waiters::new();
        for _ in 0..1_000 {
            waiters.add(Waker::from(Arc::clone(&count)));
        }
        let mut herd = waiters.take();
        assert!(Pin::new(&mut herd).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), BATCH);
        drop(herd);
        assert_eq!(count.0.load(Ordering::Relaxed), 1_000);
    }
}
