//! A loader that asks for a key that waits for it gets an answer, and nobody else gets that answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stampede_guard::{LoadError, SingleFlight};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::support::{Answer, Caller, Gate, Group, Loads, Oops, assert_empty, current_thread, settle};

fn is_reentrant(answer: &Answer) -> bool {
    matches!(answer, Err(LoadError::Reentrant))
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_is_told_at_its_first_poll_and_later() {
    for yields in [0, 1, 5] {
        let flights = Group::new();
        let inner = flights.clone();
        let answer = flights.run(1, || async move {
            for _ in 0..yields {
                yield_now().await;
            }
            assert!(is_reentrant(&inner.run(1, || async { unreachable!() }).await));
            assert!(is_reentrant(&inner.run_ref(&1, || async { unreachable!() }).await));
            Ok(3)
        });
        assert_eq!(answer.await.unwrap(), 3, "the loader may carry on without");
        assert_eq!(flights.stats().reentrant, 2);
        assert_empty(&flights, [1]);
    }
}

#[test]
fn the_function_that_makes_the_loader_is_part_of_the_load() {
    let flights = Group::new();
    let inner = flights.clone();
    let call = flights.run(1, move || {
        assert!(is_reentrant(&Caller::new(inner.run(1, || async { unreachable!() })).ready()));
        async { Ok(1) }
    });
    assert_eq!(Caller::new(call).ready().unwrap(), 1);
}

/// Each load asks for the next key at its first poll.
fn chain(flights: SingleFlight<u64, u64>, left: u64) -> futures_util::future::BoxFuture<'static, u64> {
    Box::pin(async move {
        let inner = flights.clone();
        let load = || async move { Ok(if left == 0 { 0 } else { 1 + chain(inner, left - 1).await }) };
        flights.run(left, load).await.unwrap()
    })
}

#[tokio::test]
async fn a_long_chain_of_loads_that_ask_at_once_finds_room_on_the_stack() {
    let flights = SingleFlight::new();
    assert_eq!(chain(flights.clone(), 2_000).await, 2_000);
    assert_eq!((flights.in_flight(), flights.stats().loads), (0, 2_001));
}

#[test]
fn a_chain_of_loads_that_are_ready_at_once_needs_no_runtime() {
    assert_eq!(Caller::new(chain(SingleFlight::new(), 100)).ready(), 100);
}

#[tokio::test]
async fn a_ring_of_loads_is_seen_however_long() {
    for (length, yields) in [(2, 0), (2, 1), (3, 1), (20, 0), (20, 1)] {
        /// Asks for the next key, and after the last for the first.
        fn ask(
            flights: Group,
            key: u64,
            length: u64,
            yields: usize,
        ) -> futures_util::future::BoxFuture<'static, u64> {
            Box::pin(async move {
                let inner = flights.clone();
                let answer = flights.run(key, move || async move {
                    for _ in 0..yields {
                        yield_now().await;
                    }
                    Ok(ask(inner, (key + 1) % length, length, yields).await + 1)
                });
                match answer.await {
                    Ok(loads) => loads,
                    Err(LoadError::Reentrant) => 0,
                    Err(other) => panic!("{other:?}"),
                }
            })
        }
        let flights = Group::new();
        assert_eq!(ask(flights.clone(), 0, length, yields).await, length);
        assert_eq!((flights.stats().loads, flights.stats().reentrant), (length, 1));
        assert_empty(&flights, 0..length);
    }
}

#[tokio::test]
async fn a_ring_through_a_group_of_other_types_is_seen() {
    for yields in [0, 1] {
        let numbers = Group::new();
        let words: SingleFlight<String, &'static str> = SingleFlight::new();
        let (numbers2, words2) = (numbers.clone(), words.clone());
        let answer = numbers.run(1, move || async move {
            for _ in 0..yields {
                yield_now().await;
            }
            let word = words2.run_ref("one", move || async move {
                for _ in 0..yields {
                    yield_now().await;
                }
                Ok(if is_reentrant(&numbers2.run(1, || async { unreachable!() }).await) {
                    "seen"
                } else {
                    "no"
                })
            });
            assert_eq!(word.await.unwrap(), "seen");
            Ok(1)
        });
        assert_eq!(answer.await.unwrap(), 1);
        assert_eq!((words.in_flight(), numbers.in_flight()), (0, 0));
    }
}

