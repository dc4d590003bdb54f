//! A fresh hit among 100,000 entries, some asked for much more often than others.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use stampede_guard::StampedeCache;

use super::Setting;
use crate::bench::{Contender, Kind, Table, interleave};
use crate::load::{AtOnce, Failed};
use crate::peers::{
    Foyer, MokaGetWith, MokaTryGetWith, OurCache, OurQuickCache, OurQuickForEver, Peer, QuickCache,
};
use crate::{clocks, counting};

const ENTRIES: usize = 100_000;
/// Room to spare: nothing is evicted.
const CAPACITY: usize = 2 * ENTRIES;

/// Something that is asked for keys it has.
trait Lookup: Send + Sync + 'static {
    type Key: Send + Sync + 'static;

    fn look_up(&self, key: &Self::Key) -> impl Future<Output = u64> + Send;
}

/// Any peer, filled through its own loading call.
struct Filled<P>(P);

impl<P: Peer<AtOnce>> Filled<P> {
    fn new(setting: &Setting) -> Arc<Self> {
        let peer = P::new(AtOnce, CAPACITY);
        setting.runtime.block_on(async {
            for key in 0..ENTRIES as u64 {
                assert_eq!(P::verdict(peer.call(key).await), Ok(key));
            }
        });
        Arc::new(Self(peer))
    }
}

impl<P: Peer<AtOnce>> Lookup for Filled<P> {
    type Key = u64;

    async fn look_up(&self, key: &u64) -> u64 {
        P::verdict(self.0.call(*key).await).expect("a hit")
    }
}

macro_rules! lookup {
    ($name:ident, $key:ty, $store:ty, |$self:ident, $arg:ident| $body:expr) => {
        struct $name($store);

        impl Lookup for $name {
            type Key = $key;

            async fn look_up(&$self, $arg: &$key) -> u64 {
                $body
            }
        }
    };
}

async fn no_load<V, E>() -> Result<V, E> {
    unreachable!("every key is there")
}

lookup!(OurGet, u64, StampedeCache<u64, u64>, |self, key| self.0.get(key).expect("a hit"));
lookup!(MapGet, u64, dashmap::DashMap<u64, u64>, |self, key| *self.0.get(key).expect("a hit"));
lookup!(MokaSync, u64, moka::sync::Cache<u64, u64>, |self, key| self.0.get(key).expect("a hit"));
lookup!(QuickGet, u64, quick_cache::sync::Cache<u64, u64>, |self, key| self.0.get(key).expect("a hit"));

lookup!(OurTextLoad, String, StampedeCache<String, u64, Failed>, |self, key| {
    self.0.get_or_load_ref(key.as_str(), no_load).await.expect("a hit")
});
lookup!(OurTextGet, String, StampedeCache<String, u64, Failed>, |self, key| {
    self.0.get(key.as_str()).expect("a hit")
});
lookup!(MokaTextTry, String, moka::future::Cache<String, u64>, |self, key| {
    self.0.try_get_with_by_ref(key.as_str(), no_load::<_, Failed>()).await.expect("a hit")
});
lookup!(MokaTextWith, String, moka::future::Cache<String, u64>, |self, key| {
    self.0.get_with_by_ref(key.as_str(), async { unreachable!("every key is there") }).await
});
lookup!(QuickTextLoad, String, quick_cache::sync::Cache<String, u64>, |self, key| {
    self.0.get_or_insert_async(key.as_str(), no_load::<_, Failed>()).await.expect("a hit")
});
lookup!(FoyerText, String, foyer_memory::Cache<String, u64>, |self, key| {
    *self.0.get_or_fetch(key.as_str(), no_load::<u64, Failed>).await.expect("a hit").value()
});
lookup!(MapTextGet, String, dashmap::DashMap<String, u64>, |self, key| {
    *self.0.get(key.as_str()).expect("a hit")
});
lookup!(MokaTextSync, String, moka::sync::Cache<String, u64>, |self, key| {
    self.0.get(key.as_str()).expect("a hit")
});
lookup!(QuickTextGet, String, quick_cache::sync::Cache<String, u64>, |self, key| {
    self.0.get(key.as_str()).expect("a hit")
});

