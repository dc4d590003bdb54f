//! Flights with a store behind them, under every interleaving that loom finds within three preemptions.
//!
//! `scripts/model` runs them. They look inside, and so stand here; those of the public face are in
//! `tests/loom.rs`.

use std::convert::Infallible;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::thread;

use super::core::{Boarding, FlightConfig, Flights, OnAbandon, Settle};
use super::lineage::{FlightId, Link};
use super::plan::{BoxLoad, Owned, Plan};
use super::run::{FirstPoll, Run};
use super::table::Hold;
use super::waiters::LEADER;
use crate::error::LoadError;
use crate::sync::{self, Arc, Mutex};

const KEY: u8 = 0;

/// A cache of one key.
#[derive(Default)]
struct Store {
    value: Mutex<Option<u64>>,
    /// Each value that a landing stored, in order. Not part of the model.
    landed: std::sync::Mutex<Vec<u64>>,
}

impl Settle<u8, u64, Infallible> for Store {
    type Change = Option<u64>;

    fn prepare(&self, _: &u8, result: &mut Result<u64, LoadError<Infallible>>) -> Option<u64> {
        result.as_ref().ok().copied()
    }

    fn settle(&self, _: &u8, change: &mut Option<u64>) {
        if let Some(value) = change.take() {
            *self.value.lock() = Some(value);
            self.landed.lock().unwrap().push(value);
        }
    }

    fn settled(&self, _: Option<u64>) {}
}

/// One cache and what is known of its loads.
#[derive(Clone)]
struct Cache(Arc<Inner>);

struct Inner {
    flights: Arc<Flights<u8, u64, Infallible, Store>>,
    loads: AtomicU64,
    alive: AtomicUsize,
    peak: AtomicUsize,
}

/// How a caller would load.
struct Loads {
    cache: Cache,
    yields: bool,
}

/// One load; alive until dropped.
struct Alive(Cache);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.0.alive.fetch_sub(1, SeqCst);
    }
}

impl Plan<u8, u64, Infallible> for Loads {
    type Kept = ();

    fn recheck(&mut self, _: &u8) -> Option<u64> {
        self.cache.get()
    }

    fn load(self, (): &mut ()) -> BoxLoad<u64, Infallible> {
        let inner = &self.cache.0;
        let number = inner.loads.fetch_add(1, SeqCst) + 1;
        let alive = inner.alive.fetch_add(1, SeqCst) + 1;
        inner.peak.fetch_max(alive, SeqCst);
        let alive = Alive(self.cache.clone());
        let mut yields = self.yields;
        Box::pin(async move {
            let _alive = alive;
            poll_fn(|cx| {
                if !std::mem::take(&mut yields) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            Ok(number)
        })
    }
}

type Caller = Pin<Box<dyn Future<Output = Result<u64, LoadError<Infallible>>> + Send>>;

impl Cache {
    fn new(config: FlightConfig) -> Self {
        Self(Arc::new(Inner {
            flights: Flights::new(config, Store::default()),
            loads: AtomicU64::new(0),
            alive: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }))
    }

    fn get(&self) -> Option<u64> {
        *self.0.flights.hook.value.lock()
    }

    /// The value, from the store or a load.
    fn get_or_load(&self, yields: bool) -> Caller {
        let cache = self.clone();
        Box::pin(async move {
            if let Some(value) = cache.get() {
                return Ok(value);
            }
            let plan = Loads { cache: cache.clone(), yields };
            Run::new(&cache.0.flights, Owned(KEY), plan, FirstPoll::Inline).await.result
        })
    }

    fn insert(&self, value: u64) {
        self.0.flights.overrule(&KEY, || *self.0.flights.hook.value.lock() = Some(value));
    }

    fn invalidate(&self) {
        self.0.flights.overrule(&KEY, || *self.0.flights.hook.value.lock() = None);
    }

    fn loads(&self) -> u64 {
        self.0.loads.load(SeqCst)
    }

    /// Waits for the loads that go on for nobody. Nothing is left then.
    fn drains(&self) {
        let flights = &self.0.flights;
        while flights.in_flight() > 0 {
            thread::yield_now();
        }
        assert!(flights.linked().is_empty());
        assert_eq!(flights.unattended(), 0, "places of loads for nobody");
    }
}

/// A caller that was polled once and waits.
fn waits(mut caller: Caller) -> Caller {
    assert!(caller.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    caller
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(3);
    let (runs, start) = (Arc::new(AtomicUsize::new(0)), std::time::Instant::now());
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        model();
    });
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    println!("{name}: {} interleavings in {:.1?}", runs.load(SeqCst), start.elapsed());
}

#[test]
fn what_was_loaded_is_not_loaded_again() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let (one, other) = (cache.get_or_load(false), cache.get_or_load(false));
        let aside = thread::spawn(move || block_on(one).unwrap());
        assert_eq!(block_on(other).unwrap(), 1);
        assert_eq!(aside.join().unwrap(), 1);
        assert_eq!((cache.loads(), cache.get()), (1, Some(1)));
        cache.drains();
    });
}

