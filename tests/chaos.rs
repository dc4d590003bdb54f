//! Caches on a tier that delays, loses and forgets: whatever it does, what was invalidated stays invalidated, one load a
//! key runs in each instance, every call ends, and nothing is left behind. What goes wrong is drawn from a seed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stampede_guard::test_util::{Chaos, ChaosTier};
use stampede_guard::{Loaded, Outcome, StampedeCache};

const KEYS: usize = 4;
const INSTANCES: usize = 3;
const TTL: Duration = Duration::from_secs(2);
/// With all its messages.
const LONGEST_LOAD: Duration = Duration::from_secs(1);

/// A version of a key's data, from the source.
type Cache = StampedeCache<u64, u64, &'static str>;

fn instance(tier: &ChaosTier, stale: Duration) -> Cache {
    let builder = StampedeCache::builder().name("data").ttl(TTL).seed(1);
    builder.stale_while_revalidate(stale).stale_if_error(stale).redis(tier.clone()).build().unwrap()
}

/// The data, and what may still be seen of it.
struct World {
    tier: ChaosTier,
    caches: Vec<Cache>,
    versions: [AtomicU64; KEYS],
    /// No call of that instance that begins now may see an older version.
    floors: [[AtomicU64; KEYS]; INSTANCES],
    /// Loads under way.
    loading: [[AtomicU64; KEYS]; INSTANCES],
    most_at_once: AtomicU64,
    /// Until an invalidation that was confirmed is known everywhere.
    grace: Duration,
    events_get_lost: bool,
}

/// Counts a load for as long as it runs.
struct Loading(Arc<World>, usize, usize);

impl Loading {
    fn begin(world: &Arc<World>, at: usize, key: usize) -> Self {
        let others = world.loading[at][key].fetch_add(1, Ordering::SeqCst);
        world.most_at_once.fetch_max(others + 1, Ordering::SeqCst);
        Self(Arc::clone(world), at, key)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.0.loading[self.1][self.2].fetch_sub(1, Ordering::SeqCst);
    }
}

impl World {
    fn new(seed: u64, chaos: Chaos, stale: Duration) -> Arc<Self> {
        let events_get_lost = chaos.lost_events > 0.0;
        // An instance that did not hear of it keeps what it has, and what its loads under way bring, up to the cap.
        let unheard = if events_get_lost { chaos.local_ttl_cap + LONGEST_LOAD } else { Duration::ZERO };
        let grace = chaos.delay + unheard;
        let tier = ChaosTier::new(seed, chaos);
        Arc::new(Self {
            caches: (0..INSTANCES).map(|_| instance(&tier, stale)).collect(),
            tier,
            versions: Default::default(),
            floors: Default::default(),
            loading: Default::default(),
            most_at_once: AtomicU64::new(0),
            grace,
            events_get_lost,
        })
    }

    fn tag(key: usize) -> String {
        format!("tag {key}")
    }

    async fn load(world: Arc<Self>, at: usize, key: usize, millis: u64) -> Result<u64, &'static str> {
        let _loading = Loading::begin(&world, at, key);
        let version = world.versions[key].load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        if millis.is_multiple_of(13) { Err("down") } else { Ok(version) }
    }

    /// One call: what it got must not be older than what was ruled out when it began.
    async fn get(self: &Arc<Self>, at: usize, key: usize, millis: u64) {
        let floor = self.floors[at][key].load(Ordering::SeqCst);
        let world = Arc::clone(self);
        let load = move |_| async move {
            let version = Self::load(world, at, key, millis).await?;
            Ok(Loaded::new(version).tags([Self::tag(key)]))
        };
        if let Ok(fetched) = self.caches[at].get_or_load_with(key as u64, load).await {
            // An instance that heard of nothing has its value stand in for a load that fails.
            let stands_in = self.events_get_lost && matches!(fetched.outcome, Outcome::Stale { .. });
            let text = format!("{fetched:?} of {key} in {at}, and {floor} was invalidated");
            assert!(fetched.value >= floor || stands_in, "{text}");
        }
    }

    async fn get_all(self: &Arc<Self>, at: usize, millis: u64) {
        let floors: Vec<_> = self.floors[at].iter().map(|floor| floor.load(Ordering::SeqCst)).collect();
        let world = Arc::clone(self);
        let load = move |keys: Vec<u64>| async move {
            let mut found = HashMap::new();
            for key in keys {
                let loaded = Self::load(Arc::clone(&world), at, usize::try_from(key).unwrap(), millis).await;
                found.insert(key, loaded?);
            }
            Ok(found)
        };
        for (key, value) in self.caches[at].get_or_load_many(0..KEYS as u64, load).await {
            let floor = floors[usize::try_from(key).unwrap()];
            let is_new = value.as_ref().is_ok_and(|value| *value >= floor);
            assert!(is_new || value.is_err() || self.events_get_lost, "{value:?} of {key} in {at}: {floor}");
        }
    }

    /// The data changes, and then everyone is told.
    async fn change(self: &Arc<Self>, at: usize, key: usize) {
        let version = self.versions[key].fetch_add(1, Ordering::SeqCst) + 1;
        let told = self.caches[at].invalidate(&(key as u64));
        self.floors[at][key].fetch_max(version, Ordering::SeqCst);
        if told.await.is_ok() {
            tokio::time::sleep(self.grace).await;
            for floors in &self.floors {
                floors[key].fetch_max(version, Ordering::SeqCst);
            }
        }
    }

    /// What many callers do at once, at random.
    async fn run(self: &Arc<Self>, seed: u64, changes: bool) {
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..12 {
            let (world, mut random) = (Arc::clone(self), StdRng::seed_from_u64(seed << 8 | caller));
            callers.spawn(async move {
                for _ in 0..25 {
                    let (at, key) = (random.random_range(0..INSTANCES), random.random_range(0..KEYS));
                    let millis = random.random_range(0..60);
                    match random.random_range(0..100) {
                        0..60 => world.get(at, key, millis).await,
                        60..70 => world.get_all(at, millis).await,
                        // One that leaves.
                        70..80 => {
                            let limit = Duration::from_millis(millis / 2);
                            let _ = tokio::time::timeout(limit, world.get(at, key, millis)).await;
                        }
                        80..90 if changes => world.change(at, key).await,
                        _ => tokio::time::sleep(Duration::from_millis(millis * 10)).await,
                    }
                }
            });
        }
        let end = async { while callers.join_next().await.transpose().unwrap().is_some() {} };
        // Of a clock that stands still while anybody has work: what does not end by then never does.
        tokio::time::timeout(Duration::from_secs(3_600), end).await.expect("every call ends");
        for cache in &self.caches {
            tokio::time::timeout(Duration::from_secs(60), cache.close()).await.expect("no flight is left");
        }
        self.tier.set(Chaos::default());
        // Loads that were invalidated under way, or refresh what was served stale, are not waited for by `close`.
        let over = async {
            while self.loading.iter().flatten().any(|loads| loads.load(Ordering::SeqCst) > 0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            self.tier.settled().await;
        };
        tokio::time::timeout(Duration::from_secs(60), over).await.expect("it settles");
        let stats = self.tier.stats();
        assert_eq!((stats.held, stats.waiting), (0, 0), "{stats:?}");
    }
}

