//! What the cache promises, over the store that the module above names.

#![allow(clippy::unchecked_time_subtraction)] // a test that fails panics all the same

use std::cell::RefCell;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use stampede_guard::{
    Clock, ConfigError, EarlyRefresh, EvictionCause, Fetched, LoadError, Loaded, ManualClock, OnAbandon,
    Outcome, StaleReason, StampedeCache, StampedeCacheBuilder,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::Tested;

type Cache<V = u64> = StampedeCache<u64, V, String>;
type Act = fn(&Cache);
type Builder = StampedeCacheBuilder<u64, u64, String>;

const TTL: Duration = secs(10);
const NANO: Duration = Duration::from_nanos(1);

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn builder<V>() -> StampedeCacheBuilder<u64, V, String> {
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

/// An answer that its test gives when it sees fit.
fn promise<T: Send + 'static>()
-> (oneshot::Sender<Result<T, String>>, impl Future<Output = Result<T, String>> + Send + 'static) {
    let (sender, receiver) = oneshot::channel();
    (sender, async { receiver.await.unwrap_or_else(|_| Err("forgotten".into())) })
}

async fn down<T>() -> Result<T, String> {
    Err("down".into())
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

fn stale(age: Duration, reason: StaleReason) -> Outcome {
    Outcome::Stale { age, reason }
}

async fn fetch(cache: &Cache, answer: Result<u64, String>) -> Result<Fetched<u64>, LoadError<String>> {
    cache.get_or_load_with(1, |_| async { answer.map(Loaded::new) }).await
}

// Hits, misses, herds.

#[tokio::test]
async fn a_miss_loads_and_a_hit_does_not() {
    let cache = builder().build().unwrap();
    assert_eq!(cache.get_or_load(1, || async { Ok(10) }).await.unwrap(), 10);
    assert_eq!(cache.get_or_load(1, || async { Ok(11) }).await.unwrap(), 10);
    assert_eq!(cache.stats().flights.loads, 1);
}

#[tokio::test]
async fn a_call_that_is_polled_after_its_answer_panics_and_the_cache_goes_on() {
    let cache = builder().build().unwrap();
    for loads in [true, false] {
        let mut call = pin!(cache.get_or_load(1, || async { Ok(10) }));
        assert_eq!(call.as_mut().await.unwrap(), 10, "loads: {loads}");
        let again = poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx).is_pending()));
            Poll::Ready(polled.is_err())
        });
        assert!(again.await, "loads: {loads}: it would wait for ever, or load again");
    }
    assert_eq!(cache.stats().flights.loads, 1);
    assert_eq!(cache.get(&1), Some(10));
}

#[tokio::test]
async fn each_call_learns_how_it_came_by_its_value_and_is_counted_so() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).stale_if_error(secs(100)).build().unwrap();
    let (answer, load) = promise();
    let leader = in_the_air(cache.get_or_load_with(1, |_| load)).await;
    let follower = in_the_air(fetch(&cache, Ok(2))).await;
    answer.send(Ok(Loaded::new(1))).unwrap();
    assert_eq!(leader.await.unwrap(), Fetched { value: 1, outcome: Outcome::Loaded });
    assert_eq!(follower.await.unwrap(), Fetched { value: 1, outcome: Outcome::Coalesced });
    assert_eq!(fetch(&cache, Ok(2)).await.unwrap(), Fetched { value: 1, outcome: Outcome::Hit });
    clock.advance(TTL);
    assert_eq!(fetch(&cache, down().await).await.unwrap().outcome, stale(TTL, StaleReason::Revalidating));
    until(|| cache.stats().flights.failed == 1).await;
    assert_eq!(fetch(&cache, Ok(2)).await.unwrap().outcome, stale(TTL, StaleReason::BackingOff));
    clock.advance(TTL);
    assert_eq!(fetch(&cache, down().await).await.unwrap().outcome, stale(2 * TTL, StaleReason::LoadFailed));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.stale, stats.misses, stats.refreshes), (1, 3, 3, 1));
    assert_eq!((stats.flights.loads, stats.flights.coalesced, stats.flights.failed), (3, 1, 2));
}

/// `callers` tasks ask for one cold key, whose load ends when all of them wait.
async fn herd(
    callers: usize,
    answer: fn() -> Result<u64, String>,
) -> (Cache, Vec<Result<u64, LoadError<String>>>) {
    let cache = builder().build().unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let mut calls = JoinSet::new();
    for _ in 0..callers {
        let (cache, gate) = (cache.clone(), Arc::clone(&gate));
        calls.spawn(async move {
            let load = || async move {
                gate.acquire().await.unwrap().forget();
                answer()
            };
            cache.get_or_load(1, load).await
        });
    }
    until(|| cache.stats().flights.coalesced == callers as u64 - 1).await;
    gate.add_permits(1);
    let answers = calls.join_all().await;
    assert_eq!(cache.stats().flights.loads, 1);
    (cache, answers)
}

