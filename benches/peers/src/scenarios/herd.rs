//! Many callers wait for one cold key.

use std::future::poll_fn;
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Setting;
use crate::bench::{Contender, Kind, Table, interleave};
use crate::clocks;
use crate::load::Gated;
use crate::peers::{
    AsyncSingleflight, Coalesce, Foyer, Hitbox, MokaGetWith, MokaTryGetWith, OurCache, OurFlights, OurGuard,
    Peer, QuickCache, RsSingleflight, SingleflightAsync, Slots, TowerHttpCache,
};

struct Herd<P> {
    peer: P,
    waiting: AtomicUsize,
    left: AtomicUsize,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    over: Notify,
}

async fn caller<P: Peer<Gated>>(herd: Arc<Herd<P>>, key: u64, leads: bool) {
    let raw = {
        let mut call = pin!(herd.peer.call(key));
        let mut counted = false;
        poll_fn(|cx| {
            let polled = call.as_mut().poll(cx);
            if polled.is_pending() && !std::mem::replace(&mut counted, true) {
                herd.waiting.fetch_add(1, SeqCst);
            }
            polled
        })
        .await
    };
    if leads {
        let _ = herd.first.set(Instant::now());
    }
    black_box(P::verdict(raw)).expect("a value");
    if herd.left.fetch_sub(1, SeqCst) == 1 {
        let _ = herd.last.set(Instant::now());
        herd.over.notify_one();
    }
}

/// Lets `callers` wait for `keys` keys, and opens the gate.
async fn stampede<P: Peer<Gated>>(callers: usize, keys: usize) -> Vec<f64> {
    let gate = Gated::default();
    let herd = Arc::new(Herd {
        peer: P::new(gate.clone(), callers),
        waiting: AtomicUsize::new(0),
        left: AtomicUsize::new(callers),
        first: OnceLock::new(),
        last: OnceLock::new(),
        over: Notify::new(),
    });
    // The leaders first, so that it is known who they are.
    for key in 0..keys {
        tokio::spawn(caller(herd.clone(), key as u64, key == 0));
    }
    while gate.started() < keys {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for number in keys..callers {
        tokio::spawn(caller(herd.clone(), (number % keys) as u64, false));
    }
    while herd.waiting.load(SeqCst) < callers {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Until those who were polled have settled down, and then for a moment in which nothing is to be done.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let (cpu, wall) = (clocks::process(), Instant::now());
    tokio::time::sleep(Duration::from_millis(10)).await;
    let idle = (clocks::process() - cpu).as_secs_f64() / wall.elapsed().as_secs_f64();

    let cpu = clocks::process();
    gate.open();
    herd.over.notified().await;
    // Threads that are still busy are accounted for when they stop.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let cpu = clocks::process() - cpu;
    assert_eq!(gate.started(), keys, "loads");
    let (done, last) = (gate.done(), *herd.last.get().expect("the last caller's time"));
    let leader = herd.first.get().map_or(f64::NAN, |first| first.duration_since(done).as_secs_f64() * 1e6);
    let fan_out = last.saturating_duration_since(done);
    vec![clocks::per(fan_out, callers), clocks::per(cpu, callers), leader, fan_out.as_secs_f64() * 1e6, idle]
}

pub const COLUMNS: [&str; 5] = [
    "fan-out ns a caller",
    "CPU ns a caller",
    "leader's caller after us",
    "last caller after us",
    "cores while waiting",
];

pub fn contender<'a, P: Peer<Gated>>(
    setting: &'a Setting,
    kind: Kind,
    callers: usize,
    keys: usize,
) -> Contender<'a> {
    Contender::new(kind, P::NAME, move || setting.runtime.block_on(stampede::<P>(callers, keys)))
}

/// Everyone who takes any key.
pub fn contenders(setting: &Setting, callers: usize, keys: usize) -> Vec<Contender<'_>> {
    macro_rules! row {
        ($kind:ident, $peer:ident) => {
            contender::<$peer<Gated>>(setting, Kind::$kind, callers, keys)
        };
    }
    vec![
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
    ]
}

fn table(setting: &Setting, callers: usize, rounds: usize) -> Table {
    let mut rows = contenders(setting, callers, 1);
    rows.push(contender::<Slots<Gated, { usize::MAX }>>(setting, Kind::Floor, callers, 1));
    rows.push(contender::<Slots<Gated, 32>>(setting, Kind::Floor, callers, 1));
    let note = "Each caller is a task. Times count from the end of the load; the floors have a slot for each caller \
                made beforehand and share one value.";
    interleave(format!("herd: {callers} callers"), note, &COLUMNS, setting.rounds(rounds), rows)
}

/// Requests instead of numbers.
fn requests(setting: &Setting, callers: usize, rounds: usize) -> Table {
    let rows = vec![
        contender::<OurGuard>(setting, Kind::Ours, callers, 1),
        contender::<TowerHttpCache>(setting, Kind::Peer, callers, 1),
        contender::<Hitbox>(setting, Kind::Peer, callers, 1),
    ];
    let note = "GETs of one path through each layer; the callers read a body of 1 KiB.";
    interleave(format!("herd: {callers} requests"), note, &COLUMNS, setting.rounds(rounds), rows)
}

pub fn run(setting: &Setting) -> Vec<Table> {
    let sizes: &[(usize, usize)] = &[(10, 60), (100, 60), (1_000, 40), (10_000, 30), (100_000, 12)];
    let sizes = if setting.quick { &sizes[..4] } else { sizes };
    let mut tables: Vec<_> = sizes.iter().map(|&(callers, rounds)| table(setting, callers, rounds)).collect();
    tables.push(requests(setting, 1_000, 30));
    tables
}
