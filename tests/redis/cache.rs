//! A cache that shares a tier, while Redis does what it should.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::calls::{Cache, Held, builder, cache, fetch, published, waited_for};
use crate::proxy::Proxy;
use crate::server::{Server, quick, soon, tier, until};
use futures_util::FutureExt;
use stampede_guard::{
    EarlyRefresh, LoadError, Loaded, ManualClock, OnAbandon, Outcome, RedisConfig, RedisTier, RemoteKind,
    StaleReason, StampedeCache,
};
use tokio::sync::{Barrier, Notify, Semaphore};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_value_that_one_instance_loaded_is_a_shared_hit_in_another() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    assert_eq!(fetch(&a, 1, "first").await, ("first".into(), Outcome::Loaded));
    published(&one, 1).await;
    assert_eq!(fetch(&a, 1, "again").await, ("first".into(), Outcome::Hit));
    assert_eq!(fetch(&b, 1, "second").await, ("first".into(), Outcome::SharedHit));
    assert_eq!(fetch(&b, 1, "second").await, ("first".into(), Outcome::Hit));
    assert_eq!((a.stats().flights.loads, b.stats().flights.loads, b.stats().shared), (1, 0, 1));
}

#[tokio::test]
async fn a_hit_is_one_round_trip_and_a_miss_is_two() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "first").await;
    published(&one, 1).await;
    assert_eq!(one.stats().operations, 2, "{:?}", one.stats());
    fetch(&b, 1, "second").await;
    assert_eq!(two.stats().operations, 1, "{:?}", two.stats());
}

#[tokio::test]
async fn of_all_callers_in_all_instances_one_loads_and_the_others_are_woken() {
    const INSTANCES: usize = 4;
    const CALLERS: usize = 25;
    let server = Server::start();
    let loads = Arc::new(AtomicUsize::new(0));
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(tier(&server).await);
    }
    let caches: Vec<_> = instances.iter().map(cache).collect();
    let mut callers = Vec::new();
    for cache in &caches {
        for _ in 0..CALLERS {
            let (cache, loads) = (cache.clone(), Arc::clone(&loads));
            let (started, go) = (Arc::clone(&started), Arc::clone(&go));
            callers.push(tokio::spawn(async move {
                let load = move |_| async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    started.notify_one();
                    let _ = go.acquire().await;
                    Ok(Loaded::new("value".to_string()))
                };
                soon(cache.get_or_load_with(1, load)).await.unwrap().outcome
            }));
        }
    }
    soon(started.notified()).await;
    // Each instance has asked, and waits for the one that loads.
    until("all asked", || instances.iter().all(|tier| tier.stats().operations >= 1)).await;
    go.add_permits(INSTANCES * CALLERS);
    let mut outcomes = Vec::new();
    for caller in callers {
        outcomes.push(caller.await.unwrap());
    }
    let count = |outcome| outcomes.iter().filter(|&&seen| seen == outcome).count();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(count(Outcome::Loaded), 1, "{outcomes:?}");
    assert_eq!(count(Outcome::SharedWait) + count(Outcome::SharedHit), INSTANCES - 1, "{outcomes:?}");
    assert_eq!(count(Outcome::Coalesced), INSTANCES * (CALLERS - 1));
}

#[tokio::test]
async fn an_invalidation_reaches_every_instance_and_the_shared_value() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "old").await;
    fetch(&a, 2, "other").await;
    published(&one, 2).await;
    fetch(&b, 1, "unused").await;
    fetch(&b, 2, "unused").await;
    soon(a.invalidate(&1)).await.unwrap();
    assert_eq!(a.get(&1), None);
    until("the other instance dropped it", || b.get(&1).is_none()).await;
    assert_eq!(b.get(&2), Some("other".into()));
    assert_eq!(fetch(&b, 1, "new").await, ("new".into(), Outcome::Loaded));
    published(&two, 1).await;
    assert_eq!(fetch(&a, 1, "unused").await, ("new".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn an_insert_drops_what_others_have() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "old").await;
    published(&one, 1).await;
    fetch(&b, 1, "unused").await;
    a.insert(1, "inserted".into());
    until("the other instance dropped it", || b.get(&1).is_none()).await;
    assert_eq!(a.get(&1), Some("inserted".into()), "its own event does not concern it");
    assert_eq!(fetch(&b, 1, "new").await, ("new".into(), Outcome::Loaded));
}