#[tokio::test]
async fn the_same_key_of_another_group_is_another_key() {
    let (flights, others) = (Group::new(), Group::new());
    let inner = others.clone();
    let answer = flights.run(1, || async move {
        yield_now().await;
        Ok(inner.run(1, || async { Ok(5) }).await.unwrap())
    });
    assert_eq!(answer.await.unwrap(), 5);
}

#[tokio::test]
async fn a_loader_that_forgot_its_own_key_may_load_it() {
    let flights = Group::new();
    let inner = flights.clone();
    let answer = flights.run(1, || async move {
        yield_now().await;
        assert!(inner.forget(&1));
        Ok(inner.run(1, || async { Ok(7) }).await.unwrap() + 1)
    });
    assert_eq!(answer.await.unwrap(), 8);
    assert_empty(&flights, [1]);
}

#[tokio::test]
async fn siblings_may_wait_for_each_other() {
    let flights = Group::new();
    let inner = flights.clone();
    let answer = flights.run(0, || async move {
        let gate = Gate::closed();
        let slow = inner.run(1, || gate.then(10));
        let asks_slow = {
            let flights = inner.clone();
            inner.run(2, || async move {
                let value = flights.run(1, || async { unreachable!("is in flight") });
                Ok(value.await.unwrap() + 1)
            })
        };
        let open = async {
            while inner.waiters(&1) < 2 {
                yield_now().await;
            }
            gate.open();
        };
        let (slow, asked, ()) = tokio::join!(slow, asks_slow, open);
        Ok(slow.unwrap() + asked.unwrap())
    });
    assert_eq!(answer.await.unwrap(), 21);
    assert_eq!(flights.stats().reentrant, 0);
    assert_empty(&flights, 0..3);
}

#[tokio::test]
async fn a_loader_may_load_the_same_other_key_again_and_again() {
    let flights = Group::new();
    let inner = flights.clone();
    let answer = flights.run(0, || async move {
        let mut sum = 0;
        for round in 0..10 {
            sum += inner
                .run(1, || async move {
                    yield_now().await;
                    Ok(round)
                })
                .await
                .unwrap();
        }
        Ok(sum)
    });
    assert_eq!(answer.await.unwrap(), 45);
}

#[test]
fn a_load_whose_starter_no_longer_waits_may_ask_for_the_starter() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::new();
    let (inner, go_outer, go_inner) = (flights.clone(), Gate::closed(), Gate::closed());
    let answer = {
        let (go_outer, go_inner) = (go_outer.clone(), go_inner.clone());
        flights.run(1, || async move {
            let flights = inner.clone();
            // Key 2 is started from here, and then left to itself.
            let nested = inner.run(2, move || async move {
                go_inner.passed().await;
                Ok(flights.run(1, || async { unreachable!("is in flight") }).await.unwrap() + 1)
            });
            drop(Caller::new(nested).waits());
            go_outer.passed().await;
            Ok(10)
        })
    };
    let outer = Caller::new(answer).waits();
    settle(&runtime);
    go_inner.open();
    settle(&runtime);
    let nested = Caller::new(flights.run(2, || async { unreachable!("is in flight") })).waits();
    assert_eq!((flights.waiters(&1), flights.stats().reentrant), (2, 0), "key 2 waits for key 1");
    go_outer.open();
    settle(&runtime);
    assert_eq!((outer.ready().unwrap(), nested.ready().unwrap()), (10, 11));
    assert_empty(&flights, [1, 2]);
}

