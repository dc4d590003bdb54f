//! What one waiter costs in memory, and to drop it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::Setting;
use crate::bench::{Contender, Kind, Table, interleave};
use crate::load::Gated;
use crate::peers::{
    AsyncSingleflight, Coalesce, Foyer, MokaGetWith, MokaTryGetWith, OurCache, OurFlights, Peer, QuickCache,
    RsSingleflight, SingleflightAsync, Slots,
};
use crate::{clocks, counting};

/// Coprime to the number of waiters: they are dropped neither in the order in which they came nor in reverse.
const STRIDE: usize = 3_571;

type Calls<F> = Vec<Pin<Box<Option<F>>>>;

fn poll_all<F: Future>(calls: &mut Calls<F>) {
    let mut cx = Context::from_waker(Waker::noop());
    for call in calls {
        let waits = call.as_mut().as_pin_mut().is_some_and(|call| call.poll(&mut cx).is_pending());
        assert!(waits, "the gate is shut");
    }
}

fn measure<P: Peer<Gated>>(setting: &Setting, waiters: usize) -> Vec<f64> {
    let gate = Gated::default();
    let peer = Arc::new(P::new(gate.clone(), waiters + 1));
    let leader = setting.runtime.spawn({
        let peer = peer.clone();
        async move { P::verdict(peer.call(1).await) }
    });
    while gate.started() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _inside = setting.runtime.enter();
    let mut calls = Vec::with_capacity(waiters);
    // The boxes are the harness's; some peers register at the call and some at its first poll.
    let counted = counting::Count::start();
    calls.extend((0..waiters).map(|_| Box::pin(Some(peer.call(1)))));
    poll_all(&mut calls);
    let allocated = counted.so_far();
    drop(counted);
    let each = waiters as f64;
    let boxed = size_of_val(&*calls[0]) as f64;
    let future = calls[0].as_ref().as_pin_ref().map_or(0, |call| size_of_val(&*call));
    let before = clocks::thread();
    for number in 0..waiters {
        calls[number * STRIDE % waiters].set(None);
    }
    let drops = clocks::thread() - before;
    gate.open();
    let value = setting.runtime.block_on(leader).expect("no panics");
    assert_eq!(value, Ok(1), "the leader is served");
    vec![
        allocated.bytes / each - boxed,
        allocated.calls / each - 1.0,
        future as f64,
        future as f64 - P::loader_bytes() as f64,
        clocks::per(drops, waiters),
    ]
}

pub fn run(setting: &Setting) -> Vec<Table> {
    let waiters = if setting.quick { 1_000 } else { 10_000 };
    macro_rules! row {
        ($kind:ident, $peer:ty) => {
            Contender::new(Kind::$kind, <$peer as Peer<Gated>>::NAME, || measure::<$peer>(setting, waiters))
        };
    }
    let contenders = vec![
        row!(Ours, OurFlights<Gated>),
        row!(Peer, RsSingleflight<Gated>),
        row!(Peer, SingleflightAsync<Gated>),
        row!(Peer, AsyncSingleflight<Gated>),
        row!(Peer, Coalesce<Gated>),
        row!(Ours, OurCache<Gated>),
        row!(Peer, MokaTryGetWith<Gated>),
        row!(Peer, MokaGetWith<Gated>),
        row!(Peer, QuickCache<Gated>),
        row!(Peer, Foyer<Gated>),
        row!(Floor, Slots<Gated, 32>),
    ];
    let columns = [
        "heap bytes a waiter",
        "allocations a waiter",
        "bytes of its future",
        "of these not the loader's",
        "CPU ns to drop one",
    ];
    let note = "Polled once by hand, with a waker that costs nothing; the boxes of the futures are not counted. The \
                drop is of the future in place, in neither order of arrival, and includes that of its loader.";
    let title = format!("waiters: {waiters} of one key");
    vec![interleave(title, note, &columns, setting.rounds(20), contenders)]
}