#[tokio::test]
async fn everything_of_one_cache_is_voided_at_once() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let other: Cache = builder(&one).name("users").build().unwrap();
    for key in 0..3 {
        fetch(&a, key, "old").await;
        fetch(&other, key, "kept").await;
    }
    published(&one, 6).await;
    fetch(&b, 0, "unused").await;
    a.invalidate_all();
    until("told", || one.stats().pending_invalidations == 0).await;
    until("the other instance dropped it", || b.get(&0).is_none()).await;
    assert_eq!(fetch(&b, 0, "new").await, ("new".into(), Outcome::Loaded));
    assert_eq!(fetch(&b, 1, "new").await, ("new".into(), Outcome::Loaded));
    // One that comes later learns of it, too.
    let late = tier(&server).await;
    assert_eq!(fetch(&cache(&late), 2, "new").await, ("new".into(), Outcome::Loaded));
    let third: Cache = builder(&late).name("users").build().unwrap();
    assert_eq!(fetch(&third, 0, "unused").await, ("kept".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn an_error_is_shared_with_those_who_waited_for_that_load() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, goes) = (Arc::clone(&started), Arc::clone(&go));
    let leader = tokio::spawn(async move {
        let load = || async move {
            starts.notify_one();
            goes.notified().await;
            Err("the database is down".to_string())
        };
        a.get_or_load(1, load).await
    });
    soon(started.notified()).await;
    let waiter = tokio::spawn(async move {
        let answer = soon(b.get_or_load(1, || async { Ok("unused".into()) })).await;
        (answer, b)
    });
    waited_for(&server, 1).await;
    go.notify_one();
    assert!(matches!(soon(leader).await.unwrap(), Err(LoadError::Failed(_))));
    let (answer, b) = soon(waiter).await.unwrap();
    assert!(matches!(answer, Err(LoadError::Remote { kind: RemoteKind::Failed })), "{answer:?}");
    // It is told to nobody else.
    assert_eq!(fetch(&b, 1, "new").await, ("new".into(), Outcome::Loaded));
}

#[tokio::test]
async fn a_back_off_tells_the_error_to_everyone_for_its_time() {
    let server = Server::start();
    let config = RedisConfig { error_backoff: Duration::from_secs(3_600), ..quick() };
    let one = RedisTier::connect(&server.url(), config.clone()).await.unwrap();
    let two = RedisTier::connect(&server.url(), config).await.unwrap();
    let (a, b) = (cache(&one), cache(&two));
    let failed = soon(a.get_or_load(1, || async { Err("down".to_string()) })).await;
    assert!(matches!(failed, Err(LoadError::Failed(_))));
    until("the failure is told", || server.keys().iter().any(|key| key.ends_with(":c"))).await;
    until("the failure is told", || server.command("HGET t:1:0:{products/k1}:c m").contains("failed")).await;
    let answer = soon(b.get_or_load(1, || async { Ok("unused".into()) })).await;
    assert!(matches!(answer, Err(LoadError::Remote { kind: RemoteKind::Failed })), "{answer:?}");
}

#[tokio::test]
async fn a_forced_refresh_loads_though_a_back_off_tells_the_error() {
    let server = Server::start();
    let config = RedisConfig { error_backoff: Duration::from_secs(3_600), ..quick() };
    let tier = RedisTier::connect(&server.url(), config).await.unwrap();
    let cache = cache(&tier);
    soon(cache.get_or_load(1, || async { Err("down".to_string()) })).await.unwrap_err();
    until("the failure is told", || server.command("HGET t:1:0:{products/k1}:c m").contains("failed")).await;
    assert!(cache.refresh(1, || async { Ok("new".to_string()) }));
    published(&tier, 1).await;
    until("it is here", || cache.get(&1).as_deref() == Some("new")).await;
}