#[test]
fn a_load_whose_caller_was_moved_out_of_its_starter_may_ask_for_the_starter() {
    // As a loader does that gives a slow call up, and lets it end in a task of its own.
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::new();
    let (inner, go_outer, go_inner) = (flights.clone(), Gate::closed(), Gate::closed());
    let (outer_goes, inner_goes) = (go_outer.passed(), go_inner.passed());
    let outer = flights.run(1, || async move {
        let flights = inner.clone();
        let nested = async move {
            let asks = || async move {
                inner_goes.await;
                Ok(flights.run(1, || async { unreachable!("is in flight") }).await.unwrap() + 1)
            };
            inner.run(2, asks).await
        };
        let mut nested = Caller::new(nested).waits();
        tokio::spawn(std::future::poll_fn(move |cx| nested.poll_with(cx.waker()).map(drop)));
        outer_goes.await;
        Ok(10)
    });
    let outer = Caller::new(outer).waits();
    settle(&runtime);
    go_inner.open();
    settle(&runtime);
    let nested = Caller::new(flights.run(2, || async { unreachable!("is in flight") })).waits();
    assert_eq!((flights.waiters(&1), flights.stats().reentrant), (2, 0), "key 2 waits for key 1");
    go_outer.open();
    settle(&runtime);
    assert_eq!((outer.ready().unwrap(), nested.ready().unwrap()), (10, 11));
    assert_empty(&flights, [1, 2]);
}

#[test]
fn a_load_whose_caller_was_moved_into_another_that_its_starter_waits_for_may_not() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate) = (Group::new(), Gate::closed());
    let (inner, passed) = (flights.clone(), gate.passed());
    let outer = flights.run(1, || async move {
        let (flights, other) = (inner.clone(), inner.clone());
        let nested = async move {
            let asks = || async move {
                passed.await;
                assert!(is_reentrant(&flights.run(1, || async { unreachable!() }).await));
                Ok(2)
            };
            inner.run(2, asks).await.map_err(|_| Oops(2))
        };
        let mut nested = Caller::new(nested).waits();
        let waits = other.run(3, || std::future::poll_fn(move |cx| nested.poll_with(cx.waker())));
        Ok(waits.await.unwrap() + 1)
    });
    let outer = Caller::new(outer).waits();
    settle(&runtime);
    gate.open();
    settle(&runtime);
    assert_eq!(outer.ready().unwrap(), 3);
    assert_empty(&flights, 1..4);
}

#[test]
fn a_load_that_is_over_ties_nothing_to_its_starter() {
    // Key 1 starts key 2, which starts key 3, hands its caller out and ends.
    let runtime = current_thread();
    for pends in [false, true] {
        let inside = runtime.enter();
        let flights = Group::new();
        let (go_one, go_two, go_three) = (Gate::closed(), Gate::closed(), Gate::closed());
        let kept = Arc::new(Mutex::new(None));
        let one = {
            let (go_one, go_two, go_three) = (go_one.clone(), go_two.clone(), go_three.clone());
            let (one, two, three) = (flights.clone(), flights.clone(), flights.clone());
            let keeps = Arc::clone(&kept);
            let load_three = move || async move {
                go_three.passed().await;
                three.run(1, || async { unreachable!("is in flight") }).await.map_err(|_| Oops(3))
            };
            let load_two = move || async move {
                let caller = async move { two.run(3, load_three).await };
                *keeps.lock().unwrap() = Some(Caller::new(caller).waits());
                if pends {
                    go_two.passed().await;
                }
                Ok(2)
            };
            flights.run(1, move || async move {
                one.run(2, load_two).await.unwrap();
                go_one.passed().await;
                Ok(1)
            })
        };
        let one = Caller::new(one).waits();
        go_two.open();
        settle(&runtime);
        go_three.open();
        settle(&runtime);
        assert_eq!((flights.waiters(&1), flights.stats().reentrant), (2, 0), "key 3 waits for key 1");
        go_one.open();
        settle(&runtime);
        let three = kept.lock().unwrap().take().unwrap();
        assert_eq!((one.ready().unwrap(), three.ready().unwrap()), (1, 1));
        assert_empty(&flights, [1, 2, 3]);
        drop(inside);
    }
}

