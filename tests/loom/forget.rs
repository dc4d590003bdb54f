//! Flights that are forgotten: those who wait keep them, those who come later never see them.

use loom::thread;

use crate::support::{Gate, Load, World, check, check_large};

#[test]
fn a_load_is_forgotten_while_it_ends() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let there = world.clone();
        let forgets = thread::spawn(move || {
            there.forget();
            there.call(Load::Ready).unwrap()
        });
        assert_eq!(leader.answer().unwrap(), 1, "who waits keeps it");
        assert_eq!(forgets.join().unwrap(), 2, "who comes later gets another");
        world.ends();
    });
}

#[test]
fn a_load_is_forgotten_while_it_ends_and_somebody_joins() {
    check_large(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let aside = world.call_aside(Load::Ready);
        let there = world.clone();
        let forgets = thread::spawn(move || {
            there.forget();
            there.call(Load::Ready).unwrap()
        });
        assert_eq!(leader.answer().unwrap(), 1);
        assert!(forgets.join().unwrap() > 1);
        aside.join().unwrap().unwrap();
        world.ends();
    });
}

#[test]
fn the_flight_after_a_forgotten_one_stays_when_the_old_one_ends() {
    check(|| {
        let world = World::new();
        let gate = Gate::default();
        let old = world.leader(Load::Yields);
        world.forget();
        let new = world.leader(Load::Waits(gate.clone()));
        let mut joins = world.caller(Load::Ready);
        assert!(joins.poll().is_pending(), "the new flight is there");
        gate.open();
        assert_eq!(old.answer().unwrap(), 1);
        assert_eq!(new.answer().unwrap(), 2);
        assert_eq!(joins.answer().unwrap(), 2);
        world.ends();
    });
}

#[test]
fn two_forget_the_same_flight() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let there = world.clone();
        let forgets = thread::spawn(move || there.forget());
        let here = world.forget();
        assert!(!(forgets.join().unwrap() && here), "it is forgotten once");
        assert_eq!(leader.answer().unwrap(), 1);
        world.ends();
    });
}