async fn herds_share_one_load(callers: usize) {
    let (cache, answers) = herd(callers, || Ok(7)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(7))));
    assert_eq!(cache.get(&1), Some(7));

    let (cache, answers) = herd(callers, || Err("down".into())).await;
    let Err(LoadError::Failed(first)) = &answers[0] else { panic!("{:?}", answers[0]) };
    let same =
        |answer: &Result<_, _>| matches!(answer, Err(LoadError::Failed(why)) if Arc::ptr_eq(why, first));
    assert!(answers.iter().all(same), "one error, shared");
    assert_eq!(cache.get_or_load(1, || async { Ok(8) }).await.unwrap(), 8, "and not cached");

    let (cache, answers) = herd(callers, || panic!("no such shard")).await;
    let panicked = |answer: &Result<_, _>| matches!(answer, Err(LoadError::Panicked(_)));
    assert!(answers.iter().all(panicked));
    assert_eq!(cache.get_or_load(1, || async { Ok(8) }).await.unwrap(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_callers_on_one_cold_key_are_one_load() {
    herds_share_one_load(10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_callers_on_one_cold_key_are_one_load() {
    herds_share_one_load(100_000).await;
}

#[tokio::test(start_paused = true)]
async fn callers_that_always_time_out_leave_a_full_cache() {
    let cache = builder().build().unwrap();
    let mut timed_out = 0;
    while cache.get(&1).is_none() {
        let mut calls = JoinSet::new();
        for _ in 0..100 {
            let cache = cache.clone();
            calls.spawn(async move {
                let load = || async {
                    tokio::time::sleep(millis(200)).await;
                    Ok(1)
                };
                tokio::time::timeout(millis(50), cache.get_or_load(1, load)).await.is_err()
            });
        }
        timed_out += calls.join_all().await.into_iter().filter(|&late| late).count();
    }
    assert!((300..=400).contains(&timed_out), "{timed_out}");
    assert_eq!(cache.stats().flights.loads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_expiry_under_load_is_one_refresh() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).build().unwrap();
    for round in 1..=20 {
        cache.insert(1, 0);
        clock.advance(TTL);
        let gate = Arc::new(Semaphore::new(0));
        let mut calls = JoinSet::new();
        for _ in 0..500 {
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            calls.spawn(async move {
                let load = || async move {
                    gate.acquire().await.unwrap().forget();
                    Ok(1)
                };
                cache.get_or_load(1, load).await
            });
        }
        assert!(calls.join_all().await.into_iter().all(|served| served.unwrap() == 0), "stale, at once");
        gate.add_permits(1);
        until(|| cache.get(&1) == Some(1)).await;
        assert_eq!((cache.stats().flights.loads, cache.stats().refreshes), (round, round));
    }
}

// An insert or an invalidation during a load wins.

/// A load is under way; `act` happens; the load lands. Its caller gets its value, and nobody else does.
async fn a_load_loses_against(act: impl Fn(&Cache), expected: Option<u64>) {
    for refresh in [false, true] {
        let clock = ManualClock::new();
        let cache = sharp(&clock).stale_while_revalidate(TTL).build().unwrap();
        let (answer, load) = promise();
        let load = async { load.await.map(|value| Loaded::new(value).tags(["shoes"])) };
        let mut waiting = None;
        if refresh {
            let tagged = |_| async { Ok(Loaded::new(1).tags(["shoes"])) };
            cache.get_or_load_with(1, tagged).await.unwrap();
            clock.advance(TTL);
            assert_eq!(cache.get_or_load_with(1, |_| load).await.unwrap().value, 1);
            assert_eq!(cache.stats().refreshes, 1);
        } else {
            waiting = Some(in_the_air(cache.get_or_load_with(1, |_| load)).await);
        }
        act(&cache);
        assert_eq!(cache.get(&1), expected);
        if expected.is_none() {
            // Who comes after does not get what began before.
            assert_eq!(cache.get_or_load(1, || async { Ok(3) }).await.unwrap(), 3);
        }
        answer.send(Ok(2)).unwrap();
        if let Some(waiting) = waiting {
            assert_eq!(waiting.await.unwrap(), Fetched { value: 2, outcome: Outcome::Loaded });
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
            assert_eq!(cache.get(&1), Some(expected.unwrap_or(3)), "the load's value is not stored");
        }
    }
}

#[tokio::test]
async fn an_insert_during_a_load_wins() {
    a_load_loses_against(|cache| cache.insert(1, 9), Some(9)).await;
}

#[tokio::test]
async fn an_invalidation_during_a_load_wins() {
    a_load_loses_against(|cache| drop(cache.invalidate(&1)), None).await;
}

#[tokio::test]
async fn an_invalidation_of_everything_during_a_load_wins() {
    a_load_loses_against(StampedeCache::invalidate_all, None).await;
}

#[tokio::test]
async fn an_invalidation_of_a_tag_during_a_load_wins() {
    let tagged = || Loaded::new(2).tags(["shoes"]);
    for loaded in [tagged(), tagged().uncacheable(), tagged().ttl(Duration::ZERO)] {
        let cache = builder().build().unwrap();
        let (answer, load) = promise();
        let before = in_the_air(cache.get_or_load_with(1, |_| load)).await;
        cache.invalidate_tag("shoes");
        let after = in_the_air(fetch(&cache, Ok(3))).await;
        answer.send(Ok(loaded)).unwrap();
        assert_eq!(before.await.unwrap().value, 2);
        assert_eq!(cache.get(&1), None);
        assert_eq!(after.await.unwrap().value, 3, "what began before is not for who came after");
        assert_eq!(cache.get(&1), Some(3));
    }
}

#[tokio::test]
async fn an_invalidation_of_another_tag_leaves_a_load_alone() {
    let cache = builder().build().unwrap();
    let (answer, load) = promise();
    let before = in_the_air(cache.get_or_load_with(1, |_| load)).await;
    cache.invalidate_tag("hats");
    let after = in_the_air(fetch(&cache, Ok(3))).await;
    answer.send(Ok(Loaded::new(2).tags(["shoes"]))).unwrap();
    assert_eq!((before.await.unwrap().value, after.await.unwrap().value), (2, 2));
    assert_eq!(cache.get(&1), Some(2));
}

#[tokio::test]
async fn an_invalidated_value_is_not_served_stale_either() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).stale_if_error(2 * TTL).build().unwrap();
    let acts: [Act; 3] = [
        |cache| drop(cache.invalidate(&1)),
        |cache| cache.invalidate_all(),
        |cache| cache.invalidate_tag("shoes"),
    ];
    for act in acts {
        cache.get_or_load_with(1, |_| async { Ok(Loaded::new(1).tags(["shoes"])) }).await.unwrap();
        clock.advance(TTL);
        act(&cache);
        assert!(matches!(fetch(&cache, down().await).await, Err(LoadError::Failed(_))));
        let seen = Arc::new(AtomicBool::new(true));
        let loader_saw = Arc::clone(&seen);
        let load = move |context: stampede_guard::LoadContext<u64>| async move {
            loader_saw.store(context.stale().is_some(), Ordering::Relaxed);
            Err("down".into())
        };
        cache.get_or_load_with(1, load).await.unwrap_err();
        assert!(!seen.load(Ordering::Relaxed), "nor shown to a loader");
    }
}

#[tokio::test]
async fn a_call_whose_load_fails_is_not_served_what_an_invalidation_voided_meanwhile() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(2 * TTL).build().unwrap();
    let acts: [Act; 2] = [|cache| cache.invalidate_all(), |cache| cache.invalidate_tag("shoes")];
    for act in acts {
        cache.get_or_load_with(1, |_| async { Ok(Loaded::new(1).tags(["shoes"])) }).await.unwrap();
        clock.advance(TTL);
        let (answer, load) = promise();
        let call = in_the_air(cache.get_or_load_with(1, |_| load)).await;
        act(&cache);
        answer.send(down().await).unwrap();
        assert!(matches!(call.await, Err(LoadError::Failed(_))));
    }
}

// Freshness and the two windows.

#[tokio::test]
async fn a_value_is_fresh_until_its_ttl_and_not_at_it() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL - NANO);
    assert_eq!(cache.get(&1), Some(1));
    assert!(cache.contains_key(&1));
    clock.advance(NANO);
    assert_eq!(cache.get(&1), None);
    assert!(!cache.contains_key(&1));
    assert_eq!(fetch(&cache, Ok(2)).await.unwrap(), Fetched { value: 2, outcome: Outcome::Loaded });
}

