//! What the protocol does where the public face cannot see it.

use super::super::plan::{Borrowed, Owned, Plan};
use super::super::run::{FirstPoll, Run};
use super::*;
use crate::sync::Mutex;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::Context;

type Numbers = Flights<u64, u64, Infallible, ()>;

fn lead(flights: &Numbers, key: u64) -> Arc<Flight<u64, u64, Infallible>> {
    match flights.board(&mut Some((Owned(key), ())), Waker::noop()) {
        Boarding::Leads(Hold::Flight(flight), ()) => flight,
        Boarding::Leads(Hold::Entry(place), ()) => flights.table.go_on(place),
        _ => panic!("{key} is in flight"),
    }
}

#[test]
fn nobody_starts_a_flight_while_it_is_overruled() {
    let flights = Numbers::new(FlightConfig::default(), ());
    let old = lead(&flights, 1);
    let mut writes = 0;
    flights.overrule(&1, || {
        writes += 1;
        assert!(flights.table.find(&1).is_some_and(|linked| Arc::ptr_eq(&linked, &old)), "the key is taken");
    });
    assert_eq!((writes, flights.in_flight()), (1, 0));
    let new = lead(&flights, 1);
    flights.land(&old, &mut None);
    assert_eq!(flights.in_flight(), 1, "the old flight leaves the new one in its place");
    flights.land(&new, &mut None);
    assert_eq!(flights.in_flight(), 0);
    flights.overrule(&1, || writes += 1);
    assert_eq!(writes, 2);
}

#[test]
fn a_flight_that_was_forgotten_or_has_landed_takes_nobody_in() {
    // As if it had been found in the map just before.
    let flights = Numbers::new(FlightConfig::default(), ());
    let (forgotten, over) = (lead(&flights, 1), lead(&flights, 2));
    assert!(flights.forget(&1));
    let seat = flights.join(&over, Waker::noop()).ok().flatten().unwrap();
    assert!(over.keep_waiting(seat, Waker::noop()));
    flights.land(&over, &mut Some(Ok(2)));
    for flight in [&forgotten, &over] {
        assert!(matches!(flights.join(flight, Waker::noop()), Ok(None)));
    }
    assert!(!over.keep_waiting(seat, Waker::noop()), "its wake-up is behind it");
    flights.land(&forgotten, &mut None);
}

