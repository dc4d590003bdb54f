//! What a call for many keys promises, over the store that the module above names.

#![allow(clippy::unchecked_time_subtraction)] // a test that fails panics all the same

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use stampede_guard::{
    EarlyRefresh, LoadError, Loaded, ManualClock, OnAbandon, Overloaded, StampedeCache, StampedeCacheBuilder,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::Tested;

type Cache = StampedeCache<u64, u64, String>;
type Builder = StampedeCacheBuilder<u64, u64, String>;
type Found = HashMap<u64, u64>;
type Answers = HashMap<u64, Result<u64, LoadError<String>>>;

const TTL: Duration = Duration::from_secs(10);

fn builder() -> Builder {
    Cache::builder().store(Tested)
}

/// Values are fresh for ten seconds sharp.
fn sharp(clock: &ManualClock) -> Builder {
    builder().ttl(TTL).jitter(0.0).clock(clock.clone())
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// A call that has been polled once, and is in the air.
async fn in_the_air<F: Future>(call: F) -> Pin<Box<F>> {
    let mut call = Box::pin(call);
    poll_fn(|cx| {
        assert!(call.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    call
}

/// An origin whose value of a key is ten times the key.
fn found(keys: impl IntoIterator<Item = u64>) -> Found {
    keys.into_iter().map(|key| (key, 10 * key)).collect()
}

/// The calls of a loader, each answered when its test sees fit.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Call>>>);

struct Call {
    keys: Vec<u64>,
    answer: oneshot::Sender<Result<Found, String>>,
}

impl Calls {
    fn loader(&self) -> impl FnOnce(Vec<u64>) -> LoadFuture + use<> {
        let calls = Arc::clone(&self.0);
        move |keys| {
            let (answer, load) = oneshot::channel();
            calls.lock().unwrap().push(Call { keys, answer });
            Box::pin(async move { load.await.unwrap_or_else(|_| Err("forgotten".into())) })
        }
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn take(&self) -> Call {
        let mut calls = self.0.lock().unwrap();
        assert_eq!(calls.len(), 1);
        calls.remove(0)
    }
}

type LoadFuture = Pin<Box<dyn Future<Output = Result<Found, String>> + Send>>;

impl Call {
    fn answer(self, answer: Result<Found, String>) {
        self.answer.send(answer).unwrap();
    }

    /// With the value of each key.
    fn found(self) {
        let found = found(self.keys.iter().copied());
        self.answer(Ok(found));
    }
}

/// The values of an answer without errors.
fn values(answers: Answers) -> Found {
    answers.into_iter().map(|(key, value)| (key, value.unwrap())).collect()
}

async fn unneeded(keys: Vec<u64>) -> Result<Found, String> {
    panic!("called for {keys:?}")
}

#[tokio::test]
async fn what_is_cached_is_served_and_the_rest_is_loaded_in_one_call() {
    let cache = builder().build().unwrap();
    cache.insert(1, 11);
    let calls = Calls::default();
    let call = in_the_air(cache.get_or_load_many([3, 1, 2, 3, 2], calls.loader())).await;
    let batch = calls.take();
    assert_eq!(batch.keys, [3, 2], "each once, in the order given");
    batch.found();
    assert_eq!(values(call.await), HashMap::from([(1, 11), (2, 20), (3, 30)]));
    assert_eq!(values(cache.get_or_load_many([1, 2, 3], unneeded).await).len(), 3);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.flights.loads), (4, 2, 2));
}

#[tokio::test]
async fn no_keys_are_no_call() {
    let cache = builder().build().unwrap();
    assert!(cache.get_or_load_many([], unneeded).await.is_empty());
}

#[tokio::test]
async fn nothing_happens_before_the_first_poll() {
    let cache = builder().build().unwrap();
    let calls = Calls::default();
    drop(cache.get_or_load_many([1], calls.loader()));
    assert_eq!((calls.count(), cache.stats().misses), (0, 0));
}

#[tokio::test]
async fn callers_of_one_key_join_the_batch_and_the_batch_joins_theirs() {
    let cache = builder().build().unwrap();
    let (answer, load) = oneshot::channel();
    let alone = in_the_air(cache.get_or_load(1, || async { load.await.unwrap() })).await;
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2, 3], calls.loader())).await;
    let batch = calls.take();
    assert_eq!(batch.keys, [2, 3]);
    let joined = in_the_air(cache.get_or_load(2, || async { panic!("in flight") })).await;
    let other = in_the_air(cache.get_or_load_many([2, 3], unneeded)).await;
    batch.found();
    assert_eq!(joined.await.unwrap(), 20);
    assert_eq!(values(other.await), found([2, 3]));
    answer.send(Ok(11)).unwrap();
    assert_eq!(alone.await.unwrap(), 11);
    assert_eq!(values(many.await), HashMap::from([(1, 11), (2, 20), (3, 30)]));
    assert_eq!(cache.stats().flights.loads, 3);
}

#[tokio::test]
async fn one_error_is_shared_by_the_keys_of_the_batch_and_by_no_others() {
    let cache = builder().build().unwrap();
    cache.insert(1, 11);
    let (answer, load) = oneshot::channel();
    let alone = in_the_air(cache.get_or_load(2, || async { load.await.unwrap() })).await;
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2, 3, 4], calls.loader())).await;
    calls.take().answer(Err("down".into()));
    answer.send(Ok(22)).unwrap();
    let mut answers = many.await;
    assert_eq!(answers.remove(&1).unwrap().unwrap(), 11);
    assert_eq!(answers.remove(&2).unwrap().unwrap(), 22);
    let (Some(Err(LoadError::Failed(three))), Some(Err(LoadError::Failed(four)))) =
        (answers.remove(&3), answers.remove(&4))
    else {
        panic!("{answers:?}")
    };
    assert!(Arc::ptr_eq(&three, &four));
    assert_eq!((three.as_str(), alone.await.unwrap()), ("down", 22));
    assert_eq!((cache.get(&3), cache.get(&4)), (None, None));
}

