//! What the types promise: Send, Sync, Clone, sizes, words.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use stampede_guard::{FlightStats, Flown, LoadError, Panicked, Role, SingleFlight};

use super::support::{Caller, Group, Oops};

fn is_send<T: Send>(value: T) -> T {
    value
}

#[test]
fn a_group_is_a_cheap_handle_for_any_thread() {
    fn check<T: Send + Sync + Clone + Default + std::fmt::Debug + 'static>() {}
    check::<Group>();
    check::<SingleFlight<String, Arc<[u8]>, Box<dyn Error + Send + Sync>>>();
    check::<SingleFlight<(u8, String), Vec<u8>>>();
    let flights = Group::new();
    let clone = flights.clone();
    let call = flights.run(1, || async move {
        assert_eq!(clone.in_flight(), 1, "the same flights");
        Ok(1)
    });
    assert_eq!(Caller::new(call).ready().unwrap(), 1);
    assert_eq!(size_of::<Group>(), size_of::<usize>());
}

#[test]
fn errors_pass_between_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<LoadError<Oops>>();
    check::<Panicked>();
    check::<FlightStats>();
    check::<Flown<u64>>();
}

#[test]
fn a_call_is_send_when_its_closure_is_and_may_not_be_when_it_is_not() {
    let flights = Group::new();
    let owned = String::from("moved into the loader");
    let call = is_send(flights.run(1, move || async move { Ok(owned.len() as u64) }));
    assert_eq!(Caller::new(call).ready().unwrap(), 21);
    drop(is_send(flights.run_ref(&1, || async { Ok(1) })));
    drop(is_send(flights.run_detailed(1, || async { Ok(1) })));

    // The loader must be Send, the closure that makes it need not.
    let here = std::rc::Rc::new(3);
    let mut call = Box::pin(flights.run(1, move || std::future::ready(Ok(*here))));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(call.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(3))));
}

#[test]
fn a_call_can_be_awaited_from_a_spawned_task() {
    let flights = Group::new();
    drop(is_send(async move { flights.run(1, || async { Ok(1) }).await }));
}

#[tokio::test]
async fn a_call_takes_sixty_four_bytes_and_its_closure() {
    fn overhead<F, Fut>(flights: &Group, load: F) -> usize
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<u64, Oops>> + Send + 'static,
    {
        let closure = size_of_val(&load);
        size_of_val(&flights.run(1, load)) - closure
    }
    let flights = Group::new();
    let (word, text) = (1_u64, [0_u8; 100]);
    let all = [
        overhead(&flights, || async { Ok(1) }),
        overhead(&flights, move || async move { Ok(word) }),
        overhead(&flights, move || async move { Ok(u64::from(text[0])) }),
    ];
    for bytes in all {
        assert!(bytes <= 64, "{bytes} bytes");
    }
}

#[test]
fn only_a_leader_clones_a_borrowed_key() {
    #[derive(PartialEq, Eq, Hash)]
    struct Counted(u64);
    thread_local!(static CLONES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
    impl Clone for Counted {
        fn clone(&self) -> Self {
            CLONES.set(CLONES.get() + 1);
            Self(self.0)
        }
    }
    let runtime = super::support::current_thread();
    let _inside = runtime.enter();
    let flights: SingleFlight<Counted, u64> = SingleFlight::new();
    let key = Counted(1);
    let _leader = Caller::new(flights.run_ref(&key, std::future::pending)).waits();
    let cloned = CLONES.get();
    assert!(cloned > 0);
    let followers: Vec<_> =
        (0..100).map(|_| Caller::new(flights.run_ref(&key, std::future::pending)).waits()).collect();
    assert_eq!((flights.waiters(&key), CLONES.get()), (101, cloned));
    drop(followers);
}

#[test]
fn a_borrowed_call_joins_an_owned_one_and_the_other_way_round() {
    let runtime = super::support::current_thread();
    let _inside = runtime.enter();
    let flights: SingleFlight<String, usize> = SingleFlight::new();
    for owned_first in [true, false] {
        let gate = super::support::Gate::closed();
        let passed = gate.passed();
        let first = || async move {
            passed.await;
            Ok(1)
        };
        let other = || async { unreachable!("joins") };
        let (leader, follower) = if owned_first {
            let leader = Caller::new(flights.run("key".into(), first)).waits();
            (leader, Caller::new(flights.run_ref("key", other)).waits())
        } else {
            let leader = Caller::new(flights.run_ref("key", first)).waits();
            (leader, Caller::new(flights.run("key".into(), other)).waits())
        };
        assert_eq!(flights.waiters("key"), 2);
        gate.open();
        super::support::settle(&runtime);
        assert_eq!((leader.ready().unwrap(), follower.ready().unwrap()), (1, 1));
        assert!(!flights.forget("key"));
    }
}

#[tokio::test]
async fn errors_say_what_happened_and_why() {
    let flights = Group::new();
    let failed = flights.run(1, || async { Err(Oops(5)) }).await.unwrap_err();
    assert_eq!(failed.to_string(), "the loader failed");
    assert_eq!(failed.source().unwrap().to_string(), "oops 5");
    let LoadError::Failed(first) = &failed else { unreachable!() };
    let LoadError::Failed(second) = failed.clone() else { unreachable!() };
    assert!(Arc::ptr_eq(first, &second), "a clone shares the loader's error");

    let panicked = flights.run(1, || async { panic!("at {:?}", 7) }).await.unwrap_err();
    assert_eq!(panicked.to_string(), "the loader panicked: at 7");
    assert!(panicked.source().is_none());
    let LoadError::Panicked(panic) = &panicked else { unreachable!() };
    let payload = panic.take_payload().expect("the first taker gets it");
    assert_eq!(payload.downcast_ref::<String>().unwrap(), "at 7");
    assert!(panic.clone().take_payload().is_none(), "once");
    assert_eq!(panic.message(), Some("at 7"), "the message stays");

    let odd = flights.run(1, || async { std::panic::panic_any(7_u8) }).await.unwrap_err();
    assert_eq!(odd.to_string(), "the loader panicked");

    let plain: [(LoadError<Oops>, &str); 2] = [
        (LoadError::Reentrant, "the loader asked for a key that is waiting for it"),
        (LoadError::Cancelled, "the load was cancelled before it finished"),
    ];
    for (error, text) in plain {
        assert_eq!(error.to_string(), text);
        assert!(error.source().is_none());
    }
}

#[tokio::test]
async fn stats_count_what_happened() {
    let flights = Group::new();
    assert_eq!(flights.stats(), FlightStats::default());
    flights.run(1, || async { Ok(1) }).await.unwrap();
    flights.run(1, || async { Err(Oops(1)) }).await.unwrap_err();
    flights.run(1, || async { panic!("counted") }).await.unwrap_err();
    flights.run(1, || -> std::future::Ready<_> { panic!("counted too") }).await.unwrap_err();
    let stats = flights.stats();
    assert_eq!((stats.loads, stats.failed, stats.panicked), (4, 1, 2));
    let others = [stats.coalesced, stats.timed_out, stats.abandoned, stats.cancelled, stats.overloaded];
    assert_eq!((others, stats.reentrant), ([0; 5], 0));
    let flown = flights.run_detailed(1, || async { Ok(1) }).await.unwrap();
    assert_eq!((flown.value, flown.role), (1, Role::Leader));
}
