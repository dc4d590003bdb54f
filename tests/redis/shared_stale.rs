//! A value in Redis that is past its freshness, met by an instance that has nothing itself, as after a deploy: the load
//! that replaces it, or that it stands in for, is one like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use stampede_guard::{LoadError, Loaded, Outcome, RedisTier, StaleReason, StampedeCacheBuilder};
use tokio::sync::{Notify, Semaphore};

use crate::calls::{Cache, builder, published};
use crate::server::{Server, soon, tier, until};

type Builder = StampedeCacheBuilder<u64, String, String>;

const MINUTE: Duration = Duration::from_secs(60);

fn while_revalidate(builder: Builder) -> Builder {
    builder.ttl(Duration::from_millis(1)).stale_while_revalidate(MINUTE)
}

fn if_error(builder: Builder) -> Builder {
    builder.ttl(Duration::from_millis(1)).stale_if_error(MINUTE)
}

/// An instance that has nothing itself; in Redis is what another has loaded: `old`, under each of `keys`.
async fn newcomer(
    server: &Server,
    keys: u64,
    settings: impl Fn(Builder) -> Builder,
) -> (RedisTier, RedisTier, Cache) {
    let (one, two) = (tier(server).await, tier(server).await);
    let first = settings(builder(&one)).build().unwrap();
    for key in 0..keys {
        first.get_or_load(key, || async { Ok("old".into()) }).await.unwrap();
    }
    published(&one, keys).await;
    let second = settings(builder(&two)).build().unwrap();
    (one, two, second)
}

/// Loads under way, which end when they are let go.
#[derive(Clone, Default)]
struct Loads {
    running: Arc<AtomicUsize>,
    gate: Arc<Notify>,
}

impl Loads {
    fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    fn load(&self) -> impl Future<Output = Result<String, String>> + Send + use<> {
        struct Counted(Loads);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.running.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let loads = self.clone();
        async move {
            loads.running.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(loads);
            counted.0.gate.notified().await;
            Ok("new".into())
        }
    }
}

#[tokio::test]
async fn its_replacement_is_waited_for_by_close() {
    let server = Server::start();
    let (_one, _two, cache) = newcomer(&server, 1, while_revalidate).await;
    let loads = Loads::default();
    let load = loads.clone();
    assert_eq!(soon(cache.get_or_load(0, move || load.load())).await.unwrap(), "old");
    until("it loads", || loads.running() == 1).await;
    let closing = tokio::spawn(async move { cache.close().await });
    loads.gate.notify_one();
    soon(closing).await.unwrap();
    assert_eq!(loads.running(), 0);
}

#[tokio::test]
async fn its_replacements_take_the_places_of_loads_that_nobody_waits_for() {
    let server = Server::start();
    let (_one, two, cache) =
        newcomer(&server, 10, |builder| while_revalidate(builder).max_abandoned(2)).await;
    let loads = Loads::default();
    for key in 0..10 {
        let load = loads.clone();
        assert_eq!(soon(cache.get_or_load(key, move || load.load())).await.unwrap(), "old");
    }
    until("two load", || loads.running() == 2).await;
    // The leases of the others are given back.
    until("all were held", || two.stats().leases == 10).await;
    for key in 2..10 {
        let holder = format!("HGET t:1:0:{{products/k{key}}}:c o");
        until("nobody holds it", || server.command(&holder) == "$-1\r\n").await;
    }
    assert_eq!(loads.running(), 2);
}

#[tokio::test]
async fn its_replacements_do_not_queue_before_misses() {
    let server = Server::start();
    let (_one, _two, cache) =
        newcomer(&server, 5, |builder| while_revalidate(builder).max_concurrent_loads(1)).await;
    let loads = Loads::default();
    for key in 0..5 {
        let load = loads.clone();
        assert_eq!(soon(cache.get_or_load(key, move || load.load())).await.unwrap(), "old");
    }
    until("one loads", || loads.running() == 1).await;
    let miss = tokio::spawn(async move { cache.get_or_load(100, || async { Ok("miss".into()) }).await });
    loads.gate.notify_one();
    assert_eq!(soon(miss).await.unwrap().unwrap(), "miss");
    assert_eq!(loads.running(), 0);
}

