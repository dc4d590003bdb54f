//! What Redis has to be told before anything is read from it again.

use std::collections::hash_map::Entry;
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
    /// Redis has answered an attempt with an error, and none has succeeded since.
    is_refused: bool,
}

#[derive(Default)]
struct Queue {
    waiting: HashMap<Target, Waiting>,
    number: u64,
    /// It is being told that everything is void. What is invalidated from then on is not part of that.
    voids_everything: bool,
}

impl Queue {
    /// What is being told is not known to have arrived: it will be told again, and then covers what came meanwhile.
    fn stays(&mut self, target: &Target) {
        if *target != Target::everything() || !self.waiting.contains_key(target) {
            return;
        }
        self.voids_everything = false;
        let number = self.number + 1;
        let others = self.waiting.len() > 1;
        // Who waits for the others' answers learns that they are not delivered yet.
        self.waiting.retain(|kept, _| kept == target);
        if let Some(everything) = self.waiting.get_mut(target)
            && others
        {
            self.number = number;
            everything.latest.number = number;
        }
    }
}

/// What Redis has been told of what concerns a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    All,
    NotYet,
    /// It refuses to do it.
    InVain,
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
        if full || all_void && !queue.voids_everything {
            // Who waits for the others' answers learns that they are not delivered yet.
            queue.waiting.retain(|kept, _| *kept == Target::everything());
            target = Target::everything();
            places = Arc::default();
            queue.voids_everything = true;
        }
        let latest = Invalidate { target: target.clone(), owner, places, number };
        let waiting = queue.waiting.entry(target).or_insert_with(|| Waiting {
            latest: latest.clone(),
            answers: Vec::new(),
            is_refused: false,
        });
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
        if let Entry::Occupied(mut waiting) = queue.waiting.entry(invalidate.target.clone()) {
            if waiting.get().latest.number == invalidate.number {
                for answer in waiting.remove().answers {
                    // Most handles are dropped.
                    let _ = answer.send(Ok(()));
                }
            } else {
                waiting.get_mut().is_refused = false;
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
        queue.stays(&invalidate.target);
    }

    /// The same of another attempt at it.
    pub(super) fn not_replayed(&self, invalidate: &Invalidate) {
        self.invalidations.lock().stays(&invalidate.target);
    }

    /// Redis has said that it did not; it stays, and nobody waits for it meanwhile.
    pub(super) fn refused(&self, invalidate: &Invalidate) {
        let mut queue = self.invalidations.lock();
        if let Some(waiting) = queue.waiting.get_mut(&invalidate.target) {
            waiting.is_refused = true;
        }
        queue.stays(&invalidate.target);
        drop(queue);
        self.confirmed.notify_waiters();
    }

    /// Whether what Redis has under the key, or under all of the cache's, may be void.
    fn state(&self, cache: &Arc<str>, key: Option<&Arc<[u8]>>) -> Told {
        let queue = self.invalidations.lock();
        if queue.waiting.is_empty() {
            return Told::All;
        }
        let one = Target { cache: Arc::clone(cache), key: key.cloned() };
        let all = Target { key: None, ..one.clone() };
        let concerned = [one, all, Target::everything()];
        let waiting = concerned.iter().filter_map(|target| queue.waiting.get(target));
        // None, or whether one is refused.
        match waiting.map(|waiting| waiting.is_refused).max() {
            None => Told::All,
            Some(false) => Told::NotYet,
            Some(true) => Told::InVain,
        }
    }

    /// Waits until Redis has been told all that concerns the key, or all of the cache's. False if it refuses to do some of
    /// it: that is tried again at every ping, and not waited for.
    pub(super) async fn told(&self, cache: &Arc<str>, key: Option<&Arc<[u8]>>) -> bool {
        loop {
            let confirmed = self.confirmed.notified();
            match self.state(cache, key) {
                Told::All => return true,
                Told::InVain => return false,
                Told::NotYet => confirmed.await,
            }
        }
    }

    /// Those that came after the one of this number, which now are sent.
    pub(super) fn after(&self, number: u64) -> Vec<Invalidate> {
        let mut queue = self.invalidations.lock();
        let all = queue.waiting.values().map(|waiting| &waiting.latest);
        let due: Vec<_> = all.filter(|latest| latest.number > number).cloned().collect();
        queue.voids_everything |= due.iter().any(|due| due.target == Target::everything());
        due
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
        assert_eq!(undone.state(&cache, Some(&key)), Told::NotYet);
        assert_eq!(undone.state(&"d".into(), Some(&key)), Told::All);
        undone.done(&only);
        assert_eq!(undone.state(&cache, Some(&key)), Told::All);
    }

    #[test]
    fn one_that_is_refused_is_in_vain_until_an_attempt_succeeds() {
        let undone = Undone::default();
        let (first, _told) = add(&undone, target(1));
        let (cache, key) = (first.target.cache.clone(), first.target.key.clone().unwrap());
        let all = Target { cache: cache.clone(), key: None };
        let (all, _told) = add(&undone, all);
        assert_eq!(undone.state(&cache, Some(&key)), Told::NotYet);
        undone.refused(&first);
        assert_eq!(undone.state(&cache, Some(&key)), Told::InVain);
        assert_eq!(undone.state(&cache, None), Told::NotYet, "another key's is none of its concern");
        let (second, _told) = add(&undone, target(1));
        assert_eq!(undone.state(&cache, Some(&key)), Told::InVain, "nobody knows better");
        undone.done(&first);
        assert_eq!(undone.state(&cache, Some(&key)), Told::NotYet);
        undone.done(&second);
        undone.refused(&all);
        assert_eq!(undone.state(&cache, Some(&key)), Told::InVain);
        undone.done(&all);
        assert_eq!(undone.state(&cache, Some(&key)), Told::All);
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
        let state = || undone.state(&"any".into(), Some(&Arc::from(&b"key"[..])));
        assert_eq!(state(), Told::NotYet);
        // It is being told: what comes now is not part of it.
        let (more, _told) = add(&undone, target(1));
        assert_eq!((undone.pending(), &more.target), (2, &target(1)));
        undone.failed(&last);
        assert_eq!(undone.pending(), 1, "the next attempt covers both");
        let (again, _told) = add(&undone, target(2));
        assert_eq!((undone.pending(), &again.target), (1, &Target::everything()));
        undone.done(&last);
        assert_eq!(state(), Told::NotYet, "that was before the other two");
        undone.done(&again);
        assert_eq!((state(), undone.pending()), (Told::All, 0));
    }
}
