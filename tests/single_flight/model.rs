//! Random steps, held against a sequential model of what a single-flight group is.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stampede_guard::{LoadError, OnAbandon};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::support::{Answer, Caller, Group, Oops, assert_empty, current_thread, settle};

const KEYS: u64 = 4;
/// Live loads of each key.
type Alive = [AtomicUsize; 4];
const STEPS: usize = 10_000;
const MAX_CALLERS: usize = 24;
const MAX_WAITERS: usize = 6;

/// What a run comes to. The value of `Done` tells runs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Failed,
    Panicked,
}

/// A load that does as it is told.
struct Puppet {
    key: u64,
    run: u64,
    strings: Arc<Strings>,
}

/// What a load was told, and whom to wake when it is told.
#[derive(Default)]
struct Orders {
    end: Option<End>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Strings {
    runs: AtomicU64,
    told: Mutex<BTreeMap<u64, Orders>>,
}

impl Strings {
    fn load(self: &Arc<Self>, key: u64, end: Option<End>) -> Puppet {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        self.told.lock().unwrap().insert(run, Orders { end, waker: None });
        Puppet { key, run, strings: Arc::clone(self) }
    }

    fn tell(&self, run: u64, end: End) {
        let waker = {
            let mut told = self.told.lock().unwrap();
            let place = told.get_mut(&run).expect("the load is alive");
            place.end = Some(end);
            place.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn alive(&self) -> BTreeSet<u64> {
        self.told.lock().unwrap().keys().copied().collect()
    }
}

fn value(key: u64, run: u64) -> u64 {
    run * KEYS + key
}

impl Future for Puppet {
    type Output = Result<u64, Oops>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let end = {
            let mut told = self.strings.told.lock().unwrap();
            let place = told.get_mut(&self.run).unwrap();
            place.waker = Some(context.waker().clone());
            place.end
        };
        match end {
            None => Poll::Pending,
            Some(End::Done) => Poll::Ready(Ok(value(self.key, self.run))),
            Some(End::Failed) => Poll::Ready(Err(Oops(value(self.key, self.run)))),
            Some(End::Panicked) => std::panic::panic_any(value(self.key, self.run)),
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.strings.told.lock().unwrap().remove(&self.run);
    }
}

/// One run, as the model sees it.
struct Run {
    key: u64,
    linked: bool,
    told: Option<End>,
    unattended: bool,
    waiters: BTreeSet<u64>,
}

enum Seat {
    NotPolled,
    Waits(u64),
    Over(u64, End),
}

enum Hand {
    Polled(Caller<'static, Answer>),
    Spawned(JoinHandle<Answer>),
}

struct Call {
    key: u64,
    seat: Seat,
    hand: Hand,
}

struct World {
    runtime: Runtime,
    flights: Group,
    strings: Arc<Strings>,
    on_abandon: OnAbandon,
    max_abandoned: usize,
    runs: BTreeMap<u64, Run>,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    random: StdRng,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let on_abandon = if random.random_bool(0.7) { OnAbandon::Detach } else { OnAbandon::Cancel };
        let max_abandoned = random.random_range(0..3);
        let flights = Group::builder()
            .on_abandon(on_abandon)
            .max_abandoned(max_abandoned)
            .max_waiters_per_key(MAX_WAITERS)
            .build()
            .unwrap();
        Self {
            runtime: current_thread(),
            flights,
            strings: Arc::default(),
            on_abandon,
            max_abandoned,
            runs: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            random,
        }
    }

    fn linked(&self, key: u64) -> Option<u64> {
        self.runs.iter().find(|(_, run)| run.key == key && run.linked).map(|(&id, _)| id)
    }

    fn pick(&mut self, from: &[u64]) -> Option<u64> {
        if from.is_empty() { None } else { Some(from[self.random.random_range(0..from.len())]) }
    }

    fn pick_call(&mut self, wanted: impl Fn(&Call) -> bool) -> Option<u64> {
        let calls: Vec<u64> = self.calls.iter().filter(|(_, call)| wanted(call)).map(|(&id, _)| id).collect();
        self.pick(&calls)
    }

    /// Every task runs until it waits: runs that were told to end have ended.
    fn settle(&mut self) {
        settle(&self.runtime);
        let ended: Vec<(u64, End)> =
            self.runs.iter().filter_map(|(&id, run)| run.told.map(|end| (id, end))).collect();
        for (id, end) in ended {
            let run = self.runs.remove(&id).unwrap();
            for waiter in run.waiters {
                let call = self.calls.get_mut(&waiter).unwrap();
                call.seat = Seat::Over(id, end);
                match &call.hand {
                    Hand::Polled(caller) => assert!(caller.woken(), "a lost wake-up"),
                    Hand::Spawned(task) => assert!(task.is_finished(), "a lost wake-up"),
                }
            }
        }
    }

    fn start(&mut self) {
        if self.calls.len() >= MAX_CALLERS {
            return;
        }
        let key = self.random.random_range(0..KEYS);
        let end = match self.random.random_range(0..10) {
            0 => Some(End::Done),
            1 => Some(End::Failed),
            2 => Some(End::Panicked),
            _ => None,
        };
        let (flights, strings) = (self.flights.clone(), Arc::clone(&self.strings));
        let future = async move { flights.run(key, || strings.load(key, end)).await };
        let id = self.next_call;
        self.next_call += 1;
        if self.random.random_bool(0.7) {
            let hand = Hand::Polled(Caller::new(future));
            self.calls.insert(id, Call { key, seat: Seat::NotPolled, hand });
            return;
        }
        self.settle();
        let task = self.runtime.spawn(future);
        settle(&self.runtime);
        let answer = if task.is_finished() { Poll::Ready(None) } else { Poll::Pending };
        self.calls.insert(id, Call { key, seat: Seat::NotPolled, hand: Hand::Spawned(task) });
        self.first_poll(id, &answer);
        // One that was done at once has its answer looked at when it is collected.
    }

    /// What the first poll of a call must have come to.
    fn first_poll(&mut self, id: u64, answer: &Poll<Option<Answer>>) {
        let key = self.calls[&id].key;
        let seat = if let Some(run) = self.linked(key) {
            if self.runs[&run].waiters.len() >= MAX_WAITERS {
                if let Poll::Ready(Some(answer)) = answer {
                    assert!(matches!(answer, Err(LoadError::Overloaded(_))), "{answer:?}");
                }
                assert!(answer.is_ready(), "refused at once");
                drop(self.calls.remove(&id));
                return;
            }
            let joined = self.runs.get_mut(&run).unwrap();
            joined.waiters.insert(id);
            joined.unattended = false;
            assert!(answer.is_pending(), "joined a run that is not over");
            Seat::Waits(run)
        } else {
            let run = self.strings.runs.load(Ordering::SeqCst) - 1;
            match answer {
                Poll::Pending => {
                    let waiters = BTreeSet::from([id]);
                    let started = Run { key, linked: true, told: None, unattended: false, waiters };
                    assert!(self.runs.insert(run, started).is_none(), "a run of its own");
                    Seat::Waits(run)
                }
                Poll::Ready(answer) => {
                    if let Some(answer) = answer {
                        let end = match answer {
                            Ok(_) => End::Done,
                            Err(LoadError::Failed(_)) => End::Failed,
                            _ => End::Panicked,
                        };
                        check(answer, value(key, run), end);
                    }
                    drop(self.calls.remove(&id));
                    return;
                }
            }
        };
        self.calls.get_mut(&id).unwrap().seat = seat;
    }

    fn poll(&mut self) {
        let Some(id) = self.pick_call(|call| matches!(call.hand, Hand::Polled(_))) else { return };
        let call = self.calls.get_mut(&id).unwrap();
        let Hand::Polled(caller) = &mut call.hand else { unreachable!() };
        let _inside = self.runtime.enter();
        let answer = caller.poll();
        match call.seat {
            Seat::NotPolled => self.first_poll(id, &answer.map(Some)),
            Seat::Waits(_) => assert!(answer.is_pending(), "the run is not over: {answer:?}"),
            Seat::Over(run, end) => {
                let Poll::Ready(answer) = answer else { panic!("the run is over") };
                check(&answer, value(call.key, run), end);
                self.calls.remove(&id);
            }
        }
    }

    fn leave(&mut self, id: u64) {
        let call = self.calls.remove(&id).unwrap();
        match call.hand {
            Hand::Polled(caller) => drop(caller),
            Hand::Spawned(task) => {
                task.abort();
                self.runtime.block_on(async { drop(task.await) });
            }
        }
        let Seat::Waits(run) = call.seat else { return };
        let left = self.runs.get_mut(&run).unwrap();
        left.waiters.remove(&id);
        if !left.waiters.is_empty() {
            return;
        }
        let unattended = self.runs.values().filter(|run| run.unattended).count();
        if self.on_abandon == OnAbandon::Detach && unattended < self.max_abandoned {
            self.runs.get_mut(&run).unwrap().unattended = true;
        } else {
            self.runs.remove(&run);
        }
    }

    fn drop_one(&mut self) {
        if let Some(id) = self.pick_call(|call| matches!(call.hand, Hand::Polled(_))) {
            self.leave(id);
        }
    }

    fn abort_one(&mut self) {
        // The abort takes effect in a turn of the runtime, in which loads end too.
        self.settle();
        let abort = |call: &Call| matches!((&call.hand, &call.seat), (Hand::Spawned(_), Seat::Waits(_)));
        if let Some(id) = self.pick_call(abort) {
            self.leave(id);
        }
    }

    fn collect(&mut self) {
        let over = |call: &Call| matches!((&call.hand, &call.seat), (Hand::Spawned(_), Seat::Over(..)));
        while let Some(id) = self.pick_call(over) {
            let call = self.calls.remove(&id).unwrap();
            let (Hand::Spawned(task), Seat::Over(run, end)) = (call.hand, call.seat) else { unreachable!() };
            let answer = self.runtime.block_on(task).unwrap();
            check(&answer, value(call.key, run), end);
        }
    }

    fn forget(&mut self) {
        let key = self.random.random_range(0..KEYS);
        let run = self.linked(key);
        assert_eq!(self.flights.forget(&key), run.is_some());
        if let Some(run) = run {
            self.runs.get_mut(&run).unwrap().linked = false;
        }
    }

    fn end_one(&mut self) {
        let running: Vec<u64> =
            self.runs.iter().filter(|(_, run)| run.told.is_none()).map(|(&id, _)| id).collect();
        let end = [End::Done, End::Failed, End::Panicked][self.random.random_range(0..3)];
        if let Some(run) = self.pick(&running) {
            self.strings.tell(run, end);
            self.runs.get_mut(&run).unwrap().told = Some(end);
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..25 => self.start(),
            25..60 => self.poll(),
            60..72 => self.drop_one(),
            72..76 => self.abort_one(),
            76..81 => self.forget(),
            81..93 => self.end_one(),
            93..95 => self.collect(),
            _ => self.settle(),
        }
        self.compare();
    }

    fn compare(&self) {
        assert_eq!(self.strings.alive(), self.runs.keys().copied().collect(), "the loads that live");
        for key in 0..KEYS {
            let linked = self.linked(key);
            let waiting = linked.map_or(0, |run| self.runs[&run].waiters.len());
            assert_eq!(self.flights.waiters(&key), waiting);
        }
        let linked = self.runs.values().filter(|run| run.linked).count();
        assert_eq!(self.flights.in_flight(), linked);
    }

    /// Everything ends, everyone has an answer, nothing is left.
    fn finish(mut self) {
        while self.runs.values().any(|run| run.told.is_none()) {
            self.end_one();
        }
        self.settle();
        self.collect();
        while !self.calls.is_empty() {
            self.poll();
            while self.runs.values().any(|run| run.told.is_none()) {
                self.end_one();
            }
            self.settle();
        }
        self.compare();
        assert_empty(&self.flights, 0..KEYS);
        assert!(self.strings.alive().is_empty());
        assert_eq!(self.runtime.metrics().num_alive_tasks(), 0);
    }
}

#[track_caller]
fn check(answer: &Answer, value: u64, end: End) {
    match (answer, end) {
        (Ok(got), End::Done) => assert_eq!(*got, value),
        (Err(LoadError::Failed(error)), End::Failed) => assert_eq!(**error, Oops(value)),
        (Err(LoadError::Panicked(_)), End::Panicked) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn ten_thousand_random_steps_agree_with_the_model_and_leave_an_empty_map() {
    quiet_puppets();
    for seed in 0..8 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.finish();
    }
}

/// The panics of puppets are part of the play.
fn quiet_puppets() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload().is::<u64>() {
            loud(panic);
        }
    }));
}

