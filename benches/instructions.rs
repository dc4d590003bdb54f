//! Budgets in instructions, which no other load on the machine changes: of a hit and a miss, against moka's in the
//! same run. `scripts/budgets` runs it.
//!
//! It counts itself: under callgrind it makes one kind of call a number of times, and the difference of two runs
//! that differ in length alone is what a call takes. Without `--bench` each call is made a few times, uncounted.

use std::convert::Infallible;
use std::future::poll_fn;
use std::hint::black_box;
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use stampede_guard::{LoadError, SingleFlight, StampedeCache};

const KEYS: u64 = 1_000;
const CAPACITY: u64 = 10_000;
const SHORT: u64 = 2_000;
const LONG: u64 = 12_000;

/// What a call may take beyond another one.
struct Budget {
    of: &'static str,
    /// This many times the other's instructions ...
    factor: f64,
    over: &'static str,
    /// ... and this many more.
    more: f64,
}

/// With all features on: the metrics facade is in each call. Each has a twentieth to spare: the hash seeds of a run
/// and the CPU's own `memcpy` and clock change the counts by some percent.
const BUDGETS: [Budget; 7] = [
    Budget { of: "hit: get_or_load", factor: 1.0, over: "hit: moka get", more: 260.0 },
    Budget { of: "hit: get", factor: 1.0, over: "hit: moka get", more: 70.0 },
    Budget {
        of: "hit by reference: get_or_load_ref",
        factor: 1.0,
        over: "hit by reference: moka get",
        more: 220.0,
    },
    Budget {
        of: "miss: SingleFlight",
        factor: 4.0,
        over: "floor: sharded map, insert and remove",
        more: 0.0,
    },
    Budget {
        of: "pending load: SingleFlight",
        factor: 1.5,
        over: "floor: the load in a task of its own",
        more: 0.0,
    },
    Budget { of: "miss: get_or_load", factor: 1.82, over: "miss: moka get, insert", more: 0.0 },
    Budget {
        of: "herd: a follower of get_or_load",
        factor: 2.35,
        over: "herd: a follower of SingleFlight",
        more: 0.0,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [case, times] = &arguments[..]
        && let Ok(times) = times.parse()
    {
        run(case, times);
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--bench") {
        return judge();
    }
    for budget in BUDGETS {
        run(budget.of, 10);
        run(budget.over, 10);
    }
    ExitCode::SUCCESS
}

fn judge() -> ExitCode {
    let mut met = true;
    for Budget { of, factor, over, more } in BUDGETS {
        let (took, least) = (count(of), count(over));
        let limit = least * factor + more;
        let verdict = if took <= limit { "met" } else { "MISSED" };
        println!("{of:34} {took:7.0} instructions; at most {limit:7.0} ({over}: {least:.0}): {verdict}");
        met &= took <= limit;
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The instructions of one call.
#[allow(clippy::cast_precision_loss)]
fn count(case: &str) -> f64 {
    let total = |times: u64| -> u64 {
        let counted = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().expect("this binary"))
            .args([case, &times.to_string()])
            .output()
            .expect("valgrind, which scripts/budgets installs");
        let said = String::from_utf8_lossy(&counted.stderr);
        assert!(counted.status.success(), "{case}: {said}");
        let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
        collected.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("no count in: {said}"))
    };
    (total(LONG) - total(SHORT)) as f64 / (LONG - SHORT) as f64
}

fn text(key: u64) -> String {
    format!("/products/{key:07}/price?currency")
}

fn cache<K: std::hash::Hash + Eq + Clone + Send + Sync + 'static>() -> StampedeCache<K, u64> {
    StampedeCache::builder()
        .capacity(CAPACITY)
        .ttl(Duration::from_secs(86_400))
        .build()
        .expect("valid settings")
}

/// A hit and a ready load have nothing to wait for: no runtime is in the count.
fn ready<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("nothing to wait for")
}

/// A load that is over when it is told, and everyone who waited for it by then.
fn herd<F: Future<Output = Result<u64, LoadError<Infallible>>>>(
    followers: u64,
    call: impl Fn(Box<dyn FnOnce() -> Load>) -> F,
) {
    let (end, ended) = tokio::sync::oneshot::channel();
    on_a_runtime(async {
        let load: Load = Box::pin(async { Ok(ended.await.unwrap_or(0)) });
        let mut calls = vec![Box::pin(call(Box::new(move || load)))];
        calls
            .extend((0..followers).map(|_| Box::pin(call(Box::new(|| unreachable!("a load is under way"))))));
        for call in &mut calls {
            assert!(call.as_mut().now_or_never().is_none());
        }
        let _ = end.send(1);
        for call in calls {
            assert_eq!(black_box(call.await).expect("a value"), 1);
        }
    });
}

