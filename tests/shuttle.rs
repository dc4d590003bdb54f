//! `SingleFlight` under many random schedules: more callers, more keys and more that goes wrong than loom can go
//! through.
//!
//! `scripts/model` runs it. `SHUTTLE_SCHEDULES` says how many schedules each model gets (default 5,000), and
//! `SHUTTLE_SEED` which ones: a failure names its own.
#![cfg(stampede_shuttle)]

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
// What a model writes down about itself is no part of it: these are not shuttle's.
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::PctScheduler;
use shuttle::sync::Mutex;
use shuttle::thread;
use shuttle::{Config, FailurePersistence, Runner};
use stampede_guard::{LoadError, OnAbandon, SingleFlight, SingleFlightBuilder};

const KEYS: usize = 3;

/// A loader's own error.
#[derive(Debug)]
struct Oops;

type Answer = Result<u64, LoadError<Oops>>;
type Group = SingleFlight<usize, u64, Oops>;
type Settings = SingleFlightBuilder<usize, u64, Oops>;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Runs `model` under random schedules with up to `changes` changes of priority.
fn check(changes: usize, model: impl Fn() + Send + Sync + 'static) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let schedules = usize::try_from(from_env("SHUTTLE_SCHEDULES").unwrap_or(5_000)).unwrap();
    let seed = from_env("SHUTTLE_SEED").unwrap_or_else(|| {
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        u64::from(clock.subsec_nanos())
    });
    println!("{name}: SHUTTLE_SEED={seed}");
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::Print;
    let start = Instant::now();
    let scheduler = PctScheduler::new_from_seed(seed, changes, schedules);
    Runner::new(scheduler, config).run(model);
    println!("{name}: {schedules} schedules in {:.1?}", start.elapsed());
}

/// Holds loads back until it is opened.
#[derive(Default)]
struct Gate(Mutex<(bool, Vec<Waker>)>);