/// As many threads as there are, each doing as it likes.
#[test]
fn a_storm_on_several_threads_never_has_two_live_loads_of_a_key() {
    quiet_puppets();
    for (seed, on_abandon) in [(1, OnAbandon::Detach), (2, OnAbandon::Cancel), (3, OnAbandon::Detach)] {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let flights = Group::builder().on_abandon(on_abandon).max_abandoned(1).build().unwrap();
        let alive: Arc<Alive> = Arc::default();
        let storm = |seed: u64| {
            let (flights, alive) = (flights.clone(), Arc::clone(&alive));
            async move {
                let mut random = StdRng::seed_from_u64(seed);
                for _ in 0..500 {
                    let key = random.random_range(0..KEYS);
                    let (yields, patience) = (random.random_range(0..6), random.random_range(0..8));
                    let end = random.random_range(0..6);
                    let alive = Arc::clone(&alive);
                    let load = move || async move {
                        let _one = OnlyOne::enter(&alive, key);
                        for _ in 0..yields {
                            tokio::task::yield_now().await;
                        }
                        match end {
                            0 => Err(Oops(key)),
                            1 => std::panic::panic_any(key),
                            _ => Ok(key),
                        }
                    };
                    let call = flights.run(key, load);
                    let give_up = async {
                        for _ in 0..patience {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::select! {
                        answer = call => match answer {
                            Ok(got) => assert_eq!(got, key),
                            Err(LoadError::Failed(error)) => assert_eq!(*error, Oops(key)),
                            Err(LoadError::Panicked(_)) => {}
                            Err(other) => panic!("{other:?}"),
                        },
                        () = give_up => {}
                    }
                }
            }
        };
        let tasks: Vec<_> = (0..16).map(|task| runtime.spawn(storm(seed * 100 + task))).collect();
        runtime.block_on(async {
            let all = async {
                for task in tasks {
                    task.await.unwrap();
                }
                while flights.in_flight() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), all).await.expect("everyone finishes");
        });
        assert_empty(&flights, 0..KEYS);
        for count in alive.iter() {
            assert_eq!(count.load(Ordering::SeqCst), 0);
        }
    }
}

/// The only live load of a key.
struct OnlyOne(Arc<Alive>, usize);

impl OnlyOne {
    fn enter(alive: &Arc<Alive>, key: u64) -> Self {
        let key = usize::try_from(key).unwrap();
        let before = alive[key].fetch_add(1, Ordering::SeqCst);
        assert_eq!(before, 0, "two live loads of one key");
        Self(Arc::clone(alive), key)
    }
}

impl Drop for OnlyOne {
    fn drop(&mut self) {
        self.0[self.1].fetch_sub(1, Ordering::SeqCst);
    }
}
