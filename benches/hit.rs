//! A fresh hit, beside the bare maps it cannot be faster than.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dashmap::DashMap;
use futures_util::FutureExt;
use stampede_guard::StampedeCache;

const KEYS: u64 = 1_000;

fn key(n: u64) -> String {
    format!("product:{n}")
}

fn benches(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let _runtime = runtime.enter();
    let keys: Vec<_> = (0..KEYS).map(key).collect();
    let mut group = c.benchmark_group("hit");

    let cache: StampedeCache<String, u64> =
        StampedeCache::builder().ttl(Duration::from_secs(86_400)).build().unwrap();
    let bare_map = DashMap::new();
    let bare_moka = moka::sync::Cache::new(10_000);
    for (key, n) in keys.iter().zip(0..) {
        cache.insert(key.clone(), n);
        bare_map.insert(key.clone(), n);
        bare_moka.insert(key.clone(), n);
    }

    let mut next = keys.iter().cycle();
    group.bench_function("cache: get", |b| {
        b.iter(|| cache.get(black_box(next.next().unwrap().as_str())));
    });
    // A hit is ready at the first poll, so no runtime is in the figure.
    group.bench_function("cache: get_or_load_ref", |b| {
        b.iter(|| {
            let key = black_box(next.next().unwrap().as_str());
            let hit = cache.get_or_load_ref(key, || async { unreachable!("every key is fresh") });
            hit.now_or_never().unwrap().unwrap()
        });
    });
    group.bench_function("cache: get_or_load, key cloned", |b| {
        b.iter(|| {
            let key = black_box(next.next().unwrap()).clone();
            let hit = cache.get_or_load(key, || async { unreachable!("every key is fresh") });
            hit.now_or_never().unwrap().unwrap()
        });
    });
    #[cfg(feature = "quick-cache")]
    {
        let cache: StampedeCache<String, u64> = StampedeCache::builder()
            .store(stampede_guard::QuickCache)
            .ttl(Duration::from_secs(86_400))
            .build()
            .unwrap();
        for (key, n) in keys.iter().zip(0..) {
            cache.insert(key.clone(), n);
        }
        group.bench_function("cache over quick_cache: get", |b| {
            b.iter(|| cache.get(black_box(next.next().unwrap().as_str())));
        });
    }
    group.bench_function("floor: dashmap get", |b| {
        b.iter(|| bare_map.get(black_box(next.next().unwrap().as_str())).map(|value| *value));
    });
    group.bench_function("floor: moka::sync get", |b| {
        b.iter(|| bare_moka.get(black_box(next.next().unwrap().as_str())));
    });
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
