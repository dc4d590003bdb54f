//! Random calls, writes, invalidations and moves of the clock against loads under way, held against a sequential
//! model of what a cache is.

#![allow(clippy::unchecked_time_subtraction)] // a test that fails panics all the same

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use proptest::prelude::*;
use stampede_guard::{
    Fetched, LoadContext, LoadError, Loaded, ManualClock, Moka, Outcome, StaleReason, StampedeCache, Store,
};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

const KEYS: u64 = 3;
const TTL: Duration = Duration::from_secs(10);
const WHILE_REVALIDATE: Duration = Duration::from_secs(5);
const IF_ERROR: Duration = Duration::from_secs(20);
const TAG: &str = "tag";

/// What a load comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Value,
    Tagged,
    Uncacheable,
    /// A value, if there is no stale one to keep.
    NotModified,
    Failed,
    Panicked,
}

#[derive(Clone, Debug)]
enum Step {
    /// A call; its load is ready at once if it has an end.
    Call(u64, Option<End>),
    Poll(prop::sample::Index),
    Leave(prop::sample::Index),
    End(prop::sample::Index, End),
    Insert(u64),
    Invalidate(u64),
    InvalidateTag,
    InvalidateAll,
    Refresh(u64),
    Advance(u64),
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => Just(End::Value),
        3 => Just(End::Tagged),
        1 => Just(End::Uncacheable),
        2 => Just(End::NotModified),
        2 => Just(End::Failed),
        1 => Just(End::Panicked),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let millis =
        prop_oneof![Just(1), Just(60), Just(900), Just(4_000), Just(10_000), Just(16_000), Just(40_000)];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        20 => (0..KEYS, proptest::option::weighted(0.2, end())).prop_map(|(key, end)| Step::Call(key, end)),
        30 => index().prop_map(Step::Poll),
        5 => index().prop_map(Step::Leave),
        14 => (index(), end()).prop_map(|(run, end)| Step::End(run, end)),
        3 => (0..KEYS).prop_map(Step::Insert),
        3 => (0..KEYS).prop_map(Step::Invalidate),
        4 => Just(Step::InvalidateTag),
        1 => Just(Step::InvalidateAll),
        3 => (0..KEYS).prop_map(Step::Refresh),
        14 => millis.prop_map(Step::Advance),
    ]
}

/// A load that has started: what it found, and how to end it.
struct Started {
    key: u64,
    stale: Option<u64>,
    orders: oneshot::Sender<End>,
}

/// The loads, in the order in which they started. A load's place is its number, and makes its value.
#[derive(Clone, Default)]
struct Stage(Arc<Mutex<Vec<Option<Started>>>>);

impl Stage {
    /// A load that starts now: its value, and the end that it waits for.
    fn start(&self, key: u64, stale: Option<u64>) -> (u64, oneshot::Receiver<End>) {
        let (orders, told) = oneshot::channel();
        let mut stage = self.0.lock().unwrap();
        stage.push(Some(Started { key, stale, orders }));
        (value(stage.len() - 1), told)
    }

    fn load(
        &self,
        key: u64,
        stale: Option<u64>,
        ready: Option<End>,
    ) -> impl Future<Output = Result<Loaded<u64>, u64>> + Send + use<> {
        let (value, told) = self.start(key, stale);
        async move {
            let end = match ready {
                Some(end) => end,
                None => told.await.unwrap(),
            };
            match end {
                End::NotModified if stale.is_some() => Ok(Loaded::not_modified()),
                End::Value | End::NotModified => Ok(Loaded::new(value)),
                End::Tagged => Ok(Loaded::new(value).tags([TAG])),
                End::Uncacheable => Ok(Loaded::new(value).uncacheable()),
                End::Failed => Err(value),
                End::Panicked => std::panic::panic_any(value),
            }
        }
    }

