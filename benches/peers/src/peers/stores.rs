//! Caches that load.

use std::sync::Arc;
use std::time::Duration;

use stampede_guard::{LoadError, StampedeCache};

use super::Peer;
use crate::load::{Failed, Load, Loaded};

pub struct OurCache<L> {
    cache: StampedeCache<u64, u64, Failed>,
    load: L,
}

impl<L: Load> Peer<L> for OurCache<L> {
    const NAME: &'static str = "stampede-guard get_or_load";
    type Raw = Result<u64, LoadError<Failed>>;

    fn new(load: L, keys: usize) -> Self {
        let builder = StampedeCache::builder().capacity(keys as u64).ttl(Duration::from_secs(86_400));
        Self { cache: builder.build().expect("valid settings"), load }
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        let load = self.load.clone();
        self.cache.get_or_load(key, move || load.run(key))
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

/// Ours, over the other store.
pub struct OurQuickCache<L>(OurCache<L>);

impl<L: Load> Peer<L> for OurQuickCache<L> {
    const NAME: &'static str = "stampede-guard get_or_load, quick_cache";
    type Raw = Result<u64, LoadError<Failed>>;

    fn new(load: L, keys: usize) -> Self {
        let builder = StampedeCache::builder().capacity(keys as u64).ttl(Duration::from_secs(86_400));
        let cache = builder.store(stampede_guard::QuickCache).build().expect("valid settings");
        Self(OurCache { cache, load })
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        self.0.call(key)
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        OurCache::<L>::verdict(raw)
    }
}

/// Ours, over the other store, with values that are fresh for ever, as those of that store's own cache are.
pub struct OurQuickForEver<L>(OurCache<L>);

impl<L: Load> Peer<L> for OurQuickForEver<L> {
    const NAME: &'static str = "stampede-guard get_or_load, quick_cache, no ttl";
    type Raw = Result<u64, LoadError<Failed>>;

    fn new(load: L, keys: usize) -> Self {
        let builder = StampedeCache::builder().capacity(keys as u64).ttl(Duration::MAX);
        let cache = builder.store(stampede_guard::QuickCache).build().expect("valid settings");
        Self(OurCache { cache, load })
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        self.0.call(key)
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        OurCache::<L>::verdict(raw)
    }
}

pub struct MokaTryGetWith<L> {
    cache: moka::future::Cache<u64, u64>,
    load: L,
}

impl<L: Load> Peer<L> for MokaTryGetWith<L> {
    const NAME: &'static str = "moka try_get_with";
    type Raw = Result<u64, Arc<Failed>>;

    fn new(load: L, keys: usize) -> Self {
        Self { cache: moka::future::Cache::new(keys as u64), load }
    }

    fn loader_bytes() -> usize {
        size_of::<L::Run>()
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        self.cache.try_get_with(key, self.load.clone().run(key))
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

pub struct MokaGetWith<L> {
    cache: moka::future::Cache<u64, u64>,
    load: L,
}

impl<L: Load> Peer<L> for MokaGetWith<L> {
    const NAME: &'static str = "moka get_with";
    type Raw = u64;

    fn new(load: L, keys: usize) -> Self {
        Self { cache: moka::future::Cache::new(keys as u64), load }
    }

    fn loader_bytes() -> usize {
        size_of::<L::Run>()
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        let load = self.load.clone().run(key);
        self.cache.get_with(key, async move { load.await.expect("a load that does not fail") })
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        Ok(raw)
    }
}

pub struct QuickCache<L> {
    cache: quick_cache::sync::Cache<u64, u64>,
    load: L,
}

impl<L: Load> Peer<L> for QuickCache<L> {
    const NAME: &'static str = "quick_cache get_or_insert_async";
    type Raw = Loaded;

    fn new(load: L, keys: usize) -> Self {
        Self { cache: quick_cache::sync::Cache::new(keys), load }
    }

    fn loader_bytes() -> usize {
        size_of::<L::Run>()
    }

    async fn call(&self, key: u64) -> Self::Raw {
        // It borrows the key: a caller has to keep one.
        self.cache.get_or_insert_async(&key, self.load.clone().run(key)).await
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

pub struct Foyer<L> {
    cache: foyer_memory::Cache<u64, u64>,
    load: L,
}

impl<L: Load> Peer<L> for Foyer<L> {
    const NAME: &'static str = "foyer get_or_fetch";
    type Raw = foyer_common::error::Result<foyer_memory::CacheEntry<u64, u64>>;

    fn new(load: L, keys: usize) -> Self {
        Self { cache: foyer_memory::CacheBuilder::new(keys).build(), load }
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        let load = self.load.clone();
        self.cache.get_or_fetch(&key, move || load.run(key))
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map(|entry| *entry.value()).map_err(|error| error.to_string())
    }
}
