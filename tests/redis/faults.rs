//! What goes wrong, and what is promised then. The numbers are those of docs/redis.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stampede_guard::{
    LoadError, Loaded, OnAbandon, Outcome, RedisConfig, RedisLock, RedisTier, RedisTierError, RemoteKind,
    SharedKey, StampedeCache,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::calls::{Cache, Held, builder, cache, fetch, loaded, published, waited_for};
use crate::proxy::Proxy;
use crate::server::{Server, brief, quick, soon, tier, until};

/// A lease that does not end within a test: only what is told can explain what follows.
fn endless() -> RedisConfig {
    RedisConfig { lease: Duration::from_secs(3_600), max_hold: Duration::from_secs(7_200), ..quick() }
}

async fn connect(url: &str, config: RedisConfig) -> RedisTier {
    RedisTier::connect(url, config).await.unwrap()
}

async fn healed(tier: &RedisTier) {
    until("healed", || !tier.stats().circuit_open && tier.stats().subscribed).await;
}

/// A caller in another instance, which waits for that load.
async fn waiter(
    server: &Server,
    cache: &Cache,
    key: u64,
    value: &'static str,
) -> JoinHandle<(String, Outcome)> {
    let cache = cache.clone();
    let waiter = tokio::spawn(async move { fetch(&cache, key, value).await });
    waited_for(server, key).await;
    waiter
}

const CONTROL: &str = "t:1:0:{products/k1}:c";
const VALUE: &str = "t:1:0:{products/k1}:v";

#[tokio::test]
async fn f04_a_load_may_take_longer_than_its_lease() {
    let server = Server::start();
    let (one, two) = (connect(&server.url(), brief()).await, connect(&server.url(), brief()).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("slow")).await;
    let waiter = waiter(&server, &b, 1, "unused").await;
    let first_end = server.lease_end(CONTROL);
    let lease = u64::try_from(brief().lease.as_millis()).unwrap();
    until("it began anew, twice", || server.lease_end(CONTROL) > first_end + lease).await;
    assert_eq!(held.finish().await.unwrap(), loaded("slow"));
    assert_eq!(soon(waiter).await.unwrap(), ("slow".into(), Outcome::SharedWait));
}