#[tokio::test]
async fn a_stale_value_is_refreshed_by_one_instance_and_served_by_all() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let stale = |tier| -> Cache {
        let builder = builder(tier).ttl(Duration::from_millis(50));
        builder.stale_while_revalidate(Duration::from_secs(3_600)).build().unwrap()
    };
    let (a, b) = (stale(&one), stale(&two));
    fetch(&a, 1, "old").await;
    published(&one, 1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, goes) = (Arc::clone(&started), Arc::clone(&go));
    let load = |_| async move {
        starts.notify_one();
        goes.notified().await;
        Ok(Loaded::new("new".to_string()).ttl(Duration::from_secs(3_600)))
    };
    // The first to see it stale refreshes; it knew nothing of the key before, and is answered at once all the same.
    let answer = soon(b.get_or_load_with(1, load)).await.unwrap();
    assert_eq!(answer.value, "old");
    assert!(matches!(answer.outcome, Outcome::Stale { reason: StaleReason::Revalidating, .. }), "{answer:?}");
    soon(started.notified()).await;
    assert_eq!(fetch(&b, 1, "unused").await.0, "old");
    let third = tier(&server).await;
    let (value, outcome) = fetch(&stale(&third), 1, "unused").await;
    assert_eq!(value, "old");
    assert!(matches!(outcome, Outcome::Stale { reason: StaleReason::Revalidating, .. }), "{outcome:?}");
    go.notify_one();
    published(&two, 1).await;
    for cache in [&a, &b] {
        let mut value = String::new();
        while value != "new" {
            value = fetch(cache, 1, "unused").await.0;
            assert_ne!(value, "unused", "the lease's own instance does not load beside it either");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_forced_refresh_loads_though_the_value_is_fresh_everywhere() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "old").await;
    published(&one, 1).await;
    fetch(&b, 1, "unused").await;
    assert!(b.refresh(1, || async { Ok("new".to_string()) }));
    published(&two, 1).await;
    until("it is here", || b.get(&1).as_deref() == Some("new")).await;
    until("the older one is dropped", || a.get(&1).is_none()).await;
    assert_eq!(fetch(&a, 1, "unused").await, ("new".into(), Outcome::SharedHit));
    // And where nothing is known of the key, too.
    let third = tier(&server).await;
    let c = cache(&third);
    assert!(c.refresh(1, || async { Ok("newest".to_string()) }));
    published(&third, 1).await;
}

