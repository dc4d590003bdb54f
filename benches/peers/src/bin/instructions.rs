//! One kind of call, a given number of times, for callgrind to count: `instructions hit ours 1000`.
//!
//! On one thread. Hits and misses are polled without a runtime's scheduler: none of them has to wait.

use std::hint::black_box;
use std::time::Duration;

use futures_util::{FutureExt, poll};
use peers::load::{AtOnce, Failed, Gated};
use peers::peers::{
    Foyer, MokaTryGetWith, Origin, OurCache, OurFlights, OurQuickCache, Peer, QuickMap, RsSingleflight,
    tower_http_cache_layer,
};
use peers::scenarios::{answered, request};
use stampede_guard::{StampedeCache, StampedeGuard};
use tower::Layer;

const KEYS: u64 = 1_000;
const CAPACITY: u64 = 10_000;

fn now<T>(ready: impl Future<Output = T>) -> T {
    ready.now_or_never().expect("nothing to wait for")
}

fn text(key: u64) -> String {
    format!("/products/{key:07}/price?currency")
}

/// The keys in turn.
fn numbers(times: u64, mut ask: impl FnMut(u64) -> u64) {
    for time in 0..times {
        black_box(ask(black_box(time % KEYS)));
    }
}

fn texts(times: u64, mut ask: impl FnMut(&str) -> u64) {
    let keys: Vec<_> = (0..KEYS).map(text).collect();
    for key in keys.iter().cycle().take(usize::try_from(times).expect("a small number")) {
        black_box(ask(black_box(key)));
    }
}

fn ours<K>() -> StampedeCache<K, u64, Failed>
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
{
    let builder = StampedeCache::builder().capacity(CAPACITY).ttl(Duration::from_secs(86_400));
    builder.build().expect("valid settings")
}

fn ours_quick<K>() -> StampedeCache<K, u64, Failed>
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
{
    let builder = StampedeCache::builder().capacity(CAPACITY).ttl(Duration::from_secs(86_400));
    builder.store(stampede_guard::QuickCache).build().expect("valid settings")
}

async fn no_load() -> Result<u64, Failed> {
    unreachable!("every key is there")
}

fn hit(who: &str, times: u64) {
    let all = 0..KEYS;
    match who {
        "moka-sync" => {
            let cache = moka::sync::Cache::new(CAPACITY);
            all.for_each(|key| cache.insert(key, key));
            numbers(times, |key| cache.get(&key).expect("a hit"));
        }
        "quick-cache" => {
            let cache = quick_cache::sync::Cache::new(10_000);
            all.for_each(|key| cache.insert(key, key));
            numbers(times, |key| cache.get(&key).expect("a hit"));
        }
        "dashmap" => {
            let map: dashmap::DashMap<_, _> = all.map(|key| (key, key)).collect();
            numbers(times, |key| map.get(&key).map(|value| *value).expect("a hit"));
        }
        "ours-get" => {
            let cache = ours();
            all.for_each(|key| cache.insert(key, key));
            numbers(times, |key| cache.get(&key).expect("a hit"));
        }
        "ours" => {
            let cache = ours();
            all.for_each(|key| cache.insert(key, key));
            numbers(times, |key| now(cache.get_or_load(key, no_load)).expect("a hit"));
        }
        "ours-quick" => {
            let cache = ours_quick();
            all.for_each(|key| cache.insert(key, key));
            numbers(times, |key| now(cache.get_or_load(key, no_load)).expect("a hit"));
        }
        "moka" => {
            let cache = moka::future::Cache::new(CAPACITY);
            all.for_each(|key| now(cache.insert(key, key)));
            numbers(times, |key| now(cache.try_get_with(key, no_load())).expect("a hit"));
        }
        "moka-sync-text" => {
            let cache = moka::sync::Cache::new(CAPACITY);
            all.for_each(|key| cache.insert(text(key), key));
            texts(times, |key| cache.get(key).expect("a hit"));
        }
        "ours-get-text" => {
            let cache = ours();
            all.for_each(|key| cache.insert(text(key), key));
            texts(times, |key| cache.get(key).expect("a hit"));
        }
        "ours-text" => {
            let cache = ours();
            all.for_each(|key| cache.insert(text(key), key));
            texts(times, |key| now(cache.get_or_load_ref(key, no_load)).expect("a hit"));
        }
        "ours-quick-text" => {
            let cache = ours_quick();
            all.for_each(|key| cache.insert(text(key), key));
            texts(times, |key| now(cache.get_or_load_ref(key, no_load)).expect("a hit"));
        }
        "moka-text" => {
            let cache = moka::future::Cache::new(CAPACITY);
            all.for_each(|key| now(cache.insert(text(key), key)));
            texts(times, |key| now(cache.try_get_with_by_ref(key, no_load())).expect("a hit"));
        }
        _ => usage(),
    }
}

