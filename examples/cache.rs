//! The cache in front of slow data: one load for each key and expiry, and stale values while a load runs or
//! fails.
//!
//! ```text
//! cargo run --example cache
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stampede_guard::{Outcome, StaleReason, StampedeCache};
use tokio::task::JoinSet;

/// Stands for a database. It counts its queries and can be made to fail.
#[derive(Default)]
struct Database {
    queries: AtomicU32,
    down: AtomicBool,
}

impl Database {
    async fn price(&self, product: u32) -> Result<u32, io::Error> {
        let query = self.queries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        if self.down.load(Ordering::Relaxed) {
            return Err(io::Error::other("the database is down"));
        }
        Ok(product * 100 + query)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let db = Arc::new(Database::default());
    let cache: StampedeCache<u32, u32, io::Error> = StampedeCache::builder()
        .ttl(Duration::from_millis(300))
        .jitter(0.1)
        .stale_while_revalidate(Duration::from_millis(300))
        .stale_if_error(Duration::from_secs(60))
        .build()?;

    println!("500 callers ask for the price of product 1 on a cold cache; a query takes 50 ms.");
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..500 {
        let (cache, db) = (cache.clone(), db.clone());
        callers.spawn(async move { cache.get_or_load(1, || async move { db.price(1).await }).await });
    }
    while let Some(price) = callers.join_next().await {
        price??;
    }
    println!("  queries: {}, all served after {:?}", db.queries.load(Ordering::Relaxed), started.elapsed());

    println!("They keep asking for 1.5 s while the price expires after 270 to 300 ms, again and again.");
    let before = db.queries.load(Ordering::Relaxed);
    let (mut calls, mut slowest) = (0_u32, Duration::ZERO);
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        let asked = Instant::now();
        price(&cache, &db).await?;
        slowest = slowest.max(asked.elapsed());
        calls += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!(
        "  calls: {calls}, queries: {}, slowest call {slowest:?}: none waited for a query",
        db.queries.load(Ordering::Relaxed) - before
    );

    println!("The database goes down and the price is past its time: the old one is served.");
    db.down.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let before = db.queries.load(Ordering::Relaxed);
    let mut stale = 0;
    for _ in 0..100 {
        let (value, outcome) = price(&cache, &db).await?;
        match outcome {
            Outcome::Stale { age, reason: StaleReason::LoadFailed } => {
                println!("  {value}, {age:?} old, after a query failed");
            }
            Outcome::Stale { reason: StaleReason::BackingOff, .. } => stale += 1,
            other => println!("  {value}: {other:?}"),
        }
    }
    println!(
        "  {stale} more calls had it without a query; failed queries: {}",
        db.queries.load(Ordering::Relaxed) - before
    );

    let stats = cache.stats();
    println!(
        "In all: {} hits, {} stale, {} joined a load, {} queries.",
        stats.hits,
        stats.stale,
        stats.flights.coalesced,
        db.queries.load(Ordering::Relaxed)
    );
    cache.close().await;
    Ok(())
}

/// The price of product 1, and how the cache came by it.
async fn price(
    cache: &StampedeCache<u32, u32, io::Error>,
    db: &Arc<Database>,
) -> Result<(u32, Outcome), Box<dyn std::error::Error>> {
    let db = db.clone();
    let fetched = cache
        .get_or_load_with(1, |_| async move { db.price(1).await.map(stampede_guard::Loaded::new) })
        .await?;
    Ok((fetched.value, fetched.outcome))
}
