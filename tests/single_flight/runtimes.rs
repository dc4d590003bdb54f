//! No runtime, a runtime that ends, another runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stampede_guard::LoadError;

use super::support::{Caller, Gate, Group, Loads, Oops, assert_empty, current_thread, settle};

fn multi_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn callers_of_a_runtime_that_ends_are_cancelled_and_the_group_works_on_another() {
    let flights = Group::new();
    let makers: [fn() -> tokio::runtime::Runtime; 3] = [current_thread, multi_thread, current_thread];
    for (round, make) in (1..).zip(makers) {
        let (runtime, loads) = (make(), Loads::default());
        let (leader, follower, forgotten) = {
            let _inside = runtime.enter();
            let forgotten = Caller::new(flights.run(1, || loads.endless())).waits();
            assert!(flights.forget(&1));
            let leader = Caller::new(flights.run(1, || loads.endless())).waits();
            let follower = Caller::new(flights.run(1, || loads.endless())).waits();
            drop(Caller::new(flights.run(2, || loads.endless())).waits());
            (leader, follower, forgotten)
        };
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
        assert_eq!((loads.started(), loads.alive()), (3, 0));
        for caller in [leader, follower, forgotten] {
            assert!(caller.woken());
            assert!(matches!(caller.ready(), Err(LoadError::Cancelled)));
        }
        assert_empty(&flights, [1, 2]);
        assert_eq!(flights.stats().cancelled, 3 * round);
    }
    let answer = current_thread().block_on(flights.run(1, || async {
        tokio::task::yield_now().await;
        Ok(6)
    }));
    assert_eq!(answer.unwrap(), 6);
}

#[test]
fn a_runtime_that_ends_under_a_storm_leaves_nothing_behind() {
    let flights = Group::new();
    for round in 0..30_u64 {
        let (runtime, loads) = (multi_thread(), Loads::default());
        let mut outside = Vec::new();
        {
            let _inside = runtime.enter();
            for key in 0..8 {
                outside.push(Caller::new(flights.run(key, || loads.endless())).waits());
            }
        }
        for task in 0..200_u64 {
            let (flights, loads) = (flights.clone(), loads.clone());
            runtime.spawn(async move {
                let taking = Duration::from_micros(task);
                let _ = flights.run(task % 16, || loads.taking(taking, task)).await;
                if task % 7 == round % 7 {
                    flights.forget(&(task % 16));
                }
                flights.run(task % 16, || loads.endless()).await
            });
        }
        if round % 2 == 0 {
            runtime.shutdown_timeout(Duration::from_secs(10));
        } else {
            drop(runtime);
        }
        for caller in outside {
            assert!(matches!(caller.ready(), Err(LoadError::Cancelled)));
        }
        assert_eq!(loads.alive(), 0);
        assert_empty(&flights, 0..16);
    }
}

#[test]
fn a_follower_on_another_runtime_outlives_that_of_its_leader() {
    let (flights, loads) = (Group::new(), Loads::default());
    let (theirs, ours) = (current_thread(), current_thread());
    let leader = {
        let _inside = theirs.enter();
        Caller::new(flights.run(1, || loads.endless())).waits()
    };
    let follower = {
        let flights = flights.clone();
        ours.spawn(async move { flights.run(1, || async { unreachable!() }).await })
    };
    settle(&ours);
    assert_eq!(flights.waiters(&1), 2);
    drop(theirs);
    assert!(matches!(ours.block_on(follower).unwrap(), Err(LoadError::Cancelled)));
    assert!(matches!(leader.ready(), Err(LoadError::Cancelled)));
}

#[test]
fn a_load_that_has_to_wait_on_a_runtime_that_is_over_is_cancelled() {
    let (flights, loads, runtime) = (Group::new(), Loads::default(), current_thread());
    let handle = runtime.handle().clone();
    drop(runtime);
    let _inside = handle.enter();
    let leader = Caller::new(flights.run(1, || loads.endless())).waits();
    assert!(leader.woken(), "or it would wait for ever");
    assert!(matches!(leader.ready(), Err(LoadError::Cancelled)));
    assert_eq!((loads.started(), loads.alive()), (1, 0));
    assert_empty(&flights, [1]);
}

#[test]
fn a_large_herd_of_a_runtime_that_ends_is_woken_to_the_last() {
    let (flights, loads, runtime) = (Group::new(), Loads::default(), current_thread());
    let callers: Vec<_> = {
        let _inside = runtime.enter();
        (0..1_000).map(|_| Caller::new(flights.run(1, || loads.endless())).waits()).collect()
    };
    drop(runtime);
    for caller in callers {
        assert!(caller.woken());
        assert!(matches!(caller.ready(), Err(LoadError::Cancelled)));
    }
}

