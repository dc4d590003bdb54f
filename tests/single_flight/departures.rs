//! Callers that go away, or stop being polled, take nothing from the others.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use stampede_guard::{LoadError, OnAbandon, SingleFlight};
use tokio::time::{Instant, sleep, timeout};

use super::support::{
    Alive, Answer, Caller, Gate, Group, Loads, Oops, assert_empty, current_thread, settle, until,
};

/// How a load ends.
type End = fn() -> Result<u64, Oops>;

/// Callers that a loader can reach.
type Callers = Arc<Mutex<Vec<Caller<'static, Answer>>>>;

const LOAD: Duration = Duration::from_millis(200);

/// The paused clock's timers are a millisecond coarse.
#[track_caller]
fn assert_took(start: Instant, time: Duration) {
    let took = start.elapsed();
    assert!(took >= time && took <= time + Duration::from_millis(2), "took {took:?}, not {time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_dropped_half_way_leaves_its_load_to_the_others() {
    let (flights, loads, start) = (Group::new(), Loads::default(), Instant::now());
    let call = || {
        let (flights, loads) = (flights.clone(), loads.clone());
        tokio::spawn(async move { flights.run(1, || loads.taking(LOAD, 9)).await })
    };
    let leader = call();
    until("the leader waits", || flights.waiters(&1) == 1).await;
    let followers: Vec<_> = (0..10).map(|_| call()).collect();
    until("everyone waits", || flights.waiters(&1) == 11).await;
    sleep(LOAD / 2).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    assert_eq!(flights.waiters(&1), 10);
    for follower in followers {
        assert_eq!(follower.await.unwrap().unwrap(), 9);
    }
    assert_took(start, LOAD);
    assert_eq!((loads.started(), loads.completed()), (1, 1));
    assert_empty(&flights, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_polled_once_and_parked_stalls_nobody() {
    let (flights, loads, start) = (Group::new(), Loads::default(), Instant::now());
    let parked = Caller::new(flights.run(1, || loads.taking(LOAD, 9))).waits();
    let late = || flights.run(1, || loads.taking(LOAD, 0));
    let (a, b) = tokio::join!(late(), late());
    assert_eq!((a.unwrap(), b.unwrap()), (9, 9));
    assert_took(start, LOAD);
    assert_eq!(loads.started(), 1);
    assert_empty(&flights, [1]);
    assert!(parked.woken());
    assert_eq!(parked.ready().unwrap(), 9, "and it has its answer whenever it asks");
}

#[tokio::test(start_paused = true)]
async fn a_follower_parked_for_ever_stalls_nobody() {
    let (flights, loads) = (Group::new(), Loads::default());
    let leader = flights.run(1, || loads.taking(LOAD, 9));
    let mut leader = Caller::new(leader).waits();
    let parked = Caller::new(flights.run(1, || loads.taking(LOAD, 0))).waits();
    let start = Instant::now();
    assert_eq!(flights.run(1, || loads.taking(LOAD, 0)).await.unwrap(), 9);
    assert_took(start, LOAD);
    assert!(leader.poll().is_ready());
    for round in 0..10 {
        assert_eq!(flights.run(1, || async move { Ok(round) }).await.unwrap(), round);
    }
    assert_empty(&flights, [1]);
    drop(parked);
    assert_empty(&flights, [1]);
}

#[tokio::test(start_paused = true)]
async fn loads_complete_although_every_caller_gives_up_on_them() {
    let (flights, loads) = (Group::new(), Loads::default());
    let mut answered = 0;
    for _ in 0..400 {
        let call = flights.run(1, || loads.taking(LOAD, 9));
        answered += usize::from(timeout(LOAD / 4, call).await.is_ok());
    }
    sleep(LOAD).await;
    assert_eq!(loads.completed(), loads.started(), "none was dropped");
    assert!((80..=101).contains(&loads.started()), "{} loads for 20 s of 200 ms each", loads.started());
    assert!(answered <= loads.started(), "at most the last caller of each load can see its end");
    assert_eq!(loads.peak(), 1);
    assert_empty(&flights, [1]);
}

#[test]
fn a_cancelled_load_is_dropped_with_its_last_caller_and_at_once() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
    let loads = Loads::default();
    let leader = Caller::new(flights.run(1, || loads.endless())).waits();
    let follower = Caller::new(flights.run(1, || loads.endless())).waits();
    settle(&runtime);
    drop(leader);
    assert_eq!((loads.alive(), flights.waiters(&1)), (1, 1));
    drop(follower);
    assert_eq!((loads.started(), loads.alive()), (1, 0));
    assert_empty(&flights, [1]);
    assert_eq!(flights.stats().abandoned, 1);
    settle(&runtime);
    assert_eq!(runtime.metrics().num_alive_tasks(), 0, "nor does its task stay");
    assert_eq!(flights.stats().cancelled, 0, "it is counted once");
    let again = Caller::new(flights.run(1, || async { Ok(3) }));
    assert_eq!(again.ready().unwrap(), 3);
}

#[test]
fn a_cancelled_load_is_dropped_before_its_task_first_ran_too() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
    let loads = Loads::default();
    drop(Caller::new(flights.run(1, || loads.endless())).waits());
    assert_eq!((loads.started(), loads.alive()), (1, 0));
    settle(&runtime);
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    assert_empty(&flights, [1]);
}

#[test]
fn a_detached_load_completes_for_nobody_and_serves_those_who_come_back() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, loads, gate) = (Group::new(), Loads::default(), Gate::closed());
    let load = || {
        let (alive, passed) = (loads.start(), gate.passed());
        move || async move {
            passed.await;
            alive.complete();
            Ok::<_, Oops>(4)
        }
    };
    drop(Caller::new(flights.run(1, load())).waits());
    assert_eq!((loads.alive(), flights.in_flight(), flights.waiters(&1)), (1, 1, 0));
    let back = Caller::new(flights.run(1, || async { unreachable!("the first load goes on") })).waits();
    drop(back);
    gate.open();
    settle(&runtime);
    assert_eq!((loads.completed(), loads.alive()), (1, 0));
    assert_empty(&flights, [1]);
}

