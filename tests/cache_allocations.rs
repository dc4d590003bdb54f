//! What the hit path costs: no allocation. Counted on the calling thread, so other tests do not disturb.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use stampede_guard::{Moka, StampedeCache, Store};

fn poll_once<F: Future>(call: F) -> Poll<F::Output> {
    pin!(call).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_hit_by_reference_allocates_nothing() {
    a_hit_allocates_nothing(Moka);
    #[cfg(feature = "quick-cache")]
    a_hit_allocates_nothing(stampede_guard::QuickCache);
}

fn a_hit_allocates_nothing(store: impl Store) {
    let cache: StampedeCache<String, Arc<str>> = StampedeCache::builder().store(store).build().unwrap();
    cache.insert("stock".to_string(), Arc::from("three"));
    let hit = || {
        let served = poll_once(cache.get_or_load_ref("stock", || async { Ok(Arc::from("none")) }));
        assert!(matches!(served, Poll::Ready(Ok(value)) if &*value == "three"));
        assert!(cache.get("stock").is_some());
        assert!(cache.contains_key("stock"));
    };
    // The store does its upkeep on some hits, and makes room for it once.
    (0..10_000).for_each(|_| hit());
    let measured = allocation_counter::measure(|| (0..10_000).for_each(|_| hit()));
    assert_eq!(measured.count_total, 0);
}

#[test]
fn a_caller_is_as_small_as_its_loader_and_key_allow() {
    let cache: StampedeCache<u64, u64> = StampedeCache::builder().build().unwrap();
    // Where instances share a tier, one more word says what to ask them.
    let most = if cfg!(feature = "redis") { 72 } else { 64 };
    let own = [7_u8; 64];
    for (call, size) in [
        (size_of_val(&cache.get_or_load(1, || async { Ok(2) })), 0),
        (size_of_val(&cache.get_or_load(1, move || async move { Ok(own.len() as u64) })), size_of_val(&own)),
    ] {
        assert!(call <= most + size, "{call} bytes around a closure of {size}");
    }
}
