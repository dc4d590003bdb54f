//! Callers that start a flight, join one, or come just as one ends.

use loom::thread;

use crate::support::{Gate, Load, OTHER, World, check, check_large};
use stampede_guard::LoadError;

#[test]
fn two_callers_of_a_load_that_is_ready() {
    check(|| {
        let world = World::new();
        let aside = world.call_aside(Load::Ready);
        world.call(Load::Ready).unwrap();
        aside.join().unwrap().unwrap();
        world.ends();
    });
}

#[test]
fn three_callers_of_a_load_that_is_ready() {
    check(|| {
        let world = World::new();
        let aside = [world.call_aside(Load::Ready), world.call_aside(Load::Ready)];
        world.call(Load::Ready).unwrap();
        for caller in aside {
            caller.join().unwrap().unwrap();
        }
        world.ends();
    });
}

#[test]
fn two_callers_of_a_load_that_yields() {
    check(|| {
        let world = World::new();
        let aside = world.call_aside(Load::Yields);
        world.call(Load::Yields).unwrap();
        aside.join().unwrap().unwrap();
        world.ends();
    });
}

#[test]
fn a_flight_is_joined_by_two_while_it_ends() {
    check_large(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let aside = [world.call_aside(Load::Ready), world.call_aside(Load::Ready)];
        assert_eq!(leader.answer().unwrap(), 1);
        for caller in aside {
            caller.join().unwrap().unwrap();
        }
        world.ends();
    });
}

#[test]
fn a_load_is_woken_by_another_thread_while_somebody_joins() {
    check_large(|| {
        let world = World::new();
        let gate = Gate::default();
        let leader = world.leader(Load::Waits(gate.clone()));
        let opens = thread::spawn(move || gate.open());
        let aside = world.call_aside(Load::Ready);
        assert_eq!(leader.answer().unwrap(), 1);
        aside.join().unwrap().unwrap();
        opens.join().unwrap();
        world.ends();
    });
}

#[test]
fn as_many_keys_as_there_may_be() {
    check(|| {
        let world = World::with(|builder| builder.max_in_flight(1));
        let refused = |answer| match answer {
            Ok(_) => false,
            Err(LoadError::Overloaded(_)) => true,
            Err(error) => panic!("{error:?}"),
        };
        let other = world.caller_of(OTHER, Load::Ready);
        let aside = thread::spawn(move || other.answer());
        let here = refused(world.call(Load::Ready));
        let there = refused(aside.join().unwrap());
        assert!(!(here && there), "one of them came first");
        world.drains();
    });
}

#[test]
fn a_key_whose_flight_is_over_finds_its_place_free() {
    check(|| {
        let world = World::with(|builder| builder.max_in_flight(1));
        let leader = world.leader(Load::Yields);
        drop(leader);
        world.call(Load::Ready).unwrap();
        world.drains();
    });
}