/// Keys, and the order in which they are asked for.
struct Walk<K> {
    keys: Vec<K>,
    order: Vec<u32>,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn walk<K>(key: impl Fn(u64) -> K) -> Arc<Walk<K>> {
    let zipf = Zipf::new(ENTRIES as f64, 0.99).expect("a valid distribution");
    let order = zipf.sample_iter(StdRng::seed_from_u64(7)).take(1 << 17);
    let order = order.map(|rank| (rank as u32 - 1).min(ENTRIES as u32 - 1)).collect();
    Arc::new(Walk { keys: (0..ENTRIES as u64).map(key).collect(), order })
}

fn text(key: u64) -> String {
    format!("/products/{key:07}/price?currency")
}

async fn hits<T: Lookup>(lookup: &T, walk: &Walk<T::Key>, start: usize, times: usize) {
    let order = walk.order.iter().cycle().skip(start).take(times);
    for &next in order {
        black_box(lookup.look_up(black_box(&walk.keys[next as usize])).await);
    }
}

fn contender<'a, T: Lookup>(
    setting: &'a Setting,
    kind: Kind,
    name: &str,
    lookup: Arc<T>,
    walk: &Arc<Walk<T::Key>>,
    threads: usize,
) -> Contender<'a> {
    let (times, walk) = (20_000, walk.clone());
    let mut start = 0;
    Contender::new(kind, name, move || {
        let begin = Arc::new(Barrier::new(threads));
        start = (start + times) % walk.order.len();
        let tasks: Vec<_> = (0..threads)
            .map(|thread| {
                let (lookup, walk, begin) = (lookup.clone(), walk.clone(), begin.clone());
                let start = (start + thread * walk.order.len() / 2) % walk.order.len();
                setting.runtime.spawn(async move {
                    hits(&*lookup, &walk, start, 2_000).await;
                    begin.wait();
                    let before = clocks::thread();
                    hits(&*lookup, &walk, start, times).await;
                    clocks::per(clocks::thread() - before, times)
                })
            })
            .collect();
        let count = tasks.len() as f64;
        let sum: f64 = tasks.into_iter().map(|task| setting.runtime.block_on(task).expect("no panics")).sum();
        let allocations = {
            let (lookup, walk) = (lookup.clone(), walk.clone());
            let task = setting.runtime.spawn(async move {
                let counted = counting::Count::start();
                hits(&*lookup, &walk, start, 1_000).await;
                counted.so_far().calls / 1_000.0
            });
            setting.runtime.block_on(task).expect("no panics")
        };
        vec![sum / count, allocations]
    })
}

const COLUMNS: [&str; 2] = ["CPU ns a hit", "allocations a hit"];

fn note(threads: usize) -> String {
    let both = if threads == 2 { ", both threads at once" } else { "" };
    format!(
        "100,000 entries, Zipf 0.99, nothing evicted{both}. Time of the thread's own CPU clock. A String key is 32 \
         bytes and passed by reference."
    )
}