#[test]
fn a_caller_that_comes_while_its_load_is_being_dropped_starts_over() {
    /// Dropped with its load: calls for the same key.
    struct CallsAgain(Group, tokio::sync::mpsc::UnboundedSender<Caller<'static, Answer>>);
    impl Drop for CallsAgain {
        fn drop(&mut self) {
            let flights = self.0.clone();
            let again = Caller::new(async move { flights.run(1, || async { Ok(2) }).await });
            let _ = self.1.send(again.waits());
        }
    }

    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
    let (sender, mut callers) = tokio::sync::mpsc::unbounded_channel();
    let guard = CallsAgain(flights.clone(), sender);
    drop(
        Caller::new(flights.run(1, || async move {
            let _guard = guard;
            std::future::pending().await
        }))
        .waits(),
    );
    let again = callers.try_recv().expect("the load was dropped");
    assert!(again.woken(), "the flight it had joined is over");
    assert_eq!(again.ready().unwrap(), 2);
    assert_empty(&flights, [1]);
}

#[test]
fn a_task_that_runs_while_its_load_is_being_dropped_does_not_end_the_flight() {
    /// Dropped with its load: calls for the same key, and lets the load's task run.
    struct Runs(Group, Arc<tokio::runtime::Runtime>, Callers);
    impl Drop for Runs {
        fn drop(&mut self) {
            let flights = self.0.clone();
            let again = Caller::new(async move { flights.run(1, || async { Ok(2) }).await }).waits();
            settle(&self.1);
            assert!(!again.woken());
            assert_eq!(self.0.in_flight(), 1, "the key is taken until the load is gone");
            self.2.lock().unwrap().push(again);
        }
    }

    let runtime = Arc::new(current_thread());
    let _inside = runtime.enter();
    let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
    let callers = Callers::default();
    let guard = Runs(flights.clone(), Arc::clone(&runtime), Arc::clone(&callers));
    let load = || async move {
        let _guard = guard;
        std::future::pending().await
    };
    drop(Caller::new(flights.run(1, load)).waits());
    let again = callers.lock().unwrap().pop().expect("the load was dropped");
    assert_eq!(again.ready().unwrap(), 2);
    settle(&runtime);
    assert_empty(&flights, [1]);
}

#[test]
fn a_key_is_taken_until_its_load_is_dropped_however_it_ends() {
    /// Pending once if `later`, then ends. Its fields live until it is dropped as a whole.
    struct Load {
        later: bool,
        end: Option<End>,
        flights: Group,
        dropped: Arc<Mutex<bool>>,
    }
    impl Future for Load {
        type Output = Result<u64, Oops>;
        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            context.waker().wake_by_ref();
            let later = std::mem::take(&mut self.later);
            match self.end {
                Some(end) if !later => Poll::Ready(end()),
                _ => Poll::Pending,
            }
        }
    }
    impl Drop for Load {
        fn drop(&mut self) {
            *self.dropped.lock().unwrap() = self.flights.in_flight() == 1;
        }
    }

    let ends: [Option<End>; 4] = [Some(|| Ok(1)), Some(|| Err(Oops(1))), Some(|| panic!("no value")), None];
    for (end, later) in ends.into_iter().flat_map(|end| [(end, false), (end, true)]) {
        let limit = Duration::from_millis(5);
        let flights = Group::builder().load_timeout(limit).build().unwrap();
        let dropped = Arc::default();
        let load = || Load { later, end, flights: flights.clone(), dropped: Arc::clone(&dropped) };
        let answer = current_thread().block_on(flights.run(1, load));
        assert_eq!(matches!(answer, Err(LoadError::TimedOut(_))), end.is_none());
        assert!(*dropped.lock().unwrap(), "dropped, with its key still taken");
        assert_empty(&flights, [1]);
    }
}