#[test]
fn a_runtime_that_stands_still_once_the_leader_is_served_leaves_nobody_asleep() {
    let (flights, gate, runtime) = (Group::new(), Gate::closed(), current_thread());
    let mut leader = {
        let _inside = runtime.enter();
        Caller::new(flights.run(1, || gate.then(5))).waits()
    };
    // Of another runtime. So many that the leader's runtime, of one thread, would have to come back for them.
    let call = || Caller::new(flights.run(1, || async { unreachable!("is in flight") })).waits();
    let followers: Vec<_> = (0..10_000).map(|_| call()).collect();
    gate.open();
    let served = std::future::poll_fn(|cx| leader.poll_with(cx.waker()));
    assert_eq!(runtime.block_on(served).unwrap(), 5);
    assert!(followers.iter().all(Caller::woken));
}

#[test]
fn a_ready_load_needs_no_runtime_and_no_task() {
    let flights = Group::new();
    assert_eq!(Caller::new(flights.run(1, || async { Ok(1) })).ready().unwrap(), 1);
    let failed = Caller::new(flights.run(1, || async { Err(Oops(2)) })).ready();
    assert!(matches!(failed, Err(LoadError::Failed(error)) if *error == Oops(2)));
    let panicked = Caller::new(flights.run(1, || async { panic!("3") })).ready();
    assert!(matches!(panicked, Err(LoadError::Panicked(panic)) if panic.message() == Some("3")));
    assert_empty(&flights, [1]);

    let runtime = current_thread();
    let _inside = runtime.enter();
    assert_eq!(Caller::new(flights.run(1, || async { Ok(4) })).ready().unwrap(), 4);
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
}

#[test]
fn a_pending_load_without_a_runtime_panics_and_leaves_nothing_behind() {
    for limit in [None, Some(Duration::from_secs(1))] {
        let flights = Group::builder().load_timeout(limit).build().unwrap();
        let loads = Loads::default();
        let mut leader = Caller::new(flights.run(1, || loads.endless()));
        let panic = catch_unwind(AssertUnwindSafe(|| leader.poll().is_pending())).unwrap_err();
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
        assert!(message.is_some_and(|message| message.contains("runtime")), "{message:?}");
        assert_eq!((loads.started(), loads.alive()), (1, 0));
        assert_empty(&flights, [1]);
        drop(leader);
        assert_eq!(Caller::new(flights.run(1, || async { Ok(1) })).ready().unwrap(), 1);
    }
}

#[test]
fn a_time_out_in_a_runtime_without_timers_panics_and_leaves_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let flights = Group::builder().load_timeout(Duration::from_secs(1)).build().unwrap();
    let loads = Loads::default();
    let mut leader = Caller::new(flights.run(1, || loads.endless()));
    assert!(catch_unwind(AssertUnwindSafe(|| leader.poll().is_pending())).is_err());
    assert_eq!((loads.started(), loads.alive()), (1, 0));
    assert_empty(&flights, [1]);
    assert_eq!(Caller::new(flights.run(1, || async { Ok(1) })).ready().unwrap(), 1);
}

#[test]
fn followers_of_a_leader_that_panics_for_want_of_a_runtime_are_cancelled() {
    let flights = Group::new();
    let mut followers = Vec::new();
    let join = |flights: &Group| {
        let flights = flights.clone();
        // From another thread: on this one, it would be the loader asking for itself.
        let follower =
            move || Caller::new(async move { flights.run(1, || async { unreachable!() }).await }).waits();
        std::thread::spawn(follower).join().unwrap()
    };
    let call = flights.run(1, || {
        followers.push(join(&flights));
        std::future::pending()
    });
    let mut leader = Box::pin(call);
    let poll = || {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        leader.as_mut().poll(&mut context).is_pending()
    };
    assert!(catch_unwind(AssertUnwindSafe(poll)).is_err());
    drop(leader);
    let follower = followers.pop().unwrap();
    assert!(follower.woken());
    assert!(matches!(follower.ready(), Err(LoadError::Cancelled)));
    assert_empty(&flights, [1]);
}

#[test]
fn a_pending_load_continues_where_its_first_poll_stopped() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate) = (Group::new(), Gate::closed());
    let (made, begun, went_on) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let load = {
        let (gate, made, begun, went_on) = (gate.clone(), made.clone(), begun.clone(), went_on.clone());
        move || {
            made.fetch_add(1, Ordering::SeqCst);
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                gate.passed().await;
                went_on.fetch_add(1, Ordering::SeqCst);
                Ok(1)
            }
        }
    };
    let counts = || [&made, &begun, &went_on].map(|count| count.load(Ordering::SeqCst));
    let leader = Caller::new(flights.run(1, load));
    assert_eq!(counts(), [0, 0, 0], "nothing happens before the first poll");
    let leader = leader.waits();
    assert_eq!(counts(), [1, 1, 0], "the load began in its caller's own poll");
    assert_eq!(runtime.metrics().num_alive_tasks(), 1, "and goes on in one task");
    gate.open();
    settle(&runtime);
    assert_eq!(counts(), [1, 1, 1]);
    assert_eq!(leader.ready().unwrap(), 1);
}
