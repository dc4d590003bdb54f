//! What is counted for the `metrics` facade.

#[path = "support/counts.rs"]
mod counts;

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use counts::Counts;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use stampede_guard::{LoadError, OnAbandon, StampedeCache};

#[test]
fn requests_and_loads_are_counted_without_a_key_in_any_label() {
    let counts = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let cache: StampedeCache<&str, u64, &str> = StampedeCache::builder().build().unwrap();
            for _ in 0..3 {
                assert_eq!(cache.get_or_load("secret", || async { Ok(1) }).await.unwrap(), 1);
            }
            let failed = cache.get_or_load("other", || async { Err("down") }).await;
            assert!(matches!(failed, Err(LoadError::Failed(_))));
        });
    });
    let expected = [
        ("stampede_requests_total{outcome=hit}", 2),
        ("stampede_requests_total{outcome=loaded}", 1),
        ("stampede_requests_total{outcome=error}", 1),
        ("stampede_loads_total{result=ok}", 1),
        ("stampede_loads_total{result=error}", 1),
        ("stampede_load_seconds{}", 2),
        ("stampede_waiters{}", 2),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counts.all(), HashMap::from(expected));
}

#[test]
fn what_was_stale_waited_for_or_turned_away_is_counted() {
    let counts = Counts::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let second = Duration::from_secs(1);
            let cache: StampedeCache<&str, u64> = StampedeCache::builder()
                .ttl(second)
                .stale_while_revalidate(second)
                .max_waiters_per_key(1)
                .build()
                .unwrap();
            let slow = || async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(1)
            };
            let (first, turned_away) = tokio::join!(cache.get_or_load("secret", slow), async {
                tokio::task::yield_now().await;
                cache.get_or_load("secret", slow).await
            });
            assert_eq!(first.unwrap(), 1);
            assert!(matches!(turned_away, Err(LoadError::Overloaded(_))));
            tokio::time::advance(second).await;
            assert_eq!(cache.get_or_load("secret", || async { Ok(2) }).await.unwrap(), 1);
        });
    });
    let all = counts.all();
    let count = |name: &str| all.get(name).copied().unwrap_or_default();
    assert_eq!(count("stampede_waiters{}"), 1);
    assert_eq!(count("stampede_shed_total{cap=waiters}"), 1);
    assert_eq!(count("stampede_requests_total{outcome=stale}"), 1);
    assert_eq!(count("stampede_stale_age_seconds{}"), 1);
    assert_eq!(count("stampede_refreshes_total{}"), 1);
}

#[test]
fn loads_that_panic_or_are_given_up_are_counted_once_each() {
    let counts = Counts::default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let cache: StampedeCache<u64, u64> = StampedeCache::builder()
                .load_timeout(Duration::from_secs(1))
                .on_abandon(OnAbandon::Cancel)
                .build()
                .unwrap();
            let panicked = cache.get_or_load(1, || async { panic!("the loader panics") }).await;
            assert!(matches!(panicked, Err(LoadError::Panicked(_))));
            let timed_out = cache.get_or_load(2, std::future::pending).await;
            assert!(matches!(timed_out, Err(LoadError::TimedOut(_))));
            let load = |_: Vec<u64>| std::future::pending();
            let timed_out = cache.get_or_load_many([3, 4], load).await;
            assert!(timed_out.values().all(Result::is_err));
            let given_up = cache.get_or_load(5, std::future::pending);
            assert!(tokio::time::timeout(Duration::from_millis(1), given_up).await.is_err());
        });
    });
    let all = counts.all();
    let count = |name: &str| all.get(name).copied().unwrap_or_default();
    assert_eq!(count("stampede_loads_total{result=error}"), 1);
    assert_eq!(count("stampede_loads_total{result=dropped}"), 3);
    assert_eq!(count("stampede_load_seconds{}"), 4);
}

/// Keeps the names that are described.
#[derive(Default)]
struct Described(Mutex<BTreeSet<String>>);

impl Described {
    fn add(&self, name: &KeyName, text: &str) {
        assert!(!text.is_empty());
        assert!(self.0.lock().unwrap().insert(name.as_str().to_owned()), "{name:?} twice");
    }
}

impl Recorder for Described {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        assert!(name.as_str().ends_with("_total") && unit.is_none(), "{name:?}");
        self.add(&name, &text);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, text: SharedString) {
        self.add(&name, &text);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        assert_eq!(name.as_str().ends_with("_seconds"), unit == Some(Unit::Seconds), "{name:?}");
        self.add(&name, &text);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn every_metric_of_the_manual_is_described_to_the_recorder() {
    let described = Described::default();
    metrics::with_local_recorder(&described, stampede_guard::describe_metrics);
    let manual = include_str!("../docs/operations.md");
    let rows = manual.lines().filter_map(|line| line.strip_prefix("| `stampede_"));
    let names = rows.map(|row| format!("stampede_{}", row.split(['`', '{', ' ']).next().unwrap()));
    let of_redis = |name: &String| ["redis", "publication", "lock"].iter().any(|part| name.contains(part));
    let names = names.filter(|name| cfg!(feature = "redis") || !of_redis(name));
    assert_eq!(*described.0.lock().unwrap(), names.collect::<BTreeSet<_>>());
}