#[test]
fn who_comes_as_a_load_ends_finds_the_flight_or_the_value() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let leader = waits(cache.get_or_load(true));
        let late = cache.get_or_load(false);
        let aside = thread::spawn(move || block_on(late).unwrap());
        assert_eq!(block_on(leader).unwrap(), 1);
        assert_eq!(aside.join().unwrap(), 1);
        assert_eq!(cache.loads(), 1);
        cache.drains();
    });
}

#[test]
fn an_insert_wins_over_a_load() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let leader = waits(cache.get_or_load(true));
        let there = cache.clone();
        let inserts = thread::spawn(move || {
            there.insert(100);
            assert_eq!(block_on(there.get_or_load(false)).unwrap(), 100);
        });
        assert_eq!(block_on(leader).unwrap(), 1);
        inserts.join().unwrap();
        assert_eq!(cache.get(), Some(100));
        cache.drains();
    });
}

#[test]
fn an_insert_wins_over_a_load_that_starts_as_another_is_overruled() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let leader = waits(cache.get_or_load(true));
        let joins = cache.get_or_load(false);
        let aside = thread::spawn(move || block_on(joins).unwrap());
        cache.insert(100);
        assert_eq!(block_on(leader).unwrap(), 1);
        assert!([1, 100].contains(&aside.join().unwrap()), "nobody starts between two values");
        assert_eq!(cache.get(), Some(100));
        cache.drains();
    });
}

#[test]
fn an_insert_wins_over_the_loads_that_start_around_it() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let (one, other) = (cache.get_or_load(false), cache.get_or_load(false));
        let aside = [one, other].map(|caller| thread::spawn(move || block_on(caller).unwrap()));
        cache.insert(100);
        assert_eq!(block_on(cache.get_or_load(false)).unwrap(), 100);
        for caller in aside {
            assert!([1, 2, 100].contains(&caller.join().unwrap()));
        }
        assert_eq!(cache.get(), Some(100));
        cache.drains();
    });
}

#[test]
fn nobody_who_comes_after_an_invalidation_gets_what_was_loaded_before() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let leader = waits(cache.get_or_load(true));
        let there = cache.clone();
        let invalidates = thread::spawn(move || {
            there.invalidate();
            assert_eq!(block_on(there.get_or_load(false)).unwrap(), 2);
        });
        assert_eq!(block_on(leader).unwrap(), 1, "who waits keeps it");
        invalidates.join().unwrap();
        assert_eq!(cache.get(), Some(2));
        cache.drains();
        let landed = cache.0.flights.hook.landed.lock().unwrap();
        assert!(landed.is_sorted(), "an old leader stored over a newer one: {landed:?}");
    });
}

#[test]
fn a_forgotten_flight_stores_nothing_over_the_next() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let old = waits(cache.get_or_load(true));
        if !cache.0.flights.forget(&KEY) {
            // It is over already.
            return assert_eq!(block_on(old).unwrap(), 1);
        }
        let new = waits(cache.get_or_load(true));
        let aside = thread::spawn(move || block_on(old).unwrap());
        assert_eq!(block_on(new).unwrap(), 2);
        assert_eq!(aside.join().unwrap(), 1);
        assert_eq!(cache.get(), Some(2));
        cache.drains();
        assert_eq!(*cache.0.flights.hook.landed.lock().unwrap(), [2]);
    });
}

#[test]
fn forgetting_a_flight_that_is_over_takes_no_other_away() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let flights = &cache.0.flights;
        let board = || flights.board(&mut Some((Owned(KEY), ())), Waker::noop());
        let Boarding::Leads(Hold::Flight(first), ()) = board() else { panic!("nothing is in flight") };
        let there = cache.clone();
        // It may find the first flight, and not look again before that one is over.
        let forgets = thread::spawn(move || there.0.flights.forget(&KEY));
        flights.land(&first, &mut Some(Ok(1)));
        let Boarding::Leads(Hold::Flight(second), ()) = board() else { panic!("the first one is over") };
        let third = board();
        forgets.join().unwrap();
        flights.land(&second, &mut Some(Ok(2)));
        if let Boarding::Leads(Hold::Flight(third), ()) = third {
            assert_eq!(cache.get(), Some(1), "the second was forgotten");
            assert!(matches!(board(), Boarding::Waits(..)), "the end of the second took the third away");
            flights.land(&third, &mut Some(Ok(3)));
        }
        cache.drains();
    });
}