#[tokio::test]
async fn the_two_windows_run_side_by_side_and_each_ends_on_time() {
    for (revalidate, if_error) in [(3, 7), (7, 3), (5, 5), (0, 5), (5, 0)] {
        let (revalidate, if_error) = (secs(revalidate), secs(if_error));
        for past in
            [Duration::ZERO, secs(3) - NANO, secs(3), secs(5) - NANO, secs(5), secs(7) - NANO, secs(7)]
        {
            let clock = ManualClock::new();
            let cache =
                sharp(&clock).stale_while_revalidate(revalidate).stale_if_error(if_error).build().unwrap();
            cache.insert(1, 1);
            clock.advance(TTL + past);
            let served = fetch(&cache, down().await).await.map(|fetched| fetched.outcome);
            if past < revalidate {
                assert_eq!(served.unwrap(), stale(TTL + past, StaleReason::Revalidating));
            } else if past < if_error {
                assert_eq!(served.unwrap(), stale(TTL + past, StaleReason::LoadFailed));
            } else {
                assert!(matches!(served, Err(LoadError::Failed(_))), "{past:?} {served:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_value_whose_window_ends_during_the_load_is_not_served() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(TTL).build().unwrap();
    cache.insert(1, 1);
    clock.advance(2 * TTL - NANO);
    let (answer, load) = promise();
    let call = in_the_air(cache.get_or_load(1, || load)).await;
    clock.advance(NANO);
    answer.send(down().await).unwrap();
    assert!(matches!(call.await, Err(LoadError::Failed(_))));
}

#[tokio::test]
async fn every_way_to_fail_is_covered_by_stale_if_error() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(secs(1_000)).load_timeout(millis(1)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL);
    let panics = || async { panic!("no such shard") };
    assert_eq!(cache.get_or_load(1, panics).await.unwrap(), 1);
    clock.advance(secs(1));
    assert_eq!(cache.get_or_load(1, std::future::pending).await.unwrap(), 1);
    assert_eq!((cache.stats().flights.panicked, cache.stats().flights.timed_out), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_default_clock_is_tokios() {
    let cache = builder().ttl(TTL).jitter(0.0).build().unwrap();
    cache.insert(1, 1);
    tokio::time::advance(TTL - NANO).await;
    assert_eq!(cache.get(&1), Some(1));
    tokio::time::advance(NANO).await;
    assert_eq!(cache.get(&1), None);
}

#[test]
fn jitter_shortens_within_its_range_and_never_lengthens() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).jitter(0.25).capacity(4_000).seed(7).build().unwrap();
    (0..1_000).for_each(|key| cache.insert(key, key));
    let fresh = || (0..1_000).filter(|key| cache.contains_key(key)).count();
    clock.advance(TTL.mul_f64(0.75) - NANO);
    assert_eq!(fresh(), 1_000);
    clock.advance(TTL.mul_f64(0.125) + NANO);
    assert!((400..600).contains(&fresh()), "{}", fresh());
    clock.advance(TTL.mul_f64(0.125));
    assert_eq!(fresh(), 0);
}

#[test]
fn a_seed_makes_a_run_repeatable() {
    let run = |seed| {
        let clock = ManualClock::new();
        let cache = sharp(&clock).jitter(1.0).seed(seed).build().unwrap();
        (0..100).for_each(|key| cache.insert(key, key));
        clock.advance(TTL / 2);
        (0..100).filter(|key| cache.contains_key(key)).collect::<Vec<u64>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn no_time_overflows() {
    let clock = ManualClock::new();
    let longest = Duration::MAX;
    let cache = sharp(&clock)
        .ttl(longest)
        .jitter(1.0)
        .stale_while_revalidate(longest)
        .stale_if_error(longest)
        .load_timeout(longest)
        .soft_timeout(longest)
        .build()
        .unwrap();
    cache.insert(1, 1);
    for _ in 0..3 {
        clock.advance(Duration::MAX);
        clock.advance(secs(1));
        assert_eq!(cache.get(&1), None, "time does not go backwards");
        cache.insert(2, 2);
    }
}

#[tokio::test]
async fn a_ttl_of_a_hundred_years_is_for_ever_and_its_hits_read_no_clock() {
    const YEARS: Duration = secs(100 * 365 * 24 * 60 * 60);

    struct Counting(ManualClock, Arc<AtomicUsize>);
    impl Clock for Counting {
        fn now(&self) -> Instant {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.now()
        }
    }

    for (ttl, lasts) in [(YEARS - NANO, false), (YEARS, true), (Duration::MAX, true)] {
        let (clock, read) = (ManualClock::new(), Arc::new(AtomicUsize::new(0)));
        let counting = Counting(clock.clone(), Arc::clone(&read));
        let cache: Cache = builder().ttl(ttl).jitter(1.0).seed(1).clock(counting).build().unwrap();
        cache.insert(1, 1);
        let before = read.load(Ordering::Relaxed);
        assert_eq!(cache.get(&1), Some(1));
        assert_eq!(cache.get_or_load(1, || async { Ok(2) }).await.unwrap(), 1);
        assert_eq!(read.load(Ordering::Relaxed) == before, lasts, "{ttl:?}");
        clock.advance(YEARS);
        assert_eq!(cache.get(&1).is_some(), lasts, "{ttl:?}");
    }
}

// What a loader says of its value.

#[tokio::test]
async fn an_entry_may_have_times_of_its_own() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).build().unwrap();
    let own = |loaded: Loaded<u64>| cache.get_or_load_with(1, move |_| async { Ok(loaded) });
    own(Loaded::new(1).ttl(secs(1)).stale_while_revalidate(secs(2)).stale_if_error(secs(3))).await.unwrap();
    clock.advance(secs(1));
    assert_eq!(cache.get(&1), None);
    let cached = fetch(&cache, down().await).await.unwrap();
    assert_eq!(cached.outcome, stale(secs(1), StaleReason::Revalidating));
    until(|| cache.stats().flights.failed == 1).await;
    clock.advance(secs(2));
    assert_eq!(fetch(&cache, down().await).await.unwrap().outcome, stale(secs(3), StaleReason::LoadFailed));
    clock.advance(secs(1));
    fetch(&cache, down().await).await.unwrap_err();

    let most = Duration::MAX;
    own(Loaded::new(2).ttl(most).stale_while_revalidate(most).stale_if_error(most)).await.unwrap();
    clock.advance(secs(99 * 365 * 24 * 60 * 60));
    assert_eq!(cache.get(&1), Some(2));
}

#[tokio::test]
async fn a_ttl_of_zero_is_for_those_who_wait_alone() {
    let cache = builder().build().unwrap();
    let load = |_| async { Ok(Loaded::new(1).ttl(Duration::ZERO)) };
    for _ in 0..3 {
        assert_eq!(cache.get_or_load_with(1, load).await.unwrap().value, 1);
    }
    assert_eq!((cache.stats().flights.loads, cache.entry_count()), (3, 0));
}

#[tokio::test]
async fn an_uncacheable_value_takes_the_old_one_away() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(secs(1_000)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL);
    let load = |_| async { Ok(Loaded::new(2).uncacheable()) };
    assert_eq!(cache.get_or_load_with(1, load).await.unwrap().value, 2);
    assert_eq!(cache.entry_count(), 0);
    fetch(&cache, down().await).await.unwrap_err();
}

#[tokio::test]
async fn not_modified_keeps_the_value_and_its_tags() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).build().unwrap();
    let unchanged = |loaded: Loaded<u64>| {
        cache.get_or_load_with(1, move |context| async move {
            assert_eq!(context.stale(), Some(&1));
            Ok(loaded)
        })
    };
    let with_tag = || Loaded::not_modified().ttl(secs(3)).tags(["sale"]);
    for (loaded, fresh_for, tag) in [
        (Loaded::not_modified(), TTL, "shoes"),
        (with_tag(), secs(3), "shoes"),
        (with_tag(), secs(3), "sale"),
    ] {
        cache.invalidate_all();
        cache.get_or_load_with(1, |_| async { Ok(Loaded::new(1).tags(["shoes"])) }).await.unwrap();
        clock.advance(TTL);
        let kept = unchanged(loaded).await.unwrap();
        assert_eq!(kept, Fetched { value: 1, outcome: Outcome::Loaded });
        clock.advance(fresh_for - NANO);
        assert_eq!(cache.get(&1), Some(1));
        cache.invalidate_tag(tag);
        assert_eq!(cache.get(&1), None, "{tag}");
    }
}