#[test]
fn a_flight_lands_once() {
    let flights = Numbers::new(FlightConfig::default(), ());
    let old = lead(&flights, 1);
    let seat = flights.join(&old, Waker::noop()).ok().flatten().unwrap();
    flights.land(&old, &mut Some(Ok(1)));
    let new = lead(&flights, 1);
    let mut unclaimed = Some(Ok(2));
    flights.land(&old, &mut unclaimed);
    assert!(unclaimed.is_some(), "nobody waits for it");
    assert!(matches!(old.landing(), Some(Landing::Done(Ok(1)))));
    flights.leave(&old, seat);
    assert!(!flights.close(&old, &mut old.state.lock()), "the key is another's");
    assert_eq!(flights.in_flight(), 1);
    flights.land(&new, &mut None);
    assert_eq!((flights.in_flight(), flights.unattended.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn only_a_flight_that_is_still_linked_is_stored() {
    /// Remembers what was stored, and how often it was called without the mutex.
    #[derive(Default)]
    struct Store(Mutex<Vec<(u64, u64)>>, AtomicUsize);
    impl Settle<u64, u64, Infallible> for Store {
        type Change = u64;

        fn prepare(&self, _: &u64, result: &mut Result<u64, LoadError<Infallible>>) -> u64 {
            *result.as_ref().unwrap()
        }

        fn settle(&self, key: &u64, value: &mut u64) {
            self.0.lock().push((*key, *value));
        }

        fn settled(&self, _: u64) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    let flights = Flights::new(FlightConfig::default(), Store::default());
    let lead = || match flights.board(&mut Some((Owned(1), ())), Waker::noop()) {
        Boarding::Leads(Hold::Flight(flight), ()) => flight,
        _ => panic!("is in flight"),
    };
    let forgotten = lead();
    assert!(flights.forget(&1));
    let linked = lead();
    flights.land(&forgotten, &mut Some(Ok(10)));
    assert!(flights.hook.0.lock().is_empty());
    flights.land(&linked, &mut Some(Ok(20)));
    assert_eq!(flights.hook.1.load(Ordering::Relaxed), 2, "after each landing");
    flights.land(&linked, &mut Some(Ok(30)));
    assert_eq!(*flights.hook.0.lock(), [(1, 20)]);
}

#[test]
fn a_flight_for_nobody_that_was_joined_holds_one_place() {
    let config = FlightConfig { max_abandoned: 2, ..FlightConfig::default() };
    let flights = Numbers::new(config, ());
    let alone = flights.start_unattended(Owned(1)).unwrap();
    for _ in 0..3 {
        let seat = flights.join(&alone, Waker::noop()).unwrap().unwrap();
        flights.leave(&alone, seat);
        assert_eq!(flights.unattended.load(Ordering::Relaxed), 1);
    }
    flights.land(&alone, &mut None);
    assert_eq!(flights.unattended.load(Ordering::Relaxed), 0);
}

#[test]
fn a_flight_that_cannot_be_linked_takes_no_place() {
    let config = FlightConfig { max_in_flight: 1, max_abandoned: 1, ..FlightConfig::default() };
    let flights = Numbers::new(config, ());
    let places = |flights: &Numbers| (flights.in_flight(), flights.unattended.load(Ordering::Relaxed));
    let first = lead(&flights, 1);
    assert!(flights.start_unattended(Owned(2)).is_none(), "as many keys as there may be");
    assert!(flights.start_unattended(Owned(1)).is_none(), "in flight already");
    assert_eq!(places(&flights), (1, 0));
    assert_eq!(flights.stats().overloaded, 0, "nobody was refused");
    flights.land(&first, &mut None);
    let alone = flights.start_unattended(Borrowed(&1)).unwrap();
    assert_eq!(places(&flights), (1, 1));
    assert!(flights.start_unattended(Owned(2)).is_none(), "as many loads for nobody as there may be");
    assert_eq!(places(&flights), (1, 1));
    flights.land(&alone, &mut None);
    assert_eq!(places(&flights), (0, 0));
}

#[test]
fn a_leader_that_panics_before_its_load_leaves_the_key_free() {
    struct Shelf;
    impl Settle<u64, u64, Infallible> for Shelf {
        type Change = ();

        fn prepare(&self, _: &u64, _: &mut Result<u64, LoadError<Infallible>>) {}

        fn settle(&self, _: &u64, (): &mut ()) {}

        fn settled(&self, (): ()) {}
    }
    struct Panics;
    impl Plan<u64, u64, Infallible> for Panics {
        type Kept = ();

        fn recheck(&mut self, _: &u64) -> Option<u64> {
            panic!("in the user's code")
        }

        fn load(self, (): &mut ()) -> BoxLoad<u64, Infallible> {
            unreachable!("it does not come to that")
        }
    }
    let flights = Flights::new(FlightConfig::default(), Shelf);
    let mut run = Run::new(&flights, Owned(1), Panics, FirstPoll::Inline);
    let polled = catch_unwind(AssertUnwindSafe(|| {
        Pin::new(&mut run).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }));
    assert!(polled.is_err());
    assert_eq!(flights.in_flight(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_load_for_nobody_may_wait_for_the_load_that_started_it() {
    let flights = Numbers::new(FlightConfig::default(), ());
    let group = Arc::clone(&flights);
    let load = || async move {
        let later = Arc::clone(&group);
        assert!(group.launch(Owned(2), || async move {
            let other = || async { unreachable!("it is under way") };
            let waited = Run::new(&later, Owned(1), other, FirstPoll::Inline).await;
            Ok(waited.result.expect("the value of the load that started this one"))
        }));
        while group.waiters(&1) < 2 && group.in_flight() == 2 {
            tokio::task::yield_now().await;
        }
        Ok(1)
    };
    let first = Run::new(&flights, Owned(1), load, FirstPoll::Inline).await;
    assert!(matches!(first.result, Ok(1)));
    while flights.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    let stats = flights.stats();
    assert_eq!((stats.loads, stats.coalesced, stats.reentrant, stats.panicked), (2, 1, 0, 0));
}

#[test]
fn who_watches_a_flight_does_not_wait_for_it() {
    let flights = Numbers::new(FlightConfig::default(), ());
    let flight = lead(&flights, 1);
    let mut landings = flights.landings();
    let mut watch = landings.pop().unwrap();
    assert!(Pin::new(&mut watch).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(flights.waiters(&1), 0);
    flights.land(&flight, &mut None);
    assert!(Pin::new(&mut watch).poll(&mut Context::from_waker(Waker::noop())).is_ready());
}
