//! `load_timeout` and the caps.

use std::time::Duration;

use stampede_guard::{LoadError, Overloaded};
use tokio::time::{Instant, sleep};

use super::support::{Caller, Gate, Group, Loads, assert_empty, current_thread, settle};

const LIMIT: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn a_load_that_outlasts_its_time_is_dropped_and_everyone_told() {
    let flights = Group::builder().load_timeout(LIMIT).build().unwrap();
    let (loads, start) = (Loads::default(), Instant::now());
    let call = || flights.run(1, || loads.endless());
    let (leader, follower, other) = tokio::join!(call(), call(), call());
    for answer in [leader, follower, other] {
        assert!(matches!(answer, Err(LoadError::TimedOut(limit)) if limit.after() == LIMIT), "{answer:?}");
    }
    let took = start.elapsed();
    assert!(took >= LIMIT && took < LIMIT * 2, "{took:?}");
    assert_eq!((loads.started(), loads.alive()), (1, 0));
    assert_empty(&flights, [1]);
    assert_eq!(flights.stats().timed_out, 1);
    assert_eq!(flights.run(1, || async { Ok(4) }).await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_always_has_more_to_do_is_held_to_its_time_too() {
    let flights = Group::builder().load_timeout(LIMIT).build().unwrap();
    let busy = flights.run(1, || async {
        // As one that reads what others send faster: each of its turns ends because the task has had enough.
        for _ in 0..1_000_000 {
            tokio::task::consume_budget().await;
        }
        Ok(1)
    });
    let (answer, ()) = tokio::join!(busy, tokio::time::advance(LIMIT * 2));
    assert!(matches!(answer, Err(LoadError::TimedOut(_))), "{answer:?}");
    assert_empty(&flights, [1]);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_load_is_held_to_its_time_too() {
    let flights = Group::builder().load_timeout(LIMIT).max_abandoned(1).build().unwrap();
    let loads = Loads::default();
    drop(Caller::new(flights.run(1, || loads.endless())).waits());
    assert_eq!(loads.alive(), 1);
    sleep(LIMIT * 2).await;
    assert_eq!(loads.alive(), 0);
    assert_empty(&flights, [1]);
    drop(Caller::new(flights.run(2, || loads.endless())).waits());
    assert_eq!(loads.alive(), 1, "its place is free again");
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_load_is_held_to_its_time_too() {
    let flights = Group::builder().load_timeout(LIMIT).build().unwrap();
    let loads = Loads::default();
    let call = Caller::new(flights.run(1, || loads.endless())).waits();
    assert!(flights.forget(&1));
    let next = Caller::new(flights.run(1, || async {
        sleep(LIMIT / 2).await;
        Ok(2)
    }))
    .waits();
    sleep(LIMIT * 2).await;
    assert!(matches!(call.ready(), Err(LoadError::TimedOut(_))));
    assert_eq!(next.ready().unwrap(), 2);
    assert_empty(&flights, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_is_done_in_time_is_not_timed_out() {
    let flights = Group::builder().load_timeout(LIMIT).build().unwrap();
    let loads = Loads::default();
    assert_eq!(flights.run(1, || loads.taking(LIMIT / 2, 1)).await.unwrap(), 1);
    sleep(LIMIT * 2).await;
    assert_eq!(flights.stats().timed_out, 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_time_out_a_load_may_take_for_ever() {
    let (flights, loads) = (Group::new(), Loads::default());
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(flights.run(1, || loads.taking(day, 1)).await.unwrap(), 1);
}

#[test]
fn one_key_more_than_max_in_flight_is_refused_at_once_and_only_then() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_in_flight(2).build().unwrap();
    let (loads, gate) = (Loads::default(), Gate::closed());
    let first = Caller::new(flights.run(1, || gate.then(1))).waits();
    let second = Caller::new(flights.run(2, || loads.endless())).waits();
    let refused = Caller::new(flights.run(3, || async { unreachable!("refused") })).ready();
    assert!(matches!(refused, Err(LoadError::Overloaded(Overloaded::InFlight { max: 2 }))), "{refused:?}");
    assert_eq!((flights.in_flight(), flights.stats().overloaded), (2, 1));
    let joins = Caller::new(flights.run(1, || async { unreachable!("joins") })).waits();
    gate.open();
    settle(&runtime);
    assert_eq!((first.ready().unwrap(), joins.ready().unwrap()), (1, 1));
    assert_eq!(Caller::new(flights.run(3, || async { Ok(3) })).ready().unwrap(), 3);
    drop(second);
    assert!(flights.forget(&2));
    assert_empty(&flights, [1, 2, 3]);
}

#[test]
fn one_caller_more_than_max_waiters_per_key_is_refused_at_once_and_only_then() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_waiters_per_key(2).build().unwrap();
    let gate = Gate::closed();
    let leader = Caller::new(flights.run(1, || gate.then(1))).waits();
    let follower = Caller::new(flights.run(1, || async { unreachable!("joins") })).waits();
    let refuse = || Caller::new(flights.run(1, || async { unreachable!("refused") }));
    for _ in 0..3 {
        let refused = refuse().ready();
        assert!(matches!(refused, Err(LoadError::Overloaded(Overloaded::Waiters { max: 2 }))), "{refused:?}");
    }
    assert_eq!((flights.waiters(&1), flights.stats().overloaded), (2, 3));
    let elsewhere = Caller::new(flights.run(2, || async { Ok(2) }));
    assert_eq!(elsewhere.ready().unwrap(), 2, "another key has room of its own");
    drop(follower);
    let instead = Caller::new(flights.run(1, || async { unreachable!("joins") })).waits();
    gate.open();
    settle(&runtime);
    assert_eq!((leader.ready().unwrap(), instead.ready().unwrap()), (1, 1));
    assert_empty(&flights, [1, 2]);
}

#[test]
fn refusals_never_lift_the_count_over_max_in_flight() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_in_flight(1).build().unwrap();
    let loads = Loads::default();
    let _held = Caller::new(flights.run(0, || loads.endless())).waits();
    std::thread::scope(|scope| {
        let storm: Vec<_> = (1..=3)
            .map(|key| {
                let flights = &flights;
                scope.spawn(move || {
                    for _ in 0..100_000 {
                        assert!(Caller::new(flights.run(key, || async { Ok(0) })).ready().is_err());
                    }
                })
            })
            .collect();
        while !storm.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            assert_eq!(flights.in_flight(), 1);
        }
    });
}

#[test]
fn settings_out_of_range_are_named() {
    let no_time = Group::builder().load_timeout(Duration::ZERO).build().unwrap_err();
    let no_keys = Group::builder().max_in_flight(0).build().unwrap_err();
    let no_callers = Group::builder().max_waiters_per_key(0).build().unwrap_err();
    for (refused, field, allowed) in [
        (no_time, "load_timeout", "more than 0"),
        (no_keys, "max_in_flight", "at least 1"),
        (no_callers, "max_waiters_per_key", "at least 1"),
    ] {
        assert_eq!((refused.field(), refused.allowed()), (field, allowed));
        let text = refused.to_string();
        assert!(text.contains(field) && text.contains(allowed), "{text}");
    }
    assert!(Group::builder().load_timeout(None).max_abandoned(0).build().is_ok());
}
