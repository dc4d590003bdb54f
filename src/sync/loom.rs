//! loom's world: small models, every interleaving within a bound.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};
use std::pin::pin;
use std::task::{Context, Wake, Waker};

use loom::sync::Notify;

/// Counters, which nobody decides by: loom need not try every order of their updates.
pub(crate) use std::sync::atomic::AtomicU64;

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use loom::sync::{Mutex as RawMutex, MutexGuard};
pub(crate) use std::sync::Arc;

#[cfg(feature = "cache")]
pub(crate) use ahash::RandomState;

/// Without random keys: a model must run the same way each time.
type Entries<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// The map as it is seen from outside: each method is one step.
pub(crate) struct Map<K, V>(RawMutex<Entries<K, V>>);

impl<K: Hash + Eq, V: Clone> Map<K, V> {
    pub(crate) fn new() -> Self {
        Self(RawMutex::new(HashMap::default()))
    }

    fn lock(&self) -> MutexGuard<'_, Entries<K, V>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.lock().get(key).cloned()
    }

    pub(crate) fn get_or_try_insert(&self, key: K, make: impl FnOnce() -> Option<V>) -> Option<V> {
        match self.lock().entry(key) {
            Entry::Occupied(found) => Some(found.get().clone()),
            Entry::Vacant(place) => {
                if let Some(made) = make() {
                    place.insert(made);
                }
                None
            }
        }
    }

    pub(crate) fn remove_if<Q>(&self, key: &Q, mine: impl FnOnce(&V) -> bool) -> Option<K>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut map = self.lock();
        if map.get(key).is_some_and(mine) { map.remove_entry(key).map(|(key, _)| key) } else { None }
    }

    #[cfg(feature = "cache")]
    pub(crate) fn values(&self) -> Vec<V> {
        self.lock().values().cloned().collect()
    }
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
pub(crate) struct AbortHandle(Arc<Task>);

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

/// As `std::thread_local`: loom's threads share one thread of the operating system.
macro_rules! model_local {
    (static $name:ident: $type:ty = const { $init:expr };) => {
        loom::thread_local! { static $name: $type = $init }
    };
}
pub(crate) use model_local as thread_local;
