//! The cache, by the promises it makes.

use std::time::Duration;

use stampede_guard::{LoadError, ManualClock, Outcome, StaleReason, StampedeCache};

#[tokio::test]
async fn a_miss_loads_and_a_hit_does_not() {
    let cache: StampedeCache<u64, u64> = StampedeCache::builder().build().unwrap();
    assert_eq!(cache.get_or_load(1, || async { Ok(10) }).await.unwrap(), 10);
    assert_eq!(cache.get_or_load(1, || async { Ok(11) }).await.unwrap(), 10);
    assert_eq!(cache.stats().flights.loads, 1);
}

#[tokio::test]
async fn a_stale_value_is_served_while_one_load_replaces_it() {
    let clock = ManualClock::new();
    let cache: StampedeCache<u64, u64, String> = StampedeCache::builder()
        .ttl(Duration::from_secs(10))
        .jitter(0.0)
        .stale_while_revalidate(Duration::from_secs(10))
        .stale_if_error(Duration::from_secs(60))
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.insert(1, 1);
    clock.advance(Duration::from_secs(10));
    for _ in 0..100 {
        assert_eq!(cache.get_or_load(1, || async { Ok(2) }).await.unwrap(), 1);
    }
    while cache.get(&1).is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.get(&1), Some(2));
    assert_eq!(cache.stats().flights.loads, 1);
    clock.advance(Duration::from_secs(21));
    let failed = |_| async { Err("down".to_string()) };
    let served = cache.get_or_load_with(1, failed).await.unwrap();
    let age = Duration::from_secs(21);
    assert_eq!(served.outcome, Outcome::Stale { age, reason: StaleReason::LoadFailed });
    let served = cache.get_or_load_with(1, failed).await.unwrap();
    assert_eq!(served.outcome, Outcome::Stale { age, reason: StaleReason::BackingOff });
    clock.advance(Duration::from_secs(60));
    assert!(matches!(cache.get_or_load_with(1, failed).await, Err(LoadError::Failed(_))));
}