#[test]
fn a_load_that_somebody_wants_again_is_kept() {
    check(|| {
        let cache = Cache::new(FlightConfig { on_abandon: OnAbandon::Cancel, ..FlightConfig::default() });
        let flights = &cache.0.flights;
        let board = || flights.board(&mut Some((Owned(KEY), ())), Waker::noop());
        let Boarding::Leads(Hold::Flight(flight), ()) = board() else { panic!("nothing is in flight") };
        let load = Loads { cache: cache.clone(), yields: false }.load(&mut ());
        flight.hand_over(load, Some(Waker::noop().clone()), None, crate::trace::LoadSpan::default());
        flight.driven_by(sync::spawn(async {}));
        let wanted_again = Arc::new(sync::AtomicBool::new(false));
        let (there, driven, wanted) = (cache.clone(), Arc::clone(&flight), Arc::clone(&wanted_again));
        let drives = thread::spawn(move || {
            let Some((load, _)) = driven.take_load() else { return };
            let wanted = wanted.load(SeqCst);
            if let Some(unwanted) = driven.park_load(load, None, Waker::noop()) {
                assert!(!wanted, "somebody waits for it");
                there.0.flights.abandon(&driven, unwanted);
            }
        });
        flights.leave(&flight, LEADER);
        match board() {
            Boarding::Waits(..) => wanted_again.store(true, SeqCst),
            Boarding::Leads(Hold::Flight(next), ()) => flights.land(&next, &mut None),
            Boarding::Leads(Hold::Entry(_), ()) => panic!("something is kept"),
            Boarding::Refused(error) => panic!("{error}"),
        }
        drives.join().unwrap();
        flights.land(&flight, &mut None);
        cache.drains();
    });
}

#[test]
fn who_leaves_as_a_load_ends_takes_no_place_for_nobody() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let leader = waits(cache.get_or_load(true));
        let joins = cache.get_or_load(false);
        let aside = thread::spawn(move || block_on(joins).unwrap());
        drop(leader);
        assert_eq!(aside.join().unwrap(), 1);
        cache.drains();
    });
}

#[test]
fn two_who_ask_for_the_last_place() {
    check(|| {
        let cache = Cache::new(FlightConfig { max_abandoned: 1, ..FlightConfig::default() });
        let there = cache.clone();
        let aside = thread::spawn(move || there.0.flights.enter_unattended());
        let here = cache.0.flights.enter_unattended();
        assert!(here ^ aside.join().unwrap(), "one of them gets it");
        cache.0.flights.leave_unattended();
        cache.drains();
    });
}

#[test]
fn a_refresh_for_nobody_is_joined_while_it_ends() {
    check(|| {
        let cache = Cache::new(FlightConfig { max_abandoned: 1, ..FlightConfig::default() });
        assert!(cache.0.flights.launch(Owned(KEY), Loads { cache: cache.clone(), yields: true }));
        let joins = cache.get_or_load(false);
        let aside = thread::spawn(move || block_on(joins).unwrap());
        // Either it finds the flight or a place, and then the value.
        cache.0.flights.launch(Owned(KEY), Loads { cache: cache.clone(), yields: false });
        assert_eq!(aside.join().unwrap(), 1);
        cache.drains();
        assert_eq!(cache.loads(), 1);
    });
}

#[test]
fn a_runtime_dies_while_a_load_ends_and_somebody_joins() {
    check(|| {
        let cache = Cache::new(FlightConfig::default());
        let leader = waits(cache.get_or_load(true));
        let task = cache.0.flights.linked().first().and_then(|flight| flight.take_task());
        let joins = cache.get_or_load(false);
        let aside = thread::spawn(move || block_on(joins));
        if let Some(task) = task {
            task.abort();
        }
        assert!(matches!(block_on(leader), Ok(1) | Err(LoadError::Cancelled)));
        assert!(matches!(aside.join().unwrap(), Ok(1 | 2) | Err(LoadError::Cancelled)));
        cache.drains();
        assert_eq!((cache.0.peak.load(SeqCst), cache.0.alive.load(SeqCst)), (1, 0));
    });
}

#[test]
fn a_runtime_dies_while_its_load_is_abandoned() {
    check(|| {
        let config = FlightConfig { on_abandon: OnAbandon::Cancel, ..FlightConfig::default() };
        let cache = Cache::new(config);
        let leader = waits(cache.get_or_load(true));
        let task = cache.0.flights.linked().first().and_then(|flight| flight.take_task());
        let leaves = thread::spawn(move || drop(leader));
        if let Some(task) = task {
            task.abort();
        }
        leaves.join().unwrap();
        cache.drains();
        assert_eq!(cache.0.alive.load(SeqCst), 0);
    });
}

#[test]
fn of_two_loads_that_come_to_wait_for_each_other_one_is_told() {
    check(|| {
        let id = |number| FlightId { group: NonZeroU64::MIN, number };
        let origin = Link::new(id(0), None);
        let [one, two] = [1, 2].map(|number| Link::new(id(number), Some(Arc::clone(&origin))));
        for given_up in [&one, &two] {
            given_up.cut(LEADER);
        }
        let (first, second) = (Arc::clone(&one), Arc::clone(&two));
        let waits = thread::spawn(move || second.tie(0, &first));
        let both_wait = one.tie(0, &two) & waits.join().unwrap();
        assert!(!both_wait, "for ever");
        one.cut_all();
        two.cut_all();
    });
}
