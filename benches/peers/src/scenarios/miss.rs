//! A miss with nobody else about: what coordination costs where none is needed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use super::Setting;
use crate::bench::{Contender, Kind, Table, interleave};
use crate::load::{AtOnce, Load, Pending};
use crate::peers::{
    AsyncSingleflight, Coalesce, Foyer, Map, MokaGetWith, MokaTryGetWith, OurCache, OurFlights, Peer,
    QuickCache, QuickMap, RsSingleflight, SingleflightAsync, Spawn,
};
use crate::{clocks, counting};

async fn misses<L: Load, P: Peer<L>>(peer: &P, first: u64, times: usize) {
    for key in first..first + times as u64 {
        black_box(P::verdict(peer.call(black_box(key)).await)).expect("a value");
    }
}

fn contender<'a, L: Load, P: Peer<L>>(
    setting: &'a Setting,
    kind: Kind,
    name: Option<&str>,
    load: L,
) -> Contender<'a> {
    let (times, peer) = (5_000, Arc::new(P::new(load, 10_000)));
    let mut first = 0;
    Contender::new(kind, name.unwrap_or(P::NAME), move || {
        let peer = peer.clone();
        let from = first;
        first += 10_000;
        let task = setting.runtime.spawn(async move {
            misses(&*peer, from, 1_000).await;
            let (cpu, wall) = (clocks::process(), Instant::now());
            misses(&*peer, from + 1_000, times).await;
            let (cpu, wall) = (clocks::process() - cpu, wall.elapsed());
            let counted = counting::Count::start();
            misses(&*peer, from + 6_000, 1_000).await;
            let calls = counted.so_far().calls / 1_000.0;
            vec![clocks::per(cpu, times), clocks::per(wall, times), calls]
        });
        setting.runtime.block_on(task).expect("no panics")
    })
}

fn table<L: Load>(setting: &Setting, load: L, title: &str, extra: Vec<Contender<'_>>) -> Table {
    macro_rules! row {
        ($kind:ident, $peer:ident) => {
            row!($kind, $peer, None)
        };
        ($kind:ident, $peer:ident, $name:expr) => {
            contender::<L, $peer<L>>(setting, Kind::$kind, $name, load.clone())
        };
    }
    let mut contenders = vec![
        row!(Ours, OurFlights),
        row!(Peer, RsSingleflight),
        row!(Peer, SingleflightAsync),
        row!(Peer, AsyncSingleflight),
        row!(Peer, Coalesce),
        row!(Ours, OurCache),
        row!(Peer, MokaTryGetWith),
        row!(Peer, MokaGetWith),
        row!(Peer, QuickCache),
        row!(Peer, Foyer),
        row!(Floor, QuickMap, Some("sharded map insert, remove (ahash)")),
        row!(Floor, Map, Some("sharded map insert, remove (its default hash)")),
    ];
    contenders.extend(extra);
    let note = "One task, a new key each time. The caches hold 10,000 entries, so each miss evicts one. CPU time is \
                the process's.";
    let columns = ["CPU ns a miss", "wall ns a miss", "allocations a miss"];
    interleave(title, note, &columns, setting.rounds(60), contenders)
}

pub fn run(setting: &Setting) -> Vec<Table> {
    let spawn = contender::<Pending, Spawn<Pending>>(setting, Kind::Floor, None, Pending);
    vec![
        table(setting, AtOnce, "miss: load ready at once", Vec::new()),
        table(setting, Pending, "miss: pending load", vec![spawn]),
    ]
}