fn on_a_runtime(calls: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(calls);
}

/// Ready at its second poll, which it asks for itself.
fn pending(key: u64) -> impl Future<Output = Result<u64, Infallible>> + Send {
    let mut polled = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(Ok(key));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

type Load = Pin<Box<dyn Future<Output = Result<u64, Infallible>> + Send>>;

fn run(case: &str, times: u64) {
    let texts: Vec<_> = (0..KEYS).map(text).collect();
    let numbers = (0..times).map(|time| black_box(time % KEYS));
    let references =
        texts.iter().cycle().take(usize::try_from(times).expect("a small number")).map(black_box);
    match case {
        "hit: moka get" => {
            let cache = moka::sync::Cache::new(CAPACITY);
            (0..KEYS).for_each(|key| cache.insert(key, key));
            numbers.for_each(|key| _ = black_box(cache.get(&key).expect("a hit")));
        }
        "hit: get" => {
            let cache = cache();
            (0..KEYS).for_each(|key| cache.insert(key, key));
            numbers.for_each(|key| _ = black_box(cache.get(&key).expect("a hit")));
        }
        "hit: get_or_load" => {
            let cache = cache();
            (0..KEYS).for_each(|key| cache.insert(key, key));
            let hit = |key| ready(cache.get_or_load(key, || async { unreachable!("every key is fresh") }));
            numbers.for_each(|key| _ = black_box(hit(key).expect("a hit")));
        }
        "hit by reference: moka get" => {
            let cache = moka::sync::Cache::new(CAPACITY);
            texts.iter().zip(0..).for_each(|(key, value)| cache.insert(key.clone(), value));
            references.for_each(|key| _ = black_box(cache.get(key).expect("a hit")));
        }
        "hit by reference: get_or_load_ref" => {
            let cache = cache();
            texts.iter().zip(0..).for_each(|(key, value)| cache.insert(key.clone(), value));
            let hit =
                |key| ready(cache.get_or_load_ref(key, || async { unreachable!("every key is fresh") }));
            references.for_each(|key: &String| _ = black_box(hit(key).expect("a hit")));
        }
        "miss: moka get, insert" => {
            let cache = moka::sync::Cache::new(CAPACITY);
            for key in 0..times {
                if black_box(cache.get(&key)).is_none() {
                    cache.insert(key, key);
                }
            }
        }
        "floor: sharded map, insert and remove" => {
            let map = dashmap::DashMap::with_hasher(ahash::RandomState::new());
            for key in 0..times {
                black_box(&map).insert(black_box(key), key);
                black_box(map.remove(&key));
            }
        }
        "herd: a follower of SingleFlight" => {
            let flights: SingleFlight<u64, u64> = SingleFlight::new();
            herd(times, |load| flights.run(1, load));
        }
        "herd: a follower of get_or_load" => {
            let cache = cache();
            herd(times, |load| cache.get_or_load(1, load));
        }
        "miss: SingleFlight" => {
            let flights: SingleFlight<u64, u64> = SingleFlight::new();
            for key in 0..times {
                black_box(ready(flights.run(black_box(key), move || async move { Ok(key) })))
                    .expect("a value");
            }
        }
        "floor: the load in a task of its own" => on_a_runtime(async {
            for key in 0..times {
                black_box(tokio::spawn(pending(black_box(key))).await.expect("no panics")).expect("a value");
            }
        }),
        "pending load: SingleFlight" => on_a_runtime(async {
            let flights: SingleFlight<u64, u64> = SingleFlight::new();
            for key in 0..times {
                black_box(flights.run(black_box(key), move || pending(key)).await).expect("a value");
            }
        }),
        "miss: get_or_load" => {
            let cache = cache();
            for key in 0..times {
                black_box(ready(cache.get_or_load(black_box(key), move || async move { Ok(key) })))
                    .expect("a value");
            }
        }
        other => panic!("no case {other:?}"),
    }
}