    /// A load that says nothing but its value.
    fn plain(&self, key: u64) -> impl Future<Output = Result<u64, u64>> + Send + use<> {
        let (value, told) = self.start(key, None);
        async move {
            match told.await.unwrap() {
                End::Failed => Err(value),
                End::Panicked => std::panic::panic_any(value),
                _ => Ok(value),
            }
        }
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// What load `run` brings; inserted values are even.
fn value(run: usize) -> u64 {
    run as u64 * 2 + 1
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    value: u64,
    stored: Duration,
    tagged: bool,
    /// The number of invalidations when its load started.
    born: u64,
    failures: u32,
    /// The next load is not due before the first and due from the second on: chance decides between them.
    retry: (Duration, Duration),
}

impl Entry {
    fn new(value: u64, stored: Duration, tagged: bool, born: u64) -> Self {
        Self { value, stored, tagged, born, failures: 0, retry: (Duration::ZERO, Duration::ZERO) }
    }

    fn failed(&mut self, now: Duration) {
        let pause = Duration::from_millis(100).saturating_mul(1 << self.failures.min(16));
        let pause = pause.min(Duration::from_secs(30));
        self.retry = (now + pause * 3 / 4, now + pause);
        self.failures += 1;
    }
}

/// A load under way.
struct Run {
    key: u64,
    linked: bool,
    born: u64,
    stale: Option<Entry>,
    /// A refresh's load says nothing but its value.
    plain: bool,
    waiters: BTreeSet<usize>,
}

/// What a load came to, for those who waited.
#[derive(Clone, Copy, Debug)]
enum Landing {
    Value { entry: Entry, is_kept: bool },
    Failed(u64),
    Panicked,
}

type Answer = Result<Fetched<u64>, LoadError<u64>>;

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Call {
    key: u64,
    ready: Option<End>,
    future: Pin<Box<dyn Future<Output = Answer>>>,
    woken: Arc<Woken>,
    seat: Seat,
    /// The number of invalidations when it took off.
    born: u64,
    /// What it found.
    stale: Option<Entry>,
    /// Whether what it found may stand in for a failed load.
    falls_back: bool,
}

#[derive(Clone, Copy)]
enum Seat {
    NotPolled,
    Waits { run: usize, leads: bool },
    Landed { landing: Landing, leads: bool },
}

struct World {
    runtime: Runtime,
    clock: ManualClock,
    cache: StampedeCache<u64, u64, u64>,
    stage: Stage,
    now: Duration,
    entries: BTreeMap<u64, Entry>,
    runs: BTreeMap<usize, Run>,
    calls: BTreeMap<usize, Call>,
    next_call: usize,
    next_insert: u64,
    invalidations: u64,
    all_invalid_at: u64,
    tag_invalid_at: u64,
}

impl World {
    fn new(store: impl Store) -> Self {
        let clock = ManualClock::new();
        let cache = StampedeCache::builder()
            .store(store)
            .ttl(TTL)
            .jitter(0.0)
            .stale_while_revalidate(WHILE_REVALIDATE)
            .stale_if_error(IF_ERROR)
            .max_abandoned(1_000)
            .clock(clock.clone())
            .build()
            .unwrap();
        Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            clock,
            cache,
            stage: Stage::default(),
            now: Duration::ZERO,
            entries: BTreeMap::new(),
            runs: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            next_insert: 0,
            invalidations: 0,
            all_invalid_at: 0,
            tag_invalid_at: 0,
        }
    }

    fn is_valid(&self, entry: &Entry) -> bool {
        entry.born >= self.all_invalid_at && (!entry.tagged || entry.born >= self.tag_invalid_at)
    }

    fn find(&self, key: u64) -> Option<Entry> {
        self.entries.get(&key).copied().filter(|entry| self.is_valid(entry))
    }

    fn fresh(&self, key: u64) -> Option<Entry> {
        self.find(key).filter(|entry| self.now < entry.stored + TTL)
    }

    fn linked(&self, key: u64) -> Option<usize> {
        self.runs.iter().find(|(_, run)| run.key == key && run.linked).map(|(&id, _)| id)
    }

    fn unlink(&mut self, key: u64) {
        if let Some(run) = self.linked(key) {
            self.runs.get_mut(&run).unwrap().linked = false;
        }
    }

    /// Every task runs until it waits.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// The load that must have started since there were `before` of them.
    fn started(&mut self, before: usize, key: u64, stale: Option<Entry>, leader: Option<usize>) -> usize {
        assert_eq!(self.stage.count(), before + 1, "one load starts");
        let stage = self.stage.0.lock().unwrap();
        let load = stage[before].as_ref().unwrap();
        assert_eq!((load.key, load.stale), (key, stale.map(|entry| entry.value)));
        let waiters = leader.into_iter().collect();
        let run = Run { key, linked: true, born: self.invalidations, stale, plain: false, waiters };
        self.runs.insert(before, run);
        before
    }

    fn call(&mut self, key: u64, ready: Option<End>) {
        let (cache, stage) = (self.cache.clone(), self.stage.clone());
        let load = move |context: LoadContext<u64>| stage.load(key, context.stale().copied(), ready);
        let future = Box::pin(async move { cache.get_or_load_with(key, load).await });
        let seat = Seat::NotPolled;
        let woken = Arc::default();
        let call = Call { key, ready, future, woken, seat, born: 0, stale: None, falls_back: false };
        self.calls.insert(self.next_call, call);
        self.next_call += 1;
    }

    fn poll(&mut self, id: usize) {
        let before = self.stage.count();
        let call = self.calls.get_mut(&id).unwrap();
        call.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&call.woken));
        let inside = self.runtime.enter();
        let answer = call.future.as_mut().poll(&mut Context::from_waker(&waker));
        drop(inside);
        let over = answer.is_ready();
        match call.seat {
            Seat::NotPolled => self.first_poll(id, before, answer),
            Seat::Waits { .. } => assert!(answer.is_pending(), "its load has not ended: {answer:?}"),
            Seat::Landed { landing, leads } => self.last_poll(id, before, landing, leads, answer),
        }
        if over {
            self.calls.remove(&id);
        }
    }

    /// Whether the next load of an entry past its freshness is due. Where chance has decided, the answer tells how.
    fn is_due(&self, entry: &Entry, answer: &Poll<Answer>) -> bool {
        if self.now < entry.retry.0 {
            return false;
        }
        let backing_off = Outcome::Stale { age: self.now - entry.stored, reason: StaleReason::BackingOff };
        self.now >= entry.retry.1
            || !matches!(answer, Poll::Ready(Ok(fetched)) if fetched.outcome == backing_off)
    }

    fn first_poll(&mut self, id: usize, before: usize, answer: Poll<Answer>) {
        let key = self.calls[&id].key;
        let Some(entry) = self.find(key) else { return self.take_off(id, before, None, false, answer) };
        let age = self.now - entry.stored;
        if age < TTL {
            return assert_fetched(answer, entry.value, Outcome::Hit);
        }
        if age >= TTL + IF_ERROR {
            return self.take_off(id, before, Some(entry), false, answer);
        }
        let due = self.is_due(&entry, &answer);
        if !due {
            return assert_fetched(
                answer,
                entry.value,
                Outcome::Stale { age, reason: StaleReason::BackingOff },
            );
        }
        if age >= TTL + WHILE_REVALIDATE {
            return self.take_off(id, before, Some(entry), true, answer);
        }
        assert_fetched(answer, entry.value, Outcome::Stale { age, reason: StaleReason::Revalidating });
        self.settle();
        if self.linked(key).is_none() {
            let run = self.started(before, key, Some(entry), None);
            if let Some(end) = self.calls[&id].ready {
                self.land(run, end);
            }
        } else {
            assert_eq!(self.stage.count(), before, "a refresh is under way");
        }
    }

    fn take_off(
        &mut self,
        id: usize,
        before: usize,
        stale: Option<Entry>,
        falls_back: bool,
        answer: Poll<Answer>,
    ) {
        let born = self.invalidations;
        let call = self.calls.get_mut(&id).unwrap();
        (call.born, call.stale, call.falls_back) = (born, stale, falls_back);
        self.board(id, before, answer);
    }

    /// Joins the load under way, or starts one.
    fn board(&mut self, id: usize, before: usize, answer: Poll<Answer>) {
        let Call { key, ready, .. } = self.calls[&id];
        if let Some(run) = self.linked(key) {
            assert!(answer.is_pending(), "joined a load that has not ended");
            assert_eq!(self.stage.count(), before);
            self.runs.get_mut(&run).unwrap().waiters.insert(id);
            self.calls.get_mut(&id).unwrap().seat = Seat::Waits { run, leads: false };
            return;
        }
        // The loader is told what there is now, whatever its caller has seen.
        let run = self.started(before, key, self.find(key), Some(id));
        self.calls.get_mut(&id).unwrap().seat = Seat::Waits { run, leads: true };
        let Some(end) = ready else { return assert!(answer.is_pending(), "its load has not ended") };
        self.land(run, end);
        let Seat::Landed { landing, leads } = self.calls[&id].seat else { unreachable!() };
        self.last_poll(id, before, landing, leads, answer);
    }

    fn last_poll(&mut self, id: usize, before: usize, landing: Landing, leads: bool, answer: Poll<Answer>) {
        let Call { key, born, stale, falls_back, .. } = self.calls[&id];
        match landing {
            Landing::Value { entry, .. } if !leads && entry.born < born && !self.is_valid(&entry) => {
                let Some(found) = self.find(key).filter(|_| self.linked(key).is_none()) else {
                    return self.board(id, before, answer);
                };
                // Once more, what another load has brought or come to meanwhile spares this one.
                let age = self.now - found.stored;
                let newer = stale.is_none_or(|stale| found.stored > stale.stored);
                if age < TTL && newer {
                    return assert_fetched(answer, found.value, Outcome::Hit);
                }
                if (TTL..TTL + IF_ERROR).contains(&age) && stale.is_some() && !self.is_due(&found, &answer) {
                    let outcome = Outcome::Stale { age, reason: StaleReason::BackingOff };
                    return assert_fetched(answer, found.value, outcome);
                }
                self.board(id, before, answer);
            }
            Landing::Value { entry, .. } => {
                assert_fetched(answer, entry.value, if leads { Outcome::Loaded } else { Outcome::Coalesced });
            }
            Landing::Failed(_) | Landing::Panicked => {
                let stands_in =
                    |stale: &Entry| self.now < stale.stored + TTL + IF_ERROR && self.is_valid(stale);
                if let Some(stale) = stale.filter(|stale| falls_back && stands_in(stale)) {
                    let age = self.now - stale.stored;
                    let reason = StaleReason::LoadFailed;
                    return assert_fetched(answer, stale.value, Outcome::Stale { age, reason });
                }
                match (answer, landing) {
                    (Poll::Ready(Err(LoadError::Failed(error))), Landing::Failed(value)) => {
                        assert_eq!(*error, value);
                    }
                    (Poll::Ready(Err(LoadError::Panicked(_))), Landing::Panicked) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// What the end of a load does to the entry and to those who wait.
    fn land(&mut self, id: usize, end: End) {
        let run = self.runs.remove(&id).unwrap();
        self.stage.0.lock().unwrap()[id] = None;
        let now = self.now;
        let brought = |value, tagged| Entry::new(value, now, tagged, run.born);
        let bring = |value, tagged| Landing::Value { entry: brought(value, tagged), is_kept: true };
        let landing = match (end, run.stale) {
            (End::Failed, _) => Landing::Failed(value(id)),
            (End::Panicked, _) => Landing::Panicked,
            _ if run.plain => bring(value(id), false),
            (End::NotModified, Some(stale)) => bring(stale.value, stale.tagged),
            (End::Value | End::NotModified, None) | (End::Value, Some(_)) => bring(value(id), false),
            (End::Tagged, _) => bring(value(id), true),
            (End::Uncacheable, _) => Landing::Value { entry: brought(value(id), false), is_kept: false },
        };
        if run.linked {
            match landing {
                Landing::Value { entry, is_kept: true } => drop(self.entries.insert(run.key, entry)),
                Landing::Value { is_kept: false, .. } => drop(self.entries.remove(&run.key)),
                Landing::Failed(_) | Landing::Panicked => {
                    let worth_keeping = |entry: &Entry| now < entry.stored + TTL + IF_ERROR;
                    if self.find(run.key).as_ref().is_some_and(worth_keeping) {
                        self.entries.get_mut(&run.key).unwrap().failed(now);
                    }
                }
            }
        }
        for waiter in run.waiters {
            let call = self.calls.get_mut(&waiter).unwrap();
            let Seat::Waits { leads, .. } = call.seat else { unreachable!() };
            call.seat = Seat::Landed { landing, leads };
        }
    }

    fn end(&mut self, id: usize, end: End) {
        let waiters = self.runs[&id].waiters.clone();
        let started = self.stage.0.lock().unwrap()[id].take().unwrap();
        started.orders.send(end).expect("nobody's load is dropped");
        self.settle();
        self.land(id, end);
        for waiter in waiters {
            assert!(self.calls[&waiter].woken.0.load(Ordering::SeqCst), "a lost wake-up");
        }
    }

    fn leave(&mut self, id: usize) {
        let call = self.calls.remove(&id).unwrap();
        if let Seat::Waits { run, .. } = call.seat {
            self.runs.get_mut(&run).unwrap().waiters.remove(&id);
        }
        let inside = self.runtime.enter();
        drop(call);
        drop(inside);
    }

    fn refresh(&mut self, key: u64) {
        let before = self.stage.count();
        let stage = self.stage.clone();
        let load = move || stage.plain(key);
        let inside = self.runtime.enter();
        let starts = self.cache.refresh(key, load);
        drop(inside);
        self.settle();
        assert_eq!(starts, self.linked(key).is_none());
        if starts {
            let run = self.started(before, key, None, None);
            self.runs.get_mut(&run).unwrap().plain = true;
        }
    }

    fn step(&mut self, step: &Step) {
        let pick =
            |index: &prop::sample::Index, from: Vec<usize>| (!from.is_empty()).then(|| *index.get(&from));
        match step {
            Step::Call(key, ready) => self.call(*key, *ready),
            Step::Poll(index) => {
                if let Some(id) = pick(index, self.calls.keys().copied().collect()) {
                    self.poll(id);
                }
            }
            Step::Leave(index) => {
                if let Some(id) = pick(index, self.calls.keys().copied().collect()) {
                    self.leave(id);
                }
            }
            Step::End(index, end) => {
                if let Some(id) = pick(index, self.runs.keys().copied().collect()) {
                    self.end(id, *end);
                }
            }
            Step::Insert(key) => {
                let value = self.next_insert;
                self.next_insert += 2;
                self.cache.insert(*key, value);
                self.unlink(*key);
                self.entries.insert(*key, Entry::new(value, self.now, false, self.invalidations));
            }
            Step::Invalidate(key) => {
                self.cache.invalidate(key);
                self.unlink(*key);
                self.entries.remove(key);
            }
            Step::InvalidateTag => {
                self.cache.invalidate_tag(TAG);
                self.invalidations += 1;
                self.tag_invalid_at = self.invalidations;
            }
            Step::InvalidateAll => {
                self.cache.invalidate_all();
                self.invalidations += 1;
                self.all_invalid_at = self.invalidations;
                (0..KEYS).for_each(|key| self.unlink(key));
                self.entries.clear();
            }
            Step::Refresh(key) => self.refresh(*key),
            Step::Advance(millis) => {
                let by = Duration::from_millis(*millis);
                self.clock.advance(by);
                self.now += by;
            }
        }
        self.compare();
    }

    fn compare(&self) {
        for key in 0..KEYS {
            assert_eq!(self.cache.get(&key), self.fresh(key).map(|entry| entry.value), "key {key}");
        }
        for (id, load) in self.stage.0.lock().unwrap().iter().enumerate() {
            let alive = load.as_ref().is_some_and(|load| !load.orders.is_closed());
            assert_eq!(alive, self.runs.contains_key(&id), "load {id}");
        }
    }

    /// Every load ends, everyone has an answer, nothing is left.
    fn finish(mut self) {
        while !self.calls.is_empty() || !self.runs.is_empty() {
            while let Some(&run) = self.runs.keys().next() {
                self.end(run, End::Value);
            }
            for id in self.calls.keys().copied().collect::<Vec<_>>() {
                self.poll(id);
            }
            self.compare();
        }
        self.runtime.block_on(self.cache.close());
        self.settle();
        assert_eq!(self.runtime.metrics().num_alive_tasks(), 0);
        assert_eq!(self.cache.stats().flights.loads, self.stage.count() as u64);
    }
}

#[track_caller]
fn assert_fetched(answer: Poll<Answer>, value: u64, outcome: Outcome) {
    match answer {
        Poll::Ready(Ok(fetched)) => assert_eq!(fetched, Fetched { value, outcome }),
        other => panic!("{other:?} in place of {value}, {outcome:?}"),
    }
}

/// The panics of loads are part of the play.
fn quiet_loads() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload().is::<u64>() {
            loud(panic);
        }
    }));
}

#[test]
fn random_steps_agree_with_the_model() {
    agrees_with_the_model(Moka);
}

#[cfg(feature = "quick-cache")]
#[test]
fn random_steps_agree_with_the_model_over_quick_cache() {
    agrees_with_the_model(stampede_guard::QuickCache);
}

fn agrees_with_the_model(store: impl Store + Copy) {
    quiet_loads();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in proptest::collection::vec(step(), 1..200))| {
        let mut world = World::new(store);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    });
}
