//! What Redis has to be told before anything is read from it again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

use super::events::Owner;
use super::keys::Place;
use crate::invalidation::Undelivered;
use crate::sync::Mutex;

/// So many invalidations are remembered one by one; beyond that everything in the namespace is voided.
const MOST_INVALIDATIONS: usize = 10_000;
/// So many leases that may be held are remembered. Those beyond it end by themselves.
const MOST_LEASES: usize = 10_000;

/// What is void: a key of a cache, all of a cache, or everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// Empty for everything.
    pub(super) cache: Arc<str>,
    /// `None` for all keys.
    pub(super) key: Option<Arc<[u8]>>,
}

impl Target {
    fn everything() -> Self {
        Self { cache: "".into(), key: None }
    }
}

/// An invalidation on its way.
#[derive(Clone, Debug)]
pub(super) struct Invalidate {
    pub(super) target: Target,
    pub(super) owner: Owner,
    /// Of the key, one for each schema.
    pub(super) places: Arc<[Place]>,
    /// Which of the target's invalidations it is.
    pub(super) number: u64,
}

struct Waiting {
    latest: Invalidate,
    answers: Vec<oneshot::Sender<Result<(), Undelivered>>>,
}

#[derive(Default)]
struct Queue {
    waiting: HashMap<Target, Waiting>,
    number: u64,
}

/// A lease that may be held though nobody uses it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Orphan {
    pub(super) place: Place,
    pub(super) owner: Owner,
    /// `None` if the answer that would have told it was lost.
    pub(super) token: Option<u64>,
    pub(super) rest: Arc<[u8]>,
}

#[derive(Default)]
pub(super) struct Undone {
    invalidations: Mutex<Queue>,
    confirmed: Notify,
    orphans: Mutex<HashSet<Orphan>>,
}

impl Undone {
    /// Takes note of an invalidation before it is sent.
    pub(super) fn add(
        &self,
        target: Target,
        owner: Owner,
        places: Arc<[Place]>,
        answer: oneshot::Sender<Result<(), Undelivered>>,
    ) -> Invalidate {
        let mut queue = self.invalidations.lock();
        queue.number += 1;
        let number = queue.number;
        let mut target = target;
        let mut places = places;
        let full = queue.waiting.len() >= MOST_INVALIDATIONS && !queue.waiting.contains_key(&target);
        let all_void = queue.waiting.contains_key(&Target::everything());
        if full || all_void {
            // Who waits for the others' answers learns that they are not delivered yet.
            queue.waiting.retain(|kept, _| *kept == Target::everything());
            target = Target::everything();
            places = Arc::default();
        }
        let latest = Invalidate { target: target.clone(), owner, places, number };
        let waiting = queue.waiting.entry(target);
        let waiting = waiting.or_insert_with(|| Waiting { latest: latest.clone(), answers: Vec::new() });
        waiting.latest = latest.clone();
        waiting.answers.push(answer);
        drop(queue);
        if full && !all_void {
            tracing::warn!(
                "{MOST_INVALIDATIONS} invalidations wait for Redis; once it is back, all that is shared is void"
            );
        }
        latest
    }

    /// Redis has done it. A later one of the same target stays.
    pub(super) fn done(&self, invalidate: &Invalidate) {
        let mut queue = self.invalidations.lock();
        let is_latest = |waiting: &Waiting| waiting.latest.number == invalidate.number;
        if queue.waiting.get(&invalidate.target).is_some_and(is_latest)
            && let Some(waiting) = queue.waiting.remove(&invalidate.target)
        {
            for answer in waiting.answers {
                // Most handles are dropped.
                let _ = answer.send(Ok(()));
            }
        }
        drop(queue);
        self.confirmed.notify_waiters();
    }

    /// Redis has not said that it did; it stays.
    pub(super) fn failed(&self, invalidate: &Invalidate) {
        let mut queue = self.invalidations.lock();
        if let Some(waiting) = queue.waiting.get_mut(&invalidate.target) {
            for answer in waiting.answers.drain(..) {
                let _ = answer.send(Err(Undelivered(())));
            }
        }
    }