#[tokio::test]
async fn one_keys_failure_elsewhere_fails_no_sibling() {
    let cache = builder().build().unwrap();
    let (answer, load) = oneshot::channel();
    let alone = in_the_air(cache.get_or_load(1, || async { load.await.unwrap() })).await;
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2], calls.loader())).await;
    calls.take().found();
    answer.send(Err("down".into())).unwrap();
    let answers = many.await;
    assert!(matches!(answers[&1], Err(LoadError::Failed(_))));
    assert!(matches!(answers[&2], Ok(20)));
    alone.await.unwrap_err();
}

#[tokio::test]
async fn a_panic_is_that_of_each_key_of_the_batch() {
    let cache = builder().build().unwrap();
    cache.insert(1, 11);
    let at_once = |_| -> LoadFuture { panic!("no such shard") };
    let later = |_| -> LoadFuture {
        Box::pin(async {
            tokio::task::yield_now().await;
            panic!("no such shard")
        })
    };
    for answers in
        [cache.get_or_load_many([1, 2, 3], at_once).await, cache.get_or_load_many([1, 2, 3], later).await]
    {
        assert!(matches!(answers[&1], Ok(11)));
        for key in [2, 3] {
            let Err(LoadError::Panicked(panic)) = &answers[&key] else { panic!("{answers:?}") };
            assert_eq!(panic.message(), Some("no such shard"));
        }
    }
    assert_eq!(cache.stats().flights.panicked, 4);
    assert_eq!(values(cache.get_or_load_many([2, 3], |keys| async { Ok(found(keys)) }).await), found([2, 3]));
}

#[tokio::test]
async fn a_key_that_is_left_out_is_absent_and_not_cached() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(TTL).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL);
    let answers = cache.get_or_load_many([1, 2, 3], |_| async { Ok(found([2, 77])) }).await;
    assert_eq!(values(answers), found([2]));
    assert_eq!(cache.get(&77), None, "nobody asked for it");
    assert_eq!(cache.entry_count(), 1, "the old value went, too");
    assert_eq!(cache.get_or_load(3, || async { Ok(33) }).await.unwrap(), 33);
}

#[tokio::test]
async fn callers_of_a_key_that_is_left_out_run_their_own_loader_once() {
    let cache = builder().build().unwrap();
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2], calls.loader())).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let mut alone = JoinSet::new();
    for _ in 0..100 {
        let (cache, loads) = (cache.clone(), Arc::clone(&loads));
        let load = || async move {
            loads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(11)
        };
        alone.spawn(async move { cache.get_or_load(1, load).await.unwrap() });
    }
    until(|| cache.stats().flights.coalesced == 100).await;
    calls.take().answer(Ok(found([2])));
    assert_eq!(values(many.await), found([2]));
    assert!(alone.join_all().await.into_iter().all(|value| value == 11));
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    assert_eq!(cache.get(&1), Some(11));
}