#[test]
fn a_load_given_up_while_it_is_polled_is_dropped_after_that_poll_unless_somebody_joins() {
    for joined in [false, true] {
        let runtime = current_thread();
        let _inside = runtime.enter();
        let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
        let loads = Loads::default();
        let (callers, joiners) = (Callers::default(), Callers::default());
        let load = {
            let (flights, alive) = (flights.clone(), loads.start());
            let (callers, joiners) = (callers.clone(), joiners.clone());
            move || async move {
                tokio::task::yield_now().await;
                // From here on in the task's poll: everyone who waits goes away.
                callers.lock().unwrap().clear();
                if joined {
                    // Asked from another thread: it is none of this load's own business.
                    let joiner = std::thread::spawn(move || {
                        Caller::new(async move { flights.run(1, || async { unreachable!() }).await }).waits()
                    });
                    joiners.lock().unwrap().push(joiner.join().unwrap());
                }
                tokio::task::yield_now().await;
                drop::<Alive>(alive);
                Ok(6)
            }
        };
        let leader = {
            let flights = flights.clone();
            Caller::new(async move { flights.run(1, load).await }).waits()
        };
        callers.lock().unwrap().push(leader);
        settle(&runtime);
        assert_eq!(loads.alive(), 0);
        assert_eq!(flights.stats().abandoned, u64::from(!joined));
        for joiner in joiners.lock().unwrap().drain(..) {
            assert_eq!(joiner.ready().unwrap(), 6);
        }
        assert_empty(&flights, [1]);
    }
}

#[test]
fn never_more_abandoned_loads_than_max_abandoned() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    for max in [0, 1, 4] {
        let flights = Group::builder().max_abandoned(max).build().unwrap();
        let loads = Loads::default();
        for key in 0..100 {
            drop(Caller::new(flights.run(key, || loads.endless())).waits());
            assert!(loads.alive() <= max, "{} of {max}", loads.alive());
        }
        assert_eq!((loads.started(), loads.alive(), flights.in_flight()), (100, max, max));
        assert_eq!(flights.stats().abandoned, 100 - max as u64);
    }
}

#[test]
fn by_default_sixty_four_abandoned_loads_go_on() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, loads) = (Group::new(), Loads::default());
    for key in 0..100 {
        drop(Caller::new(flights.run(key, || loads.endless())).waits());
    }
    assert_eq!(loads.alive(), 64);
}

#[test]
fn joining_an_abandoned_load_gives_its_place_back() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_abandoned(1).build().unwrap();
    let loads = Loads::default();
    let call = |key| Caller::new(flights.run(key, || loads.endless())).waits();
    drop(call(1));
    let joined = call(1);
    drop(call(2));
    assert_eq!((loads.started(), loads.alive()), (2, 2), "the place was free for the second");
    drop(joined);
    assert_eq!(loads.alive(), 1, "and taken when the first lost its caller again");
    assert_eq!((flights.waiters(&1), flights.in_flight()), (0, 1));
    assert!(flights.forget(&2));
}

#[test]
fn a_finished_abandoned_load_gives_its_place_back() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_abandoned(1).build().unwrap();
    let ends: [End; 3] = [|| Ok(1), || Err(Oops(1)), || panic!("abandoned and broken")];
    for (key, end) in (0..).zip(ends) {
        let (gate, loads) = (Gate::closed(), Loads::default());
        let passed = gate.passed();
        drop(
            Caller::new(flights.run(key, || async move {
                passed.await;
                end()
            }))
            .waits(),
        );
        drop(Caller::new(flights.run(100, || loads.endless())).waits());
        assert_eq!(loads.alive(), 0, "no place for a second");
        gate.open();
        settle(&runtime);
        assert_empty(&flights, [key, 100]);
    }
}