#[test]
fn a_follower_that_leaves_does_not_hide_that_the_starter_waits() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate) = (Group::new(), Gate::closed());
    let (inner, passed) = (flights.clone(), gate.passed());
    let outer = flights.run(1, || async move {
        let flights = inner.clone();
        let nested = inner.run(2, || async move {
            passed.await;
            assert!(is_reentrant(&flights.run(1, || async { unreachable!() }).await));
            Ok(2)
        });
        Ok(nested.await.unwrap() + 1)
    });
    let outer = Caller::new(outer).waits();
    settle(&runtime);
    drop(Caller::new(flights.run(2, || async { unreachable!("is in flight") })).waits());
    gate.open();
    settle(&runtime);
    assert_eq!(outer.ready().unwrap(), 3);
}

/// A load of `key`, told to go on by the gate, that then asks for `asks`.
fn asks_later(
    flights: &Group,
    key: u64,
    gate: &Gate,
    asks: u64,
) -> impl Future<Output = Answer> + Send + use<> {
    let (flights, inner, passed) = (flights.clone(), flights.clone(), gate.passed());
    let load = move || async move {
        passed.await;
        match inner.run(asks, || async { unreachable!("is in flight") }).await {
            Ok(value) => Ok(value + 1),
            Err(_) => Err(Oops(asks)),
        }
    };
    async move { flights.run(key, load).await }
}

/// Polls a call once, and gives it up.
fn gives_up(call: impl Future<Output = Answer> + Send) {
    drop(Caller::new(call).waits());
}

#[test]
fn a_loader_that_asks_again_for_a_load_it_gave_up_is_seen_to_wait_for_it() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    for times in 1..4 {
        let (flights, gate) = (Group::new(), Gate::closed());
        let (inner, goes) = (flights.clone(), gate.clone());
        let outer = flights.run(1, move || async move {
            for _ in 0..times {
                gives_up(asks_later(&inner, 2, &goes, 1));
            }
            inner.run(2, || async { unreachable!("is in flight") }).await.map_err(|_| Oops(2))
        });
        let outer = Caller::new(outer).waits();
        // Whoever else comes and goes hides nothing.
        gives_up(flights.run(2, || async { unreachable!("is in flight") }));
        gate.open();
        settle(&runtime);
        assert!(matches!(outer.ready(), Err(LoadError::Failed(oops)) if *oops == Oops(2)), "{times}");
        assert_eq!((flights.stats().loads, flights.stats().reentrant), (2, 1));
        assert_empty(&flights, [1, 2]);
    }
}

#[test]
fn a_loader_that_asks_again_for_a_load_that_waits_for_it_by_now_is_told() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, go_inner, go_outer) = (Group::new(), Gate::closed(), Gate::closed());
    let outer = {
        let (inner, go_inner, go_outer) = (flights.clone(), go_inner.clone(), go_outer.clone());
        flights.run(1, || async move {
            gives_up(asks_later(&inner, 2, &go_inner, 1));
            go_outer.passed().await;
            assert!(is_reentrant(&inner.run(2, || async { unreachable!() }).await));
            Ok(1)
        })
    };
    let outer = Caller::new(outer).waits();
    settle(&runtime);
    go_inner.open();
    settle(&runtime);
    assert_eq!(flights.waiters(&1), 2, "key 2 waits for key 1");
    go_outer.open();
    settle(&runtime);
    assert_eq!(outer.ready().unwrap(), 1);
    assert_eq!(flights.stats().reentrant, 1);
    settle(&runtime);
    assert_empty(&flights, [1, 2]);
}