#[tokio::test]
async fn a_replacement_that_fails_is_counted() {
    let server = Server::start();
    let (_one, _two, cache) = newcomer(&server, 1, while_revalidate).await;
    assert_eq!(soon(cache.get_or_load(0, || async { Err("down".into()) })).await.unwrap(), "old");
    until("it failed", || cache.stats().flights.failed == 1).await;
    assert_eq!((cache.stats().flights.loads, cache.stats().refreshes), (1, 1));
}

#[tokio::test]
async fn it_stands_in_however_the_load_fails() {
    let server = Server::start();
    let settings = |builder| if_error(builder).load_timeout(Duration::from_millis(500));
    let (_one, _two, cache) = newcomer(&server, 3, settings).await;
    for (key, how) in [(0, "fails"), (1, "panics"), (2, "hangs")] {
        let load = move |_| async move {
            tokio::task::yield_now().await;
            match how {
                "fails" => Err("down".to_string()),
                "panics" => panic!("no such shard"),
                _ => std::future::pending().await,
            }
        };
        let fetched = soon(cache.get_or_load_with(key, load)).await.unwrap();
        assert_eq!(fetched.value, "old", "{how}");
        assert!(
            matches!(fetched.outcome, Outcome::Stale { reason: StaleReason::LoadFailed, .. }),
            "{how}: {:?}",
            fetched.outcome
        );
    }
}

#[tokio::test]
async fn it_stands_in_for_a_slow_load_which_goes_on() {
    let server = Server::start();
    let settings = |builder| if_error(builder).soft_timeout(Duration::from_millis(50));
    let (one, two, cache) = newcomer(&server, 1, settings).await;
    let loads = Loads::default();
    let load = loads.clone();
    let fetched = soon(cache.get_or_load_with(0, move |_| async move { load.load().await.map(Loaded::new) }));
    let fetched = fetched.await.unwrap();
    assert_eq!(fetched.value, "old");
    assert!(matches!(fetched.outcome, Outcome::Stale { reason: StaleReason::LoadSlow, .. }));
    loads.gate.notify_one();
    published(&two, 1).await;
    drop(one);
}

/// Another instance's load of these keys, under way.
async fn led_elsewhere(tier: &RedisTier, keys: u64) -> (Loads, Vec<tokio::task::JoinHandle<String>>) {
    let (leader, loads) = (if_error(builder(tier)).build().unwrap(), Loads::default());
    let callers = (0..keys).map(|key| {
        let (leader, load) = (leader.clone(), loads.clone());
        let load = move |_| async move { Ok(Loaded::new(load.load().await?).ttl(MINUTE)) };
        tokio::spawn(async move { leader.get_or_load_with(key, load).await.unwrap().value })
    });
    let callers = callers.collect();
    until("all are loaded", || loads.running() as u64 == keys).await;
    (loads, callers)
}

#[tokio::test]
async fn it_stands_in_for_another_instances_slow_load_which_is_waited_for() {
    let server = Server::start();
    let settings = |builder| if_error(builder).soft_timeout(Duration::from_millis(50));
    let (one, two, cache) = newcomer(&server, 2, settings).await;
    let (loads, callers) = led_elsewhere(&one, 2).await;
    let unused = |_| async { Err::<Loaded<String>, _>("it is loaded elsewhere".to_string()) };
    let fetched = soon(cache.get_or_load_with(0, unused)).await.unwrap();
    assert_eq!(fetched.value, "old");
    assert!(matches!(fetched.outcome, Outcome::Stale { reason: StaleReason::LoadSlow, .. }), "{fetched:?}");
    let own = |keys: Vec<u64>| async move {
        Ok::<_, String>(keys.into_iter().map(|key| (key, "own".to_string())).collect())
    };
    let many = soon(cache.get_or_load_many([1, 100], own)).await;
    assert_eq!((many[&1].as_deref().unwrap(), many[&100].as_deref().unwrap()), ("old", "own"));
    for _ in callers {
        loads.gate.notify_one();
    }
    // The waits go on, in flights of their own.
    until("what it brings is here", || (0..2).all(|key| cache.get(&key).as_deref() == Some("new"))).await;
    assert_eq!((cache.stats().flights.loads, two.stats().leases), (1, 1), "its own is that of key 100");
}

