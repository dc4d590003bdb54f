//! A miss with nobody else about: what coordination costs when it is not needed.
//!
//! The floor is a bare map and a loader on a task of its own, with nothing shared and no failure handled.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use dashmap::DashMap;
use stampede_guard::{SingleFlight, StampedeCache};
use tokio::runtime::Builder;

/// A load that is not ready at its first poll.
async fn pending() -> Result<u64, std::convert::Infallible> {
    tokio::task::yield_now().await;
    Ok(7)
}

/// A load that is.
async fn ready() -> Result<u64, std::convert::Infallible> {
    Ok(7)
}

fn benches(c: &mut Criterion) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let mut group = c.benchmark_group("miss");
    let mut key = 0_u64;
    let mut next = move || {
        key += 1;
        black_box(key)
    };

    let flights: SingleFlight<u64, u64> = SingleFlight::new();
    group.bench_function("single_flight: load ready at once", |b| {
        b.to_async(&runtime).iter(|| flights.run(next(), ready));
    });
    group.bench_function("single_flight: pending load", |b| {
        b.to_async(&runtime).iter(|| flights.run(next(), pending));
    });

    let cache: StampedeCache<u64, u64> = StampedeCache::builder().build().unwrap();
    group.bench_function("cache: load ready at once", |b| {
        b.to_async(&runtime).iter(|| cache.get_or_load(next(), ready));
    });
    group.bench_function("cache: pending load", |b| {
        b.to_async(&runtime).iter(|| cache.get_or_load(next(), pending));
    });

    // The map takes the key out again, as a flight does.
    let bare_map = Arc::new(DashMap::new());
    group.bench_function("floor: dashmap and a spawned load", |b| {
        b.to_async(&runtime).iter(|| {
            let (key, map) = (next(), bare_map.clone());
            async move {
                map.insert(key, ());
                let value = tokio::spawn(pending()).await.unwrap();
                map.remove(&key);
                value
            }
        });
    });
    // moka keeps the value, as the cache does.
    let bare_moka = moka::sync::Cache::new(10_000);
    group.bench_function("floor: moka::sync get, a spawned load, insert", |b| {
        b.to_async(&runtime).iter(|| {
            let (key, moka) = (next(), bare_moka.clone());
            async move {
                if let Some(value) = moka.get(&key) {
                    return value;
                }
                let value = tokio::spawn(pending()).await.unwrap().unwrap();
                moka.insert(key, value);
                value
            }
        });
    });
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
