//! A world of flights that checks what must hold in every one.

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
// What a model writes down about itself is no part of it: these are not loom's.
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use loom::future::block_on;
use loom::sync::Mutex;
use loom::thread::{self, JoinHandle};
use stampede_guard::{LoadError, SingleFlight, SingleFlightBuilder};

pub(crate) const KEY: usize = 0;
pub(crate) const OTHER: usize = 1;

/// A loader's own error.
#[derive(Debug)]
pub(crate) struct Oops;

/// The number of the load that gave it; the first is 1.
pub(crate) type Answer = Result<u64, LoadError<Oops>>;

/// Runs `model` in every order, within three preemptions if `LOOM_MAX_PREEMPTIONS` says nothing else.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    check_within(3, model);
}

/// [`check`] of a model with so many threads that three preemptions are for the long run.
pub(crate) fn check_large(model: impl Fn() + Send + Sync + 'static) {
    check_within(2, model);
}

fn check_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let (runs, start) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        model();
    });
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    println!("{name}: {} interleavings in {:.1?}", runs.load(SeqCst), start.elapsed());
}

/// What a load does.
#[derive(Clone)]
pub(crate) enum Load {
    /// It is ready at its first poll.
    Ready,
    /// It is ready at its second.
    Yields,
    /// It waits for its gate.
    Waits(Gate),
    /// It panics at its first poll.
    Panics,
    /// It panics at its second.
    YieldsAndPanics,
    /// It fails at its second.
    YieldsAndFails,
}

/// Holds loads back until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Gate {
    pub(crate) fn open(&self) {
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

async fn yields() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[derive(Default)]
struct Loads {
    started: AtomicU64,
    completed: AtomicUsize,
    alive: [AtomicUsize; 2],
    /// Two loads of one key were alive at once.
    overlapped: AtomicBool,
    /// A flight may have been forgotten: from here on there may be two of a key.
    forgets: AtomicBool,
    /// Loads up to this one began before a `forget` that has come back.
    forgotten: AtomicU64,
    /// Loads up to this one were over when their result was handed out.
    over: AtomicU64,
}

/// One load; alive until dropped.
struct Alive {
    loads: Arc<Loads>,
    key: usize,
    id: u64,
}

impl Alive {
    fn new(loads: &Arc<Loads>, key: usize) -> Self {
        let id = loads.started.fetch_add(1, SeqCst) + 1;
        if loads.alive[key].fetch_add(1, SeqCst) > 0 && !loads.forgets.load(SeqCst) {
            loads.overlapped.store(true, SeqCst);
        }
        Self { loads: Arc::clone(loads), key, id }
    }

    async fn run(self, load: Load) -> Result<u64, Oops> {
        match &load {
            Load::Ready | Load::Panics => {}
            Load::Yields | Load::YieldsAndFails | Load::YieldsAndPanics => yields().await,
            Load::Waits(gate) => gate.passed().await,
        }
        match load {
            // Not `panic!`, which would be reported in each of many thousand runs.
            Load::Panics | Load::YieldsAndPanics => resume_unwind(Box::new("as it should")),
            Load::YieldsAndFails => Err(Oops),
            Load::Ready | Load::Yields | Load::Waits(_) => {
                self.loads.completed.fetch_add(1, SeqCst);
                Ok(self.id)
            }
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.loads.alive[self.key].fetch_sub(1, SeqCst);
    }
}

/// Flights, and what is known about their loads.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) flights: SingleFlight<usize, u64, Oops>,
    loads: Arc<Loads>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { flights: SingleFlight::new(), loads: Arc::default() }
    }

    pub(crate) fn with(
        settings: impl FnOnce(SingleFlightBuilder<usize, u64, Oops>) -> SingleFlightBuilder<usize, u64, Oops>,
    ) -> Self {
        let flights = settings(SingleFlight::builder()).build().unwrap();
        Self { flights, loads: Arc::default() }
    }

    /// A caller that has not been polled.
    pub(crate) fn caller_of(&self, key: usize, load: Load) -> Caller {
        let World { flights, loads } = self.clone();
        let started = Arc::clone(&loads);
        let future = Box::pin(async move { flights.run(key, || Alive::new(&started, key).run(load)).await });
        Caller { future, loads, floor: None }
    }

    pub(crate) fn caller(&self, load: Load) -> Caller {
        self.caller_of(KEY, load)
    }

    /// A caller that leads: its load is under way.
    pub(crate) fn leader(&self, load: Load) -> Caller {
        let mut caller = self.caller(load);
        assert!(caller.poll().is_pending());
        caller
    }

    /// A call, from beginning to end.
    pub(crate) fn call(&self, load: Load) -> Answer {
        self.caller(load).answer()
    }

    /// A call on a thread of its own.
    pub(crate) fn call_aside(&self, load: Load) -> JoinHandle<Answer> {
        let caller = self.caller(load);
        thread::spawn(move || caller.answer())
    }

    pub(crate) fn forget(&self) -> bool {
        let before = self.started();
        self.loads.forgets.store(true, SeqCst);
        let was_there = self.flights.forget(&KEY);
        self.loads.forgotten.fetch_max(before, SeqCst);
        was_there
    }

    /// Loads started.
    pub(crate) fn started(&self) -> u64 {
        self.loads.started.load(SeqCst)
    }

    /// Loads that were not dropped.
    pub(crate) fn completed(&self) -> usize {
        self.loads.completed.load(SeqCst)
    }

    /// Everyone has been answered: nothing is left. [`drains`](Self::drains) if a load may go on for nobody.
    pub(crate) fn ends(&self) {
        assert!(!self.loads.overlapped.load(SeqCst), "two loads of one key at a time");
        assert_eq!(self.flights.in_flight(), 0, "keys counted");
        for key in [KEY, OTHER] {
            assert_eq!(self.flights.waiters(&key), 0, "waiters of {key}");
            assert!(!self.flights.forget(&key), "{key} is linked");
            assert_eq!(self.loads.alive[key].load(SeqCst), 0, "a load of {key} outlived its flight");
        }
    }

    /// Waits until the loads that go on for nobody are over, then [`ends`](Self::ends).
    pub(crate) fn drains(&self) {
        while self.flights.in_flight() > 0 {
            thread::yield_now();
        }
        self.ends();
    }
}

/// A caller, polled by hand or waited for.
pub(crate) struct Caller {
    future: Pin<Box<dyn Future<Output = Answer> + Send>>,
    loads: Arc<Loads>,
    /// Loads up to this one were forgotten or over before the call.
    floor: Option<u64>,
}

impl Caller {
    pub(crate) fn poll(&mut self) -> Poll<Answer> {
        self.poll_with(Waker::noop())
    }

    pub(crate) fn poll_with(&mut self, waker: &Waker) -> Poll<Answer> {
        let loads = &self.loads;
        let floor = *self.floor.get_or_insert_with(|| {
            // Of two flights of a key, the one whose load began first may end last.
            let seen = if loads.forgets.load(SeqCst) { &loads.forgotten } else { &loads.over };
            seen.load(SeqCst)
        });
        let polled = self.future.as_mut().poll(&mut Context::from_waker(waker));
        if let Poll::Ready(Ok(load)) = polled {
            assert!(load > floor, "load {load} was over or forgotten, as all up to {floor}, before the call");
            self.loads.over.fetch_max(load, SeqCst);
        }
        polled
    }

    pub(crate) fn answer(mut self) -> Answer {
        block_on(poll_fn(|cx| self.poll_with(cx.waker())))
    }
}