#[tokio::test]
async fn what_an_instance_keeps_ends_by_the_cap_and_is_asked_for_again() {
    let server = Server::start();
    let config = RedisConfig { local_ttl_cap: Duration::from_millis(40), ..quick() };
    let tier = RedisTier::connect(&server.url(), config).await.unwrap();
    let cache = cache(&tier);
    fetch(&cache, 1, "value").await;
    published(&tier, 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(cache.get(&1), None);
    assert_eq!(fetch(&cache, 1, "unused").await, ("value".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn times_are_the_leaders_and_jitter_is_applied_once() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let jittered = |tier, jitter| -> Cache {
        builder(tier).ttl(Duration::from_secs(20)).jitter(jitter).seed(1).build().unwrap()
    };
    let a = jittered(&one, 1.0);
    for key in 0..20 {
        fetch(&a, key, "value").await;
    }
    published(&one, 20).await;
    // What a jitter of 1 left of each; the reader's own jitter would shorten it again.
    let b = jittered(&two, 1.0);
    let mut shortest = i64::MAX;
    for key in 0..20 {
        let left = server.command(&format!("PTTL t:1:0:{{products/k{key}}}:v"));
        let left: i64 = left.trim_start_matches(':').trim().parse().unwrap();
        assert!(left <= 20_000);
        shortest = shortest.min(left);
        if left > 2_000 {
            assert_eq!(fetch(&b, key, "unused").await.1, Outcome::SharedHit);
            assert!(b.get(&key).is_some());
        }
    }
    assert!(shortest < 15_000, "jitter shortens: {shortest}");
}

#[tokio::test]
async fn what_is_uncacheable_stays_in_its_instance() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    soon(a.get_or_load_with(1, |_| async { Ok(Loaded::new("once".to_string()).uncacheable()) }))
        .await
        .unwrap();
    until("kept", || one.stats().kept_local == 1).await;
    assert_eq!(fetch(&b, 1, "own").await, ("own".into(), Outcome::Loaded));
    assert_eq!(one.stats().published, 0);
}

/// Loads `value` with these tags.
async fn tag(cache: &Cache, key: u64, value: &'static str, tags: &'static [&'static str]) -> Outcome {
    let load = move |_| async move { Ok(Loaded::new(value.to_string()).tags(tags.iter().copied())) };
    soon(cache.get_or_load_with(key, load)).await.unwrap().outcome
}

#[tokio::test]
async fn an_invalidated_tag_voids_its_values_in_every_instance_and_on_the_tier() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    tag(&a, 1, "red shoe", &["shoes", "red"]).await;
    tag(&a, 2, "hat", &["hats"]).await;
    tag(&a, 3, "sock", &["shoes"]).await;
    published(&one, 3).await;
    for (key, value) in [(1, "red shoe"), (2, "hat")] {
        assert_eq!(fetch(&b, key, "unused").await, (value.into(), Outcome::SharedHit));
    }
    b.invalidate_tag("shoes");
    assert_eq!(b.get(&1), None, "its own at once");
    until("told", || two.stats().pending_invalidations == 0).await;
    until("the other instance dropped it", || a.get(&1).is_none() && a.get(&3).is_none()).await;
    assert_eq!((a.get(&2).as_deref(), b.get(&2).as_deref()), (Some("hat"), Some("hat")));
    // What lies on the tier is void, for those who had it, who never had it, and who come later.
    assert_eq!(tag(&a, 1, "new shoe", &["shoes"]).await, Outcome::Loaded);
    assert_eq!(fetch(&b, 3, "new sock").await, ("new sock".into(), Outcome::Loaded));
    published(&two, 1).await;
    let late = tier(&server).await;
    let c = cache(&late);
    assert_eq!(fetch(&c, 1, "unused").await, ("new shoe".into(), Outcome::SharedHit));
    assert_eq!(fetch(&c, 2, "unused").await, ("hat".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn a_load_that_began_before_its_tag_was_invalidated_is_nobody_elses_value() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, goes, loads) = (Arc::clone(&started), Arc::clone(&go), a.clone());
    let old = tokio::spawn(async move {
        let load = |_| async move {
            starts.notify_one();
            goes.notified().await;
            Ok(Loaded::new("old".to_string()).tags(["t"]))
        };
        loads.get_or_load_with(1, load).await.unwrap().value
    });
    soon(started.notified()).await;
    b.invalidate_tag("t");
    until("told", || two.stats().pending_invalidations == 0).await;
    go.notify_one();
    assert_eq!(soon(old).await.unwrap(), "old", "who waited already may have it");
    published(&one, 1).await;
    assert_eq!(tag(&b, 1, "new", &["t"]).await, Outcome::Loaded);
    published(&two, 1).await;
    until("replaced", || a.get(&1).is_none()).await;
    assert_eq!(fetch(&a, 1, "unused").await, ("new".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn if_the_record_of_what_was_voided_is_lost_all_from_before_is_void() {
    let server = Server::start();
    let one = tier(&server).await;
    let a = cache(&one);
    tag(&a, 1, "old", &["t"]).await;
    fetch(&a, 2, "old").await;
    published(&one, 2).await;
    a.invalidate_tag("t");
    until("told", || one.stats().pending_invalidations == 0).await;
    // As a server under pressure evicts it.
    server.command("UNLINK t:1:epochs");
    let two = tier(&server).await;
    let b = cache(&two);
    assert_eq!(fetch(&b, 1, "new").await, ("new".into(), Outcome::Loaded));
    assert_eq!(fetch(&b, 2, "new").await, ("new".into(), Outcome::Loaded));
    published(&two, 2).await;
    assert_eq!(fetch(&cache(&tier(&server).await), 1, "unused").await, ("new".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn a_record_of_what_was_voided_that_another_cache_makes_anew_revives_nothing() {
    let server = Server::start();
    let one = tier(&server).await;
    let (a, other): (_, Cache) = (cache(&one), builder(&one).name("users").build().unwrap());
    tag(&a, 1, "old", &["t"]).await;
    published(&one, 1).await;
    a.invalidate_tag("t");
    until("told", || one.stats().pending_invalidations == 0).await;
    server.command("UNLINK t:1:epochs");
    other.invalidate_tag("t");
    until("told", || one.stats().pending_invalidations == 0).await;
    let late = cache(&tier(&server).await);
    assert_eq!(fetch(&late, 1, "new").await, ("new".into(), Outcome::Loaded));
}

#[tokio::test]
async fn an_instance_without_events_learns_of_tags_when_it_asks() {
    let server = Server::start();
    let proxy = Proxy::to(server.addr()).await;
    let one = tier(&server).await;
    let two = RedisTier::connect(&proxy.url(), quick()).await.unwrap();
    let (a, b) = (cache(&one), cache(&two));
    tag(&a, 1, "old", &["t"]).await;
    fetch(&a, 2, "old").await;
    published(&one, 2).await;
    proxy.refuse("SUBSCRIBE");
    server.command("CLIENT KILL TYPE pubsub");
    until("cut off", || !two.stats().subscribed).await;
    a.invalidate_tag("t");
    until("told", || one.stats().pending_invalidations == 0).await;
    assert_eq!(fetch(&b, 1, "new").await, ("new".into(), Outcome::Loaded));
    a.invalidate_all();
    until("told", || one.stats().pending_invalidations == 0).await;
    assert_eq!(fetch(&b, 2, "new").await, ("new".into(), Outcome::Loaded));
}

#[tokio::test]
async fn what_a_loader_says_of_its_values_times_holds_in_every_instance() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    // Built without stale windows.
    let (a, b) = (cache(&one), cache(&two));
    let short = |value: &'static str| {
        move |_| async move {
            Ok(Loaded::new(value.to_string()).ttl(Duration::from_millis(20)).stale_while_revalidate(HOUR))
        }
    };
    soon(a.get_or_load_with(1, short("old"))).await.unwrap();
    let if_error = |_| async {
        Ok(Loaded::new("spare".to_string()).ttl(Duration::from_millis(20)).stale_if_error(HOUR))
    };
    soon(a.get_or_load_with(2, if_error)).await.unwrap();
    published(&one, 2).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let served = soon(b.get_or_load_with(1, short("new"))).await.unwrap();
    assert_eq!(served.value, "old");
    assert!(matches!(served.outcome, Outcome::Stale { reason: StaleReason::Revalidating, .. }), "{served:?}");
    let served = soon(b.get_or_load_with(2, |_| async { Err("down".to_string()) })).await.unwrap();
    assert_eq!(served.value, "spare");
    assert!(matches!(served.outcome, Outcome::Stale { reason: StaleReason::LoadFailed, .. }), "{served:?}");
}

/// The answers, and the keys that were asked of the loader.
async fn many(cache: &Cache, keys: impl IntoIterator<Item = u64>) -> (Vec<(u64, String)>, Vec<u64>) {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let asks = Arc::clone(&asked);
    let load = move |keys: Vec<u64>| {
        asks.lock().unwrap().extend(keys.clone());
        async move { Ok(keys.into_iter().map(|key| (key, format!("loaded {key}"))).collect()) }
    };
    let answers = soon(cache.get_or_load_many(keys, load)).await;
    let mut answers: Vec<_> = answers.into_iter().map(|(key, value)| (key, value.unwrap())).collect();
    answers.sort();
    let mut asked = asked.lock().unwrap().clone();
    asked.sort_unstable();
    (answers, asked)
}

#[tokio::test]
async fn many_keys_are_asked_for_at_once_and_only_what_nobody_has_is_loaded() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "there").await;
    fetch(&a, 2, "there").await;
    published(&one, 2).await;
    let (answers, asked) = many(&b, 1..=4).await;
    assert_eq!(asked, [3, 4]);
    let value = |key, value: &str| (key, value.to_string());
    assert_eq!(answers, [value(1, "there"), value(2, "there"), value(3, "loaded 3"), value(4, "loaded 4")]);
    published(&two, 2).await;
    assert_eq!(two.stats().operations, 6, "a question a key and a publication a load");
    for key in 3..=4 {
        assert_eq!(fetch(&a, key, "unused").await, (format!("loaded {key}"), Outcome::SharedHit));
    }
    let (_, asked) = many(&a, 1..=4).await;
    assert_eq!(asked, [0_u64; 0]);
}

#[tokio::test]
async fn many_keys_join_what_another_instance_loads_and_do_not_hold_up_the_others() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("theirs")).await;
    let caller = tokio::spawn(async move { many(&b, [1, 2]).await });
    // Its own part is loaded and published while the other's is waited for.
    published(&two, 1).await;
    waited_for(&server, 1).await;
    assert!(!caller.is_finished());
    held.finish().await.unwrap();
    let (answers, asked) = soon(caller).await.unwrap();
    assert_eq!(asked, [2]);
    assert_eq!(answers, [(1, "theirs".to_string()), (2, "loaded 2".to_string())]);
}

#[tokio::test]
async fn of_many_keys_one_that_another_instance_gave_up_is_loaded_here_or_is_its_failure() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let a: Cache = builder(&one).on_abandon(OnAbandon::Cancel).build().unwrap();
    let b = cache(&two);
    // The only key: nothing has been loaded yet when the other gives up.
    let held = Held::start(&a, 1, Ok("unused")).await;
    let (waiting, caller) = (b.clone(), b.clone());
    let caller = tokio::spawn(async move { many(&caller, [1]).await });
    waited_for(&server, 1).await;
    held.abandon();
    assert_eq!(soon(caller).await.unwrap(), (vec![(1, "loaded 1".to_string())], vec![1]));
    // One of two: the loader has been called without it.
    let held = Held::start(&a, 2, Ok("unused")).await;
    let caller = tokio::spawn(async move {
        let load = |keys: Vec<u64>| async move {
            Ok(keys.into_iter().map(|key| (key, "own".to_string())).collect())
        };
        waiting.get_or_load_many([2, 3], load).await
    });
    waited_for(&server, 2).await;
    published(&two, 2).await;
    held.abandon();
    let answers = soon(caller).await.unwrap();
    assert_eq!(answers[&3].as_deref().ok(), Some("own"));
    assert!(matches!(answers[&2], Err(LoadError::Remote { .. })), "{answers:?}");
    assert_eq!(fetch(&b, 2, "alone").await, ("alone".into(), Outcome::Loaded), "nobody holds it");
}

#[tokio::test]
async fn many_keys_have_what_a_load_brings_from_before_events_were_missed() {
    let server = Server::start();
    let tier = tier(&server).await;
    let cache = cache(&tier);
    fetch(&cache, 9, "kept").await;
    let held = Held::start(&cache, 1, Ok("from before")).await;
    server.command("CLIENT KILL TYPE pubsub");
    until("what it had is doubtful", || cache.get(&9).is_none()).await;
    // The load under way is as doubtful to this instance: Redis is asked what it is worth.
    let caller = tokio::spawn(async move { many(&cache, [1, 2]).await });
    published(&tier, 2).await;
    held.finish().await.unwrap();
    let (answers, asked) = soon(caller).await.unwrap();
    assert_eq!(asked, [2]);
    assert_eq!(answers, [(1, "from before".to_string()), (2, "loaded 2".to_string())]);
}

#[tokio::test]
async fn a_caller_of_many_that_leaves_before_its_loader_is_called_leaves_nobody_waiting() {
    let server = Server::start();
    let tier = tier(&server).await;
    let cache = cache(&tier);
    let mut leaving = Box::pin(many(&cache, [1, 2]));
    assert!((&mut leaving).now_or_never().is_none());
    let joined = cache.clone();
    let joined = tokio::spawn(async move { fetch(&joined, 1, "own").await });
    tokio::task::yield_now().await;
    drop(leaving);
    assert_eq!(soon(joined).await.unwrap().0, "own");
    assert_eq!(fetch(&cache, 2, "own").await, ("own".into(), Outcome::Loaded));
}

#[tokio::test]
async fn a_tier_is_up_once_it_is_connected() {
    let server = Server::start();
    for _ in 0..50 {
        let stats = tier(&server).await.stats();
        assert!(!stats.circuit_open && stats.subscribed, "{stats:?}");
    }
}

#[tokio::test]
async fn a_cache_on_a_tier_needs_a_name() {
    let server = Server::start();
    let tier = tier(&server).await;
    let refused = StampedeCache::<u64, u64>::builder().redis(tier.clone()).build().unwrap_err();
    assert_eq!(refused.field(), "name");
    let refused = StampedeCache::<u64, u64>::builder().redis(tier).name("a b").build().unwrap_err();
    assert_eq!(refused.field(), "name");
}

#[tokio::test]
async fn a_values_cost_travels_with_it() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let early = |tier| -> Cache {
        let always = stampede_guard::EarlyRefresh::XFetch { beta: 1_000.0 };
        builder(tier).ttl(Duration::from_secs(10)).early_refresh(always).build().unwrap()
    };
    let a = early(&one);
    let slow = |_| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Ok(Loaded::new("slow".to_string()))
    };
    soon(a.get_or_load_with(1, slow)).await.unwrap();
    published(&one, 1).await;
    let b = early(&two);
    assert_eq!(fetch(&b, 1, "unused").await.1, Outcome::SharedHit);
    // With a load of 30 ms and so great a beta nearly every draw says refresh.
    until("refreshed early", || {
        let _ = b.get_or_load(1, || async { Ok("early".to_string()) }).now_or_never();
        two.stats().published > 0
    })
    .await;
}

