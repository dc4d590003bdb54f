//! Keys, values, wakers and loaders that panic, or that call back from where nobody expects it.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use stampede_guard::{LoadError, OnAbandon, SingleFlight};

use super::support::{
    Answer, Caller, Gate, Group, Oops, assert_empty, current_thread, settle, without_deadlock,
};

/// Panics when dropped, on a thread that does not panic already.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[tokio::test]
async fn a_closure_that_panics_is_a_panicked_load() {
    let flights = Group::new();
    let answer = flights.run(1, || -> std::future::Ready<_> { panic!("no loader") }).await;
    assert!(matches!(answer, Err(LoadError::Panicked(panic)) if panic.message() == Some("no loader")));
    assert_empty(&flights, [1]);
    assert_eq!(flights.run(1, || async { Ok(2) }).await.unwrap(), 2);
}

#[tokio::test]
async fn a_loader_that_panics_when_dropped_spoils_nothing() {
    /// Ready after `yields`, and a bomb however it ends.
    struct Load(usize, Bomb);
    impl Future for Load {
        type Output = Result<u64, Oops>;
        fn poll(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Self::Output> {
            if self.0 == 0 {
                return std::task::Poll::Ready(Ok(4));
            }
            self.0 -= 1;
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }
    }
    let flights = Group::new();
    for yields in [0, 3] {
        let call = || flights.run(1, || Load(yields, Bomb));
        let (leader, follower) = tokio::join!(call(), call());
        assert_eq!((leader.unwrap(), follower.unwrap()), (4, 4));
        assert_empty(&flights, [1]);
    }
}

#[test]
fn a_loader_that_panics_when_dropped_for_want_of_callers_or_runtime_spoils_nothing() {
    let runtime = current_thread();
    let inside = runtime.enter();
    let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
    let endless = || async {
        let _bomb = Bomb;
        std::future::pending().await
    };
    drop(Caller::new(flights.run(1, endless)).waits());
    assert_empty(&flights, [1]);
    let caller = Caller::new(flights.run(1, endless)).waits();
    drop(inside);
    drop(runtime);
    assert!(matches!(caller.ready(), Err(LoadError::Cancelled)));
    assert_empty(&flights, [1]);
}

/// Panics when dropped with another of its kind, so many times.
struct Mine(u8);

impl Drop for Mine {
    fn drop(&mut self) {
        if self.0 > 0 && !std::thread::panicking() {
            std::panic::panic_any(Mine(self.0 - 1));
        }
    }
}

/// A load that has its value, and then panics when dropped.
struct Ready(#[expect(dead_code, reason = "dropped")] Mine);
impl Future for Ready {
    type Output = Result<u64, Oops>;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::task::Poll::Ready(Ok(4))
    }
}

#[test]
fn what_a_loader_panics_with_when_dropped_may_panic_too() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights = Group::builder().on_abandon(OnAbandon::Cancel).build().unwrap();
    // The load's end, and its panic's.
    let endless = || async {
        let _mine = Mine(2);
        std::future::pending().await
    };
    drop(Caller::new(flights.run(1, endless)).waits());
    assert_empty(&flights, [1]);
    assert_eq!(Caller::new(flights.run(1, || Ready(Mine(2)))).ready().unwrap(), 4);
    assert_empty(&flights, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_when_timed_out_is_timed_out() {
    let flights = Group::builder().load_timeout(std::time::Duration::from_secs(1)).build().unwrap();
    let answer = flights.run(1, || async {
        let _bomb = Bomb;
        std::future::pending().await
    });
    assert!(matches!(answer.await, Err(LoadError::TimedOut(_))));
    assert_empty(&flights, [1]);
}

#[test]
fn a_loader_may_call_the_group_from_its_destructor_however_it_ends() {
    struct Calls(Group);
    impl Drop for Calls {
        fn drop(&mut self) {
            assert!(self.0.waiters(&1) <= 1);
            assert!(self.0.in_flight() <= 1);
            let _ = self.0.stats();
            self.0.forget(&1);
        }
    }
    without_deadlock(|| {
        let runtime = current_thread();
        let inside = runtime.enter();
        let limit = std::time::Duration::from_millis(1);
        let flights = Group::builder().on_abandon(OnAbandon::Cancel).load_timeout(limit).build().unwrap();
        let load = |end: Option<Answer>| {
            let calls = Calls(flights.clone());
            move || async move {
                let _calls = calls;
                tokio::task::yield_now().await;
                match end {
                    Some(end) => end.map_err(|_| Oops(0)),
                    None => std::future::pending().await,
                }
            }
        };
        assert!(runtime.block_on(flights.run(1, load(Some(Ok(1))))).is_ok());
        assert!(runtime.block_on(flights.run(1, load(Some(Err(LoadError::Reentrant))))).is_err());
        assert!(runtime.block_on(flights.run(1, load(None))).is_err());
        drop(Caller::new(flights.run(1, load(None))).waits());
        let cancelled = Caller::new(flights.run(1, load(None))).waits();
        drop(inside);
        drop(runtime);
        assert!(matches!(cancelled.ready(), Err(LoadError::Cancelled)));
        assert_empty(&flights, [1]);
    });
}

/// A key whose clones and hashes can be made to panic.
struct Fussy {
    id: u64,
    clones_left: Arc<AtomicIsize>,
    no_hash: Arc<AtomicBool>,
}

impl Fussy {
    fn new(id: u64) -> Self {
        let clones_left = Arc::new(AtomicIsize::new(isize::MAX));
        Self { id, clones_left, no_hash: Arc::default() }
    }
}

impl Clone for Fussy {
    fn clone(&self) -> Self {
        assert!(self.clones_left.fetch_sub(1, Ordering::SeqCst) > 0, "one clone too many");
        Self { id: self.id, clones_left: Arc::clone(&self.clones_left), no_hash: Arc::clone(&self.no_hash) }
    }
}

impl PartialEq for Fussy {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Fussy {}

impl Hash for Fussy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Once, so that what cleans up after the panic can find the key.
        assert!(!self.no_hash.swap(false, Ordering::SeqCst), "no hash");
        self.id.hash(state);
    }
}

#[test]
fn a_key_that_panics_when_cloned_leaves_its_place_free() {
    for clones in 0..4 {
        let flights: SingleFlight<Fussy, u64, Oops> =
            SingleFlight::builder().max_in_flight(1).build().unwrap();
        let key = Fussy::new(1);
        key.clones_left.store(clones, Ordering::SeqCst);
        let borrowed = || flights.run_ref(&key, || async { Ok(1) });
        let _ = catch_unwind(AssertUnwindSafe(|| Caller::new(borrowed()).poll().is_ready()));
        assert_eq!(flights.in_flight(), 0, "borrowed, {clones} clones");
        let owned = Fussy::new(2);
        owned.clones_left.store(clones, Ordering::SeqCst);
        let owned = flights.run(owned, || async { Ok(1) });
        let _ = catch_unwind(AssertUnwindSafe(|| Caller::new(owned).poll().is_ready()));
        assert_eq!(flights.in_flight(), 0, "owned, {clones} clones");
        assert_eq!(Caller::new(flights.run(Fussy::new(3), || async { Ok(3) })).ready().unwrap(), 3);
    }
}

#[test]
fn a_key_is_cloned_under_no_lock() {
    /// A key whose clone asks the group about that very key.
    #[derive(PartialEq, Eq, Hash)]
    struct Asks(u64);
    thread_local!(static GROUP: std::cell::OnceCell<SingleFlight<Asks, u64>> = const { std::cell::OnceCell::new() });
    impl Clone for Asks {
        fn clone(&self) -> Self {
            GROUP.with(|group| assert_eq!(group.get().unwrap().waiters(self), 0));
            Self(self.0)
        }
    }
    without_deadlock(|| {
        let flights = SingleFlight::new();
        GROUP.with(|group| assert!(group.set(flights.clone()).is_ok()));
        assert_eq!(Caller::new(flights.run(Asks(1), || async { Ok(1) })).ready().unwrap(), 1);
        assert_eq!(Caller::new(flights.run_ref(&Asks(1), || async { Ok(2) })).ready().unwrap(), 2);
    });
}

#[test]
fn a_key_is_dropped_under_no_lock() {
    /// A key whose end asks the group about that very key.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Asks(u64);
    thread_local!(static GROUP: std::cell::OnceCell<SingleFlight<Asks, u64>> = const { std::cell::OnceCell::new() });
    thread_local!(static DROPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
    impl Borrow<u64> for Asks {
        fn borrow(&self) -> &u64 {
            &self.0
        }
    }
    impl Drop for Asks {
        fn drop(&mut self) {
            DROPS.set(DROPS.get() + 1);
            GROUP.with(|group| group.get().unwrap().waiters(&self.0));
            GROUP.with(|group| group.get().unwrap().in_flight());
        }
    }
    let ends = |what: &str| assert!(DROPS.take() > 0, "{what}: a key is dropped");
    without_deadlock(move || {
        let runtime = current_thread();
        let _inside = runtime.enter();
        let flights = SingleFlight::builder().max_waiters_per_key(2).build().unwrap();
        GROUP.with(|group| assert!(group.set(flights.clone()).is_ok()));
        assert_eq!(Caller::new(flights.run(Asks(1), || async { Ok(1) })).ready().unwrap(), 1);
        ends("of a load that is ready");
        for forgets in [false, true] {
            let gate = Gate::closed();
            let passed = gate.passed();
            let load = || async move {
                passed.await;
                Ok(2)
            };
            let leader = Caller::new(flights.run(Asks(1), load)).waits();
            let follower = Caller::new(flights.run(Asks(1), || async { unreachable!() })).waits();
            let refused = Caller::new(flights.run(Asks(1), || async { unreachable!() })).ready();
            assert!(matches!(refused, Err(LoadError::Overloaded(_))));
            ends("of one too many");
            assert!(!forgets || flights.forget(&1));
            gate.open();
            settle(&runtime);
            assert_eq!((leader.ready().unwrap(), follower.ready().unwrap()), (2, 2));
            ends("of a flight");
        }
    });
}

#[test]
fn a_key_is_not_hashed_at_the_end_of_its_run() {
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights: SingleFlight<Fussy, u64, Oops> = SingleFlight::new();
    // In the leader's own poll.
    let key = Fussy::new(1);
    let no_hash = Arc::clone(&key.no_hash);
    let call = flights.run_ref(&key, || async move {
        no_hash.store(true, Ordering::SeqCst);
        Ok(1)
    });
    assert_eq!(Caller::new(call).ready().unwrap(), 1);
    assert!(key.no_hash.swap(false, Ordering::SeqCst));
    // In the load's task.
    let (no_hash, gate) = (Arc::clone(&key.no_hash), Gate::closed());
    let passed = gate.passed();
    let waits = Caller::new(flights.run_ref(&key, || async move {
        passed.await;
        no_hash.store(true, Ordering::SeqCst);
        Ok(3)
    }))
    .waits();
    gate.open();
    settle(&runtime);
    assert_eq!(waits.ready().unwrap(), 3);
    assert!(key.no_hash.swap(false, Ordering::SeqCst));
    assert_eq!(flights.in_flight(), 0);
}

#[test]
fn a_value_that_panics_when_cloned_fails_its_own_caller_alone() {
    struct Fragile(Arc<AtomicBool>);
    impl Clone for Fragile {
        fn clone(&self) -> Self {
            assert!(!self.0.swap(false, Ordering::SeqCst), "breaks once");
            Self(Arc::clone(&self.0))
        }
    }
    let runtime = current_thread();
    let _inside = runtime.enter();
    let flights: SingleFlight<u64, Fragile, Oops> = SingleFlight::new();
    let (breaks, gate) = (Arc::new(AtomicBool::new(true)), Gate::closed());
    let passed = gate.passed();
    let leader = Caller::new(flights.run(1, || async move {
        passed.await;
        Ok(Fragile(breaks))
    }))
    .waits();
    let follower = Caller::new(flights.run(1, || async { unreachable!() })).waits();
    gate.open();
    settle(&runtime);
    assert!(catch_unwind(AssertUnwindSafe(|| leader.ready().is_ok())).is_err());
    assert!(follower.ready().is_ok());
    assert!(!flights.forget(&1));
}

#[test]
fn a_value_may_call_the_group_when_dropped() {
    #[derive(Clone)]
    struct Calls(Group);
    impl Drop for Calls {
        fn drop(&mut self) {
            self.0.forget(&1);
            assert_eq!(self.0.waiters(&1), 0);
        }
    }
    without_deadlock(|| {
        let runtime = current_thread();
        let _inside = runtime.enter();
        let (numbers, values) = (Group::new(), SingleFlight::<u64, Calls, Oops>::new());
        let call = || {
            let calls = Calls(numbers.clone());
            values.run(1, || async move {
                tokio::task::yield_now().await;
                Ok(calls)
            })
        };
        drop(Caller::new(call()).waits());
        settle(&runtime);
        let (leader, follower) = (Caller::new(call()).waits(), Caller::new(call()).waits());
        settle(&runtime);
        assert!(leader.ready().is_ok() && follower.ready().is_ok());
        assert_eq!(values.in_flight(), 0);
    });
}

/// Panics when woken.
struct Grumpy;

impl Wake for Grumpy {
    fn wake(self: Arc<Self>) {
        panic!("do not disturb");
    }
}

#[test]
fn wakers_that_panic_keep_nobody_else_asleep() {
    for others in [3, 200] {
        let runtime = current_thread();
        let _inside = runtime.enter();
        let (flights, gate) = (Group::new(), Gate::closed());
        let grumpy = Waker::from(Arc::new(Grumpy));
        let mut callers = Vec::new();
        let mut grumpies = Vec::new();
        for _ in 0..others {
            let mut grumpier = Caller::new(flights.run(1, || gate.then(1)));
            assert!(grumpier.poll_with(&grumpy).is_pending());
            grumpies.push(grumpier);
            callers.push(Caller::new(flights.run(1, || gate.then(1))).waits());
        }
        // The load moves to its task, so that it is no longer the first caller whom the gate wakes.
        settle(&runtime);
        gate.open();
        settle(&runtime);
        for caller in callers {
            assert!(caller.woken());
            assert_eq!(caller.ready().unwrap(), 1);
        }
        for grumpier in grumpies {
            assert_eq!(grumpier.ready().unwrap(), 1);
        }
        assert_empty(&flights, [1]);
    }
}

#[test]
fn what_a_waker_panics_with_may_panic_too() {
    struct Minefield;
    impl Wake for Minefield {
        fn wake(self: Arc<Self>) {
            std::panic::panic_any(Mine(1));
        }
    }
    let runtime = current_thread();
    let _inside = runtime.enter();
    let (flights, gate) = (Group::new(), Gate::closed());
    let _leader = Caller::new(flights.run(1, || gate.then(1))).waits();
    let mut mined = Caller::new(flights.run(1, || gate.then(1)));
    assert!(mined.poll_with(&Waker::from(Arc::new(Minefield))).is_pending());
    let other = Caller::new(flights.run(1, || gate.then(1))).waits();
    settle(&runtime);
    gate.open();
    settle(&runtime);
    assert!(other.woken());
    assert_eq!(other.ready().unwrap(), 1);
}

#[test]
fn a_leader_does_not_feel_the_panic_of_a_followers_waker() {
    let flights = Group::new();
    let followers = Arc::new(Mutex::new(Vec::new()));
    let call = {
        let (flights, followers) = (flights.clone(), Arc::clone(&followers));
        move || async move {
            // Another thread: on this one it would be the loader asking for itself.
            let join = move || {
                let mut follower =
                    Caller::new(async move { flights.run(1, || async { unreachable!() }).await });
                assert!(follower.poll_with(&Waker::from(Arc::new(Grumpy))).is_pending());
                follower
            };
            followers.lock().unwrap().push(std::thread::spawn(join).join().unwrap());
            Ok(8)
        }
    };
    assert_eq!(Caller::new(flights.run(1, call)).ready().unwrap(), 8);
    assert_eq!(followers.lock().unwrap().pop().unwrap().ready().unwrap(), 8);
    assert_empty(&flights, [1]);
}

/// A waker that owns a caller, as that of a task owns its future.
struct Owner(#[expect(dead_code, reason = "dropped with its waker")] Mutex<Option<Caller<'static, Answer>>>);

impl Wake for Owner {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_waker_is_dropped_under_no_lock() {
    let ends: [fn(Caller<'static, Answer>, tokio::runtime::Runtime); 3] = [
        // Its caller goes away, asks with another waker, is woken.
        |outer, _runtime| drop(outer),
        |outer, _runtime| drop(outer.waits()),
        |_outer, runtime| drop(runtime),
    ];
    for end in ends {
        without_deadlock(move || {
            let runtime = current_thread();
            let handle = runtime.handle().clone();
            let _inside = handle.enter();
            let flights = Group::new();
            let call = || {
                let flights = flights.clone();
                Caller::new(async move { flights.run(1, std::future::pending).await })
            };
            let _leader = call().waits();
            let (mut outer, inner) = (call(), call().waits());
            let waker = Waker::from(Arc::new(Owner(Mutex::new(Some(inner)))));
            assert!(outer.poll_with(&waker).is_pending());
            drop(waker);
            assert_eq!(flights.waiters(&1), 3);
            end(outer, runtime);
            assert!(flights.waiters(&1) <= 2, "the caller that the waker owned is gone");
        });
    }
}
