//! Values whose destructor or weigher uses the very cache that they come into or leave.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use stampede_guard::{LoadError, Loaded, ManualClock, StampedeCache, StampedeCacheBuilder};
use tokio::sync::oneshot;

use super::Tested;

type Cache = StampedeCache<u64, Value, &'static str>;
type Builder = StampedeCacheBuilder<u64, Value, &'static str>;

/// More keys than there are shards, so that some share one.
const OTHERS: std::ops::Range<u64> = 1_000..1_016;
/// moka drops what it let go of in one of the calls that follow, so that each act is repeated.
const ROUNDS: usize = 50;
const TTL: Duration = Duration::from_secs(10);

/// Uses the cache when its last clone is dropped, unless it is quiet.
#[derive(Clone)]
struct Value(Arc<Inner>);

struct Inner {
    quiet: bool,
    key: u64,
    site: Arc<Site>,
}

impl Value {
    fn new(quiet: bool, key: u64, site: &Arc<Site>) -> Self {
        Self(Arc::new(Inner { quiet, key, site: Arc::clone(site) }))
    }
}

#[derive(Default)]
struct Site {
    cache: OnceLock<Cache>,
    calls: AtomicUsize,
}

impl Site {
    /// Everything that a cache is asked for, under one key and under many others.
    fn meddle(self: &Arc<Self>, key: u64) {
        let Some(cache) = self.cache.get() else { return };
        self.calls.fetch_add(1, Ordering::SeqCst);
        for key in std::iter::once(key).chain(OTHERS) {
            let quiet = Value::new(true, key, self);
            cache.insert(key, quiet);
            drop(cache.get(&key));
            drop(cache.invalidate(&key));
            // Another's load of the key may be under way.
            let load = {
                let site = Arc::clone(self);
                move || async move { Ok(Value::new(true, key, &site)) }
            };
            let call = pin!(cache.get_or_load(key, load));
            let _ = call.poll(&mut Context::from_waker(Waker::noop()));
            drop(cache.invalidate(&key));
        }
        let _ = cache.entry_count();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.quiet {
            self.site.meddle(self.key);
        }
    }
}

/// A cache, and a clock of its own.
struct Test {
    site: Arc<Site>,
    clock: ManualClock,
}

impl Test {
    fn cache(&self) -> &Cache {
        self.site.cache.get().expect("set before the test")
    }

    fn value(&self, key: u64) -> Value {
        Value::new(false, key, &self.site)
    }

    /// For what is not there before the act: only what leaves calls.
    fn quiet(&self, key: u64) -> Value {
        Value::new(true, key, &self.site)
    }

    /// Does `act` after `prepare`, again and again. Values must have used the cache in its course.
    async fn calls(&self, what: &str, prepare: impl AsyncFn(), act: impl AsyncFn()) {
        self.site.calls.store(0, Ordering::SeqCst);
        for _ in 0..ROUNDS {
            prepare().await;
            act().await;
        }
        // Until the store lets go of one; `what` is in the output of a test that waits in vain.
        println!("{what}");
        while self.site.calls.load(Ordering::SeqCst) == 0 {
            self.cache().insert(u64::MAX, self.quiet(u64::MAX));
            let _ = self.cache().entry_count();
        }
    }

    async fn load(&self, value: Value) {
        let key = value.0.key;
        drop(self.cache().get_or_load(key, || async { Ok(value) }).await);
    }

    /// Has a value under `key` that is past its freshness.
    fn has_old(&self, key: u64) {
        drop(self.cache().invalidate(&key));
        self.cache().insert(key, self.value(key));
        self.clock.advance(TTL);
    }

    /// A call whose load waits for the value.
    async fn loading(
        &self,
        key: u64,
    ) -> (oneshot::Sender<Value>, tokio::task::JoinHandle<Result<Value, LoadError<&'static str>>>) {
        let (sender, receiver) = oneshot::channel();
        let (started, has_started) = oneshot::channel();
        let cache = self.cache().clone();
        let load = move || async move {
            let _ = started.send(());
            receiver.await.map_err(|_| "forgotten")
        };
        let call = tokio::spawn(async move { cache.get_or_load(key, load).await });
        has_started.await.expect("a load that starts");
        (sender, call)
    }
}

/// Runs `test` with a cache of `build`. A deadlock is a failure and no hang.
fn with_callers(build: impl Fn(Builder) -> Builder, test: impl AsyncFn(&Test) + Send + 'static) {
    let clock = ManualClock::new();
    let builder = Cache::builder().store(Tested).ttl(TTL).jitter(0.0).clock(clock.clone());
    let site = Arc::new(Site::default());
    assert!(site.cache.set(build(builder).build().unwrap()).is_ok());
    without_deadlock(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&Test { site, clock }));
    });
}

fn without_deadlock(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let tests = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock"),
        _ => tests.join().unwrap(),
    }
}

#[test]
fn values_may_use_the_cache_as_they_are_replaced_and_invalidated() {
    with_callers(
        |builder| builder,
        async |test| {
            let cache = test.cache();
            let has = async || cache.insert(1, test.value(1));
            test.calls("inserted over", has, async || cache.insert(1, test.quiet(1))).await;
            test.calls("invalidated", has, async || drop(cache.invalidate(&1))).await;
            let has_all = async || OTHERS.for_each(|key| cache.insert(key, test.value(key)));
            test.calls("all invalidated", has_all, async || cache.invalidate_all()).await;
        },
    );
}

