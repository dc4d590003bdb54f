//! What a flight and its waiters cost in memory. Counts are those of the test's own thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use allocation_counter::{AllocationInfo, measure};
use stampede_guard::SingleFlight;

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// The heap that `waiters` callers of one key take, their own futures apart.
fn herd(waiters: usize) -> AllocationInfo {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let flights: SingleFlight<u64, u64> = SingleFlight::new();
    let mut leader = flights.run(1, std::future::pending);
    assert!(poll(&mut leader).is_pending());
    let mut callers: Vec<_> = (0..waiters).map(|_| flights.run(1, std::future::pending)).collect();
    let info = measure(|| {
        for caller in &mut callers {
            assert!(poll(caller).is_pending());
        }
    });
    assert_eq!(flights.waiters(&1), waiters + 1);
    info
}

#[test]
fn a_waiter_takes_at_most_thirty_two_bytes_and_no_allocation_of_its_own() {
    // 65,536 with the leader fill a slab exactly; one more doubles it.
    for waiters in [1_000, 10_000, 65_535, 65_536, 100_000] {
        let info = herd(waiters);
        let bytes = usize::try_from(info.bytes_current).unwrap();
        assert!(bytes <= 32 * waiters, "{bytes} bytes for {waiters} waiters");
        let doublings = u64::from(waiters.ilog2()) + 1;
        assert!(info.count_total <= doublings, "{} allocations for {waiters} waiters", info.count_total);
        assert!(info.count_current <= 1, "one slab");
    }
}

#[test]
fn waiters_that_come_and_go_take_no_room() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let flights: SingleFlight<u64, u64> = SingleFlight::new();
    let mut leader = flights.run(1, std::future::pending);
    assert!(poll(&mut leader).is_pending());
    let come_and_go = || {
        let mut caller = flights.run(1, std::future::pending);
        assert!(poll(&mut caller).is_pending());
        assert!(poll(&mut caller).is_pending(), "nor does being polled again");
    };
    come_and_go();
    let info = measure(|| (0..10_000).for_each(|_| come_and_go()));
    assert_eq!(info.count_total, 0);
}

#[test]
fn a_ready_load_takes_two_allocations_and_gives_them_back() {
    let flights: SingleFlight<u64, u64> = SingleFlight::new();
    let miss = |key| {
        let mut call = flights.run(key, move || async move { Ok(key) });
        assert!(matches!(poll(&mut call), Poll::Ready(Ok(got)) if got == key));
    };
    // A shard of the map allocates when it first holds a key.
    (0..10_000).for_each(miss);
    let one = measure(|| miss(1));
    assert!(one.count_total <= 2, "{one:?}");
    assert_eq!((one.count_current, one.bytes_current), (0, 0));
    let many = measure(|| (0..1_000).for_each(miss));
    assert!(many.count_total <= 2 * 1_000, "{many:?}");
    assert_eq!((many.count_current, many.bytes_current), (0, 0));
}

#[test]
fn a_borrowed_key_costs_a_follower_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let flights: SingleFlight<String, u64> = SingleFlight::new();
    let key = "a key too long for anything but the heap";
    let mut leader = flights.run_ref(key, std::future::pending);
    assert!(poll(&mut leader).is_pending());
    let join = || assert!(poll(&mut flights.run_ref(key, std::future::pending)).is_pending());
    join();
    assert_eq!(measure(join).count_total, 0);
}