fn miss_by<P: Peer<AtOnce>>(times: u64) {
    let peer = P::new(AtOnce, 10_000);
    for key in 0..times {
        black_box(P::verdict(now(peer.call(black_box(key))))).expect("a value");
    }
}

fn miss(who: &str, times: u64) {
    match who {
        "map" => miss_by::<QuickMap<AtOnce>>(times),
        "ours-flight" => miss_by::<OurFlights<AtOnce>>(times),
        "rs-singleflight" => miss_by::<RsSingleflight<AtOnce>>(times),
        "ours" => miss_by::<OurCache<AtOnce>>(times),
        "ours-quick" => miss_by::<OurQuickCache<AtOnce>>(times),
        "moka" => miss_by::<MokaTryGetWith<AtOnce>>(times),
        "moka-sync" => {
            let cache = moka::sync::Cache::new(CAPACITY);
            for key in 0..times {
                if black_box(cache.get(&key)).is_none() {
                    cache.insert(key, key);
                }
            }
        }
        _ => usage(),
    }
}

/// Everybody waits for one key, on one thread.
async fn herd_by<P: Peer<Gated>>(times: u64) {
    let gate = Gated::default();
    let callers = usize::try_from(times).expect("a small number");
    let peer = P::new(gate.clone(), callers);
    let mut calls: Vec<_> = (0..callers).map(|_| Box::pin(peer.call(1))).collect();
    for call in &mut calls {
        assert!(poll!(call).is_pending());
    }
    gate.open();
    for call in calls {
        black_box(P::verdict(call.await)).expect("a value");
    }
}

async fn herd(who: &str, times: u64) {
    match who {
        "ours-flight" => herd_by::<OurFlights<Gated>>(times).await,
        "ours" => herd_by::<OurCache<Gated>>(times).await,
        "moka" => herd_by::<MokaTryGetWith<Gated>>(times).await,
        "foyer" => herd_by::<Foyer<Gated>>(times).await,
        _ => usage(),
    }
}

async fn tower(who: &str, times: u64) {
    let origin = Origin(AtOnce);
    match who {
        "ours" => {
            let mut stack = StampedeGuard::new().layer(origin);
            for request in requests(times) {
                answered(&mut stack, request).await;
            }
        }
        "tower-http-cache" => {
            let mut stack = tower_http_cache_layer().layer(origin);
            for request in requests(times) {
                answered(&mut stack, request).await;
            }
        }
        _ => usage(),
    }
}

/// As many as are counted however many are sent: making them is in both runs.
fn requests(times: u64) -> impl Iterator<Item = http::Request<peers::peers::Body>> {
    const MOST: usize = 12_000;
    let made: Vec<_> = (0..MOST).map(|_| request()).collect();
    made.into_iter().take(usize::try_from(times).expect("a small number"))
}

fn usage() {
    panic!("hit, miss, herd or tower, then WHO and TIMES; see the scenario `instructions`");
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [what, who, times] = &arguments[..] else { return usage() };
    let Ok(times) = times.parse() else { return usage() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match &what[..] {
        "hit" => hit(who, times),
        "miss" => miss(who, times),
        "herd" => runtime.block_on(herd(who, times)),
        "tower" => runtime.block_on(tower(who, times)),
        _ => usage(),
    }
}