#[tokio::test]
async fn not_modified_revives_nothing_that_its_tag_voids_while_the_load_starts() {
    /// A clock that invalidates a tag when it is read for so many times more.
    struct Trap(ManualClock, Arc<AtomicUsize>, Arc<OnceLock<Cache>>);
    impl Clock for Trap {
        fn now(&self) -> Instant {
            let left = self.1.load(Ordering::Relaxed);
            self.1.store(left.saturating_sub(1), Ordering::Relaxed);
            if left == 1 {
                self.2.get().unwrap().invalidate_tag("shoes");
            }
            self.0.now()
        }
    }

    for (read, refreshes) in (1..10).flat_map(|read| [(read, false), (read, true)]) {
        let (clock, reads, cell) = (ManualClock::new(), Arc::default(), Arc::default());
        let trap = Trap(clock.clone(), Arc::clone(&reads), Arc::clone(&cell));
        let windows = if refreshes { [TTL, Duration::ZERO] } else { [Duration::ZERO, TTL] };
        let cache = builder().ttl(TTL).jitter(0.0).clock(trap);
        let cache = cache.stale_while_revalidate(windows[0]).stale_if_error(windows[1]).build().unwrap();
        cell.set(cache.clone()).unwrap();
        cache.get_or_load_with(1, |_| async { Ok(Loaded::new(1).tags(["shoes"])) }).await.unwrap();
        clock.advance(TTL);
        reads.store(read, Ordering::Relaxed);
        let ended = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ended);
        let load = move |context: stampede_guard::LoadContext<u64>| async move {
            ends.store(true, Ordering::Relaxed);
            Ok(if context.stale().is_some() { Loaded::not_modified() } else { Loaded::new(2) })
        };
        cache.get_or_load_with(1, load).await.unwrap();
        until(|| ended.load(Ordering::Relaxed)).await;
        let is_sprung = reads.swap(0, Ordering::Relaxed) == 0;
        assert!(!is_sprung || cache.get(&1) != Some(1), "read {read}, refreshes: {refreshes}");
    }
}

#[tokio::test]
async fn not_modified_without_a_value_is_an_error_that_says_so() {
    let cache: Cache = builder().build().unwrap();
    let Err(LoadError::Panicked(panic)) =
        cache.get_or_load_with(1, |_| async { Ok(Loaded::not_modified()) }).await
    else {
        panic!("there was nothing to keep")
    };
    assert!(panic.message().unwrap().contains("not_modified"));
}

// Failing origins.

#[tokio::test]
async fn a_failing_origin_sees_few_loads_and_callers_see_no_error() {
    for window in ["revalidate", "if_error"] {
        let clock = ManualClock::new();
        let cache = match window {
            "revalidate" => sharp(&clock).stale_while_revalidate(secs(1_000)),
            _ => sharp(&clock).stale_if_error(secs(1_000)),
        };
        let cache = cache.seed(1).build().unwrap();
        cache.insert(1, 1);
        clock.advance(TTL);
        for _ in 0..6_000 {
            clock.advance(millis(10));
            assert_eq!(cache.get_or_load(1, down).await.unwrap(), 1);
            let ended = || cache.stats().flights.failed == cache.stats().flights.loads;
            until(ended).await;
        }
        // After 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 25.5, 51.1 seconds at the latest, a quarter sooner at most.
        let loads = cache.stats().flights.loads;
        assert!((9..=12).contains(&loads), "{window}: {loads}");
    }
}