#[tokio::test]
async fn f04_without_renewal_another_takes_over_and_the_newer_value_is_kept() {
    let server = Server::start();
    // Renewed for as long as it lasts once, and no longer.
    let lease = Duration::from_millis(100);
    let config = RedisConfig { lease, max_hold: lease, ..quick() };
    let (one, two) = (connect(&server.url(), config.clone()).await, connect(&server.url(), config).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("older")).await;
    assert_eq!(fetch(&b, 1, "newer").await, loaded("newer"));
    published(&two, 1).await;
    assert_eq!(held.finish().await.unwrap(), loaded("older"), "its own callers get what they waited for");
    until("refused", || one.stats().superseded == 1).await;
    until("dropped", || a.get(&1).is_none()).await;
    assert_eq!(fetch(&a, 1, "unused").await, ("newer".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn f05_a_failed_panicked_late_or_dropped_load_is_told_at_once() {
    let server = Server::start();
    let (one, two) = (connect(&server.url(), endless()).await, connect(&server.url(), endless()).await);
    let a: Cache = builder(&one).on_abandon(OnAbandon::Cancel).build().unwrap();
    let b = cache(&two);

    let held = Held::start(&a, 1, Err("down")).await;
    let caller = b.clone();
    let waiting = tokio::spawn(async move { caller.get_or_load(1, || async { Ok("unused".into()) }).await });
    waited_for(&server, 1).await;
    held.finish().await.unwrap_err();
    let told = soon(waiting).await.unwrap();
    assert!(matches!(told, Err(LoadError::Remote { kind: RemoteKind::Failed })), "{told:?}");

    let (go, panics) = (Arc::new(Notify::new()), a.clone());
    let goes = Arc::clone(&go);
    let panicking = tokio::spawn(async move {
        let load = || async move {
            goes.notified().await;
            panic!("no such shard")
        };
        panics.get_or_load(2, load).await
    });
    until("it leads", || one.stats().leases == 2).await;
    let caller = b.clone();
    let waiting = tokio::spawn(async move { caller.get_or_load(2, || async { Ok("unused".into()) }).await });
    waited_for(&server, 2).await;
    go.notify_one();
    assert!(matches!(soon(panicking).await.unwrap(), Err(LoadError::Panicked(_))));
    let told = soon(waiting).await.unwrap();
    assert!(matches!(told, Err(LoadError::Remote { kind: RemoteKind::Panicked })), "{told:?}");

    let hasty: Cache = builder(&one).load_timeout(Duration::from_secs(2)).build().unwrap();
    let late = tokio::spawn(async move { hasty.get_or_load(4, std::future::pending).await });
    until("it leads", || one.stats().leases == 3).await;
    let caller = b.clone();
    let waiting = tokio::spawn(async move { caller.get_or_load(4, || async { Ok("unused".into()) }).await });
    waited_for(&server, 4).await;
    assert!(matches!(soon(late).await.unwrap(), Err(LoadError::TimedOut(_))));
    let told = soon(waiting).await.unwrap();
    assert!(matches!(told, Err(LoadError::Remote { kind: RemoteKind::TimedOut })), "{told:?}");

    let held = Held::start(&a, 3, Ok("unused")).await;
    let waiting = waiter(&server, &b, 3, "third").await;
    held.abandon();
    assert_eq!(soon(waiting).await.unwrap(), loaded("third"));
}

#[tokio::test]
async fn f06_an_invalidation_during_a_load_voids_it_everywhere() {
    let server = Server::start();
    let (one, two) = (connect(&server.url(), endless()).await, connect(&server.url(), endless()).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("old")).await;
    soon(b.invalidate(&1)).await.unwrap();
    // Once it is heard in the loading instance, who comes starts anew and does not wait for the old load's lease. Who comes
    // before that waits with the old load's own.
    until("a new load begins", || {
        let a = a.clone();
        tokio::spawn(async move { fetch(&a, 1, "new").await });
        one.stats().leases >= 2
    })
    .await;
    published(&one, 1).await;
    assert_eq!(held.finish().await.unwrap(), loaded("old"), "who waited already may have it");
    until("refused", || one.stats().superseded == 1).await;
    assert_eq!(a.get(&1).as_deref(), Some("new"));
    assert_eq!(fetch(&b, 1, "unused").await, ("new".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn f06_who_comes_after_everything_was_voided_waits_for_no_load_from_before() {
    let server = Server::start();
    let (one, two) = (connect(&server.url(), endless()).await, connect(&server.url(), endless()).await);
    let three = connect(&server.url(), endless()).await;
    let (a, b, c) = (cache(&one), cache(&two), cache(&three));
    let held = Held::start(&b, 1, Ok("old")).await;
    let waiting = waiter(&server, &c, 1, "new").await;
    a.invalidate_all();
    until("told", || one.stats().pending_invalidations == 0).await;
    assert_eq!(fetch(&a, 1, "new").await.0, "new");
    assert_eq!(soon(waiting).await.unwrap().0, "new", "who waited for the old load is told of the new one");
    assert_eq!(held.finish().await.unwrap(), loaded("old"), "who waited already may have it");
    until("refused", || two.stats().superseded == 1).await;
    assert_eq!(fetch(&b, 1, "unused").await.0, "new");
}

#[tokio::test]
async fn f06_an_invalidation_whose_event_is_lost_still_keeps_the_old_value_out() {
    let server = Server::start();
    let one = tier(&server).await;
    let a = cache(&one);
    let held = Held::start(&a, 1, Ok("old")).await;
    // As the script does it, and without a word.
    let future = u64::MAX >> 11;
    server.command(&format!("HSET {CONTROL} i {future}"));
    assert_eq!(held.finish().await.unwrap(), loaded("old"));
    until("refused", || one.stats().superseded == 1).await;
    until("dropped", || a.get(&1).is_none()).await;
    assert!(!server.keys().contains(&VALUE.to_string()));
}

#[tokio::test]
async fn f07_flushall_mid_load() {
    let server = Server::start();
    let one = tier(&server).await;
    let a = cache(&one);
    let held = Held::start(&a, 1, Ok("first")).await;
    server.command("FLUSHALL");
    assert_eq!(held.finish().await.unwrap(), loaded("first"));
    until("refused", || one.stats().superseded == 1).await;
    until("dropped", || a.get(&1).is_none()).await;
    assert_eq!(server.keys(), Vec::<String>::new());
    assert_eq!(fetch(&a, 1, "second").await, loaded("second"));
    published(&one, 1).await;
    assert_eq!(a.stats().flights.loads, 2);
}

#[tokio::test]
async fn f08_a_lost_record_voids_the_load_it_was_of() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("older")).await;
    server.command(&format!("UNLINK {CONTROL}"));
    let second = Held::start(&b, 1, Ok("newer")).await;
    assert_eq!(held.finish().await.unwrap(), loaded("older"));
    until("refused", || one.stats().superseded == 1).await;
    assert!(!server.keys().contains(&VALUE.to_string()), "what was invalidated meanwhile is not known");
    assert_eq!(second.finish().await.unwrap(), loaded("newer"));
    published(&two, 1).await;
    assert_eq!(fetch(&a, 1, "unused").await.0, "newer");
}

#[tokio::test]
async fn f09_a_server_that_forgot_the_scripts_costs_no_load() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    server.command("SCRIPT FLUSH");
    let held = Held::start(&a, 1, Ok("value")).await;
    let waiting = waiter(&server, &b, 1, "unused").await;
    server.command("SCRIPT FLUSH");
    held.finish().await.unwrap();
    assert_eq!(soon(waiting).await.unwrap(), ("value".into(), Outcome::SharedWait));
    server.command("SCRIPT FLUSH");
    soon(a.invalidate(&1)).await.unwrap();
    assert_eq!((one.stats().errors, two.stats().errors), (0, 0));
}

#[tokio::test]
async fn f10_without_events_waiters_ask_and_what_is_kept_is_asked_for_again() {
    let server = Server::start();
    let (one, two) = (connect(&server.url(), endless()).await, connect(&server.url(), endless()).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&b, 2, "kept").await;
    published(&two, 1).await;
    let held = Held::start(&a, 1, Ok("value")).await;
    let waiting = waiter(&server, &b, 1, "unused").await;
    server.command("CLIENT KILL TYPE pubsub");
    // The value is dropped by one whose events nobody hears.
    server.command("UNLINK t:1:0:{products/k2}:v");
    until("subscribed again", || one.stats().subscribed && two.stats().subscribed).await;
    until("doubted", || b.get(&2).is_none()).await;
    assert_eq!(fetch(&b, 2, "new").await, loaded("new"));
    held.finish().await.unwrap();
    assert_eq!(soon(waiting).await.unwrap(), ("value".into(), Outcome::SharedWait));
}

#[tokio::test]
async fn f11_a_connection_that_breaks_under_a_question_is_replaced_and_the_question_asked_again() {
    let server = Server::start();
    let proxy = Proxy::to(server.addr()).await;
    let config = RedisConfig { operation_timeout: Duration::from_secs(5), ..endless() };
    let tier = connect(&proxy.url(), config).await;
    let cache = cache(&tier);
    proxy.cut_after("products/k1}:c");
    assert_eq!(fetch(&cache, 1, "value").await, loaded("value"));
    published(&tier, 1).await;
    assert_eq!((tier.stats().leases, cache.stats().flights.loads), (1, 1));
    assert!(tier.stats().connections >= 2);
    assert_eq!(server.command(&format!("HGET {CONTROL} o")), "$-1\r\n", "no lease is left behind");
}

#[tokio::test]
async fn f12_a_paused_server_costs_one_time_out() {
    let server = Server::start();
    let config = RedisConfig { operation_timeout: Duration::from_millis(100), ..quick() };
    let (one, two) = (connect(&server.url(), config.clone()).await, connect(&server.url(), config).await);
    let (a, b) = (cache(&one), cache(&two));
    server.pause(3_000);
    assert_eq!(fetch(&a, 1, "a").await, loaded("a"));
    assert_eq!(fetch(&b, 1, "b").await, loaded("b"));
    assert!(one.stats().circuit_open && two.stats().circuit_open);
    for _ in 0..3 {
        assert_eq!(fetch(&a, 1, "unused").await, ("a".into(), Outcome::Hit));
    }
    assert_eq!((a.stats().flights.loads, b.stats().flights.loads), (1, 1), "one a process");
    healed(&one).await;
}

#[tokio::test]
async fn f13_a_frozen_server_is_gone_around_and_no_lock_is_left_behind() {
    let server = Server::start();
    let tier = tier(&server).await;
    let cache = cache(&tier);
    server.freeze();
    let started = Instant::now();
    assert_eq!(fetch(&cache, 1, "alone").await, loaded("alone"));
    let first = started.elapsed();
    assert!(first >= quick().operation_timeout, "it did ask: {first:?}");
    let (sent, started) = (tier.stats().operations, Instant::now());
    for key in 2..100 {
        assert_eq!(fetch(&cache, key, "alone").await, loaded("alone"));
    }
    println!("the first waits {first:?}, the next 98 together {:?}", started.elapsed());
    let stats = tier.stats();
    assert_eq!(stats.operations, sent, "nobody asks while the circuit is open");
    assert_eq!(stats.timeouts, 1, "one caller found out, for all");
    assert!(first < 8 * quick().operation_timeout, "{first:?}");
    assert_eq!(cache.stats().flights.loads, 99, "one a key");
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    server.thaw();
    let thawed = Instant::now();
    healed(&tier).await;
    println!("healed after {:?}", thawed.elapsed());
    for key in server.keys() {
        assert_eq!(server.command(&format!("HGET {key} o")), "$-1\r\n", "{key} has an owner");
    }
}

#[tokio::test]
async fn f14_waiters_of_a_server_that_dies_load_for_themselves() {
    let mut server = Server::start();
    let (one, two) = (connect(&server.url(), endless()).await, connect(&server.url(), endless()).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("first")).await;
    let waiting = waiter(&server, &b, 1, "second").await;
    server.kill();
    let killed = Instant::now();
    assert_eq!(soon(waiting).await.unwrap(), loaded("second"));
    let waited = killed.elapsed();
    println!("a waiter went on after {waited:?}");
    // A poll, its jitter and a time-out; its leader's lease lasts for an hour.
    assert!(waited < 4 * Duration::from_millis(1_300), "{waited:?}");
    let sent = two.stats().operations;
    for key in 2..50 {
        assert_eq!(fetch(&b, key, "alone").await, loaded("alone"));
    }
    assert_eq!(two.stats().operations, sent, "nobody asks a server that is gone");
    assert_eq!(held.finish().await.unwrap(), loaded("first"));
    assert_eq!((a.stats().flights.loads, b.stats().flights.loads), (1, 49));
}

#[tokio::test]
async fn f15_a_server_that_comes_late_is_welcome() {
    let port = crate::server::free_port();
    let url = format!("redis://127.0.0.1:{port}");
    let (one, two) = (connect(&url, quick()).await, connect(&url, quick()).await);
    let (a, b) = (cache(&one), cache(&two));
    assert!(one.stats().circuit_open);
    for key in 1..50 {
        assert_eq!(fetch(&a, key, "alone").await, loaded("alone"));
    }
    assert_eq!(one.stats().operations, 0, "nobody asks a server that is not there");
    let server = Server::start_at(port, &[]);
    let there = Instant::now();
    healed(&one).await;
    healed(&two).await;
    let healed = there.elapsed();
    println!("healed after {healed:?}");
    assert!(healed < 4 * Duration::from_secs(1), "{healed:?}");
    assert_eq!(fetch(&b, 1, "shared").await, loaded("shared"));
    published(&two, 1).await;
    // What it had from before is doubtful.
    assert_eq!(fetch(&a, 1, "unused").await, ("shared".into(), Outcome::SharedHit));
    drop(server);
}

#[tokio::test]
async fn f16_tokens_grow_over_a_restart_that_lost_everything() {
    let mut server = Server::start();
    let tier = tier(&server).await;
    let lock = RedisLock::new(&tier);
    let before = lock.acquire("l").await.unwrap().token();
    server.restart();
    until("noticed", || tier.stats().connections >= 2).await;
    healed(&tier).await;
    let again = async {
        loop {
            // Unlike a cache, a lock does not go on alone: not while the connection is being given up.
            if let Ok(guard) = lock.acquire("l").await {
                return guard.token();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let after = soon(again).await;
    assert!(after > before, "{after} {before}");
}

#[tokio::test]
async fn f17_a_server_without_memory_is_gone_around() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 2, "old").await;
    published(&one, 1).await;
    server.command("CONFIG SET maxmemory 1");
    assert_eq!(fetch(&a, 1, "a").await, loaded("a"));
    assert_eq!(fetch(&b, 1, "b").await, loaded("b"));
    assert!(one.stats().errors > 0 && !one.stats().circuit_open, "{:?}", one.stats());
    soon(a.invalidate(&2)).await.expect("what frees memory needs none");
    assert_eq!(fetch(&b, 2, "new").await, loaded("new"));
}

#[tokio::test]
async fn an_invalidation_that_redis_refuses_stays_and_its_key_is_not_read_meanwhile() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    server.command(&format!("SET {CONTROL} x"));
    soon(a.invalidate(&1)).await.unwrap_err();
    let sent = one.stats().operations;
    assert_eq!(fetch(&a, 1, "own").await, loaded("own"));
    assert_eq!(one.stats().operations, sent, "it did not ask");
    assert_eq!(fetch(&a, 2, "other").await, loaded("other"));
    published(&one, 1).await;
    server.command(&format!("DEL {CONTROL}"));
    until("delivered", || one.stats().pending_invalidations == 0).await;
    assert_eq!(fetch(&b, 1, "shared").await, loaded("shared"));
    published(&two, 1).await;
}

#[tokio::test]
async fn nobody_waits_for_an_invalidation_that_redis_refuses() {
    let server = Server::start();
    let config = RedisConfig { operation_timeout: Duration::from_secs(3_600), ..quick() };
    let (one, two) = (connect(&server.url(), config).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let tagged = |_| async { Ok(Loaded::new("old".to_string()).tags(["t"])) };
    soon(b.get_or_load_with(1, tagged)).await.unwrap();
    published(&two, 1).await;
    server.command("ACL SETUSER default -publish");
    a.invalidate_tag("t");
    assert_eq!(fetch(&a, 1, "own").await, loaded("own"), "what it concerns is void");
    soon(a.invalidate(&2)).await.unwrap_err();
    assert_eq!(fetch(&a, 2, "own").await, loaded("own"));
    a.invalidate_all();
    for key in 3..6 {
        assert_eq!(fetch(&a, key, "own").await, loaded("own"));
    }
    assert!(!one.stats().circuit_open);
    assert_eq!(one.stats().pending_invalidations, 3);
    server.command("ACL SETUSER default +publish");
    until("delivered", || one.stats().pending_invalidations == 0).await;
    let before = one.stats().published;
    assert_eq!(fetch(&a, 7, "shared").await, loaded("shared"));
    published(&one, before + 1).await;
}

#[tokio::test]
async fn f18_evictions_cost_loads_and_nothing_else() {
    let server = Server::start_with(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru"]);
    let (one, two) = (tier(&server).await, tier(&server).await);
    let caches = [cache(&one), cache(&two)];
    let truth: Arc<Vec<AtomicUsize>> = Arc::new((0..8).map(|_| AtomicUsize::new(0)).collect());
    let ballast = "x".repeat(50_000);
    for step in 0..400_usize {
        server.run(&[b"SET", format!("ballast{}", step % 100).as_bytes(), ballast.as_bytes()]);
        let key = step * 7 % 8;
        if step % 3 == 0 {
            truth[key].fetch_add(1, Ordering::SeqCst);
            soon(caches[step % 2].invalidate(&(key as u64))).await.unwrap();
        }
        let version = truth[key].load(Ordering::SeqCst);
        // The event may be on its way to the other instance: the one that invalidated is asked.
        let reader = &caches[if step % 3 == 0 { step % 2 } else { (step / 3 * 3) % 2 }];
        let source = Arc::clone(&truth);
        let load = move || async move { Ok(source[key].load(Ordering::SeqCst).to_string()) };
        let seen: usize = soon(reader.get_or_load(key as u64, load)).await.unwrap().parse().unwrap();
        assert!(seen >= version || step % 3 != 0, "step {step}: {seen} after {version}");
    }
    let evicted = server.command("INFO stats");
    let evicted = evicted.lines().find_map(|line| line.strip_prefix("evicted_keys:")).unwrap();
    assert_ne!(evicted, "0");
}

#[tokio::test]
async fn f19_a_connection_into_a_black_hole_is_replaced() {
    let server = Server::start();
    let proxy = Proxy::to(server.addr()).await;
    let tier = connect(&proxy.url(), quick()).await;
    let cache = cache(&tier);
    proxy.black_hole(true);
    assert_eq!(fetch(&cache, 1, "alone").await, loaded("alone"));
    assert!(tier.stats().circuit_open);
    let before = proxy.connections();
    until("given up on", || proxy.connections() > before).await;
    proxy.black_hole(false);
    healed(&tier).await;
    assert_eq!(fetch(&cache, 2, "shared").await, loaded("shared"));
    published(&tier, 1).await;
}

#[tokio::test]
async fn f20_a_publication_whose_answer_is_lost_is_there_once() {
    let server = Server::start();
    let proxy = Proxy::to(server.addr()).await;
    let (one, two) = (connect(&proxy.url(), quick()).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Ok("value")).await;
    proxy.swallow_answers_after("{products/k1}:s:");
    held.finish().await.unwrap();
    until("timed out", || one.stats().timeouts >= 1).await;
    assert_eq!(fetch(&b, 1, "unused").await, ("value".into(), Outcome::SharedHit));
    healed(&one).await;
    assert_eq!((one.stats().published, a.stats().flights.loads), (0, 1));
    assert_eq!(server.command(&format!("HGET {CONTROL} o")), "$-1\r\n");
}

#[tokio::test]
async fn f24_keys_of_any_form_are_shared_and_invalidated() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let of = |tier: &RedisTier| -> Cache<Vec<u8>> {
        StampedeCache::builder().name("bytes").redis(tier.clone()).build().unwrap()
    };
    let (a, b) = (of(&one), of(&two));
    for (at, key) in [b"}x".to_vec(), b"{a}".to_vec(), vec![], vec![255, 0, 13, 10], vec![b'k'; 10_240]]
        .into_iter()
        .enumerate()
    {
        soon(a.get_or_load(key.clone(), || async { Ok("value".into()) })).await.unwrap();
        published(&one, at as u64 + 1).await;
        let read = soon(b.get_or_load_with(key.clone(), |_| async { Err("own load".to_string()) })).await;
        let read = read.unwrap();
        assert_eq!((read.value.as_str(), read.outcome), ("value", Outcome::SharedHit), "{at}");
        soon(a.invalidate(&key[..])).await.unwrap();
        until("dropped", || b.get(&key).is_none()).await;
    }
}

#[tokio::test]
async fn f25_nobody_waits_for_a_value_that_is_too_large_to_share() {
    let server = Server::start();
    let config = RedisConfig { max_value_bytes: 1_000, ..endless() };
    let (one, two) = (connect(&server.url(), config.clone()).await, connect(&server.url(), config).await);
    let (a, b) = (cache(&one), cache(&two));
    let large: &'static str = "x".repeat(2_000).leak();
    let held = Held::start(&a, 1, Ok(large)).await;
    let waiting = waiter(&server, &b, 1, "own").await;
    assert_eq!(held.finish().await.unwrap(), loaded(large));
    assert_eq!(soon(waiting).await.unwrap(), loaded("own"));
    assert_eq!((one.stats().kept_local, two.stats().leases), (1, 0));
    // Known for a while: who comes later does not queue for it either.
    let third = connect(&server.url(), endless()).await;
    assert_eq!(fetch(&cache(&third), 1, "own").await, loaded("own"));
    assert_eq!(third.stats().leases, 0);
}

#[tokio::test]
async fn f26_versions_of_a_service_keep_apart_and_are_invalidated_together() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let old = cache(&one);
    let new: Cache = builder(&two).schema(1).previous_schemas([0]).build().unwrap();
    fetch(&old, 1, "old form").await;
    published(&one, 1).await;
    assert_eq!(fetch(&new, 1, "new form").await, loaded("new form"));
    published(&two, 1).await;
    assert_eq!(old.get(&1).as_deref(), Some("old form"), "neither replaces the other's");
    soon(new.invalidate(&1)).await.unwrap();
    until("dropped in the old version, too", || old.get(&1).is_none()).await;
    assert_eq!(fetch(&old, 1, "again").await, loaded("again"));
}

#[tokio::test]
async fn f27_what_is_not_ours_is_a_miss() {
    // A token of no load so far, and so not void.
    const LATE: u64 = 1 << 52;
    let server = Server::start();
    let one = tier(&server).await;
    let a = cache(&one);
    // Other types under our names.
    server.command("RPUSH t:1:0:{products/k1}:v x");
    assert_eq!(fetch(&a, 1, "one").await, loaded("one"));
    server.command("SET t:1:0:{products/k2}:c x");
    assert_eq!(fetch(&a, 2, "two").await, loaded("two"));
    assert_eq!(one.stats().errors, 2);
    // Something else's bytes, a cut value, one with a damaged payload, one of a token beyond any, an endless one.
    fetch(&a, 3, "whole").await;
    published(&one, 1).await;
    let sealed = server.command("GETRANGE t:1:0:{products/k3}:v 40 -1");
    assert!(sealed.contains("whole"));
    let header = |token: u64, length: u32| {
        let mut bytes = vec![0xc5, 1, 0, 1, 0, 0, 0, 0];
        bytes.extend_from_slice(&token.to_be_bytes());
        for number in [1_000_000, 2_000_000, 0, length, 500_000, 1_000_000] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes
    };
    let mut endless = header(LATE, 10_000_000);
    endless.resize(10_000_040, b'x');
    let fresh = tier(&server).await;
    let b = cache(&fresh);
    let foreign: [Vec<u8>; 5] = [
        b"something else entirely, and longer than a header".to_vec(),
        header(LATE, 100),
        [header(LATE, 3), vec![200, 1, 1]].concat(),
        [header(u64::MAX, 3), vec![2, b'n', b'o']].concat(),
        endless,
    ];
    for (key, bytes) in (10..).zip(foreign) {
        let name = format!("t:1:0:{{products/k{key}}}:v");
        server.run(&[b"SET", name.as_bytes(), &bytes, b"PX", b"2000000"]);
        assert_eq!(fetch(&b, key, "new").await, loaded("new"), "{key}");
        published(&fresh, key - 9).await;
        assert_eq!(fetch(&a, key, "unused").await, ("new".into(), Outcome::SharedHit), "{key}");
    }
    assert!(fresh.stats().malformed >= 2, "{:?}", fresh.stats());
}

#[tokio::test]
async fn f27_a_number_that_no_clock_could_have_made_is_no_token() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    for absurd in [1_u64 << 53, u64::MAX] {
        let number = absurd.to_string();
        // In an event, ..
        let mut event = format!("e{}{number}{:032}", char::from(u8::try_from(number.len()).unwrap()), 0);
        event.push_str("\x08products");
        server.run(&[b"PUBLISH", b"t:ev", event.as_bytes()]);
        soon(b.invalidate(&9)).await.unwrap();
        // .. in the record of what was voided, and in that of a key, whole or in part.
        server.command(&format!("HSET t:1:epochs products {absurd}"));
        for (key, damage) in [(1, format!("t {absurd} i {absurd}")), (2, format!("t 1 i {absurd}"))] {
            server.command(&format!("HSET t:1:0:{{products/k{key}}}:c {damage}"));
        }
        let late = tier(&server).await;
        let c = cache(&late);
        for key in [1, 2] {
            assert_eq!(fetch(&a, key, "first").await, loaded("first"), "{key}");
            until("published", || server.keys().contains(&format!("t:1:0:{{products/k{key}}}:v"))).await;
            assert_eq!(fetch(&c, key, "unused").await, ("first".into(), Outcome::SharedHit), "{key}");
        }
        // It is not the end of invalidations either.
        server.command(&format!("HSET {CONTROL} t {absurd}"));
        soon(a.invalidate(&1)).await.unwrap();
        until("heard", || c.get(&1).is_none()).await;
        c.invalidate_all();
        until("told", || late.stats().pending_invalidations == 0).await;
        until("heard", || a.get(&2).is_none()).await;
        assert_eq!(fetch(&c, 2, "second").await, loaded("second"));
        published(&late, 1).await;
        assert_eq!(fetch(&a, 2, "unused").await, ("second".into(), Outcome::SharedHit));
        soon(a.invalidate(&2)).await.unwrap();
        // Nor of a lock's tokens.
        let lock = RedisLock::new(&one);
        let before = soon(lock.acquire("l")).await.unwrap();
        let token = before.token();
        soon(before.release()).await.unwrap();
        server.command(&format!("HSET t:1:0:{{~lock/kl}}:c t {absurd}"));
        let after = soon(lock.acquire("l")).await.unwrap().token();
        assert!(token < after && after < 1 << 53, "{token} {after}");
    }
}

#[tokio::test]
async fn f29_an_invalidation_that_could_not_be_delivered_comes_before_any_reading() {
    let server = Server::start();
    let one = tier(&server).await;
    let a = cache(&one);
    for key in 1..4 {
        fetch(&a, key, "old").await;
    }
    published(&one, 3).await;
    server.freeze();
    // It did not arrive, as far as anybody knows.
    soon(a.invalidate(&1)).await.unwrap_err();
    soon(a.invalidate(&2)).await.unwrap_err();
    assert_eq!(one.stats().pending_invalidations, 2);
    // Until the link is replaced: what was in flight must not be what delivers it.
    tokio::time::sleep(Duration::from_millis(900)).await;
    server.thaw();
    until("closed", || !one.stats().circuit_open).await;
    assert_eq!(fetch(&a, 1, "new").await, loaded("new"));
    assert_eq!(fetch(&a, 2, "new").await, loaded("new"));
    until("delivered", || one.stats().pending_invalidations == 0).await;
    assert_eq!(fetch(&a, 3, "unused").await.0, "old", "the others are as they were");
}

#[tokio::test]
async fn f29_too_many_undelivered_invalidations_void_everything() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "old").await;
    fetch(&a, 2, "old").await;
    published(&one, 2).await;
    fetch(&b, 1, "unused").await;
    server.freeze();
    soon(a.invalidate(&9)).await.unwrap_err();
    for key in 100..10_200 {
        drop(a.invalidate(&key));
    }
    until("overflown", || one.stats().pending_invalidations == 1).await;
    server.thaw();
    healed(&one).await;
    until("delivered", || one.stats().pending_invalidations == 0).await;
    until("the other instance was told", || b.get(&1).is_none()).await;
    assert_eq!(fetch(&b, 1, "new").await, loaded("new"));
    assert_eq!(fetch(&b, 2, "new").await, loaded("new"), "what it had not read is void as well");
}

