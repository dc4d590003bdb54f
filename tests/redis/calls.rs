//! Caches on a tier, and the calls that most tests make of them.

use std::sync::Arc;

use stampede_guard::{LoadError, Loaded, Outcome, RedisTier, StampedeCache, StampedeCacheBuilder};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::server::{Server, soon, until};

pub(crate) type Cache<K = u64, V = String> = StampedeCache<K, V, String>;
type Answer = Result<(String, Outcome), LoadError<String>>;

pub(crate) fn builder(tier: &RedisTier) -> StampedeCacheBuilder<u64, String, String> {
    StampedeCache::builder().jitter(0.0).name("products").redis(tier.clone())
}

pub(crate) fn cache(tier: &RedisTier) -> Cache {
    builder(tier).build().unwrap()
}

/// The value, and how it was come by.
pub(crate) async fn fetch(cache: &Cache, key: u64, value: &'static str) -> (String, Outcome) {
    let load = move |_| async move { Ok(Loaded::new(value.to_string())) };
    let fetched = soon(cache.get_or_load_with(key, load)).await.unwrap();
    (fetched.value, fetched.outcome)
}

pub(crate) fn loaded(value: &str) -> (String, Outcome) {
    (value.into(), Outcome::Loaded)
}

/// Waits until the values that were loaded are in Redis.
pub(crate) async fn published(tier: &RedisTier, values: u64) {
    until("published", || tier.stats().published >= values).await;
}

/// Waits until Redis knows that somebody waits for a load of this key in another instance.
pub(crate) async fn waited_for(server: &Server, key: u64) {
    let read = format!("HGET t:1:0:{{products/k{key}}}:c w");
    until("somebody waits", || server.command(&read) == "$1\r\n1\r\n").await;
}

/// A load under way, that ends when it is told to.
pub(crate) struct Held {
    go: Arc<Notify>,
    caller: JoinHandle<Answer>,
}

impl Held {
    /// Returns once the loader runs.
    pub(crate) async fn start(cache: &Cache, key: u64, value: Result<&'static str, &'static str>) -> Self {
        let (go, started) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (goes, starts) = (Arc::clone(&go), Arc::clone(&started));
        let cache = cache.clone();
        let caller = tokio::spawn(async move {
            let load = |_| async move {
                starts.notify_one();
                goes.notified().await;
                value.map(|value| Loaded::new(value.to_string())).map_err(str::to_string)
            };
            cache.get_or_load_with(key, load).await.map(|fetched| (fetched.value, fetched.outcome))
        });
        soon(started.notified()).await;
        Self { go, caller }
    }

    /// Its caller goes.
    pub(crate) fn abandon(self) {
        self.caller.abort();
    }

    pub(crate) async fn finish(self) -> Answer {
        self.go.notify_one();
        soon(self.caller).await.unwrap()
    }
}