/// Each seed has faults of its own.
fn faults(seed: u64) -> Chaos {
    let mut random = StdRng::seed_from_u64(seed);
    let mut share = |most: f64| if random.random() { most * random.random::<f64>() } else { 0.0 };
    Chaos {
        delay: Duration::from_millis(40).mul_f64(share(1.0)),
        errors: share(0.4),
        lost_events: share(0.6),
        lost_leases: share(0.6),
        local_ttl_cap: Duration::from_millis(500),
    }
}

/// A run of its own for each seed, on a clock that goes as fast as the work is done.
fn each_seed(run: impl AsyncFn(u64)) {
    let seeds = std::env::var("STAMPEDE_TEST_SEEDS").map_or(60, |text| text.parse().unwrap());
    for seed in 0..seeds {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        println!("seed {seed}: {:?}", faults(seed));
        runtime.block_on(run(seed));
    }
}

#[test]
fn what_was_invalidated_is_not_seen_again_whatever_the_tier_does() {
    each_seed(async |seed| {
        let stale = if seed.is_multiple_of(2) { Duration::ZERO } else { Duration::from_secs(1) };
        World::new(seed, faults(seed), stale).run(seed, true).await;
    });
}

#[test]
fn one_load_of_a_key_runs_in_each_instance_whatever_the_tier_does() {
    each_seed(async |seed| {
        let world = World::new(seed, faults(seed), Duration::ZERO);
        world.run(seed, false).await;
        assert_eq!(world.most_at_once.load(Ordering::SeqCst), 1);
    });
}

#[tokio::test(start_paused = true)]
async fn a_calm_tier_is_one_flight_over_all_instances() {
    let world = World::new(1, Chaos::default(), Duration::ZERO);
    let loads = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..30)
        .map(|caller| {
            let (cache, loads) = (world.caches[caller % INSTANCES].clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                let load = |_| async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(Loaded::new(1))
                };
                cache.get_or_load_with(1, load).await.unwrap().outcome
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for caller in callers {
        outcomes.push(caller.await.unwrap());
    }
    let count = |outcome| outcomes.iter().filter(|&&seen| seen == outcome).count();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!((count(Outcome::Loaded), count(Outcome::SharedWait)), (1, INSTANCES - 1), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn every_fault_there_is_happens() {
    let everything = Chaos {
        delay: Duration::from_millis(30),
        errors: 0.2,
        lost_events: 0.3,
        lost_leases: 0.3,
        local_ttl_cap: Duration::from_millis(500),
    };
    let world = World::new(3, everything, Duration::ZERO);
    world.run(3, true).await;
    let stats = world.tier.stats();
    assert!(stats.errors > 0 && stats.lost_events > 0 && stats.lost_leases > 0, "{stats:?}");
    assert!(stats.published > 0 && stats.leases > stats.published, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_invalidated_everywhere() {
    let world = World::new(1, Chaos { delay: Duration::from_millis(20), ..Chaos::default() }, Duration::ZERO);
    for at in 0..INSTANCES {
        world.get(at, 1, 1).await;
    }
    world.versions[1].store(1, Ordering::SeqCst);
    world.caches[0].invalidate_tag(World::tag(1));
    world.tier.settled().await;
    for (at, floors) in world.floors.iter().enumerate() {
        floors[1].store(1, Ordering::SeqCst);
        assert_eq!(world.caches[at].get(&1), None);
        world.get(at, 1, 1).await;
    }
}