#[tokio::test]
async fn it_stands_in_for_another_instances_load_that_takes_too_long() {
    let server = Server::start();
    let settings = |builder| if_error(builder).load_timeout(Duration::from_millis(500));
    let (one, _two, cache) = newcomer(&server, 1, settings).await;
    let (_loads, callers) = led_elsewhere(&one, 1).await;
    let unused = |_| async { Err::<Loaded<String>, _>("it is loaded elsewhere".to_string()) };
    let fetched = soon(cache.get_or_load_with(0, unused)).await.unwrap();
    assert_eq!(fetched.value, "old");
    assert!(matches!(fetched.outcome, Outcome::Stale { reason: StaleReason::LoadFailed, .. }), "{fetched:?}");
    for caller in callers {
        caller.abort();
    }
}

#[tokio::test]
async fn it_stands_in_if_redis_dies_while_another_instance_loads() {
    let mut server = Server::start();
    let (one, _two, cache) = newcomer(&server, 1, if_error).await;
    let (_loads, callers) = led_elsewhere(&one, 1).await;
    let own = tokio::spawn(async move { cache.get_or_load(0, || async { Err("down".into()) }).await });
    crate::calls::waited_for(&server, 0).await;
    server.kill();
    assert_eq!(soon(own).await.unwrap().unwrap(), "old");
    for caller in callers {
        caller.abort();
    }
}

