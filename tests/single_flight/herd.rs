//! Many callers on one cold key: one run, whatever it comes to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use stampede_guard::{LoadError, Role};

use super::support::{Caller, Gate, Group, Oops, assert_empty, current_thread, settle, until};

/// `callers` concurrent calls for one key, whose only run ends as `end` says; their answers.
async fn herd(
    flights: &Group,
    callers: usize,
    end: fn() -> Result<u64, Oops>,
) -> Vec<Result<u64, LoadError<Oops>>> {
    let (gate, runs) = (Gate::closed(), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let (flights, gate, runs) = (flights.clone(), gate.clone(), Arc::clone(&runs));
            tokio::spawn(async move {
                let load = || async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    gate.passed().await;
                    end()
                };
                flights.run(1, load).await
            })
        })
        .collect();
    until("everyone waits", || flights.waiters(&1) == callers).await;
    gate.open();
    let mut answers = Vec::with_capacity(callers);
    for call in calls {
        answers.push(call.await.expect("no caller panics"));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_empty(flights, [1]);
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_share_one_load() {
    let flights = Group::new();
    let answers = herd(&flights, 10_000, || Ok(42)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(42))));
    let stats = flights.stats();
    assert_eq!((stats.loads, stats.coalesced), (1, 9_999));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_callers_share_one_load() {
    let flights = Group::new();
    let answers = herd(&flights, 100_000, || Ok(42)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(42))));
    let stats = flights.stats();
    assert_eq!((stats.loads, stats.coalesced), (1, 99_999));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_share_one_error() {
    let flights = Group::new();
    let answers = herd(&flights, 10_000, || Err(Oops(7))).await;
    let Err(LoadError::Failed(first)) = &answers[0] else { panic!("{:?}", answers[0]) };
    assert_eq!(**first, Oops(7));
    for answer in &answers {
        assert!(matches!(answer, Err(LoadError::Failed(error)) if Arc::ptr_eq(error, first)), "{answer:?}");
    }
    let stats = flights.stats();
    assert_eq!((stats.loads, stats.failed), (1, 1));
    assert!(matches!(flights.run(1, || async { Ok(8) }).await, Ok(8)), "an error is not cached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_share_one_panic_and_the_next_call_loads_anew() {
    let flights = Group::new();
    let answers = herd(&flights, 10_000, || panic!("no such {}", "shard")).await;
    for answer in &answers {
        assert!(
            matches!(answer, Err(LoadError::Panicked(panic)) if panic.message() == Some("no such shard")),
            "{answer:?}"
        );
    }
    let stats = flights.stats();
    assert_eq!((stats.loads, stats.panicked), (1, 1));
    assert!(matches!(flights.run(1, || async { Ok(8) }).await, Ok(8)));
    assert_eq!(flights.stats().loads, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_leads_and_the_others_follow() {
    let (flights, gate) = (Group::new(), Gate::closed());
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let (flights, gate) = (flights.clone(), gate.clone());
            tokio::spawn(async move { flights.run_detailed(1, || gate.then(5)).await.unwrap() })
        })
        .collect();
    until("everyone waits", || flights.waiters(&1) == 100).await;
    gate.open();
    let mut leaders = 0;
    for call in calls {
        let flown = call.await.unwrap();
        assert_eq!(flown.value, 5);
        leaders += usize::from(flown.role == Role::Leader);
    }
    assert_eq!(leaders, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_do_not_wait_for_each_other() {
    let (flights, gate) = (Group::new(), Gate::closed());
    let blocked = tokio::spawn({
        let (flights, gate) = (flights.clone(), gate.clone());
        async move { flights.run(0, || gate.then(0)).await }
    });
    until("the first key waits", || flights.waiters(&0) == 1).await;
    for key in 1..1_000 {
        assert_eq!(flights.run(key, || async move { Ok(key) }).await.unwrap(), key);
    }
    gate.open();
    assert_eq!(blocked.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_kept_after_a_run() {
    let flights = Group::new();
    for value in 0..100 {
        assert_eq!(flights.run(1, || async move { Ok(value) }).await.unwrap(), value);
        assert_empty(&flights, [1]);
    }
    assert_eq!(flights.stats().loads, 100);
}

/// Notes who is woken when.
struct Note(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0);
    }
}

#[test]
fn the_leader_is_woken_before_those_who_came_during_its_first_poll() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate, woken) = (Group::new(), Gate::closed(), Arc::default());
    let note = |who| Waker::from(Arc::new(Note(who, Arc::clone(&woken))));
    let mut early = Vec::new();
    let mut leader = Box::pin(flights.run(1, || {
        for _ in 0..3 {
            let (flights, waker) = (flights.clone(), note("follower"));
            // From another thread: on this one it would be the load asking for itself.
            let join = move || {
                let mut early = Caller::new(async move { flights.run(1, || async { unreachable!() }).await });
                assert!(early.poll_with(&waker).is_pending());
                early
            };
            early.push(std::thread::spawn(join).join().unwrap());
        }
        gate.then(1)
    }));
    let waker = note("leader");
    assert!(leader.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    settle(&runtime);
    assert!(woken.lock().unwrap().is_empty());
    gate.open();
    settle(&runtime);
    assert_eq!(*woken.lock().unwrap(), ["leader", "follower", "follower", "follower"]);
    drop(leader);
    for follower in early {
        assert_eq!(follower.ready().unwrap(), 1);
    }
}

#[test]
fn a_value_is_cloned_for_those_who_share_it_and_not_for_one_alone() {
    struct Counted(Arc<AtomicUsize>);
    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::SeqCst);
            Self(Arc::clone(&self.0))
        }
    }
    let flights: stampede_guard::SingleFlight<u64, Counted> = stampede_guard::SingleFlight::new();
    let clones = Arc::new(AtomicUsize::new(0));
    let value = Counted(Arc::clone(&clones));
    assert!(Caller::new(flights.run(1, || async { Ok(value) })).ready().is_ok());
    assert_eq!(clones.load(Ordering::SeqCst), 0);
}

#[test]
fn a_caller_is_woken_where_it_was_polled_last() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate, woken) = (Group::new(), Gate::closed(), Arc::default());
    let note = |who| Waker::from(Arc::new(Note(who, Arc::clone(&woken))));
    let mut leader = Caller::new(flights.run(1, || gate.then(1)));
    let mut follower = Caller::new(flights.run(1, || async { unreachable!("joins") }));
    assert!(leader.poll_with(&note("here")).is_pending());
    assert!(follower.poll_with(&note("here")).is_pending());
    settle(&runtime);
    assert!(leader.poll_with(&note("leader there")).is_pending());
    assert!(follower.poll_with(&note("follower there")).is_pending());
    gate.open();
    settle(&runtime);
    assert_eq!(*woken.lock().unwrap(), ["leader there", "follower there"]);
}