#[test]
fn each_of_the_loads_that_wait_for_one_is_known_to() {
    // Key 0 gives key 1 up, and starts keys 2 and 3, which ask for it.
    let runtime = current_thread();
    let _inside = runtime.enter();
    for asks in [0, 2, 3] {
        let (flights, go_one) = (Group::new(), Gate::closed());
        let (inner, goes) = (flights.clone(), go_one.clone());
        let zero = flights.run(0, || async move {
            gives_up(asks_later(&inner, 1, &goes, asks));
            let asks_one = Gate::closed();
            asks_one.open();
            let two = asks_later(&inner, 2, &asks_one, 1);
            let three = asks_later(&inner, 3, &asks_one, 1);
            let (two, three) = tokio::join!(two, three);
            assert!(two.is_err() && three.is_err());
            Ok(0)
        });
        let zero = Caller::new(zero).waits();
        settle(&runtime);
        assert_eq!(flights.waiters(&1), 2);
        go_one.open();
        settle(&runtime);
        assert_eq!(zero.ready().unwrap(), 0, "{asks}");
        assert_eq!(flights.stats().reentrant, 1, "{asks}");
        assert_empty(&flights, 0..4);
    }
}

#[test]
fn a_load_that_was_asked_for_again_and_given_up_again_may_ask_for_its_starter() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    for is_moved in [false, true] {
        let (flights, go_outer, go_inner) = (Group::new(), Gate::closed(), Gate::closed());
        let outer = {
            let (inner, go_outer, go_inner) = (flights.clone(), go_outer.clone(), go_inner.clone());
            flights.run(1, || async move {
                gives_up(asks_later(&inner, 2, &go_inner, 1));
                let flights = inner.clone();
                let again = async move { flights.run(2, || async { unreachable!("is in flight") }).await };
                let mut again = Caller::new(again).waits();
                if is_moved {
                    let polls = std::future::poll_fn(move |cx| again.poll_with(cx.waker()).map(drop));
                    tokio::spawn(polls);
                } else {
                    drop(again);
                }
                go_outer.passed().await;
                Ok(10)
            })
        };
        let outer = Caller::new(outer).waits();
        settle(&runtime);
        go_inner.open();
        settle(&runtime);
        assert_eq!((flights.waiters(&1), flights.stats().reentrant), (2, 0), "key 2 waits for key 1");
        go_outer.open();
        settle(&runtime);
        assert_eq!(outer.ready().unwrap(), 10);
        settle(&runtime);
        assert_empty(&flights, [1, 2]);
    }
}

#[test]
fn a_load_that_another_started_is_no_business_of_who_joins_it() {
    // Key 1 starts key 2 and gives it up; key 3, of which neither knows, joins it and is asked for by it.
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate, go_two, go_three) = (Group::new(), Gate::closed(), Gate::closed(), Gate::closed());
    let (inner, goes, passed) = (flights.clone(), go_two.clone(), gate.passed());
    let one = flights.run(1, || async move {
        gives_up(asks_later(&inner, 2, &goes, 3));
        passed.await;
        Ok(1)
    });
    let one = Caller::new(one).waits();
    let (inner, passed) = (flights.clone(), go_three.passed());
    let three = flights.run(3, || async move {
        // It has started a load, too.
        inner.run(4, || async { Ok(4) }).await.map_err(|_| Oops(4))?;
        tokio::select! {
            _ = inner.run(2, || async { unreachable!("is in flight") }) => unreachable!("it waits for us"),
            () = passed => Ok(3),
        }
    });
    let three = Caller::new(three).waits();
    settle(&runtime);
    assert_eq!(flights.waiters(&2), 1, "key 3 waits for key 2");
    go_two.open();
    settle(&runtime);
    assert_eq!((flights.waiters(&3), flights.stats().reentrant), (2, 0), "key 2 waits for key 3");
    go_three.open();
    gate.open();
    settle(&runtime);
    assert_eq!((one.ready().unwrap(), three.ready().unwrap()), (1, 3));
    settle(&runtime);
    assert_empty(&flights, 1..5);
}

