//! What nobody can be faster than: each does one part of the work and nothing else.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use dashmap::DashMap;

use super::Peer;
use crate::load::{Load, Loaded};

/// A sharded map that the key goes into and comes out of, with the load run in place between.
pub struct Map<L, S = RandomState> {
    map: DashMap<u64, u64, S>,
    load: L,
}

/// With the hash function of our own maps.
pub type QuickMap<L> = Map<L, ahash::RandomState>;

impl<L: Load, S: BuildHasher + Clone + Default + Send + Sync + 'static> Peer<L> for Map<L, S> {
    const NAME: &'static str = "sharded map insert, remove";
    type Raw = Loaded;

    fn new(load: L, _: usize) -> Self {
        Self { map: DashMap::default(), load }
    }

    async fn call(&self, key: u64) -> Loaded {
        self.map.insert(key, key);
        let loaded = self.load.clone().run(key).await;
        self.map.remove(&key);
        loaded
    }

    fn verdict(raw: Loaded) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

/// The load in a task of its own.
pub struct Spawn<L>(L);

impl<L: Load> Peer<L> for Spawn<L> {
    const NAME: &'static str = "tokio spawn";
    type Raw = Loaded;

    fn new(load: L, _: usize) -> Self {
        Self(load)
    }

    async fn call(&self, key: u64) -> Loaded {
        tokio::spawn(self.0.clone().run(key)).await.expect("a load that ends")
    }

    fn verdict(raw: Loaded) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

/// A herd with a place for each caller made beforehand: the first call loads in a task of its own, which then wakes
/// everyone, `BATCH` in each turn.
pub struct Slots<L, const BATCH: usize>(Arc<Places>, L);

struct Places {
    value: OnceLock<Loaded>,
    wakers: Box<[Mutex<Option<Waker>>]>,
    taken: AtomicUsize,
}

impl<L: Load, const BATCH: usize> Peer<L> for Slots<L, BATCH> {
    const NAME: &'static str =
        if BATCH == usize::MAX { "slots, woken in place" } else { "slots, woken 32 a turn" };
    type Raw = Loaded;

    fn new(load: L, callers: usize) -> Self {
        let wakers = (0..callers).map(|_| Mutex::new(None)).collect();
        let taken = AtomicUsize::new(0);
        Self(Arc::new(Places { value: OnceLock::new(), wakers, taken }), load)
    }

    fn call(&self, key: u64) -> impl Future<Output = Loaded> + Send {
        let place = self.0.taken.fetch_add(1, Relaxed);
        if place == 0 {
            let (places, run) = (self.0.clone(), self.1.clone().run(key));
            tokio::spawn(async move {
                let _ = places.value.set(run.await);
                for (turn, place) in places.wakers.iter().enumerate() {
                    if turn % BATCH == BATCH - 1 {
                        tokio::task::yield_now().await;
                    }
                    let waker = place.lock().expect("no panics").take();
                    waker.into_iter().for_each(Waker::wake);
                }
            });
        }
        Place { places: &self.0, place }
    }

    fn verdict(raw: Loaded) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

struct Place<'a> {
    places: &'a Places,
    place: usize,
}

impl Future for Place<'_> {
    type Output = Loaded;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Loaded> {
        if let Some(value) = self.places.value.get() {
            return Poll::Ready(*value);
        }
        let mut waker = self.places.wakers[self.place].lock().expect("no panics");
        *waker = Some(cx.waker().clone());
        drop(waker);
        self.places.value.get().map_or(Poll::Pending, |value| Poll::Ready(*value))
    }
}