#[tokio::test]
async fn a_call_that_waits_for_keys_another_left_out_asks_its_own_loader_for_all_of_them() {
    let cache = builder().build().unwrap();
    let (first, second) = (Calls::default(), Calls::default());
    let one = in_the_air(cache.get_or_load_many([1, 2, 3], first.loader())).await;
    let mut two = in_the_air(cache.get_or_load_many([1, 2, 3], second.loader())).await;
    assert_eq!(second.count(), 0);
    first.take().answer(Ok(found([2])));
    assert_eq!(values(one.await), found([2]));
    poll_fn(|cx| {
        assert!(two.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    let batch = second.take();
    assert_eq!(batch.keys, [1, 3]);
    batch.answer(Ok(found([3])));
    assert_eq!(values(two.await), found([2, 3]), "left out by both");
}

#[tokio::test]
async fn a_key_that_others_left_out_after_the_call_is_absent() {
    let cache = builder().build().unwrap();
    let (first, second) = (Calls::default(), Calls::default());
    let one = in_the_air(cache.get_or_load_many([1], first.loader())).await;
    let two = in_the_air(cache.get_or_load_many([1, 2], second.loader())).await;
    first.take().answer(Ok(Found::new()));
    assert!(one.await.is_empty());
    second.take().found();
    assert_eq!(values(two.await), found([2]));
}

#[tokio::test]
async fn stale_keys_are_served_and_ride_along() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL);
    cache.insert(2, 2);
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2, 3], calls.loader())).await;
    let batch = calls.take();
    assert_eq!(batch.keys, [3, 1], "what is waited for, then what is stale");
    assert_eq!(cache.stats().refreshes, 1);
    batch.found();
    assert_eq!(values(many.await), HashMap::from([(1, 1), (2, 2), (3, 30)]));
    until(|| cache.get(&1) == Some(10)).await;
}

#[tokio::test]
async fn stale_keys_alone_are_one_background_load() {
    let clock = ManualClock::new();
    let cache = sharp(&clock)
        .stale_while_revalidate(TTL)
        .early_refresh(EarlyRefresh::Fraction(0.5))
        .max_concurrent_loads(1)
        .build()
        .unwrap();
    cache.insert(1, 1);
    clock.advance(TTL / 2);
    cache.insert(2, 2);
    clock.advance(TTL / 2);
    let calls = Calls::default();
    let served = cache.get_or_load_many([1, 2], calls.loader()).await;
    assert_eq!(values(served), HashMap::from([(1, 1), (2, 2)]), "at once, with one that is still fresh");
    let batch = calls.take();
    assert_eq!(batch.keys, [1, 2]);
    assert_eq!(values(cache.get_or_load_many([1, 2], unneeded).await).len(), 2, "one is under way");
    batch.found();
    until(|| cache.get(&1) == Some(10) && cache.get(&2) == Some(20)).await;
    assert_eq!(cache.stats().refreshes, 2);
}

#[tokio::test]
async fn a_background_batch_without_a_permit_is_skipped() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).max_concurrent_loads(1).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL);
    let (answer, load) = oneshot::channel();
    let other = in_the_air(cache.get_or_load(9, || async { load.await.unwrap() })).await;
    assert_eq!(values(cache.get_or_load_many([1], unneeded).await), HashMap::from([(1, 1)]));
    assert_eq!((cache.stats().refreshes, cache.stats().flights.loads), (0, 1));
    answer.send(Ok(9)).unwrap();
    other.await.unwrap();
    cache.get_or_load_many([1], |keys| async { Ok(found(keys)) }).await;
    until(|| cache.get(&1) == Some(10)).await;
}

#[tokio::test]
async fn a_background_batch_that_fails_backs_off() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).build().unwrap();
    (0..3).for_each(|key| cache.insert(key, key));
    clock.advance(TTL);
    let calls = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let calls = Arc::clone(&calls);
        let load = |_| async move {
            calls.fetch_add(1, Ordering::Relaxed);
            Err("down".into())
        };
        assert_eq!(values(cache.get_or_load_many(0..3, load).await).len(), 3);
        until(|| cache.stats().flights.failed == cache.stats().flights.loads).await;
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_batch_takes_one_permit_and_gives_it_back() {
    let cache = builder().max_concurrent_loads(1).build().unwrap();
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many(1..=50, calls.loader())).await;
    let queued = in_the_air(cache.get_or_load(99, || async { Ok(99) })).await;
    calls.take().found();
    assert_eq!(values(many.await).len(), 50);
    assert_eq!(queued.await.unwrap(), 99);
    let panics: [fn(Vec<u64>) -> LoadFuture; 2] =
        [|_| panic!("no such shard"), |_| Box::pin(async { panic!("no such shard") })];
    for load in panics {
        assert!(cache.get_or_load_many([100], load).await[&100].is_err());
        cache.invalidate(&99);
        assert_eq!(cache.get_or_load(99, || async { Ok(99) }).await.unwrap(), 99);
    }
}