    /// True if what Redis has under the key, or under all of the cache's, may be void.
    fn is_void(&self, cache: &Arc<str>, key: Option<&Arc<[u8]>>) -> bool {
        let queue = self.invalidations.lock();
        if queue.waiting.is_empty() {
            return false;
        }
        let mut target = Target { cache: Arc::clone(cache), key: key.cloned() };
        let one = queue.waiting.contains_key(&target);
        target.key = None;
        one || queue.waiting.contains_key(&target) || queue.waiting.contains_key(&Target::everything())
    }

    /// Waits until Redis has been told all that concerns the key, or all of the cache's.
    pub(super) async fn told(&self, cache: &Arc<str>, key: Option<&Arc<[u8]>>) {
        loop {
            let confirmed = self.confirmed.notified();
            if !self.is_void(cache, key) {
                return;
            }
            confirmed.await;
        }
    }

    /// Those that came after the one of this number.
    pub(super) fn after(&self, number: u64) -> Vec<Invalidate> {
        let queue = self.invalidations.lock();
        let all = queue.waiting.values().map(|waiting| &waiting.latest);
        all.filter(|latest| latest.number > number).cloned().collect()
    }

    /// Calls `then` if none came after the one of this number, and keeps others from coming meanwhile.
    pub(super) fn if_none_after(&self, number: u64, then: impl FnOnce()) -> bool {
        let queue = self.invalidations.lock();
        let none = queue.waiting.values().all(|waiting| waiting.latest.number <= number);
        if none {
            then();
        }
        none
    }

    pub(super) fn pending(&self) -> usize {
        self.invalidations.lock().waiting.len()
    }

    pub(super) fn add_orphan(&self, orphan: Orphan) {
        let mut orphans = self.orphans.lock();
        if orphans.len() < MOST_LEASES {
            orphans.insert(orphan);
        }
    }

    pub(super) fn take_orphans(&self) -> HashSet<Orphan> {
        std::mem::take(&mut *self.orphans.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(n: usize) -> Target {
        Target { cache: "c".into(), key: Some(n.to_string().into_bytes().into()) }
    }

    fn add(undone: &Undone, target: Target) -> (Invalidate, oneshot::Receiver<Result<(), Undelivered>>) {
        let (answer, told) = oneshot::channel();
        (undone.add(target, "o".into(), Arc::default(), answer), told)
    }

    #[test]
    fn the_later_of_two_outlives_the_word_on_the_earlier() {
        let undone = Undone::default();
        let (first, mut first_told) = add(&undone, target(1));
        let (second, mut second_told) = add(&undone, target(1));
        undone.done(&first);
        assert_eq!(undone.after(0).len(), 1);
        assert!(first_told.try_recv().is_err());
        undone.done(&second);
        assert_eq!(undone.pending(), 0);
        assert_eq!((first_told.try_recv(), second_told.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
    }

    #[test]
    fn one_that_failed_stays_until_it_is_done() {
        let undone = Undone::default();
        let (only, mut told) = add(&undone, target(1));
        undone.failed(&only);
        assert_eq!(told.try_recv(), Ok(Err(Undelivered(()))));
        let (cache, key) = (only.target.cache.clone(), only.target.key.clone().unwrap());
        assert!(undone.is_void(&cache, Some(&key)));
        assert!(!undone.is_void(&"d".into(), Some(&key)));
        undone.done(&only);
        assert!(!undone.is_void(&cache, Some(&key)));
    }

    #[test]
    fn too_many_void_everything() {
        let undone = Undone::default();
        for n in 0..MOST_INVALIDATIONS {
            add(&undone, target(n));
        }
        assert_eq!(undone.pending(), MOST_INVALIDATIONS);
        add(&undone, target(0));
        assert_eq!(undone.pending(), MOST_INVALIDATIONS, "that one was there");
        let (last, _told) = add(&undone, target(MOST_INVALIDATIONS));
        assert_eq!((undone.pending(), &last.target), (1, &Target::everything()));
        assert!(undone.is_void(&"any".into(), Some(&Arc::from(&b"key"[..]))));
        let (more, _told) = add(&undone, target(1));
        assert_eq!((undone.pending(), &more.target), (1, &Target::everything()));
        undone.done(&more);
        assert!(!undone.is_void(&"any".into(), Some(&Arc::from(&b"key"[..]))));
    }
}