#[tokio::test]
async fn a_success_ends_the_back_off_and_so_does_an_insert() {
    for by_insert in [false, true] {
        let clock = ManualClock::new();
        let cache = sharp(&clock).stale_if_error(secs(1_000)).build().unwrap();
        cache.insert(1, 1);
        clock.advance(TTL);
        for _ in 0..5 {
            fetch(&cache, down().await).await.unwrap();
            clock.advance(secs(30));
        }
        if by_insert {
            cache.insert(1, 2);
        } else {
            assert_eq!(fetch(&cache, Ok(2)).await.unwrap().outcome, Outcome::Loaded);
        }
        clock.advance(TTL);
        assert_eq!(fetch(&cache, down().await).await.unwrap().outcome, stale(TTL, StaleReason::LoadFailed));
        clock.advance(millis(75) - NANO);
        let waits = fetch(&cache, down().await).await.unwrap().outcome;
        assert!(matches!(waits, Outcome::Stale { reason: StaleReason::BackingOff, .. }));
        clock.advance(millis(25) + NANO);
        let first_again = fetch(&cache, down().await).await.unwrap().outcome;
        assert!(matches!(first_again, Outcome::Stale { reason: StaleReason::LoadFailed, .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_is_answered_with_a_stale_value_and_goes_on() {
    let cache = builder().ttl(TTL).jitter(0.0).stale_if_error(TTL).soft_timeout(millis(50)).build().unwrap();
    cache.insert(1, 1);
    tokio::time::advance(TTL).await;
    let load = |_| async {
        tokio::time::sleep(millis(200)).await;
        Ok(Loaded::new(2))
    };
    let begun = tokio::time::Instant::now();
    let slow = cache.get_or_load_with(1, load).await.unwrap();
    assert_eq!(begun.elapsed(), millis(50));
    assert_eq!(slow, Fetched { value: 1, outcome: stale(TTL + millis(50), StaleReason::LoadSlow) });
    tokio::time::sleep(millis(151)).await;
    assert_eq!(cache.get(&1), Some(2));
    assert_eq!(cache.stats().flights.loads, 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_without_a_value_to_serve_is_waited_for() {
    let cache =
        builder().ttl(TTL).jitter(0.0).stale_if_error(millis(40)).soft_timeout(millis(50)).build().unwrap();
    let load = || async {
        tokio::time::sleep(millis(200)).await;
        Ok(2)
    };
    assert_eq!(cache.get_or_load(1, load).await.unwrap(), 2, "a cold key");
    tokio::time::advance(TTL).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(cache.get_or_load(1, load).await.unwrap(), 2);
    assert_eq!(begun.elapsed(), millis(200), "the window ended before the soft time-out");
}

#[test]
fn a_load_that_is_ready_at_once_needs_no_runtime() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(TTL).soft_timeout(millis(50)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL);
    let mut call = Box::pin(cache.get_or_load(1, || async { Ok(2) }));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(Ok(2)) = call.as_mut().poll(&mut cx) else { panic!("not ready") };
}

// Refreshes.

#[tokio::test]
async fn an_early_refresh_serves_the_fresh_value_and_runs_once() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).early_refresh(EarlyRefresh::Fraction(0.5)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL / 2 - NANO);
    fetch(&cache, Ok(2)).await.unwrap();
    assert_eq!(cache.stats().refreshes, 0);
    clock.advance(NANO);
    let (answer, load) = promise();
    assert_eq!(cache.get_or_load(1, || load).await.unwrap(), 1);
    for _ in 0..100 {
        assert_eq!(fetch(&cache, Ok(3)).await.unwrap(), Fetched { value: 1, outcome: Outcome::Hit });
    }
    assert_eq!((cache.stats().refreshes, cache.stats().flights.loads), (1, 1));
    answer.send(Ok(2)).unwrap();
    until(|| cache.get(&1) == Some(2)).await;
    clock.advance(TTL / 2 - NANO);
    fetch(&cache, Ok(3)).await.unwrap();
    assert_eq!(cache.stats().refreshes, 1);
}

#[tokio::test]
async fn xfetch_refreshes_early_what_was_dear_to_load() {
    for cost in [secs(5), Duration::ZERO] {
        let clock = ManualClock::new();
        let cache = sharp(&clock).early_refresh(EarlyRefresh::XFetch { beta: 1_000.0 }).build().unwrap();
        let loading = clock.clone();
        let load = async move || {
            loading.advance(cost);
            Ok(1)
        };
        cache.get_or_load(1, load).await.unwrap();
        // Of what took half its ttl to load, all but one call in 500 refresh; of what took no time, none.
        for _ in 0..20 {
            cache.get_or_load(1, down).await.unwrap();
        }
        assert_eq!(cache.stats().refreshes > 0, !cost.is_zero());
    }
}

#[tokio::test]
async fn an_early_refresh_that_fails_backs_off() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).early_refresh(EarlyRefresh::Fraction(0.5)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(TTL / 2);
    for _ in 0..1_000 {
        assert_eq!(cache.get_or_load(1, down).await.unwrap(), 1);
        until(|| cache.stats().flights.failed == cache.stats().flights.loads).await;
    }
    assert_eq!(cache.stats().refreshes, 1);
    clock.advance(millis(100));
    cache.get_or_load(1, down).await.unwrap();
    assert_eq!(cache.stats().refreshes, 2);
}

#[tokio::test]
async fn a_refresh_replaces_a_fresh_value_unless_one_is_under_way() {
    let cache = builder().build().unwrap();
    cache.insert(1, 1);
    let (answer, load) = promise();
    assert!(cache.refresh(1, || load));
    assert!(!cache.refresh(1, || async { Ok(3) }));
    assert_eq!(cache.get(&1), Some(1));
    answer.send(Ok(2)).unwrap();
    until(|| cache.get(&1) == Some(2)).await;
    assert_eq!(cache.stats().refreshes, 1);
}

#[test]
fn a_refresh_outside_a_runtime_is_refused() {
    let cache = builder().build().unwrap();
    assert!(!cache.refresh(1, || async { Ok(1) }));
    assert_eq!(cache.stats().refreshes, 0);
}

#[tokio::test]
async fn a_loader_that_asks_for_what_it_refreshes_is_seen_to_wait_for_it() {
    let cache: Cache = builder().build().unwrap();
    let outer = cache.clone();
    let load = || async move {
        let inner = outer.clone();
        let asks = || async move {
            let asked = inner.get_or_load(1, || async { Ok(0) }).await;
            Ok(if matches!(asked, Err(LoadError::Reentrant)) { 2 } else { 0 })
        };
        assert!(outer.refresh(2, asks));
        Ok(outer.get_or_load(2, down).await.unwrap() - 1)
    };
    assert_eq!(cache.get_or_load(1, load).await.unwrap(), 1);
    assert_eq!((cache.get(&1), cache.get(&2)), (Some(1), Some(2)));
}

#[tokio::test]
async fn a_refresh_needs_nobody_and_goes_on_when_who_joined_it_goes_away() {
    for on_abandon in [OnAbandon::Cancel, OnAbandon::Detach] {
        let cache = builder().on_abandon(on_abandon).max_abandoned(1).build().unwrap();
        let (answer, load) = promise();
        assert!(cache.refresh(1, || load));
        let passer_by = in_the_air(cache.get_or_load(1, || async { Ok(3) })).await;
        assert!(!cache.refresh(2, || async { Ok(20) }), "the one place is taken still");
        drop(passer_by);
        answer.send(Ok(2)).unwrap();
        until(|| cache.get(&1) == Some(2)).await;
        assert_eq!(cache.stats().flights.abandoned, 0, "{on_abandon:?}");
        assert!(cache.refresh(2, || async { Ok(20) }));
    }
}

#[tokio::test]
async fn refreshes_take_the_places_of_abandoned_loads_and_no_more() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).max_abandoned(2).build().unwrap();
    (0..5).for_each(|key| cache.insert(key, key));
    clock.advance(TTL);
    let gate = Arc::new(Semaphore::new(0));
    let ask_for_all = || async {
        for key in 0..5 {
            let gate = Arc::clone(&gate);
            let load = move || async move {
                gate.acquire().await.unwrap().forget();
                Ok(key)
            };
            assert_eq!(cache.get_or_load(key, load).await.unwrap(), key);
        }
    };
    ask_for_all().await;
    assert_eq!(cache.stats().refreshes, 2);
    gate.add_permits(2);
    until(|| cache.contains_key(&0) && cache.contains_key(&1)).await;
    ask_for_all().await;
    assert_eq!(cache.stats().refreshes, 4);
}

// The governor.

#[derive(Default)]
struct Origin {
    running: AtomicUsize,
    peak: AtomicUsize,
}

impl Origin {
    async fn load(self: Arc<Self>) -> Result<u64, String> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(running, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        Ok(1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_with_a_hundred_thousand_keys_keeps_to_its_concurrency() {
    let cache = builder().max_concurrent_loads(100).capacity(200_000).build().unwrap();
    let origin = Arc::new(Origin::default());
    let mut calls = JoinSet::new();
    for key in 0..100_000 {
        let (cache, origin) = (cache.clone(), Arc::clone(&origin));
        calls.spawn(async move { cache.get_or_load(key, || origin.load()).await });
    }
    assert!(calls.join_all().await.into_iter().all(|answer| answer.is_ok()));
    assert_eq!(cache.stats().flights.loads, 100_000);
    assert!((1..=100).contains(&origin.peak.load(Ordering::SeqCst)));
}

#[tokio::test(start_paused = true)]
async fn every_way_a_load_ends_gives_its_permit_back() {
    let cache = builder()
        .max_concurrent_loads(1)
        .on_abandon(OnAbandon::Cancel)
        .load_timeout(secs(1))
        .build()
        .unwrap();
    let free = || async { cache.get_or_load(9, || async { Ok(9) }).await.unwrap() };
    let next = |_: u64| cache.invalidate(&9);
    next(free().await);
    cache.get_or_load(1, down).await.unwrap_err();
    next(free().await);
    cache.get_or_load(1, || async { panic!("no such shard") }).await.unwrap_err();
    next(free().await);
    assert!(matches!(cache.get_or_load(1, std::future::pending).await, Err(LoadError::TimedOut(_))));
    next(free().await);
    drop(in_the_air(cache.get_or_load(1, std::future::pending)).await);
    next(free().await);
    // Queued behind a load that runs, and dropped there.
    let (answer, load) = promise();
    let runs = in_the_air(cache.get_or_load(1, || load)).await;
    let queued = in_the_air(cache.get_or_load(2, || async { Ok(2) })).await;
    tokio::task::yield_now().await;
    drop(queued);
    answer.send(Ok(1)).unwrap();
    runs.await.unwrap();
    next(free().await);
    assert_eq!(cache.stats().flights.timed_out, 1);
}

#[tokio::test]
async fn a_refresh_takes_a_permit_or_is_skipped() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).max_concurrent_loads(1).build().unwrap();
    (0..3).for_each(|key| cache.insert(key, key));
    clock.advance(TTL);
    let (answer, load) = promise();
    assert_eq!(cache.get_or_load(0, || load).await.unwrap(), 0);
    assert_eq!(cache.get_or_load(1, || async { Ok(11) }).await.unwrap(), 1);
    assert_eq!(cache.stats().refreshes, 1, "the second found no permit");
    let miss = in_the_air(cache.get_or_load(7, || async { Ok(7) })).await;
    answer.send(Ok(10)).unwrap();
    assert_eq!(miss.await.unwrap(), 7, "a miss waits for its turn");
    assert_eq!(cache.get(&0), Some(10));
    assert_eq!(cache.get_or_load(1, || async { Ok(11) }).await.unwrap(), 1);
    until(|| cache.get(&1) == Some(11)).await;
    assert!(cache.refresh(1, down), "a refresh that ran gave its permit back");
}

#[tokio::test]
async fn a_refresh_that_is_not_started_gives_its_permit_back() {
    let cache = builder().max_concurrent_loads(2).build().unwrap();
    let (answer, load) = promise();
    assert!(cache.refresh(1, || load));
    for _ in 0..10 {
        assert!(!cache.refresh(1, down));
    }
    assert!(cache.refresh(2, || async { Ok(2) }), "one permit is left");
    answer.send(Ok(1)).unwrap();
    until(|| cache.contains_key(&1) && cache.contains_key(&2)).await;
}

// The end.

#[tokio::test]
async fn a_closed_cache_serves_what_it_has_and_loads_nothing() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_while_revalidate(TTL).stale_if_error(2 * TTL).build().unwrap();
    cache.insert(1, 1);
    cache.close().await;
    let refused = cache.get_or_load(2, || async { Ok(2) }).await;
    assert!(matches!(refused, Err(LoadError::Cancelled)));
    assert!(!cache.refresh(2, || async { Ok(2) }));
    assert_eq!(fetch(&cache, Ok(2)).await.unwrap().outcome, Outcome::Hit);
    clock.advance(TTL);
    assert_eq!(fetch(&cache, Ok(2)).await.unwrap().value, 1, "stale while nothing revalidates it");
    clock.advance(TTL);
    assert_eq!(fetch(&cache, Ok(2)).await.unwrap().outcome, stale(2 * TTL, StaleReason::LoadFailed));
    clock.advance(TTL);
    assert!(matches!(fetch(&cache, Ok(2)).await, Err(LoadError::Cancelled)));
    assert_eq!(cache.stats().flights.loads, 0);
}

#[tokio::test]
async fn close_returns_when_the_loads_under_way_have_ended() {
    let cache = builder().build().unwrap();
    let (first, load) = promise();
    let call = in_the_air(cache.get_or_load(1, || load)).await;
    let (second, load) = promise();
    assert!(cache.refresh(2, || load));
    let close = in_the_air(cache.close()).await;
    first.send(Ok(1)).unwrap();
    assert_eq!(call.await.unwrap(), 1);
    let close = in_the_air(close).await;
    second.send(Ok(2)).unwrap();
    close.await;
    assert_eq!((cache.get(&1), cache.get(&2)), (Some(1), Some(2)));
}

#[tokio::test]
async fn close_wants_no_load_that_nobody_else_wants() {
    let cache = builder().on_abandon(OnAbandon::Cancel).max_waiters_per_key(1).build().unwrap();
    let call = in_the_air(cache.get_or_load(1, std::future::pending::<Result<u64, _>>)).await;
    let (close, other) = (in_the_air(cache.close()).await, in_the_air(cache.close()).await);
    drop(other);
    drop(call);
    close.await;
    assert_eq!(cache.stats().flights.abandoned, 1);
}

/// A key that lets a test in where the engine clones it.
#[derive(PartialEq, Eq, Hash)]
struct Key(u64);

static WHEN_CLONED: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

impl Clone for Key {
    fn clone(&self) -> Self {
        let act = WHEN_CLONED.lock().unwrap().take();
        if let Some(act) = act {
            act();
        }
        Self(self.0)
    }
}

#[tokio::test]
async fn no_load_starts_after_close_has_returned() {
    let cache: StampedeCache<Key, u64> = StampedeCache::builder().store(Tested).build().unwrap();
    let closing = cache.clone();
    let close = move || {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(Box::pin(closing.close()).as_mut().poll(&mut cx).is_ready());
    };
    *WHEN_CLONED.lock().unwrap() = Some(Box::new(close));
    let ran = Arc::new(AtomicBool::new(false));
    let runs = Arc::clone(&ran);
    let load = || async move {
        runs.store(true, Ordering::Relaxed);
        Ok(1)
    };
    assert!(matches!(cache.get_or_load_ref(&Key(1), load).await, Err(LoadError::Cancelled)));
    assert!(!ran.load(Ordering::Relaxed));
}

/// A key of which there is one. Its hashing may be told to do something on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched;

type Hook = Box<dyn FnOnce()>;

thread_local! {
    /// How often `Watched` is hashed before the hook runs.
    static HOOK: RefCell<Option<(usize, Hook)>> = const { RefCell::new(None) };
}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let due = HOOK.with_borrow_mut(|hook| match hook {
            Some((0, _)) => hook.take(),
            Some((before, _)) => {
                *before -= 1;
                None
            }
            None => None,
        });
        if let Some((_, act)) = due {
            act();
        }
        state.write_u8(0);
    }
}