#[tokio::test]
async fn a_values_age_travels_with_it() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let two_seconds = |tier| builder(tier).ttl(Duration::from_secs(2)).stale_while_revalidate(MINUTE);
    fetch(&two_seconds(&one).build().unwrap(), 1, "old").await;
    published(&one, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let clock = ManualClock::new();
    let b = two_seconds(&two).clock(clock.clone()).build().unwrap();
    assert_eq!(fetch(&b, 1, "unused").await.1, Outcome::SharedHit);
    clock.advance(Duration::from_secs(2));
    let Outcome::Stale { age, .. } = fetch(&b, 1, "new").await.1 else { panic!("it is not stale") };
    assert!(age >= Duration::from_millis(2_300), "{age:?}");
}

/// However soon this instance asks the others again, and whenever it came by the value.
#[tokio::test]
async fn an_early_refresh_goes_by_the_whole_freshness_of_a_value() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let after = |share, tier| {
        let clock = ManualClock::new();
        let cache = builder(tier).ttl(MINUTE).early_refresh(EarlyRefresh::Fraction(share));
        (cache.clock(clock.clone()).build().unwrap(), clock)
    };
    let (a, clock) = after(0.75, &one);
    fetch(&a, 1, "value").await;
    published(&one, 1).await;
    // Three quarters of the time until it asks again are over, and not of the minute.
    clock.advance(quick().local_ttl_cap * 4 / 5);
    assert_eq!((fetch(&a, 1, "unused").await.1, a.stats().refreshes), (Outcome::Hit, 0));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // A quarter of a second, most of it over when it comes here.
    let (b, _clock) = after(0.25 / 60.0, &two);
    assert_eq!(fetch(&b, 1, "unused").await.1, Outcome::SharedHit);
    assert_eq!((fetch(&b, 1, "early").await.1, b.stats().refreshes), (Outcome::Hit, 1));
}

