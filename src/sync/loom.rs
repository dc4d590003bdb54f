//! loom's world: small models, every interleaving within a bound.

use std::pin::pin;
use std::task::{Context, Wake, Waker};

use loom::sync::Notify;

/// Counters, which nobody decides by: loom need not try every order of their updates.
pub(crate) use std::sync::atomic::AtomicU64;

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use loom::sync::{Mutex as RawMutex, MutexGuard};
pub(crate) use std::sync::Arc;

/// One: every key meets every other.
pub(crate) fn shards() -> usize {
    1
}

/// A task: a thread that polls a future until it is ready or aborted.
struct Task {
    aborted: AtomicBool,
    woken: Notify,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.notify();
    }
}

/// Ends a task between two polls, as Tokio does: its future is dropped on its own thread.
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) struct AbortHandle(Arc<Task>);

#[cfg_attr(not(test), allow(dead_code))]
impl AbortHandle {
    pub(crate) fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
        self.0.woken.notify();
    }
}

/// Starts `task` on a thread of its own.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    let shared = Arc::new(Task { aborted: AtomicBool::new(false), woken: Notify::new() });
    let handle = AbortHandle(Arc::clone(&shared));
    loom::thread::spawn(move || {
        let waker = Waker::from(Arc::clone(&shared));
        let mut future = pin!(task);
        while !shared.aborted.load(Ordering::Acquire)
            && future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
        {
            shared.woken.wait();
        }
    });
    handle
}

/// True where [`spawn`] works.
pub(crate) fn can_spawn() -> bool {
    true
}

/// True where what is [spawned](spawn) runs whatever this thread does next.
pub(crate) fn spawns_aside() -> bool {
    true
}

/// As `std::thread_local`: loom's threads share one thread of the operating system.
macro_rules! model_local {
    (static $name:ident: $type:ty = const { $init:expr };) => {
        loom::thread_local! { static $name: $type = $init }
    };
}
pub(crate) use model_local as thread_local;