#[tokio::test]
async fn whoever_looked_before_a_load_failed_and_boards_after_does_not_load_again() {
    let clock = ManualClock::new();
    let cache: StampedeCache<Watched, u64, String> = StampedeCache::builder()
        .store(Tested)
        .ttl(TTL)
        .jitter(0.0)
        .stale_if_error(secs(100))
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.insert(Watched, 1);
    clock.advance(TTL);
    // The first hash is that of the look at the store, the second that of the boarding.
    let inner = cache.clone();
    let fail = move || {
        let failed = inner.get_or_load_with(Watched, |_| down());
        let failed = pin!(failed).poll(&mut Context::from_waker(Waker::noop()));
        assert!(
            matches!(failed, Poll::Ready(Ok(served)) if served.outcome == stale(TTL, StaleReason::LoadFailed))
        );
    };
    HOOK.set(Some((1, Box::new(fail))));
    let answer = cache.get_or_load_with(Watched, |_| async { Ok(Loaded::new(2)) }).await.unwrap();
    assert_eq!(answer, Fetched { value: 1, outcome: stale(TTL, StaleReason::BackingOff) });
    assert_eq!((cache.stats().flights.loads, cache.stats().stale), (1, 2));
    clock.advance(millis(100));
    let answer = cache.get_or_load_with(Watched, |_| async { Ok(Loaded::new(2)) }).await.unwrap();
    assert_eq!(answer, Fetched { value: 2, outcome: Outcome::Loaded });
}

