//! The lock itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use stampede_guard::{LockError, RedisConfig, RedisLock, RedisTier};

use crate::server::{Server, brief, quick, soon, until};

/// Unlike a cache, a lock does not go on alone, and a busy machine is no fault.
const UNHURRIED: Duration = Duration::from_secs(5);

async fn connect(server: &Server, config: RedisConfig) -> RedisTier {
    let config = RedisConfig { operation_timeout: UNHURRIED, ..config };
    RedisTier::connect(&server.url(), config).await.unwrap()
}

async fn tier(server: &Server) -> RedisTier {
    connect(server, quick()).await
}

const CONTROL: &str = "t:1:0:{~lock/kl}:c";

#[tokio::test]
async fn one_holds_it_at_a_time_and_tokens_grow() {
    let server = Server::start();
    let mut tiers = Vec::new();
    for _ in 0..4 {
        tiers.push(tier(&server).await);
    }
    // Two handles in each instance: they meet in Redis alone.
    let locks: Vec<_> = tiers.iter().chain(&tiers).map(RedisLock::new).collect();
    let (last, inside) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let holders: Vec<_> = locks
        .into_iter()
        .flat_map(|lock| [lock.clone(), lock])
        .map(|lock| {
            let (last, inside) = (Arc::clone(&last), Arc::clone(&inside));
            tokio::spawn(async move {
                for _ in 0..10 {
                    let guard = lock.acquire("stock:42").await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    assert!(last.swap(guard.token(), Ordering::SeqCst) < guard.token());
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    guard.release().await.unwrap();
                }
            })
        })
        .collect();
    for holder in holders {
        soon(holder).await.unwrap();
    }
}

#[tokio::test]
async fn it_is_refused_while_another_holds_it_and_free_after() {
    let server = Server::start();
    let (one, two) = (tier(&server).await, tier(&server).await);
    let (a, b) = (RedisLock::new(&one), RedisLock::new(&two));
    let guard = a.try_acquire("l").await.unwrap().expect("free");
    assert!(a.try_acquire("l").await.unwrap().is_none(), "in the same process");
    assert!(b.try_acquire("l").await.unwrap().is_none(), "in another");
    assert!(b.try_acquire("m").await.unwrap().is_some(), "another lock");
    let limit = Duration::from_millis(30);
    let waited = b.clone().wait_limit(limit).acquire("l").await;
    assert_eq!(waited.unwrap_err(), LockError::TimedOut { after: limit });
    assert!(guard.lost().now_or_never().is_none());
    let waiting = tokio::spawn(async move { b.acquire("l").await });
    guard.release().await.unwrap();
    drop(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_dropped_guard_releases_in_the_background_and_a_waiter_is_woken() {
    let server = Server::start();
    // A lease so long that only a release can explain what follows.
    let config =
        RedisConfig { lease: Duration::from_secs(3_600), max_hold: Duration::from_secs(7_200), ..quick() };
    let (one, two) = (connect(&server, config.clone()).await, connect(&server, config).await);
    let guard = RedisLock::new(&one).acquire("l").await.unwrap();
    let lock = RedisLock::new(&two);
    let waiting = tokio::spawn(async move { lock.acquire("l").await });
    until("it asked", || two.stats().operations >= 1).await;
    drop(guard);
    drop(soon(waiting).await.unwrap().unwrap());
}

#[tokio::test]
async fn it_is_renewed_while_it_is_held() {
    let server = Server::start();
    let (one, two) = (connect(&server, brief()).await, connect(&server, brief()).await);
    let guard = RedisLock::new(&one).acquire("l").await.unwrap();
    let first_end = server.lease_end(CONTROL);
    let lease = u64::try_from(brief().lease.as_millis()).unwrap();
    until("it began anew, twice", || server.lease_end(CONTROL) > first_end + lease).await;
    assert!(RedisLock::new(&two).try_acquire("l").await.unwrap().is_none());
    assert!(guard.lost().now_or_never().is_none());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_was_lost_says_so() {
    let server = Server::start();
    let tier = RedisTier::connect(&server.url(), brief()).await.unwrap();
    let guard = RedisLock::new(&tier).acquire("l").await.unwrap();
    server.command("FLUSHALL");
    soon(guard.lost()).await;
    assert_eq!(guard.release().await, Err(LockError::Lost));
}

#[tokio::test]
async fn without_redis_there_is_no_lock_and_the_one_there_is_is_lost_in_time() {
    let mut server = Server::start();
    let tier = RedisTier::connect(&server.url(), brief()).await.unwrap();
    let lock = RedisLock::new(&tier);
    let guard = lock.acquire("l").await.unwrap();
    let (asked, lease) = (tokio::time::Instant::now(), brief().lease);
    server.kill();
    soon(guard.lost()).await;
    assert!(asked.elapsed() < lease + Duration::from_secs(5));
    until("noticed", || tier.stats().circuit_open).await;
    assert_eq!(lock.acquire("m").await.unwrap_err(), LockError::Unavailable);
    assert_eq!(guard.release().await, Err(LockError::Unavailable));
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_queue() {
    let server = Server::start();
    let tier = tier(&server).await;
    let lock = RedisLock::new(&tier);
    let guard = lock.acquire("l").await.unwrap();
    let mut gone = Box::pin(lock.acquire("l"));
    assert!((&mut gone).now_or_never().is_none());
    drop(gone);
    guard.release().await.unwrap();
    soon(lock.acquire("l")).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn f28_no_renewal_after_a_release() {
    let server = Server::start();
    let config =
        RedisConfig { lease: Duration::from_millis(10), max_hold: Duration::from_millis(500), ..quick() };
    let tier = connect(&server, config).await;
    let lock = RedisLock::new(&tier);
    let mut tokens = 0;
    for _ in 0..1_000 {
        let guard = soon(lock.acquire("l")).await.unwrap();
        assert!(guard.token() > tokens);
        tokens = guard.token();
        // A lease of 10 ms may be lost on a busy machine; it must not be held by nobody.
        let _ = guard.release().await;
    }
    assert_eq!(server.command(&format!("HGET {CONTROL} o")), "$-1\r\n");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(server.command(&format!("HGET {CONTROL} o")), "$-1\r\n");
}
