//! What becomes of those who wait when something goes wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::poll;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::Setting;
use crate::bench::{Cell, Kind, Row, Table};
use crate::load::{End, Slow};
use crate::peers::{
    AsyncSingleflight, Coalesce, Foyer, Hitbox, MokaGetWith, MokaTryGetWith, OurCache, OurFlights, OurGuard,
    Peer, QuickCache, RsSingleflight, SingleflightAsync, TowerHttpCache,
};

const CALLERS: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    LeaderAborted,
    FollowerParked,
    Load(End),
}

/// How long others are waited for: more than all the callers' loads one after the other.
fn bound(takes: Duration) -> Duration {
    takes * 130
}

async fn suffer<P: Peer<Slow>>(fault: Fault, takes: Duration) -> Vec<String> {
    let end = if let Fault::Load(end) = fault { end } else { End::Value };
    let load = Slow::new(takes, end);
    let peer = Arc::new(P::new(load.clone(), CALLERS));
    let call = |key| {
        let peer = peer.clone();
        async move { P::verdict(peer.call(key).await) }
    };
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    let leader = callers.spawn(call(1));
    while load.started() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut parked = Box::pin(call(1));
    let mut others = CALLERS - 1;
    if fault == Fault::FollowerParked {
        assert!(poll!(&mut parked).is_pending());
        others -= 1;
    }
    for _ in 0..others {
        callers.spawn(call(1));
    }
    tokio::time::sleep_until((begin + takes / 2).into()).await;
    if fault == Fault::LeaderAborted {
        leader.abort();
    } else {
        others += 1;
    }

    let mut got = BTreeMap::new();
    let (mut served, mut last) = (0, begin);
    while let Ok(Some(ended)) = timeout_at((begin + bound(takes)).into(), callers.join_next()).await {
        let what = match ended {
            Ok(Ok(_)) => "the value".into(),
            Ok(Err(error)) => format!("\"{error}\""),
            Err(error) if error.is_cancelled() => continue,
            Err(_) => "a panic".to_string(),
        };
        *got.entry(what).or_insert(0) += 1;
        served += 1;
        last = Instant::now();
    }
    let got: Vec<_> = got.into_iter().map(|(what, times)| format!("{times} x {what}")).collect();
    let took = (last - begin).as_secs_f64() / takes.as_secs_f64();
    vec![
        load.started().to_string(),
        format!("{served} of {others}"),
        if served == 0 { "-".into() } else { format!("{took:.2}") },
        got.join(", "),
    ]
}

fn table(setting: &Setting, fault: Fault, title: &str) -> Table {
    eprintln!("{title}");
    let takes = Duration::from_millis(if setting.quick { 20 } else { 50 });
    macro_rules! row {
        ($kind:ident, $peer:ty) => {{
            let cells = setting.runtime.block_on(suffer::<$peer>(fault, takes));
            let name = <$peer as Peer<Slow>>::NAME.to_string();
            Row { name, kind: Kind::$kind, cells: cells.into_iter().map(Cell::Text).collect() }
        }};
    }
    let mut rows = vec![
        row!(Ours, OurFlights<Slow>),
        row!(Peer, RsSingleflight<Slow>),
        row!(Peer, SingleflightAsync<Slow>),
        row!(Peer, AsyncSingleflight<Slow>),
        row!(Peer, Coalesce<Slow>),
        row!(Ours, OurCache<Slow>),
        row!(Peer, MokaTryGetWith<Slow>),
        row!(Peer, MokaGetWith<Slow>),
        row!(Peer, QuickCache<Slow>),
        row!(Peer, Foyer<Slow>),
        row!(Ours, OurGuard),
        row!(Peer, TowerHttpCache),
        row!(Peer, Hitbox),
    ];
    if fault == Fault::Load(End::Error) {
        // Its loads cannot fail.
        rows.retain(|row| row.name != <MokaGetWith<Slow> as Peer<Slow>>::NAME);
    }
    let note = format!(
        "{CALLERS} callers of one key, a load of {} ms; others are waited for until {:.1} s. One run.",
        takes.as_millis(),
        bound(takes).as_secs_f64()
    );
    let columns = vec!["loads", "others who finish", "after (load times)", "what they get"];
    Table { title: title.into(), note, columns, rows }
}

pub fn run(setting: &Setting) -> Vec<Table> {
    // The panics are meant.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let tables = vec![
        table(setting, Fault::LeaderAborted, "faults: the leader's task is aborted half-way"),
        table(setting, Fault::Load(End::Panic), "faults: the first load panics at its end"),
        table(setting, Fault::Load(End::Error), "faults: every load fails"),
        table(setting, Fault::FollowerParked, "faults: one follower is polled once and never again"),
    ];
    std::panic::set_hook(hook);
    tables
}