#[test]
fn values_may_use_the_cache_as_a_load_is_overruled() {
    with_callers(
        |builder| builder,
        async |test| {
            let cache = test.cache();
            let has = async || test.has_old(1);
            test.calls("inserted over", has, async || {
                let (sender, call) = test.loading(1).await;
                cache.insert(1, test.quiet(1));
                let _ = sender.send(test.quiet(1));
                drop(call.await.unwrap());
            })
            .await;
            test.calls("invalidated", has, async || {
                let (sender, call) = test.loading(1).await;
                drop(cache.invalidate(&1));
                let _ = sender.send(test.quiet(1));
                drop(call.await.unwrap());
            })
            .await;
        },
    );
}

#[test]
fn values_may_use_the_cache_as_a_load_lands() {
    with_callers(
        |builder| builder,
        async |test| {
            let has = async || test.has_old(1);
            test.calls("over a dead value", has, async || test.load(test.quiet(1)).await).await;
            test.calls("for many", has, async || {
                let (sender, call) = test.loading(1).await;
                let cache = test.cache();
                let mut followers = Vec::new();
                for _ in 0..3 {
                    let mut follower = Box::pin(cache.get_or_load(1, || async { Err("not called") }));
                    let mut cx = Context::from_waker(Waker::noop());
                    // Unless a value that is dropped now has made the load another's.
                    if follower.as_mut().poll(&mut cx).is_pending() {
                        followers.push(follower);
                    }
                }
                let _ = sender.send(test.value(1));
                drop(call.await.unwrap());
                for follower in followers {
                    drop(follower.await);
                }
            })
            .await;
            test.calls("for those who wait alone", has, async || {
                let value = test.quiet(1);
                let loaded = async { Ok(Loaded::new(value).uncacheable()) };
                drop(test.cache().get_or_load_with(1, |_| loaded).await);
            })
            .await;
        },
    );
}

#[test]
fn values_may_use_the_cache_as_they_expire() {
    with_callers(
        |builder| builder.stale_while_revalidate(TTL).stale_if_error(TTL * 2),
        async |test| {
            let has = async || test.has_old(1);
            test.calls("refreshed", has, async || {
                test.load(test.quiet(1)).await;
                // Every task has its turns; none waits for anything.
                for _ in 0..32 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            assert!(test.cache().stats().refreshes > 0);
            let is_older = async || {
                test.has_old(1);
                test.clock.advance(TTL);
            };
            test.calls("a load failed", is_older, async || {
                drop(test.cache().get_or_load(1, || async { Err("down") }).await);
            })
            .await;
        },
    );
}

#[test]
fn values_may_use_the_cache_as_the_capacity_pushes_them_out() {
    with_callers(
        |builder| builder.capacity(8),
        async |test| {
            let has = async || (0..8).for_each(|key| test.cache().insert(key, test.value(key)));
            test.calls("pushed out", has, async || {
                for key in 8..16 {
                    test.cache().insert(key, test.quiet(key));
                    drop(test.cache().get(&key));
                }
            })
            .await;
        },
    );
}

/// Two threads whose values are dropped in the cache's calls and use each other's keys.
#[test]
fn values_of_two_threads_may_use_each_others_keys() {
    with_callers(
        |builder| builder.capacity(32),
        async |test| {
            let key = |turn: u64| OTHERS.start + turn % 32;
            thread::scope(|scope| {
                for thread in 0..2 {
                    scope.spawn(move || {
                        for turn in 0..40 {
                            test.cache().insert(key(turn * (thread + 1)), test.value(key(turn)));
                        }
                    });
                }
            });
        },
    );
}

#[test]
fn a_weigher_may_use_the_cache() {
    let cache: Arc<OnceLock<StampedeCache<u64, u64>>> = Arc::default();
    let inner = Arc::clone(&cache);
    let weighed = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&weighed);
    let weigher = move |key: &u64, value: &u64| {
        noted.lock().unwrap().push(*key);
        if let Some(cache) = inner.get()
            && *key < 3
        {
            drop(cache.invalidate(key));
            cache.insert(*key + 3, *value);
            let _ = cache.get(key);
        }
        1
    };
    without_deadlock(move || {
        let built = StampedeCache::builder().store(Tested).weigher(weigher).build().unwrap();
        let cache = cache.get_or_init(|| built);
        cache.insert(1, 1);
        cache.insert(1, 2);
        let loaded = pin!(cache.get_or_load(2, || async { Ok(3) }));
        let loaded = loaded.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(loaded, Poll::Ready(Ok(3))));
        assert_eq!(cache.get(&4), Some(2));
    });
    assert_eq!(*weighed.lock().unwrap(), [1, 4, 1, 4, 2, 5]);
}

#[test]
fn a_value_that_cannot_be_cloned_holds_nobody_up() {
    /// Its clones are counted down, and the last one panics.
    struct Fussy(Arc<AtomicUsize>);
    impl Clone for Fussy {
        fn clone(&self) -> Self {
            assert!(self.0.fetch_sub(1, Ordering::SeqCst) > 1, "not this one");
            Self(Arc::clone(&self.0))
        }
    }
    let cache: StampedeCache<u64, Fussy> = StampedeCache::builder().store(Tested).build().unwrap();
    let load = |clones| {
        let value = Fussy(Arc::new(AtomicUsize::new(clones)));
        let call = pin!(cache.get_or_load(1, || async { Ok(value) }));
        let came = call.poll(&mut Context::from_waker(Waker::noop()));
        came.map(|landed| landed.map(drop))
    };
    for clones in [1, 2, 3] {
        match load(clones) {
            Poll::Ready(Err(LoadError::Panicked(panic))) => assert_eq!(panic.message(), Some("not this one")),
            Poll::Ready(Ok(())) => assert!(clones > 1),
            other => panic!("{other:?}"),
        }
        assert!(cache.stats().flights.panicked > 0);
        drop(cache.invalidate(&1));
    }
    assert!(matches!(load(100), Poll::Ready(Ok(()))));
    assert!(cache.get(&1).is_some());
}