#[tokio::test]
async fn an_own_codec_and_compression_are_used() {
    struct Upper;
    impl stampede_guard::Codec<String> for Upper {
        fn id(&self) -> u8 {
            200
        }
        fn encode(&self, value: &String, out: &mut Vec<u8>) -> Result<(), stampede_guard::CodecError> {
            out.extend_from_slice(value.to_uppercase().as_bytes());
            Ok(())
        }
        fn decode(&self, bytes: &[u8]) -> Result<String, stampede_guard::CodecError> {
            String::from_utf8(bytes.to_vec()).map_err(stampede_guard::CodecError::new)
        }
    }
    let server = Server::start();
    let config = RedisConfig { compress_over: Some(100), ..quick() };
    let one = RedisTier::connect(&server.url(), config.clone()).await.unwrap();
    let two = RedisTier::connect(&server.url(), config).await.unwrap();
    let own = |tier: &RedisTier| -> Cache {
        let builder = StampedeCache::builder().name("products");
        builder.redis_with(tier.clone(), Upper).build().unwrap()
    };
    let a = own(&one);
    let long = || async { Ok("a".repeat(10_000)) };
    soon(a.get_or_load(1, long)).await.unwrap();
    published(&one, 1).await;
    let length = server.command("STRLEN t:1:0:{products/k1}:v");
    assert!(length.trim_start_matches(':').trim().parse::<usize>().unwrap() < 1_000, "{length}");
    assert_eq!(fetch(&own(&two), 1, "unused").await, ("A".repeat(10_000), Outcome::SharedHit));
    // The default codec does not read it: another format is a miss.
    assert_eq!(fetch(&cache(&two), 1, "own").await, ("own".into(), Outcome::Loaded));
}