#[tokio::test]
async fn a_batch_waits_for_its_turn() {
    let cache = builder().max_concurrent_loads(1).build().unwrap();
    let (answer, load) = oneshot::channel();
    let runs = in_the_air(cache.get_or_load(9, || async { load.await.unwrap() })).await;
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let load = |keys| async move {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(found(keys))
    };
    let many = in_the_air(cache.get_or_load_many([1, 2], load)).await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(started.load(Ordering::Relaxed), 0);
    answer.send(Ok(9)).unwrap();
    assert_eq!(values(many.await), found([1, 2]));
    runs.await.unwrap();
}

#[tokio::test]
async fn an_insert_or_an_invalidation_during_a_batch_wins() {
    let cache = builder().build().unwrap();
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2, 3], calls.loader())).await;
    cache.insert(1, 11);
    cache.invalidate(&2);
    calls.take().found();
    assert_eq!(values(many.await), found([1, 2, 3]), "those who waited have what was loaded");
    assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some(11), None, Some(30)));
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_its_batch_to_the_cache() {
    let cache = builder().build().unwrap();
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2], calls.loader())).await;
    drop(many);
    calls.take().found();
    until(|| cache.get(&1) == Some(10) && cache.get(&2) == Some(20)).await;
}

#[tokio::test]
async fn a_batch_that_nobody_wants_is_dropped_and_one_that_somebody_wants_is_not() {
    let cache = builder().on_abandon(OnAbandon::Cancel).max_concurrent_loads(1).build().unwrap();
    let calls = Calls::default();
    drop(in_the_air(cache.get_or_load_many([1, 2], calls.loader())).await);
    let mut batch = calls.take();
    batch.answer.closed().await;
    assert_eq!(cache.stats().flights.abandoned, 2);

    let many = in_the_air(cache.get_or_load_many([1, 2], calls.loader())).await;
    let joined = in_the_air(cache.get_or_load(2, || async { panic!("in flight") })).await;
    drop(many);
    calls.take().found();
    assert_eq!(joined.await.unwrap(), 20);
    assert_eq!(cache.get(&1), None, "its flight was dropped");
}