impl Gate {
    fn open(&self) {
        let wakers = {
            let mut gate = self.0.lock().unwrap();
            gate.0 = true;
            std::mem::take(&mut gate.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    async fn passed(&self) {
        poll_fn(|cx| {
            let mut gate = self.0.lock().unwrap();
            if gate.0 {
                return Poll::Ready(());
            }
            gate.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

async fn yields(times: u32) {
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[derive(Default)]
struct OfKey {
    started: AtomicU64,
    alive: AtomicUsize,
    /// A flight may have been forgotten: from here on there may be two.
    forgets: AtomicBool,
    /// Loads up to this one began before a `forget` that has come back.
    forgotten: AtomicU64,
    /// Loads up to this one were over when their result was handed out.
    over: AtomicU64,
}

#[derive(Default)]
struct Ledger {
    keys: [OfKey; KEYS],
    overlapped: AtomicBool,
    gate: Gate,
}

/// One load; alive until dropped.
struct Alive {
    ledger: Arc<Ledger>,
    key: usize,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.ledger.keys[self.key].alive.fetch_sub(1, SeqCst);
    }
}

/// Starts a load that ends in one of the ways a load can end.
fn load(ledger: &Arc<Ledger>, key: usize) -> impl Future<Output = Result<u64, Oops>> + Send + use<> {
    let mine = &ledger.keys[key];
    let id = mine.started.fetch_add(1, SeqCst) + 1;
    if mine.alive.fetch_add(1, SeqCst) > 0 && !mine.forgets.load(SeqCst) {
        ledger.overlapped.store(true, SeqCst);
    }
    let alive = Alive { ledger: Arc::clone(ledger), key };
    let (times, end) = (thread_rng().gen_range(0..3), thread_rng().gen_range(0..10));
    async move {
        yields(times).await;
        match end {
            0 => return Err(Oops),
            // Not `panic!`, which would be reported each time.
            1 => resume_unwind(Box::new("as it should")),
            2 | 3 => alive.ledger.gate.passed().await,
            _ => {}
        }
        drop(alive);
        Ok(id)
    }
}

/// Flights, and what is known about their loads.
#[derive(Clone)]
struct World {
    flights: Group,
    ledger: Arc<Ledger>,
}

impl World {
    fn new(settings: impl FnOnce(Settings) -> Settings) -> Self {
        let flights = settings(SingleFlight::builder()).build().unwrap();
        Self { flights, ledger: Arc::default() }
    }

    /// A caller, and what its answer must come after.
    fn caller(&self, key: usize) -> Caller {
        let World { flights, ledger } = self.clone();
        let loads = Arc::clone(&ledger);
        let future = Box::pin(async move { flights.run(key, || load(&loads, key)).await });
        Caller { future, ledger, key, floor: None }
    }

    fn forget(&self, key: usize) {
        let mine = &self.ledger.keys[key];
        let before = mine.started.load(SeqCst);
        mine.forgets.store(true, SeqCst);
        self.flights.forget(&key);
        mine.forgotten.fetch_max(before, SeqCst);
    }

    /// Waits for the loads that go on for nobody. Nothing is left then.
    fn drains(&self) {
        self.ledger.gate.open();
        while self.flights.in_flight() > 0 {
            thread::yield_now();
        }
        assert!(!self.ledger.overlapped.load(SeqCst), "two loads of one key at a time");
        for (key, mine) in self.ledger.keys.iter().enumerate() {
            assert_eq!(self.flights.waiters(&key), 0, "waiters of {key}");
            assert!(!self.flights.forget(&key), "{key} is linked");
            if !mine.forgets.load(SeqCst) {
                assert_eq!(mine.alive.load(SeqCst), 0, "a load of {key} outlived its flight");
            }
        }
    }
}

struct Caller {
    future: Pin<Box<dyn Future<Output = Answer> + Send>>,
    ledger: Arc<Ledger>,
    key: usize,
    floor: Option<u64>,
}

impl Caller {
    fn poll_with(&mut self, waker: &Waker) -> Poll<Answer> {
        let mine = &self.ledger.keys[self.key];
        let floor = *self.floor.get_or_insert_with(|| {
            // Of two flights of a key, the one whose load began first may end last.
            let seen = if mine.forgets.load(SeqCst) { &mine.forgotten } else { &mine.over };
            seen.load(SeqCst)
        });
        let polled = self.future.as_mut().poll(&mut Context::from_waker(waker));
        if let Poll::Ready(Ok(load)) = polled {
            assert!(load > floor, "load {load} was over or forgotten, as all up to {floor}, before the call");
            mine.over.fetch_max(load, SeqCst);
        }
        polled
    }

    /// Polls a few times and leaves, unless it is answered before.
    fn leaves(mut self, polls: u32) {
        for _ in 0..polls {
            if self.poll_with(Waker::noop()).is_ready() {
                return;
            }
            thread::yield_now();
        }
    }

    fn answer(mut self) -> Answer {
        block_on(poll_fn(|cx| self.poll_with(cx.waker())))
    }
}

#[track_caller]
fn plausible(answer: &Answer, may_be_refused: bool) {
    match answer {
        Ok(_) | Err(LoadError::Failed(_)) => {}
        Err(LoadError::Panicked(panic)) => assert_eq!(panic.message(), Some("as it should")),
        Err(LoadError::Overloaded(_)) if may_be_refused => {}
        Err(error) => panic!("{error:?}"),
    }
}

/// `threads` threads that call, leave and forget as they please.
fn mix(threads: usize, keys: usize, may_be_refused: bool, forgets: bool, world: &World) {
    let acts = move |world: World| {
        for _ in 0..3 {
            let key = thread_rng().gen_range(0..keys);
            match thread_rng().gen_range(0..8) {
                0 | 1 => world.caller(key).leaves(thread_rng().gen_range(1..4)),
                2 if forgets => world.forget(key),
                3 => {
                    // Dropped by the executor, between two polls.
                    let caller = world.caller(key);
                    let task = shuttle::future::spawn(async move { caller.future.await.is_ok() });
                    thread::yield_now();
                    task.abort();
                    let _ = block_on(task);
                }
                4 => world.ledger.gate.open(),
                // Nobody waits for a gate that nobody opens: whoever waits to the end has opened it.
                _ => {
                    let mut caller = world.caller(key);
                    if let Poll::Ready(answer) = caller.poll_with(Waker::noop()) {
                        plausible(&answer, may_be_refused);
                    } else {
                        world.ledger.gate.open();
                        plausible(&caller.answer(), may_be_refused);
                    }
                }
            }
        }
    };
    let others: Vec<_> = (1..threads)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || acts(world))
        })
        .collect();
    acts(world.clone());
    for other in others {
        other.join().unwrap();
    }
    world.drains();
}

#[test]
fn three_threads_and_one_key() {
    check(4, || mix(3, 1, false, true, &World::new(|builder| builder)));
}

#[test]
fn three_threads_that_forget_nothing() {
    check(4, || mix(3, 1, false, false, &World::new(|builder| builder)));
}

#[test]
fn five_threads_and_three_keys() {
    check(5, || mix(5, KEYS, false, true, &World::new(|builder| builder)));
}

#[test]
fn unwanted_loads_are_dropped() {
    check(4, || mix(4, 1, false, false, &World::new(|builder| builder.on_abandon(OnAbandon::Cancel))));
}

#[test]
fn unwanted_loads_are_dropped_and_others_forgotten() {
    check(5, || mix(4, 2, false, true, &World::new(|builder| builder.on_abandon(OnAbandon::Cancel))));
}

#[test]
fn one_load_goes_on_for_nobody() {
    check(4, || mix(4, 2, false, true, &World::new(|builder| builder.max_abandoned(1))));
}

#[test]
fn little_room() {
    check(4, || {
        let world = World::new(|builder| builder.max_in_flight(2).max_waiters_per_key(2).max_abandoned(1));
        mix(5, KEYS, true, true, &world);
    });
}

#[test]
fn a_herd_is_woken_by_a_task() {
    check(3, || {
        let world = World::new(|builder| builder);
        let mut callers: Vec<_> = (0..7).map(|_| world.caller(0)).collect();
        for caller in &mut callers {
            drop(caller.poll_with(Waker::noop()));
        }
        world.ledger.gate.open();
        let others: Vec<_> = (0..3)
            .map(|_| {
                let herd = world.clone();
                thread::spawn(move || plausible(&herd.caller(0).answer(), false))
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        drop(callers);
        world.drains();
    });
}