#[tokio::test]
async fn code_that_runs_after_a_load_is_no_part_of_it() {
    let flights = Group::new();
    assert_eq!(flights.run(1, || async { Ok(1) }).await.unwrap(), 1);
    let panics = flights.run(1, || -> std::future::Ready<_> { panic!("no loader") });
    assert!(matches!(panics.await, Err(LoadError::Panicked(_))));
    let panics = flights.run(1, || async { panic!("no value") });
    assert!(matches!(panics.await, Err(LoadError::Panicked(_))));
    assert_eq!(flights.run(1, || async { Ok(2) }).await.unwrap(), 2);
    assert_eq!(flights.stats().reentrant, 0);
}

#[tokio::test]
async fn another_caller_on_the_same_thread_is_not_taken_for_the_loader() {
    let (flights, gate) = (Group::new(), Gate::closed());
    let (a, b, ()) = tokio::join!(
        flights.run(1, || gate.then(1)),
        async {
            yield_now().await;
            flights.run(1, || async { unreachable!() }).await
        },
        async {
            while flights.waiters(&1) < 2 {
                yield_now().await;
            }
            gate.open();
        },
    );
    assert_eq!((a.unwrap(), b.unwrap()), (1, 1));
}

#[tokio::test]
async fn a_task_that_a_loader_spawned_waits_like_anybody_else() {
    let flights = Group::new();
    let inner = flights.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let answer = flights.run(1, || async move {
        let flights = inner.clone();
        let task = tokio::spawn(async move { flights.run(1, || async { unreachable!() }).await });
        while inner.waiters(&1) < 2 {
            yield_now().await;
        }
        sender.send(task).unwrap();
        Ok(4)
    });
    assert_eq!(answer.await.unwrap(), 4);
    assert_eq!(receiver.await.unwrap().await.unwrap().unwrap(), 4);
    assert_eq!(flights.stats().reentrant, 0);
}

#[tokio::test(start_paused = true)]
async fn loaders_that_wait_for_each_other_are_ended_by_their_time_out() {
    let limit = Duration::from_secs(1);
    let flights = Group::builder().load_timeout(limit).build().unwrap();
    let loads = Loads::default();
    let ask = |own: u64, other: u64| {
        let (inner, alive) = (flights.clone(), loads.start());
        flights.run(own, move || async move {
            let _alive = alive;
            // Both are in flight before either asks.
            sleep(Duration::from_millis(10)).await;
            inner
                .run(other, || async { unreachable!("is in flight") })
                .await
                .map_err(|_| super::support::Oops(own))
        })
    };
    let (a, b) = tokio::join!(ask(1, 2), ask(2, 1));
    for answer in [&a, &b] {
        assert!(matches!(answer, Err(LoadError::TimedOut(_) | LoadError::Failed(_))), "{answer:?}");
    }
    assert!(matches!((&a, &b), (Err(LoadError::TimedOut(_)), _) | (_, Err(LoadError::TimedOut(_)))));
    assert_eq!(loads.alive(), 0);
    assert_empty(&flights, [1, 2]);
}

#[test]
fn a_ring_that_was_left_half_way_is_taken_apart() {
    // A load holds the run it waits for, whose flight knows its parent: dropped with the runtime, none of
    // them keeps another alive.
    let (flights, loads) = (Group::new(), Loads::default());
    let runtime = current_thread();
    let inside = runtime.enter();
    let (inner, alive) = (flights.clone(), loads.clone());
    let outer = flights.run(1, || async move {
        let inner = inner;
        let _alive = alive.start();
        inner.run(2, || alive.endless()).await.map_err(|_| super::support::Oops(2))
    });
    let outer = Caller::new(outer).waits();
    settle(&runtime);
    assert_eq!(loads.alive(), 2);
    drop(inside);
    drop(runtime);
    assert_eq!(loads.alive(), 0);
    assert!(matches!(outer.ready(), Err(LoadError::Cancelled)));
    assert_empty(&flights, [1, 2]);
}