#[test]
fn a_forgotten_load_that_is_abandoned_holds_a_place_until_it_ends() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().max_abandoned(1).build().unwrap();
    let (loads, gate) = (Loads::default(), Gate::closed());
    let call = Caller::new(flights.run(1, || gate.then(1))).waits();
    assert!(flights.forget(&1));
    drop(call);
    drop(Caller::new(flights.run(1, || loads.endless())).waits());
    assert_eq!(loads.alive(), 0);
    gate.open();
    settle(&runtime);
    drop(Caller::new(flights.run(1, || loads.endless())).waits());
    assert_eq!(loads.alive(), 1);
}

#[test]
fn a_follower_that_comes_and_goes_during_the_leaders_first_poll_takes_nothing_with_it() {
    for on_abandon in [OnAbandon::Cancel, OnAbandon::Detach] {
        let runtime = current_thread();
        let _inside = runtime.enter();
        let flights = Group::builder().on_abandon(on_abandon).max_abandoned(1).build().unwrap();
        let (loads, gate) = (Loads::default(), Gate::closed());
        let leader = Caller::new(flights.run(1, || {
            let flights = flights.clone();
            // From another thread: on this one it would be the load asking for itself.
            let come_and_go = move || drop(Caller::new(flights.run(1, || async { unreachable!() })).waits());
            std::thread::spawn(come_and_go).join().unwrap();
            gate.then(5)
        }))
        .waits();
        drop(Caller::new(flights.run(2, || loads.endless())).waits());
        let abandoned = usize::from(on_abandon == OnAbandon::Detach);
        assert_eq!(loads.alive(), abandoned, "the leader holds no place of the abandoned");
        settle(&runtime);
        gate.open();
        settle(&runtime);
        assert_eq!(leader.ready().unwrap(), 5);
    }
}

/// A load that waits for the next key's, and that for the one after it.
fn chain(flights: Group, key: u64, length: u64) -> futures_util::future::BoxFuture<'static, Answer> {
    Box::pin(async move {
        let next = flights.clone();
        let load = move || async move {
            // In its own task from here on.
            tokio::task::yield_now().await;
            if key + 1 == length {
                std::future::pending::<()>().await;
            }
            chain(next, key + 1, length).await.map_err(|_| Oops(key))
        };
        flights.run(key, load).await
    })
}

#[test]
fn loads_that_wait_for_each_other_are_dropped_at_once_and_however_many_they_are() {
    let length = |at_once| if at_once { 50 } else { 5_000 };
    for at_once in [true, false] {
        for ends_by_runtime in [false, true] {
            let runtime = current_thread();
            let inside = runtime.enter();
            let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
            let caller = Caller::new(chain(flights.clone(), 0, length(at_once))).waits();
            while flights.in_flight() < usize::try_from(length(at_once)).unwrap() {
                settle(&runtime);
            }
            if ends_by_runtime {
                drop(inside);
                drop(runtime);
                assert_eq!(flights.in_flight(), 0);
                assert!(matches!(caller.ready(), Err(LoadError::Cancelled)));
                continue;
            }
            drop(caller);
            assert!(!at_once || flights.in_flight() == 0);
            while flights.in_flight() > 0 {
                settle(&runtime);
            }
        }
    }
}

#[test]
fn a_parked_follower_keeps_no_flight_alive_but_its_own() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights: SingleFlight<u64, Arc<u64>, Oops> = SingleFlight::new();
    let (inner, gate, value) = (flights.clone(), Gate::closed(), Arc::new(1));
    let (passed, outers) = (gate.passed(), Arc::clone(&value));
    let outer = Caller::new(flights.run(1, || async move {
        let nested = inner.run(2, || async move {
            passed.await;
            Ok(Arc::new(2))
        });
        assert_eq!(*nested.await.unwrap(), 2);
        Ok(outers)
    }))
    .waits();
    settle(&runtime);
    let _parked = Caller::new(flights.run(2, || async { unreachable!("is in flight") })).waits();
    gate.open();
    settle(&runtime);
    assert_eq!(*outer.ready().unwrap(), 1);
    assert_eq!(Arc::strong_count(&value), 1, "the run of key 2 no longer knows that key 1 waited for it");
}