#[tokio::test]
async fn a_codec_that_panics_refuses_a_value_and_fails_nobodys_load() {
    struct Panics;
    impl stampede_guard::Codec<String> for Panics {
        fn id(&self) -> u8 {
            200
        }
        fn encode(&self, value: &String, out: &mut Vec<u8>) -> Result<(), stampede_guard::CodecError> {
            assert_ne!(value, "unencodable");
            out.extend_from_slice(value.as_bytes());
            Ok(())
        }
        fn decode(&self, bytes: &[u8]) -> Result<String, stampede_guard::CodecError> {
            assert_ne!(bytes, b"undecodable");
            String::from_utf8(bytes.to_vec()).map_err(stampede_guard::CodecError::new)
        }
    }
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let of = |tier: &RedisTier| -> Cache {
        let builder = StampedeCache::builder().jitter(0.0).name("products");
        builder.redis_with(tier.clone(), Panics).build().unwrap()
    };
    let (a, b) = (of(&one), of(&two));
    assert_eq!(fetch(&a, 1, "undecodable").await, ("undecodable".into(), Outcome::Loaded));
    published(&one, 1).await;
    assert_eq!(fetch(&b, 1, "own").await, ("own".into(), Outcome::Loaded));
    published(&two, 1).await;
    assert!(two.stats().malformed >= 1);
    assert_eq!(fetch(&a, 2, "unencodable").await, ("unencodable".into(), Outcome::Loaded));
    until("kept", || one.stats().kept_local == 1).await;
    assert_eq!(fetch(&b, 2, "own").await, ("own".into(), Outcome::Loaded));
}

#[tokio::test]
async fn callers_of_one_key_meet_in_their_process_before_redis_is_asked() {
    let server = Server::start();
    let tier = tier(&server).await;
    let cache = cache(&tier);
    let together = Arc::new(Barrier::new(50));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (cache, together) = (cache.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                fetch(&cache, 1, "value").await
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(soon(caller).await.unwrap().0, "value");
    }
    published(&tier, 1).await;
    assert_eq!(tier.stats().operations, 2);
}
