//! Flights that fail or lose callers, and how those who wait are woken.

use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};

use loom::thread;

use crate::support::{Answer, Caller, Gate, Load, World, check};
use stampede_guard::LoadError;

fn panicked(answer: &Answer) -> bool {
    matches!(answer, Err(LoadError::Panicked(panic)) if panic.message() == Some("as it should"))
}

#[test]
fn a_load_panics_at_once() {
    check(|| {
        let world = World::new();
        let aside = world.call_aside(Load::Panics);
        assert!(panicked(&world.call(Load::Panics)));
        assert!(panicked(&aside.join().unwrap()));
        world.ends();
    });
}

#[test]
fn a_load_panics_later_while_somebody_joins() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::YieldsAndPanics);
        let aside = world.call_aside(Load::Ready);
        assert!(panicked(&leader.answer()));
        let answer = aside.join().unwrap();
        assert!(panicked(&answer) || matches!(answer, Ok(2)), "{answer:?}");
        world.ends();
    });
}

#[test]
fn a_load_fails_while_somebody_joins() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::YieldsAndFails);
        let aside = world.call_aside(Load::Ready);
        let Err(LoadError::Failed(first)) = leader.answer() else { panic!("it fails") };
        match aside.join().unwrap() {
            Ok(load) => assert_eq!(load, 2),
            Err(LoadError::Failed(second)) => assert!(Arc::ptr_eq(&first, &second), "one failure, shared"),
            Err(error) => panic!("{error:?}"),
        }
        world.ends();
    });
}

#[test]
fn a_leader_is_dropped_while_its_load_ends_and_somebody_joins() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let aside = world.call_aside(Load::Ready);
        drop(leader);
        aside.join().unwrap().unwrap();
        world.drains();
    });
}

#[test]
fn a_leader_is_dropped_while_a_follower_waits() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let mut follower = world.caller(Load::Ready);
        let joined = follower.poll();
        let leaves = thread::spawn(move || drop(leader));
        match joined {
            Poll::Pending => assert_eq!(follower.answer().unwrap(), 1, "the same run"),
            Poll::Ready(answer) => assert_eq!(answer.unwrap(), 2, "it came too late"),
        }
        leaves.join().unwrap();
        world.ends();
    });
}

#[test]
fn a_follower_is_dropped_while_the_load_ends() {
    check(|| {
        let world = World::new();
        let leader = world.leader(Load::Yields);
        let mut follower = world.caller(Load::Ready);
        let comes_and_goes = thread::spawn(move || drop(follower.poll()));
        assert_eq!(leader.answer().unwrap(), 1);
        comes_and_goes.join().unwrap();
        world.ends();
    });
}

/// Drops a caller when it is woken.
struct DropsWhenWoken(Mutex<Option<Caller>>);

impl Wake for DropsWhenWoken {
    fn wake(self: Arc<Self>) {
        let caller = self.0.lock().unwrap().take();
        drop(caller);
    }
}

#[test]
fn a_waker_drops_another_caller_of_its_flight() {
    check(|| {
        let world = World::new();
        let gate = Gate::default();
        let leader = world.leader(Load::Waits(gate.clone()));
        let mut last = world.caller(Load::Ready);
        assert!(last.poll().is_pending());
        let waker = Waker::from(Arc::new(DropsWhenWoken(Mutex::new(Some(last)))));
        let mut follower = world.caller(Load::Ready);
        assert!(follower.poll_with(&waker).is_pending());
        drop(waker);
        let opens = thread::spawn(move || gate.open());
        assert_eq!(leader.answer().unwrap(), 1);
        assert_eq!(follower.answer().unwrap(), 1);
        opens.join().unwrap();
        world.ends();
    });
}