/// Invalidates one key after the other, some 500 a second, until it is dropped.
struct Stream(JoinHandle<()>);

impl Stream {
    fn of(cache: &Cache) -> Self {
        let cache = cache.clone();
        Self(tokio::spawn(async move {
            for key in 1_000_000.. {
                drop(cache.invalidate(&key));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A cache whose questions take 20 ms to be answered.
async fn far_away() -> (Server, Proxy, RedisTier, Cache) {
    let server = Server::start();
    let proxy = Proxy::to(server.addr()).await;
    let tier = connect(&proxy.url(), quick()).await;
    let cache = cache(&tier);
    proxy.delay(Duration::from_millis(20));
    (server, proxy, tier, cache)
}

#[tokio::test]
async fn f29_the_circuit_closes_while_invalidations_go_on_coming() {
    let (server, _proxy, tier, cache) = far_away().await;
    // Ten of them in a round trip.
    let stream = Stream::of(&cache);
    let before = tier.stats().connections;
    server.command("CLIENT KILL TYPE normal");
    until("closed", || tier.stats().connections > before && !tier.stats().circuit_open).await;
    drop(stream);
    until("delivered", || tier.stats().pending_invalidations == 0).await;
    assert!(!tier.stats().circuit_open);
}

#[tokio::test]
async fn f29_what_is_left_undone_takes_few_round_trips() {
    let (server, _proxy, tier, cache) = far_away().await;
    server.freeze();
    soon(cache.invalidate(&0)).await.unwrap_err();
    // Two minutes, one by one.
    for key in 1..6_000 {
        drop(cache.invalidate(&key));
    }
    server.thaw();
    healed(&tier).await;
    until("delivered", || tier.stats().pending_invalidations == 0).await;
}

#[tokio::test]
async fn f29_everything_is_voided_once_however_many_invalidations_go_on_coming() {
    let (server, _proxy, tier, cache) = far_away().await;
    server.freeze();
    soon(cache.invalidate(&0)).await.unwrap_err();
    for key in 1..10_100 {
        drop(cache.invalidate(&key));
    }
    until("overflown", || tier.stats().pending_invalidations == 1).await;
    let _stream = Stream::of(&cache);
    server.thaw();
    healed(&tier).await;
    let voided = || server.command("HGET t:1:epochs ''");
    let sent = |more: u64| {
        let (tier, before) = (tier.clone(), tier.stats().operations);
        async move { until("more are sent", || tier.stats().operations >= before + more).await }
    };
    sent(50).await;
    let first = voided();
    assert!(first.starts_with('$') && first != "$-1\r\n", "{first}");
    sent(200).await;
    assert_eq!(voided(), first);
}

#[tokio::test]
async fn f30_two_caches_on_one_tier_read_their_own() {
    let server = Server::start();
    let tier = tier(&server).await;
    let products = cache(&tier);
    let users: Cache = builder(&tier).name("users").build().unwrap();
    fetch(&products, 1, "a product").await;
    assert_eq!(fetch(&users, 1, "a user").await, loaded("a user"));
    published(&tier, 2).await;
    soon(products.invalidate(&1)).await.unwrap();
    let other = crate::server::tier(&server).await;
    let users_elsewhere: Cache = builder(&other).name("users").build().unwrap();
    assert_eq!(users.get(&1).as_deref(), Some("a user"));
    assert_eq!(fetch(&users_elsewhere, 1, "unused").await, ("a user".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn a_tier_that_cannot_work_says_why() {
    let server = Server::start();
    let url = server.url();
    let refusal = async |url: &str| RedisTier::connect(url, quick()).await.unwrap_err();
    assert!(matches!(refusal("localhost").await, RedisTierError::Url(_)));
    let config = RedisConfig { namespace: "a:b".into(), ..quick() };
    let refused = RedisTier::connect(&url, config).await.unwrap_err();
    assert!(refused.to_string().contains("namespace"), "{refused}");
    assert!(matches!(refusal(&format!("{url}/99")).await, RedisTierError::Refused(_)), "no such database");

    server.command("ACL SETUSER shop on >secret ~t:* &t:* +@all");
    server.command("ACL SETUSER reader on >secret ~t:* &t:* +@read +@connection");
    let host = url.trim_start_matches("redis://");
    connect(&format!("redis://shop:secret@{host}"), quick()).await;
    let wrong = refusal(&format!("redis://shop:hunter2@{host}")).await;
    assert!(matches!(wrong, RedisTierError::Credentials(_)), "{wrong:?}");
    assert!(!wrong.to_string().contains("hunter2"));
    let reader = refusal(&format!("redis://reader:secret@{host}")).await;
    assert!(matches!(reader, RedisTierError::Permission(_)), "{reader:?}");
}

#[tokio::test]
async fn the_permissions_in_the_documentation_are_enough() {
    let server = Server::start();
    let docs = include_str!("../../docs/redis.md");
    let rule =
        docs.lines().skip_while(|line| !line.starts_with("ACL SETUSER")).take_while(|line| *line != "```");
    let rule = rule.collect::<Vec<_>>().join(" ");
    assert_eq!(server.command(&rule), "+OK\r\n", "{rule}");
    let config = RedisConfig { namespace: "shop".into(), ..brief() };
    let url = format!("redis://shop:password@127.0.0.1:{}", server.port);
    let (one, two) = (connect(&url, config.clone()).await, connect(&url, config).await);
    assert!(one.stats().subscribed);
    let (a, b) = (cache(&one), cache(&two));
    let held = Held::start(&a, 1, Err("down")).await;
    held.finish().await.unwrap_err();
    assert_eq!(fetch(&a, 1, "value").await, loaded("value"));
    published(&one, 1).await;
    assert_eq!(fetch(&b, 1, "unused").await, ("value".into(), Outcome::SharedHit));
    soon(b.invalidate(&1)).await.unwrap();
    b.invalidate_all();
    until("told", || two.stats().pending_invalidations == 0).await;
    let guard = RedisLock::new(&one).acquire("l").await.unwrap();
    let first_end = server.lease_end("shop:1:0:{~lock/kl}:c");
    until("renewed", || server.lease_end("shop:1:0:{~lock/kl}:c") > first_end).await;
    guard.release().await.unwrap();
    assert_eq!((one.stats().errors, two.stats().errors), (0, 0));
}

#[tokio::test]
async fn a_database_and_a_unix_socket_are_reached_by_their_urls() {
    let folder = crate::server::Folder::new();
    let socket = folder.0.join("redis.sock");
    let server = Server::start_with(&["--unixsocket", socket.to_str().unwrap()]);
    let one = connect(&format!("redis+unix://{}?db=3", socket.display()), quick()).await;
    let two = connect(&format!("{}/3", server.url()), quick()).await;
    fetch(&cache(&one), 1, "value").await;
    published(&one, 1).await;
    assert_eq!(fetch(&cache(&two), 1, "unused").await, ("value".into(), Outcome::SharedHit));
    assert_eq!(server.keys(), Vec::<String>::new(), "database 0 is empty");
}

#[tokio::test]
async fn a_tier_and_its_caches_leave_nothing_behind() {
    let server = Server::start();
    let tier = tier(&server).await;
    let cache = cache(&tier);
    fetch(&cache, 1, "value").await;
    published(&tier, 1).await;
    let clients = || server.command("CLIENT LIST").lines().filter(|line| line.starts_with("id=")).count();
    assert!(clients() >= 3);
    drop(tier);
    assert_eq!(fetch(&cache, 2, "value").await, loaded("value"));
    drop(cache);
    until("closed", || clients() == 1).await;
}

/// What asks is dropped at every stage of a question that takes some 0.3 ms. The lease is far longer than the test waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_who_goes_while_redis_grants_a_lease_leaves_none_behind() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let leaving = builder(&one).on_abandon(OnAbandon::Cancel).build().unwrap();
    let staying = cache(&two);
    let (leaving_lock, staying_lock) = (RedisLock::new(&one), RedisLock::new(&two));
    for n in 0..100 {
        let (cache, lock) = (leaving.clone(), leaving_lock.clone());
        let never = || std::future::pending::<Result<String, _>>();
        let load = tokio::spawn(async move { cache.get_or_load(n, never).await.map(drop) });
        let hold = tokio::spawn(async move {
            let guard = lock.acquire(&n.to_string()).await.unwrap();
            std::future::pending::<()>().await;
            drop(guard);
        });
        tokio::time::sleep(Duration::from_micros(20 * (n % 50))).await;
        load.abort();
        hold.abort();
        assert_eq!(fetch(&staying, n, "value").await.0, "value");
        drop(soon(staying_lock.acquire(&n.to_string())).await.unwrap());
    }
}

/// As a static cache meets it that several tests share, each with a runtime of its own.
#[test]
fn an_invalidation_ends_where_the_tiers_runtime_is_gone() {
    let server = Server::start();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let one = first.block_on(tier(&server));
    let cache = cache(&one);
    second.block_on(fetch(&cache, 1, "value"));
    drop(first);
    assert!(second.block_on(async { soon(cache.invalidate(&1)).await }).is_err());
    assert_eq!(second.block_on(fetch(&cache, 1, "anew")), loaded("anew"));
}

/// A number; the keys of another version of the service are text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Numbered(u64);

impl SharedKey for Numbered {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.to_string().as_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self(std::str::from_utf8(bytes).unwrap().parse().expect("a number")))
    }
}

#[tokio::test]
async fn a_key_that_panics_when_it_is_read_ends_no_subscription() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let of = |tier: &RedisTier| -> Cache<Numbered> {
        StampedeCache::builder().jitter(0.0).name("products").redis(tier.clone()).build().unwrap()
    };
    let (a, b) = (of(&one), of(&two));
    let (text, other): (Cache<String>, Cache) = (
        StampedeCache::builder().name("products").schema(9).redis(one.clone()).build().unwrap(),
        builder(&two).name("users").build().unwrap(),
    );
    let share = async |values: u64| {
        soon(a.get_or_load(Numbered(1), || async { Ok("value".into()) })).await.unwrap();
        published(&one, values).await;
        soon(b.get_or_load(Numbered(1), || async { Err("unused".to_string()) })).await.unwrap();
    };
    share(1).await;
    fetch(&other, 1, "kept").await;
    soon(text.invalidate("no number")).await.unwrap();
    until("what it had is doubtful", || b.get(&Numbered(1)).is_none()).await;
    assert_eq!(other.get(&1).as_deref(), Some("kept"), "the other cache has no part in it");
    share(1).await;
    soon(a.invalidate(&Numbered(1))).await.unwrap();
    until("heard", || b.get(&Numbered(1)).is_none()).await;
    assert!(two.stats().subscribed);
}

#[cfg(feature = "quick-cache")]
#[tokio::test]
async fn a_destructor_that_panics_ends_no_subscription() {
    use std::sync::atomic::AtomicBool;

    use stampede_guard::{Codec, CodecError, QuickCache};

    struct Bomb {
        text: String,
        is_armed: Arc<AtomicBool>,
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(self.text == "calm" || !self.is_armed.load(Ordering::SeqCst), "a bomb");
        }
    }
    struct Bombs(Arc<AtomicBool>);
    impl Codec<Arc<Bomb>> for Bombs {
        fn id(&self) -> u8 {
            200
        }
        fn encode(&self, bomb: &Arc<Bomb>, out: &mut Vec<u8>) -> Result<(), CodecError> {
            out.extend_from_slice(bomb.text.as_bytes());
            Ok(())
        }
        fn decode(&self, bytes: &[u8]) -> Result<Arc<Bomb>, CodecError> {
            let text = String::from_utf8(bytes.to_vec()).map_err(CodecError::new)?;
            Ok(Arc::new(Bomb { text, is_armed: Arc::clone(&self.0) }))
        }
    }
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let is_armed = Arc::new(AtomicBool::new(false));
    let of = |tier: &RedisTier| -> Cache<u64, Arc<Bomb>> {
        let builder = StampedeCache::builder().store(QuickCache).jitter(0.0).name("products");
        builder.redis_with(tier.clone(), Bombs(Arc::clone(&is_armed))).build().unwrap()
    };
    let (a, b) = (of(&one), of(&two));
    let share = async |key: u64, text: &'static str, values: u64| {
        let is_armed = Arc::clone(&is_armed);
        let load = || async move { Ok(Arc::new(Bomb { text: text.into(), is_armed })) };
        soon(a.get_or_load(key, load)).await.unwrap();
        published(&one, values).await;
        soon(b.get_or_load(key, || async { Err("unused".to_string()) })).await.unwrap();
    };
    share(1, "bomb", 1).await;
    share(2, "calm", 2).await;
    // Kept by its own instance: only the other one's goes off.
    let held = a.get(&1);
    is_armed.store(true, Ordering::SeqCst);
    soon(a.invalidate(&1)).await.unwrap();
    until("it is gone", || !b.contains_key(&1)).await;
    is_armed.store(false, Ordering::SeqCst);
    drop(held);
    soon(a.invalidate(&2)).await.unwrap();
    until("heard", || !b.contains_key(&2)).await;
    assert!(two.stats().subscribed);
}