// Capacity and what leaves.

#[tokio::test]
async fn the_entry_count_is_exact_and_keeps_to_the_capacity() {
    // Too few for a store to split them over shards.
    let cache = builder().capacity(60).build().unwrap();
    (0..60).for_each(|key| cache.insert(key, key));
    assert_eq!(cache.entry_count(), 60);
    (0..20_000).for_each(|key| cache.insert(key, key));
    assert_eq!(cache.entry_count(), 60);
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
    cache.insert(1, 1);
    cache.insert(1, 2);
    assert_eq!(cache.entry_count(), 1);
    cache.invalidate(&1);
    assert_eq!(cache.entry_count(), 0);
}

#[tokio::test]
async fn a_weigher_makes_the_capacity_a_weight() {
    let weigher = |_: &u64, value: &String| u32::try_from(value.len()).unwrap_or(u32::MAX);
    let cache: Cache<String> = builder().capacity(100).weigher(weigher).build().unwrap();
    cache.insert(1, "x".repeat(101));
    assert_eq!(cache.entry_count(), 0);
    (0..20).for_each(|key| cache.insert(key, "x".repeat(10)));
    // A store may leave some room in the part that it keeps for what was asked for again.
    let kept = cache.entry_count();
    assert!((8..=10).contains(&kept), "{kept}");
}

#[derive(Clone, Default)]
struct Departures(Arc<Mutex<Vec<(u64, u64, EvictionCause)>>>);

impl Departures {
    fn take(&self) -> Vec<(u64, u64, EvictionCause)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn the_listener_hears_why_a_value_left_and_nothing_of_back_offs() {
    let clock = ManualClock::new();
    let gone = Departures::default();
    let heard = gone.clone();
    let listener = move |key: Arc<u64>, value, cause| heard.0.lock().unwrap().push((*key, value, cause));
    let cache = sharp(&clock).stale_if_error(secs(1_000)).eviction_listener(listener).build().unwrap();
    cache.insert(1, 1);
    assert_eq!(gone.take(), []);
    cache.insert(1, 2);
    assert_eq!(gone.take(), [(1, 1, EvictionCause::Replaced)]);
    cache.invalidate(&1);
    assert_eq!(gone.take(), [(1, 2, EvictionCause::Invalidated)]);
    cache.insert(1, 3);
    clock.advance(TTL);
    for _ in 0..5 {
        fetch(&cache, down().await).await.unwrap();
        clock.advance(secs(30));
    }
    assert_eq!(cache.stats().flights.failed, 5);
    assert_eq!(gone.take(), []);
    fetch(&cache, Ok(4)).await.unwrap();
    assert_eq!(gone.take(), [(1, 3, EvictionCause::Replaced)]);
    clock.advance(TTL);
    cache.get_or_load_with(1, |_| async { Ok(Loaded::new(5).uncacheable()) }).await.unwrap();
    assert_eq!(gone.take(), [(1, 4, EvictionCause::Invalidated)]);
    cache.insert(1, 6);
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(gone.take(), [(1, 6, EvictionCause::Invalidated)]);
}

#[tokio::test]
async fn the_listener_hears_of_values_the_capacity_pushed_out() {
    let gone = Departures::default();
    let heard = gone.clone();
    let listener = move |key: Arc<u64>, value, cause| heard.0.lock().unwrap().push((*key, value, cause));
    let cache = builder().capacity(10).eviction_listener(listener).build().unwrap();
    (0..100).for_each(|key| cache.insert(key, key));
    assert_eq!(cache.entry_count(), 10);
    let gone = gone.take();
    assert_eq!(gone.len(), 90);
    assert!(gone.iter().all(|&(_, _, cause)| cause == EvictionCause::Capacity));
}

#[tokio::test]
async fn a_value_that_is_too_heavy_goes_at_once_and_so_does_the_one_before_it() {
    let gone = Departures::default();
    let heard = gone.clone();
    let listener = move |key: Arc<u64>, value, cause| heard.0.lock().unwrap().push((*key, value, cause));
    let weigher = |_: &u64, &value: &u64| u32::try_from(value).unwrap();
    let cache = builder().capacity(100).weigher(weigher).eviction_listener(listener).build().unwrap();
    cache.insert(1, 10);
    cache.insert(1, 1_000);
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(gone.take(), [(1, 10, EvictionCause::Replaced), (1, 1_000, EvictionCause::Capacity)]);
    cache.insert(2, 1_000);
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(gone.take(), [(2, 1_000, EvictionCause::Capacity)]);
}

/// A value whose end looks into the cache.
#[derive(Clone)]
struct Mourner(Arc<OnceLock<StampedeCache<u64, Mourner>>>, Arc<AtomicUsize>);

impl Drop for Mourner {
    fn drop(&mut self) {
        if let Some(cache) = self.0.get() {
            self.1.fetch_add(1, Ordering::Relaxed);
            cache.get(&u64::MAX);
        }
    }
}

#[test]
fn a_value_may_look_into_the_cache_when_it_is_dropped() {
    let ends = Arc::new(AtomicUsize::new(0));
    let mourner = Mourner(Arc::default(), Arc::clone(&ends));
    let cache = StampedeCache::builder().store(Tested).capacity(10).build().unwrap();
    assert!(mourner.0.set(cache).is_ok());
    let cache = mourner.0.get().unwrap();
    (0..100).for_each(|key| cache.insert(key, mourner.clone()));
    (0..100).for_each(|key| cache.insert(key, mourner.clone()));
    (0..100).for_each(|key| drop(cache.invalidate(&key)));
    cache.insert(1, mourner.clone());
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
    assert!(ends.load(Ordering::Relaxed) > 0);
}

/// A value whose end is a panic.
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("the destructor panics");
    }
}

