//! Loads that nobody waits for any more: dropped or going on, rejoined or too late for that.

use loom::thread;

use crate::support::{Gate, Load, OTHER, World, check, check_large};
use stampede_guard::OnAbandon;

fn cancels() -> World {
    World::with(|builder| builder.on_abandon(OnAbandon::Cancel))
}

#[test]
fn an_unwanted_load_is_dropped() {
    check(|| {
        let world = cancels();
        // Its gate is never opened: a load that is kept would never end.
        let leader = world.leader(Load::Waits(Gate::default()));
        drop(leader);
        world.drains();
        assert_eq!((world.completed(), world.flights.stats().abandoned), (0, 1));
    });
}

#[test]
fn two_callers_leave_a_load() {
    check(|| {
        let world = cancels();
        let leader = world.leader(Load::Waits(Gate::default()));
        let mut follower = world.caller(Load::Ready);
        assert!(follower.poll().is_pending());
        let leaves = thread::spawn(move || drop(follower));
        drop(leader);
        leaves.join().unwrap();
        world.drains();
        assert_eq!((world.completed(), world.flights.stats().abandoned), (0, 1));
    });
}

#[test]
fn a_follower_comes_and_goes_while_the_leader_starts() {
    check(|| {
        let world = cancels();
        let gate = Gate::default();
        let (mut follower, opens) = (world.caller(Load::Ready), gate.clone());
        let comes_and_goes = thread::spawn(move || {
            drop(follower.poll());
            drop(follower);
            opens.open();
        });
        // Its load is still in its first poll, then, and kept.
        world.call(Load::Waits(gate)).unwrap();
        comes_and_goes.join().unwrap();
        world.drains();
    });
}

#[test]
fn somebody_comes_while_an_unwanted_load_is_dropped() {
    check(|| {
        let world = cancels();
        let leader = world.leader(Load::Yields);
        let aside = world.call_aside(Load::Ready);
        drop(leader);
        aside.join().unwrap().unwrap();
        world.drains();
    });
}

#[test]
fn somebody_comes_in_time_for_an_unwanted_load_or_loads_anew() {
    check(|| {
        let world = cancels();
        let gate = Gate::default();
        let leader = world.leader(Load::Waits(gate.clone()));
        let mut late = world.caller(Load::Waits(gate.clone()));
        let joins = thread::spawn(move || {
            let polled = late.poll();
            assert!(polled.is_pending());
            gate.open();
            late.answer().unwrap()
        });
        drop(leader);
        joins.join().unwrap();
        world.drains();
    });
}

#[test]
fn no_load_goes_on_for_nobody() {
    check(|| {
        let world = World::with(|builder| builder.max_abandoned(0));
        let leader = world.leader(Load::Waits(Gate::default()));
        let mut follower = world.caller(Load::Ready);
        let comes_and_goes = thread::spawn(move || drop(follower.poll()));
        drop(leader);
        comes_and_goes.join().unwrap();
        world.drains();
    });
}

#[test]
fn one_of_two_loads_goes_on_for_nobody() {
    check_large(|| {
        let world = World::with(|builder| builder.max_abandoned(1));
        let gate = Gate::default();
        let leader = world.leader(Load::Waits(gate.clone()));
        let mut other = world.caller_of(OTHER, Load::Waits(gate.clone()));
        assert!(other.poll().is_pending());
        let leaves = thread::spawn(move || drop(other));
        drop(leader);
        leaves.join().unwrap();
        gate.open();
        world.drains();
        assert!(world.flights.stats().abandoned <= 1, "there was a place for one");
    });
}

#[test]
fn an_abandoned_load_is_rejoined_as_it_ends() {
    check(|| {
        let world = World::with(|builder| builder.max_abandoned(1));
        let gate = Gate::default();
        drop(world.leader(Load::Waits(gate.clone())));
        let opens = thread::spawn(move || gate.open());
        let answer = world.call(Load::Ready).unwrap();
        assert_eq!(world.started(), answer, "it joined, or the load was over");
        opens.join().unwrap();
        // The place is free again, whether the load was rejoined or ended alone.
        drop(world.leader(Load::Yields));
        world.drains();
        assert_eq!(world.flights.stats().abandoned, 0);
    });
}

#[test]
fn a_load_that_is_rejoined_leaves_its_place_to_another() {
    check_large(|| {
        let world = World::with(|builder| builder.max_abandoned(1));
        let gate = Gate::default();
        drop(world.leader(Load::Waits(gate.clone())));
        let mut joins = world.caller(Load::Ready);
        assert!(joins.poll().is_pending());
        let mut other = world.caller_of(OTHER, Load::Waits(gate.clone()));
        assert!(other.poll().is_pending());
        drop(other);
        gate.open();
        assert_eq!(joins.answer().unwrap(), 1);
        world.drains();
        assert_eq!((world.completed(), world.flights.stats().abandoned), (2, 0));
    });
}