#[tokio::test]
async fn a_failure_it_stands_in_for_is_one_run_over_all_instances() {
    let server = Server::start();
    let (_one, _two, leader) = newcomer(&server, 1, if_error).await;
    let (go, runs) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let call = |cache: Cache| {
        let (go, runs) = (Arc::clone(&go), Arc::clone(&runs));
        tokio::spawn(async move {
            let load = || async move {
                runs.fetch_add(1, Ordering::SeqCst);
                go.acquire().await.unwrap().forget();
                Err::<String, _>("down".into())
            };
            cache.get_or_load(0, load).await
        })
    };
    let mut callers = vec![call(leader)];
    until("it runs", || runs.load(Ordering::SeqCst) == 1).await;
    let mut tiers = Vec::new();
    for _ in 0..3 {
        let tier = tier(&server).await;
        callers.push(call(if_error(builder(&tier)).build().unwrap()));
        tiers.push(tier);
    }
    crate::calls::waited_for(&server, 0).await;
    until("all have asked", || tiers.iter().all(|tier| tier.stats().operations > 0)).await;
    go.add_permits(1);
    for caller in callers {
        assert_eq!(soon(caller).await.unwrap().unwrap(), "old");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refresh_that_waits_for_another_instance_holds_no_permit() {
    let server = Server::start();
    let settings = |builder| while_revalidate(builder).max_concurrent_loads(1);
    let (one, _two, cache) = newcomer(&server, 1, settings).await;
    // A stale value of its own.
    assert_eq!(soon(cache.get_or_load(0, || async { Err("down".into()) })).await.unwrap(), "old");
    until("it failed", || cache.stats().flights.failed == 1).await;
    let other = while_revalidate(builder(&one)).build().unwrap();
    let loads = Loads::default();
    let load = loads.clone();
    assert!(other.refresh(0, move || load.load()));
    until("another loads", || loads.running() == 1).await;
    assert!(cache.refresh(0, || async { Ok("unused".into()) }));
    crate::calls::waited_for(&server, 0).await;
    assert_eq!(soon(cache.get_or_load(100, || async { Ok("miss".into()) })).await.unwrap(), "miss");
    loads.gate.notify_one();
}

#[tokio::test]
async fn a_batch_whose_caller_is_not_polled_keeps_no_key() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (here, there) = (builder(&one).build().unwrap(), builder(&two).build().unwrap());
    let load = |keys: Vec<u64>| async move {
        Ok::<_, String>(keys.into_iter().map(|key| (key, "many".to_string())).collect())
    };
    let mut many = Box::pin(here.get_or_load_many([1, 2], load));
    assert!((&mut many).now_or_never().is_none());
    until("it leads both", || one.stats().leases == 2).await;
    let beside = here.clone();
    let beside = tokio::spawn(async move { beside.get_or_load(1, || async { Ok("one".into()) }).await });
    let away = tokio::spawn(async move { there.get_or_load(2, || async { Ok("two".into()) }).await });
    assert_eq!(soon(beside).await.unwrap().unwrap(), "one");
    assert_eq!(soon(away).await.unwrap().unwrap(), "two");
    // Polled again, it has what there is by now, or loads it.
    let answers = soon(many).await;
    assert_eq!((answers[&1].as_deref().unwrap(), answers[&2].as_deref().unwrap()), ("one", "two"));
}

#[tokio::test]
async fn a_batch_that_was_given_up_leaves_what_stands_in() {
    let server = Server::start();
    let one = tier(&server).await;
    let cache = if_error(builder(&one)).build().unwrap();
    cache.get_or_load(1, || async { Ok("old".into()) }).await.unwrap();
    published(&one, 1).await;
    let load = |_| async { Err::<std::collections::HashMap<_, _>, _>("down".to_string()) };
    let mut many = Box::pin(cache.get_or_load_many([1], load));
    assert!((&mut many).now_or_never().is_none());
    until("it leads", || one.stats().leases == 2).await;
    drop(many);
    until("it landed", || cache.stats().flights.loads == 2).await;
    let failing = || async { Err::<String, _>("down".to_string()) };
    let got: Result<_, LoadError<_>> = soon(cache.get_or_load(1, failing)).await;
    assert_eq!(got.unwrap(), "old");
}

/// The load that goes on is from before it.
#[tokio::test]
async fn an_invalidation_during_a_slow_load_wins() {
    let server = Server::start();
    let settings = |builder| if_error(builder).soft_timeout(Duration::from_millis(300));
    let (_one, two, cache) = newcomer(&server, 1, settings).await;
    let loads = Loads::default();
    let load = loads.clone();
    let caller = cache.clone();
    let slow = tokio::spawn(async move { caller.get_or_load(0, move || load.load()).await });
    until("it loads", || loads.running() == 1).await;
    soon(cache.invalidate(&0)).await.unwrap();
    // It was waiting before, and has what stands in; the load has no place to go to.
    assert_eq!(soon(slow).await.unwrap().unwrap(), "old");
    until("it is given up", || loads.running() == 0).await;
    assert_eq!(soon(cache.get_or_load(0, || async { Ok("newer".into()) })).await.unwrap(), "newer");
    published(&two, 1).await;
    assert_eq!(cache.stats().flights.loads, 2);
}

/// What is for one instance alone is no failure.
#[tokio::test]
async fn it_does_not_stand_in_for_a_value_that_is_not_shared() {
    let server = Server::start();
    let (_one, _two, leader) = newcomer(&server, 1, if_error).await;
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, goes) = (Arc::clone(&started), Arc::clone(&go));
    let uncacheable = tokio::spawn(async move {
        let load = |_| async move {
            starts.notify_one();
            goes.notified().await;
            Ok(Loaded::new("for one".to_string()).uncacheable())
        };
        leader.get_or_load_with(0, load).await.map(|fetched| fetched.value)
    });
    let third = tier(&server).await;
    let third = if_error(builder(&third)).build().unwrap();
    soon(started.notified()).await;
    let waiting =
        tokio::spawn(async move { third.get_or_load(0, || async { Ok("for another".into()) }).await });
    crate::calls::waited_for(&server, 0).await;
    go.notify_one();
    assert_eq!(soon(uncacheable).await.unwrap().unwrap(), "for one");
    assert_eq!(soon(waiting).await.unwrap().unwrap(), "for another");
}

#[tokio::test]
async fn while_it_stands_in_the_next_load_waits_its_turn() {
    let server = Server::start();
    let (_one, _two, cache) = newcomer(&server, 1, if_error).await;
    let runs = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let runs = Arc::clone(&runs);
        let load = move || async move {
            runs.fetch_add(1, Ordering::SeqCst);
            Err::<String, _>("down".to_string())
        };
        assert_eq!(soon(cache.get_or_load(0, load)).await.unwrap(), "old");
    }
    // The first pause is 75 ms at least.
    assert!(runs.load(Ordering::SeqCst) <= 2, "{runs:?}");
}