#[tokio::test]
async fn a_value_that_panics_when_it_is_dropped_ends_no_call() {
    let (clock, ends) = (ManualClock::new(), Arc::new(AtomicUsize::new(0)));
    let bomb = || Arc::new(Bomb(Arc::clone(&ends)));
    let cache: Cache<Arc<Bomb>> = builder().ttl(TTL).clock(clock.clone()).capacity(10).build().unwrap();
    for round in 0..50 {
        for key in 0..20 {
            cache.insert(key, bomb());
        }
        clock.advance(TTL);
        let load = || {
            let bomb = bomb();
            || async { Ok(bomb) }
        };
        std::mem::forget(cache.get_or_load(1, load()).await.unwrap());
        let many = cache.get_or_load_many([2, 3], |keys| {
            let loaded = keys.into_iter().map(|key| (key, bomb())).collect();
            async { Ok(loaded) }
        });
        many.await.into_values().for_each(|value| std::mem::forget(value.unwrap()));
        assert_eq!([1, 2, 3].map(|key| cache.contains_key(&key)), [true; 3], "round {round}");
        cache.invalidate(&1);
        cache.invalidate_all();
        assert_eq!(cache.entry_count(), 0);
    }
    assert!(ends.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_listener_that_panics_ends_no_call_and_misses_no_value() {
    let gone = Departures::default();
    let heard = gone.clone();
    let listener = move |key: Arc<u64>, value, cause| {
        heard.0.lock().unwrap().push((*key, value, cause));
        assert!(value == 0, "the listener panics");
    };
    let cache = builder().eviction_listener(listener).build().unwrap();
    for value in 0..5 {
        cache.insert(1, value);
    }
    assert_eq!(cache.get_or_load(1, || async { Ok(9) }).await.unwrap(), 4);
    cache.invalidate(&1);
    assert_eq!(cache.get_or_load(1, || async { Ok(5) }).await.unwrap(), 5);
    cache.get_or_load_with(2, |_| async { Ok(Loaded::new(6)) }).await.unwrap();
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
    let mut heard: Vec<_> = gone.take().into_iter().map(|(_, value, _)| value).collect();
    heard.sort_unstable();
    assert_eq!(heard, [0, 1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_may_use_the_cache_for_the_same_key() {
    let cache: Arc<OnceLock<Cache>> = Arc::default();
    let inner = Arc::clone(&cache);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let listener = move |key: Arc<u64>, _, _| {
        let cache = inner.get().unwrap();
        cache.get(&key);
        let _ = cache.entry_count();
        if counted.fetch_add(1, Ordering::Relaxed) < 10 {
            cache.insert(*key, 0);
            cache.invalidate(&key);
            cache.invalidate_all();
            cache.refresh(*key, down);
        }
    };
    cache.set(builder().eviction_listener(listener).build().unwrap()).unwrap();
    let cache = cache.get().unwrap();
    cache.insert(1, 1);
    cache.insert(1, 2);
    assert!(cache.refresh(2, || async { Ok(1) }) | cache.refresh(2, || async { Ok(1) }));
    cache.get_or_load_with(3, |_| async { Ok(Loaded::new(1)) }).await.unwrap();
    cache.insert(3, 2);
    cache.close().await;
    assert!(calls.load(Ordering::Relaxed) >= 2);
}

// Bad input.

#[test]
fn a_bad_setting_is_named_with_its_range_and_nothing_panics() {
    let new = || StampedeCache::<u64, u64>::builder().store(Tested);
    let times = "more than 0";
    let beta = "a beta of more than 0 and at most 1,000";
    let fraction = "a fraction of more than 0 and less than 1";
    let mut refused: Vec<(&str, &str, Result<_, ConfigError>)> = vec![
        ("ttl", times, new().ttl(Duration::ZERO).build()),
        ("soft_timeout", times, new().soft_timeout(Duration::ZERO).build()),
        ("load_timeout", times, new().load_timeout(Duration::ZERO).build()),
        ("capacity", "at least 1", new().capacity(0).build()),
        ("max_concurrent_loads", "at least 1", new().max_concurrent_loads(0).build()),
        ("max_in_flight", "at least 1", new().max_in_flight(0).build()),
        ("max_waiters_per_key", "at least 1", new().max_waiters_per_key(0).build()),
    ];
    for share in [-0.1, 1.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        refused.push(("jitter", "from 0 to 1", new().jitter(share).build()));
    }
    for number in [-1.0, 0.0, 1_000.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let xfetch = EarlyRefresh::XFetch { beta: number };
        refused.push(("early_refresh", beta, new().early_refresh(xfetch).build()));
    }
    for number in [-0.1, 0.0, 1.0, f64::NAN, f64::INFINITY] {
        let share = EarlyRefresh::Fraction(number);
        refused.push(("early_refresh", fraction, new().early_refresh(share).build()));
    }
    for (field, allowed, refused) in refused {
        let error = refused.expect_err(field);
        assert_eq!((error.field(), error.allowed()), (field, allowed));
        let text = error.to_string();
        assert!(text.starts_with(field) && text.ends_with(allowed), "{text}");
    }
}

#[tokio::test]
async fn the_edges_of_every_range_are_allowed() {
    for jitter in [-0.0, 0.0, 1.0, f64::MIN_POSITIVE] {
        for early in [EarlyRefresh::XFetch { beta: 1_000.0 }, EarlyRefresh::Fraction(f64::MIN_POSITIVE)] {
            for (span, count) in [(NANO, 1), (Duration::MAX, usize::MAX)] {
                let cache = StampedeCache::<u64, u64>::builder()
                    .store(Tested)
                    .ttl(span)
                    .jitter(jitter)
                    .stale_while_revalidate(span)
                    .stale_if_error(span)
                    .soft_timeout(span)
                    .load_timeout(span.max(secs(1)))
                    .early_refresh(early)
                    .capacity(count as u64)
                    .max_concurrent_loads(count)
                    .max_in_flight(count)
                    .max_waiters_per_key(count)
                    .max_abandoned(count)
                    .build()
                    .unwrap();
                for key in 0..3 {
                    assert_eq!(cache.get_or_load(key, || async { Ok(1) }).await.unwrap(), 1);
                }
            }
        }
    }
}

/// Between a caller's look and the load that it leads, what it saw may be voided.
#[tokio::test]
async fn a_loader_is_told_what_there_is_when_it_starts() {
    let clock = ManualClock::new();
    let cache = sharp(&clock).stale_if_error(secs(100)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(secs(11));
    // It holds the key, and leaves it out.
    let (go, wait) = oneshot::channel::<()>();
    let others = cache.clone();
    let batch = tokio::spawn(async move {
        let none = |_| async {
            let _ = wait.await;
            Ok(std::collections::HashMap::new())
        };
        others.get_or_load_many([1], none).await
    });
    until(|| cache.stats().flights.loads == 1).await;
    let waiting = cache.clone();
    let waiting = tokio::spawn(async move {
        let load = |context: stampede_guard::LoadContext<u64>| async move {
            Ok(if context.stale().is_some() { Loaded::not_modified() } else { Loaded::new(2) })
        };
        waiting.get_or_load_with(1, load).await
    });
    until(|| cache.stats().flights.coalesced == 1).await;
    cache.invalidate(&1);
    go.send(()).unwrap();
    assert!(batch.await.unwrap().is_empty());
    assert_eq!(waiting.await.unwrap().unwrap().value, 2);
    assert_eq!(cache.get(&1), Some(2));
}