#[tokio::test]
async fn the_keys_of_an_abandoned_batch_take_the_places_there_are() {
    let cache = builder().max_abandoned(2).build().unwrap();
    let calls = Calls::default();
    drop(in_the_air(cache.get_or_load_many([1, 2, 3], calls.loader())).await);
    assert_eq!(cache.stats().flights.abandoned, 1);
    calls.take().found();
    until(|| (1..=3).filter(|key| cache.contains_key(key)).count() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_ends_by_the_load_timeout() {
    let cache = builder().load_timeout(Duration::from_secs(1)).build().unwrap();
    let calls = Calls::default();
    let answers = cache.get_or_load_many([1, 2], calls.loader()).await;
    assert!(answers.values().all(|answer| matches!(answer, Err(LoadError::TimedOut(_)))));
    calls.take().answer.closed().await;
    assert_eq!(cache.stats().flights.timed_out, 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_always_has_more_to_do_ends_by_the_load_timeout_too() {
    let limit = Duration::from_secs(1);
    let cache = builder().load_timeout(limit).build().unwrap();
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let busy = cache.get_or_load_many([1, 2], |_| async move {
        // As one that reads what others send faster: each of its turns ends because the task has had enough.
        for _ in 0..1_000_000 {
            tokio::task::consume_budget().await;
        }
        drop(held);
        panic!("runs on")
    });
    let (answers, ()) = tokio::join!(busy, tokio::time::advance(limit * 2));
    assert!(answers.values().all(|answer| matches!(answer, Err(LoadError::TimedOut(_)))), "{answers:?}");
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(Arc::strong_count(&alive), 1, "nobody waits for it");
}

#[tokio::test]
async fn keys_beyond_a_cap_are_refused_and_the_others_are_not() {
    let cache = builder().max_in_flight(2).build().unwrap();
    let calls = Calls::default();
    let many = in_the_air(cache.get_or_load_many([1, 2, 3], calls.loader())).await;
    let batch = calls.take();
    assert_eq!(batch.keys, [1, 2]);
    batch.found();
    let answers = many.await;
    assert!(matches!(answers[&1], Ok(10)) && matches!(answers[&2], Ok(20)));
    assert!(matches!(answers[&3], Err(LoadError::Overloaded(Overloaded::InFlight { max: 2 }))));
}

#[tokio::test(start_paused = true)]
async fn stale_values_stand_in_for_a_batch_that_fails_or_is_slow() {
    let soft = Duration::from_millis(50);
    let cache = builder().ttl(TTL).jitter(0.0).stale_if_error(TTL).soft_timeout(soft).build().unwrap();
    (1..=3).for_each(|key| cache.insert(key, key));
    tokio::time::advance(TTL).await;
    let answers = cache.get_or_load_many(1..=4, |_| async { Err("down".into()) }).await;
    assert!((1..=3).all(|key| matches!(answers[&key], Ok(value) if value == key)));
    assert!(matches!(answers[&4], Err(LoadError::Failed(_))));

    tokio::time::advance(Duration::from_secs(1)).await;
    let begun = tokio::time::Instant::now();
    let slow = |keys| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(found(keys))
    };
    let served = values(cache.get_or_load_many(1..=3, slow).await);
    assert_eq!((begun.elapsed(), served), (soft, HashMap::from([(1, 1), (2, 2), (3, 3)])));
    tokio::time::sleep(Duration::from_millis(151)).await;
    assert_eq!((1..=3).filter(|key| cache.contains_key(key)).count(), 3, "the load went on");
}

#[tokio::test]
async fn a_closed_cache_serves_what_it_has_of_many() {
    let cache = builder().build().unwrap();
    cache.insert(1, 11);
    cache.close().await;
    let answers = cache.get_or_load_many([1, 2], unneeded).await;
    assert!(matches!(answers[&1], Ok(11)));
    assert!(matches!(answers[&2], Err(LoadError::Cancelled)));
}

#[tokio::test]
async fn a_loader_that_asks_for_the_key_it_loads_hears_so_key_by_key() {
    let cache = builder().build().unwrap();
    let inner = cache.clone();
    let load = || async move {
        let answers = inner.get_or_load_many([1, 2], |keys| async { Ok(found(keys)) }).await;
        assert!(matches!(answers[&1], Err(LoadError::Reentrant)));
        answers[&2].clone().map_err(|_| "lost".to_string())
    };
    assert_eq!(cache.get_or_load(1, load).await.unwrap(), 20);
}

#[test]
fn cached_keys_need_no_runtime() {
    let cache = builder().build().unwrap();
    cache.insert(1, 11);
    let mut call = Box::pin(cache.get_or_load_many([1], unneeded));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(answers) = call.as_mut().poll(&mut cx) else { panic!("not ready") };
    assert_eq!(values(answers), HashMap::from([(1, 11)]));
}

#[test]
fn a_runtime_that_shuts_down_cancels_a_batch() {
    let cache = builder().build().unwrap();
    let calls = Calls::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut call = Box::pin(cache.get_or_load_many([1, 2], calls.loader()));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    {
        let _inside = runtime.enter();
        assert!(call.as_mut().poll(&mut cx).is_pending());
    }
    drop(runtime);
    let Poll::Ready(answers) = call.as_mut().poll(&mut cx) else { panic!("it hangs") };
    assert!(answers.len() == 2 && answers.values().all(|answer| matches!(answer, Err(LoadError::Cancelled))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn overlapping_calls_load_each_key_once() {
    const KEYS: u64 = 300;
    let cache = builder().max_concurrent_loads(3).build().unwrap();
    let loads: Arc<Vec<AtomicUsize>> = Arc::new((0..KEYS).map(|_| AtomicUsize::new(0)).collect());
    let gate = Arc::new(Semaphore::new(3));
    let mut calls = JoinSet::new();
    for call in 0..200 {
        let (cache, loads, gate) = (cache.clone(), Arc::clone(&loads), Arc::clone(&gate));
        calls.spawn(async move {
            let keys = (0..30).map(|step| (call * 7 + step * 11) % KEYS);
            let load = |keys: Vec<u64>| async move {
                let _running = gate.try_acquire().expect("more than three batches at once");
                tokio::task::yield_now().await;
                for &key in &keys {
                    loads[usize::try_from(key).unwrap()].fetch_add(1, Ordering::Relaxed);
                }
                Ok(found(keys))
            };
            let answers = values(cache.get_or_load_many(keys, load).await);
            assert!(answers.len() == 30 && answers.iter().all(|(key, value)| *value == 10 * key));
        });
    }
    calls.join_all().await;
    assert!(loads.iter().all(|count| count.load(Ordering::Relaxed) <= 1));
}

#[tokio::test]
async fn a_batch_of_ten_thousand_is_one_call() {
    let cache = builder().capacity(20_000).build().unwrap();
    let answers = cache.get_or_load_many(0..10_000, |keys| async { Ok(found(keys)) }).await;
    assert_eq!(values(answers), found(0..10_000));
    assert_eq!(cache.entry_count(), 10_000);
}

#[tokio::test]
async fn tagged_values_in_flight_are_joined_like_any_other() {
    let cache = builder().build().unwrap();
    let (answer, load) = oneshot::channel();
    let load = |_| async { Ok(Loaded::new(load.await.unwrap()).tags(["shoes"])) };
    let alone = in_the_air(cache.get_or_load_with(1, load)).await;
    let many = in_the_air(cache.get_or_load_many([1], unneeded)).await;
    answer.send(11).unwrap();
    assert_eq!(alone.await.unwrap().value, 11);
    assert_eq!(values(many.await), HashMap::from([(1, 11)]));
}

#[tokio::test]
async fn a_batch_that_asks_for_a_key_that_waits_for_it_is_told_so() {
    let cache = builder().build().unwrap();
    let (outer, inner) = (cache.clone(), cache.clone());
    let load = |keys| async move {
        for key in [1, 2, 3, 4] {
            let asked = inner.get_or_load(key, || async { Ok(0) }).await;
            assert_eq!(matches!(asked, Err(LoadError::Reentrant)), key < 4, "{key}: {asked:?}");
        }
        let nested = inner.clone();
        let through_another = inner.get_or_load(5, || async move {
            let asked = nested.get_or_load(2, || async { Ok(0) }).await;
            assert!(matches!(asked, Err(LoadError::Reentrant)), "{asked:?}");
            Ok(50)
        });
        assert_eq!(through_another.await.unwrap(), 50);
        Ok(found(keys))
    };
    let lead = cache.get_or_load(3, || async move {
        assert_eq!(values(outer.get_or_load_many([1, 2], load).await), found([1, 2]));
        Ok(30)
    });
    assert_eq!(lead.await.unwrap(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_waited_for_when_its_first_key_has_been_served_stale() {
    const SOFT: Duration = Duration::from_millis(50);
    let cache = builder().ttl(TTL).jitter(0.0).stale_if_error(TTL).soft_timeout(SOFT).build().unwrap();
    cache.insert(1, 1);
    tokio::time::advance(TTL).await;
    let (outer, inner) = (cache.clone(), cache.clone());
    let load = |keys| async move {
        tokio::time::sleep(2 * SOFT).await;
        let asked = inner.get_or_load(3, || async { Ok(0) }).await;
        assert!(matches!(asked, Err(LoadError::Reentrant)), "{asked:?}");
        Ok(found(keys))
    };
    let lead = cache.get_or_load(3, || async move {
        let served = values(outer.get_or_load_many([1, 2], load).await);
        assert_eq!(served, HashMap::from([(1, 1), (2, 20)]));
        Ok(30)
    });
    assert_eq!(lead.await.unwrap(), 30);
}

#[tokio::test]
async fn a_call_after_a_tags_invalidation_gets_nothing_from_before_it() {
    let cache: StampedeCache<u64, u64, String> = builder().build().unwrap();
    let (go, wait) = oneshot::channel::<()>();
    let first = in_the_air(cache.get_or_load_with(1, |_| async {
        let _ = wait.await;
        Ok(Loaded::new(1).tags(["shoes"]))
    }))
    .await;
    cache.invalidate_tag("shoes");
    // Alone in its call the key is loaded; beside one that has been loaded by then, nobody says what it is.
    let alone = in_the_air(cache.get_or_load_many([1], |keys| async { Ok(found(keys)) })).await;
    let beside = in_the_air(cache.get_or_load_many([1, 2], |keys| async { Ok(found(keys)) })).await;
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap().value, 1);
    assert_eq!(alone.await[&1].as_ref().unwrap(), &10);
    let beside = beside.await;
    assert!(matches!(beside[&1], Err(LoadError::Cancelled)), "{beside:?}");
    assert_eq!(beside[&2].as_ref().unwrap(), &20);
}