fn numbers(setting: &Setting, threads: usize) -> Table {
    let walk = walk(|key| key);
    let keys = 0..ENTRIES as u64;
    let cache = StampedeCache::builder().capacity(CAPACITY as u64).ttl(Duration::from_secs(86_400));
    let our_get = OurGet(cache.build().expect("valid settings"));
    let map = MapGet(keys.clone().map(|key| (key, key)).collect());
    let moka = MokaSync(moka::sync::Cache::new(CAPACITY as u64));
    let quick = QuickGet(quick_cache::sync::Cache::new(CAPACITY));
    for key in keys {
        our_get.0.insert(key, key);
        moka.0.insert(key, key);
        quick.0.insert(key, key);
    }
    moka.0.run_pending_tasks();
    macro_rules! peer {
        ($kind:ident, $peer:ident) => {{
            type P = $peer<AtOnce>;
            let name = <P as Peer<AtOnce>>::NAME;
            contender(setting, Kind::$kind, name, Filled::<P>::new(setting), &walk, threads)
        }};
    }
    macro_rules! floor {
        ($kind:ident, $name:literal, $lookup:ident) => {
            contender(setting, Kind::$kind, $name, Arc::new($lookup), &walk, threads)
        };
    }
    let contenders = vec![
        peer!(Ours, OurCache),
        peer!(Ours, OurQuickCache),
        peer!(Ours, OurQuickForEver),
        floor!(Ours, "stampede-guard get", our_get),
        peer!(Peer, MokaTryGetWith),
        peer!(Peer, MokaGetWith),
        peer!(Peer, QuickCache),
        peer!(Peer, Foyer),
        floor!(Floor, "dashmap get", map),
        floor!(Floor, "moka::sync get", moka),
        floor!(Floor, "quick_cache get", quick),
    ];
    let title = format!("hit: u64 keys, {threads} thread{}", if threads == 1 { "" } else { "s" });
    interleave(title, note(threads), &COLUMNS, setting.rounds(100), contenders)
}

fn texts(setting: &Setting, threads: usize) -> Table {
    let walk = walk(text);
    assert_eq!(walk.keys[7].len(), 32);
    let cache = StampedeCache::builder().capacity(CAPACITY as u64).ttl(Duration::from_secs(86_400));
    let ours = cache.build().expect("valid settings");
    let cache = StampedeCache::builder().capacity(CAPACITY as u64).ttl(Duration::from_secs(86_400));
    let ours_quick = cache.store(stampede_guard::QuickCache).build().expect("valid settings");
    let sync = moka::sync::Cache::new(CAPACITY as u64);
    let moka = moka::future::Cache::new(CAPACITY as u64);
    let quick = quick_cache::sync::Cache::new(CAPACITY);
    let quick_get = quick_cache::sync::Cache::new(CAPACITY);
    let foyer = foyer_memory::CacheBuilder::new(CAPACITY).build();
    let map = dashmap::DashMap::new();
    for (key, value) in walk.keys.iter().zip(0..) {
        ours.insert(key.clone(), value);
        ours_quick.insert(key.clone(), value);
        sync.insert(key.clone(), value);
        setting.runtime.block_on(moka.insert(key.clone(), value));
        quick.insert(key.clone(), value);
        quick_get.insert(key.clone(), value);
        foyer.insert(key.clone(), value);
        map.insert(key.clone(), value);
    }
    sync.run_pending_tasks();
    setting.runtime.block_on(moka.run_pending_tasks());
    macro_rules! row {
        ($kind:ident, $name:literal, $lookup:expr) => {
            contender(setting, Kind::$kind, $name, Arc::new($lookup), &walk, threads)
        };
    }
    let contenders = vec![
        row!(Ours, "stampede-guard get_or_load_ref", OurTextLoad(ours.clone())),
        row!(Ours, "stampede-guard get", OurTextGet(ours)),
        row!(Ours, "stampede-guard get_or_load_ref, quick_cache", OurTextLoad(ours_quick)),
        row!(Peer, "moka try_get_with_by_ref", MokaTextTry(moka.clone())),
        row!(Peer, "moka get_with_by_ref", MokaTextWith(moka)),
        row!(Peer, "quick_cache get_or_insert_async", QuickTextLoad(quick)),
        row!(Peer, "foyer get_or_fetch", FoyerText(foyer)),
        row!(Floor, "dashmap get", MapTextGet(map)),
        row!(Floor, "moka::sync get", MokaTextSync(sync)),
        row!(Floor, "quick_cache get", QuickTextGet(quick_get)),
    ];
    let title = format!("hit: String keys, {threads} thread{}", if threads == 1 { "" } else { "s" });
    interleave(title, note(threads), &COLUMNS, setting.rounds(100), contenders)
}

pub fn run(setting: &Setting) -> Vec<Table> {
    vec![numbers(setting, 1), numbers(setting, 2), texts(setting, 1), texts(setting, 2)]
}
