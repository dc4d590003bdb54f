//! Loaders: what every peer is given to run.

use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// The error of a loader that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the load failed")
    }
}

impl std::error::Error for Failed {}

pub type Loaded = Result<u64, Failed>;

/// How a key is loaded. The run's type has a name because Tower's services need it.
pub trait Load: Clone + Send + Sync + 'static {
    type Run: Future<Output = Loaded> + Send + 'static;

    fn run(self, key: u64) -> Self::Run;
}

/// Ready at the first poll.
#[derive(Clone, Copy)]
pub struct AtOnce;

impl Load for AtOnce {
    type Run = Ready<Loaded>;

    fn run(self, key: u64) -> Ready<Loaded> {
        ready(Ok(key))
    }
}

/// Ready at the second poll, which it asks for itself.
#[derive(Clone, Copy)]
pub struct Pending;

pub struct Once(Option<u64>, u64);

impl Load for Pending {
    type Run = Once;

    fn run(self, key: u64) -> Once {
        Once(Some(key), key)
    }
}

impl Future for Once {
    type Output = Loaded;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Loaded> {
        if self.0.take().is_some() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.1))
    }
}

/// A run that takes memory of its own once it is polled: one that never is costs no allocation, as with an `async`
/// block.
pub struct Late<L> {
    load: L,
    key: u64,
    run: Option<Pin<Box<dyn Future<Output = Loaded> + Send>>>,
}

impl<L: Start> Future for Late<L> {
    type Output = Loaded;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Loaded> {
        let this = &mut *self;
        this.run.get_or_insert_with(|| Box::pin(this.load.clone().start(this.key))).as_mut().poll(cx)
    }
}

pub trait Start: Clone + Send + Sync + Unpin + 'static {
    fn start(self, key: u64) -> impl Future<Output = Loaded> + Send + 'static;
}

/// Ready when the gate is opened.
#[derive(Clone)]
pub struct Gated(Arc<Gate>);

struct Gate {
    bar: Semaphore,
    started: AtomicUsize,
    done: OnceLock<Instant>,
}

impl Default for Gated {
    fn default() -> Self {
        let (bar, started, done) = (Semaphore::new(0), AtomicUsize::new(0), OnceLock::new());
        Self(Arc::new(Gate { bar, started, done }))
    }
}

impl Gated {
    pub fn open(&self) {
        self.0.bar.close();
    }

    /// Loads that were polled.
    pub fn started(&self) -> usize {
        self.0.started.load(SeqCst)
    }

    /// When the first load was done.
    pub fn done(&self) -> Instant {
        *self.0.done.get().expect("a load that is done")
    }
}

impl Load for Gated {
    type Run = Late<Self>;

    fn run(self, key: u64) -> Late<Self> {
        Late { load: self, key, run: None }
    }
}

impl Start for Gated {
    async fn start(self, key: u64) -> Loaded {
        self.0.started.fetch_add(1, SeqCst);
        let _ = self.0.bar.acquire().await;
        self.0.done.get_or_init(Instant::now);
        Ok(key)
    }
}

/// How a slow load ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Value,
    /// The first run panics; those after it have a value.
    Panic,
    Error,
}

/// Takes its time.
#[derive(Clone)]
pub struct Slow {
    takes: Duration,
    end: End,
    started: Arc<AtomicUsize>,
}

impl Slow {
    pub fn new(takes: Duration, end: End) -> Self {
        Self { takes, end, started: Arc::default() }
    }

    /// Loads that were polled.
    pub fn started(&self) -> usize {
        self.started.load(SeqCst)
    }
}

impl Load for Slow {
    type Run = Late<Self>;

    fn run(self, key: u64) -> Late<Self> {
        Late { load: self, key, run: None }
    }
}

impl Start for Slow {
    async fn start(self, key: u64) -> Loaded {
        let first = self.started.fetch_add(1, SeqCst) == 0;
        tokio::time::sleep(self.takes).await;
        assert!(!(first && self.end == End::Panic), "the first load panics");
        if self.end == End::Error { Err(Failed) } else { Ok(key) }
    }
}
