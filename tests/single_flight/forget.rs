//! `forget`: later callers start anew, those who wait keep what they wait for.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use stampede_guard::Role;

use super::support::{Caller, Gate, Group, Loads, assert_empty, current_thread, settle};

#[test]
fn those_who_wait_keep_their_run_and_later_callers_start_another() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::new();
    let (old, new) = (Gate::closed(), Gate::closed());
    let leader = Caller::new(flights.run_detailed(1, || old.then(1))).waits();
    let follower = Caller::new(flights.run_detailed(1, || old.then(0))).waits();
    assert!(flights.forget(&1));
    assert_eq!((flights.in_flight(), flights.waiters(&1)), (0, 0));
    assert!(!flights.forget(&1), "there is nothing more to forget");

    let late = Caller::new(flights.run_detailed(1, || new.then(2))).waits();
    let later = Caller::new(flights.run_detailed(1, || new.then(0))).waits();
    assert_eq!((flights.in_flight(), flights.waiters(&1)), (1, 2));
    old.open();
    settle(&runtime);
    assert!(!late.woken(), "the old run ends for those who waited for it");
    assert_eq!((flights.in_flight(), flights.waiters(&1)), (1, 2), "and leaves the new one in its place");
    for (caller, role) in [(leader, Role::Leader), (follower, Role::Follower)] {
        let flown = caller.ready().unwrap();
        assert_eq!((flown.value, flown.role), (1, role));
    }
    new.open();
    settle(&runtime);
    for (caller, role) in [(late, Role::Leader), (later, Role::Follower)] {
        let flown = caller.ready().unwrap();
        assert_eq!((flown.value, flown.role), (2, role));
    }
    assert_empty(&flights, [1]);
}

#[test]
fn the_new_run_may_end_before_the_old_one() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, old) = (Group::new(), Gate::closed());
    let waits = Caller::new(flights.run(1, || old.then(1))).waits();
    assert!(flights.forget(&1));
    assert_eq!(Caller::new(flights.run(1, || async { Ok(2) })).ready().unwrap(), 2);
    assert_empty(&flights, [1]);
    old.open();
    settle(&runtime);
    assert_eq!(waits.ready().unwrap(), 1);
    assert_empty(&flights, [1]);
}

#[test]
fn a_forgotten_run_that_loses_its_callers_takes_nothing_from_its_successor() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_abandoned(0).build().unwrap();
    let (loads, gate) = (Loads::default(), Gate::closed());
    let old = Caller::new(flights.run(1, || loads.endless())).waits();
    assert!(flights.forget(&1));
    let new = Caller::new(flights.run(1, || gate.then(2))).waits();
    drop(old);
    assert_eq!(loads.alive(), 0);
    assert_eq!((flights.in_flight(), flights.waiters(&1)), (1, 1));
    gate.open();
    settle(&runtime);
    assert_eq!(new.ready().unwrap(), 2);
    assert_empty(&flights, [1]);
}

#[test]
fn a_run_can_be_forgotten_from_its_own_loader() {
    let flights = Group::new();
    let inner = flights.clone();
    let call = flights.run(1, || async move {
        assert!(inner.forget(&1));
        assert!(!inner.forget(&1));
        Ok(3)
    });
    assert_eq!(Caller::new(call).ready().unwrap(), 3);
    assert_empty(&flights, [1]);
}

#[test]
fn a_key_that_nobody_loads_cannot_be_forgotten() {
    let flights = Group::new();
    assert!(!flights.forget(&1));
    let _never_polled = flights.run(1, || async { Ok(1) });
    assert!(!flights.forget(&1), "a call does nothing before its first poll");
}

#[test]
fn every_forgotten_run_leaves_room_under_max_in_flight() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_in_flight(1).build().unwrap();
    let loads = Loads::default();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(Caller::new(flights.run(1, || loads.endless())).waits());
        assert!(flights.forget(&1));
    }
    assert_eq!((loads.alive(), flights.in_flight()), (10, 0));
    drop(waiting);
    drop(flights);
    drop(runtime);
    assert_eq!(loads.alive(), 0);
}

#[test]
fn who_joins_a_first_poll_that_is_forgotten_gets_its_run() {
    let runtime = current_thread();
    for pends in [false, true] {
        let inside = runtime.enter();
        let (flights, gate) = (Group::new(), Gate::closed());
        let (group, mut passed, joined) =
            (flights.clone(), Box::pin(gate.passed()), Arc::new(Mutex::new(None)));
        let joins = Arc::clone(&joined);
        // What it calls on another thread is no part of its load.
        let mut first = Some(move || {
            let follower = Caller::new({
                let group = group.clone();
                async move { group.run(1, || async { unreachable!() }).await }
            });
            *joins.lock().unwrap() = Some(follower.waits());
            assert_eq!((group.in_flight(), group.waiters(&1)), (1, 1));
            assert!(group.forget(&1));
            assert!(!group.forget(&1));
            assert_eq!((group.in_flight(), group.waiters(&1)), (0, 0));
            assert_eq!(Caller::new(group.run(1, || async { Ok(2) })).ready().unwrap(), 2, "anew");
        });
        let load = std::future::poll_fn(move |context| {
            if let Some(first) = first.take() {
                std::thread::scope(|scope| scope.spawn(first).join().unwrap());
            }
            if pends { passed.as_mut().poll(context).map(|()| Ok(1)) } else { Poll::Ready(Ok(1)) }
        });
        let mut leader = Caller::new(flights.run(1, || load));
        let mut answer = leader.poll();
        if pends {
            assert!(answer.is_pending());
            gate.open();
            settle(&runtime);
            answer = leader.poll();
        }
        assert!(matches!(answer, Poll::Ready(Ok(1))));
        let follower = joined.lock().unwrap().take().unwrap();
        assert_eq!(follower.ready().unwrap(), 1);
        assert_empty(&flights, [1]);
        drop(inside);
    }
}
