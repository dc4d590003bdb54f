//! Callers polled by hand, loaders that count themselves, and waits on conditions.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use stampede_guard::{LoadError, SingleFlight};
use tokio::sync::watch;

/// A loader's own error; deliberately not `Clone`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("oops {0}")]
pub(crate) struct Oops(pub(crate) u64);

pub(crate) type Group = SingleFlight<u64, u64, Oops>;
pub(crate) type Answer = Result<u64, LoadError<Oops>>;

/// Comes back when `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}

/// Runs `test` on a thread of its own, so that a deadlock is a failure and not a hang.
pub(crate) fn without_deadlock(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("deadlock"),
        _ => thread.join().unwrap(),
    }
}

pub(crate) fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Lets every task of a current-thread runtime run until all of them wait.
pub(crate) fn settle(runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
    });
}

#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A caller polled by hand.
pub(crate) struct Caller<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    wakes: Arc<Wakes>,
}

impl<'a, T> Caller<'a, T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self { future: Box::pin(future), wakes: Arc::default() }
    }

    pub(crate) fn poll(&mut self) -> Poll<T> {
        self.poll_with(&Waker::from(Arc::clone(&self.wakes)))
    }

    pub(crate) fn poll_with(&mut self, waker: &Waker) -> Poll<T> {
        self.wakes.0.store(0, Ordering::SeqCst);
        self.future.as_mut().poll(&mut Context::from_waker(waker))
    }

    #[track_caller]
    pub(crate) fn waits(mut self) -> Self {
        assert!(self.poll().is_pending());
        self
    }

    /// Woken since the last poll.
    pub(crate) fn woken(&self) -> bool {
        self.wakes.0.load(Ordering::SeqCst) > 0
    }

    #[track_caller]
    pub(crate) fn ready(mut self) -> T {
        match self.poll() {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("still waits"),
        }
    }
}

/// Counts loads: started, alive now, the most alive at once, and run to their end.
#[derive(Clone, Default)]
pub(crate) struct Loads(Arc<LoadsInner>);

#[derive(Default)]
struct LoadsInner {
    started: AtomicUsize,
    alive: AtomicUsize,
    peak: AtomicUsize,
    completed: AtomicUsize,
}

/// One load; alive until dropped.
pub(crate) struct Alive(Loads);

impl Loads {
    pub(crate) fn start(&self) -> Alive {
        self.0.started.fetch_add(1, Ordering::SeqCst);
        let alive = self.0.alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.peak.fetch_max(alive, Ordering::SeqCst);
        Alive(self.clone())
    }

    pub(crate) fn started(&self) -> usize {
        self.0.started.load(Ordering::SeqCst)
    }

    pub(crate) fn alive(&self) -> usize {
        self.0.alive.load(Ordering::SeqCst)
    }

    pub(crate) fn peak(&self) -> usize {
        self.0.peak.load(Ordering::SeqCst)
    }

    pub(crate) fn completed(&self) -> usize {
        self.0.completed.load(Ordering::SeqCst)
    }

    /// A load that takes `time` and gives `value`.
    pub(crate) fn taking(
        &self,
        time: Duration,
        value: u64,
    ) -> impl Future<Output = Result<u64, Oops>> + use<> {
        let alive = self.start();
        async move {
            tokio::time::sleep(time).await;
            alive.complete();
            Ok(value)
        }
    }

    /// A load that never ends.
    pub(crate) fn endless(&self) -> impl Future<Output = Result<u64, Oops>> + use<> {
        let alive = self.start();
        async move {
            let _alive = alive;
            std::future::pending().await
        }
    }
}

impl Alive {
    pub(crate) fn complete(&self) {
        self.0.0.completed.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Holds loads back until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn passed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut opened = self.0.subscribe();
        async move {
            let _ = opened.wait_for(|&open| open).await;
        }
    }

    /// A load that gives `value` once the gate is open.
    pub(crate) fn then(&self, value: u64) -> impl Future<Output = Result<u64, Oops>> + Send + use<> {
        let passed = self.passed();
        async move {
            passed.await;
            Ok(value)
        }
    }
}

/// The group knows nothing of `keys`.
#[track_caller]
pub(crate) fn assert_empty(flights: &Group, keys: impl IntoIterator<Item = u64>) {
    assert_eq!(flights.in_flight(), 0, "keys counted");
    for key in keys {
        assert_eq!(flights.waiters(&key), 0, "waiters of {key}");
        assert!(!flights.forget(&key), "{key} is linked");
    }
}
