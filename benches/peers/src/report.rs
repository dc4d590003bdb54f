//! The file with the results: where they come from, the budgets, the tables.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use peers::bench::{Cell, Table};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `benches/RESULTS.md`.
pub fn results() -> PathBuf {
    here().with_file_name("RESULTS.md")
}

/// One line of what a command says.
fn says(command: &str, arguments: &[&str]) -> String {
    let said = Command::new(command).args(arguments).output();
    said.ok()
        .and_then(|said| String::from_utf8(said.stdout).ok())
        .map_or_else(|| "unknown".into(), |said| said.lines().next().unwrap_or_default().trim().to_string())
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find(|line| line.starts_with("model name"));
    let cpu = cpu.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    format!("{cpu}, {cores} cores, {}; load averages at the end of the run {load}", says("uname", &["-sr"]))
}

/// The versions that were built, from the lock file.
fn versions() -> String {
    const NAMES: [&str; 14] = [
        "stampede-guard",
        "moka",
        "quick_cache",
        "foyer-memory",
        "rs-singleflight",
        "singleflight-async",
        "async_singleflight",
        "tower-resilience-coalesce",
        "tower-http-cache",
        "hitbox-tower",
        "hitbox-moka",
        "dashmap",
        "tokio",
        "ahash",
    ];
    let lock = fs::read_to_string(here().join("Cargo.lock")).unwrap_or_default();
    let version = |name: &str| {
        let (_, after) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(format!("{name} {}", after.split_once('"')?.0))
    };
    NAMES.iter().filter_map(|name| version(name)).collect::<Vec<_>>().join(", ")
}

fn find<'a>(tables: &'a [Table], title: &str) -> Option<&'a Table> {
    tables.iter().find(|table| table.title.starts_with(title))
}

fn median(tables: &[Table], title: &str, row: &str, column: usize) -> Option<f64> {
    let table = find(tables, title)?;
    table.median(row, column).or_else(|| match &table.rows.iter().find(|it| it.name == row)?.cells[column] {
        Cell::Text(text) => text.parse().ok(),
        Cell::Number(_) => None,
    })
}

/// A budget of two figures: their quotient, or their difference, at most so much.
enum Budget {
    Ratio(f64),
    Difference(f64),
    /// The first figure alone.
    Value(f64),
}

type Figure = (&'static str, &'static str, usize);

const FLIGHT: &str = "stampede-guard SingleFlight::run";
const CACHE: &str = "stampede-guard get_or_load";
const QUICK: &str = "stampede-guard get_or_load, quick_cache";
const FOR_EVER: &str = "stampede-guard get_or_load, quick_cache, no ttl";
const HIT: &str = "hit: u64 keys, 1";
const TEXT: &str = "hit: String keys, 1";
const READY: &str = "miss: load ready";
const PENDING: &str = "miss: pending";
const SLOTS: &str = "slots, woken 32 a turn";
const IN_PLACE: &str = "slots, woken in place";
const MOKA: &str = "moka try_get_with";
const NONE: Figure = ("", "", 0);

fn lines() -> Vec<(&'static str, Budget, Figure, Figure)> {
    use Budget::{Difference, Ratio, Value};
    let mut lines = vec![
        ("hit, over moka::sync get", Ratio(1.05), (HIT, CACHE, 0), (HIT, "moka::sync get", 0)),
        (
            "hit, instructions over moka::sync get",
            Difference(60.0),
            ("instructions", "hit ours", 0),
            ("instructions", "hit moka-sync", 0),
        ),
        (
            "hit, allocations over moka::sync get",
            Difference(0.01),
            (HIT, CACHE, 1),
            (HIT, "moka::sync get", 1),
        ),
        (
            "hit with a String key, instructions over moka::sync get",
            Difference(60.0),
            ("instructions", "hit ours-text", 0),
            ("instructions", "hit moka-sync-text", 0),
        ),
        (
            "hit with a String key, allocations over moka::sync get",
            Difference(0.01),
            (TEXT, "stampede-guard get_or_load_ref", 1),
            (TEXT, "moka::sync get", 1),
        ),
        ("hit, over moka try_get_with", Ratio(0.85), (HIT, CACHE, 0), (HIT, MOKA, 0)),
        (
            "hit over the quick_cache store, over quick_cache get",
            Ratio(1.2),
            (HIT, QUICK, 0),
            (HIT, "quick_cache get", 0),
        ),
        (
            "the same, with values that are fresh for ever, as that cache's are",
            Ratio(1.2),
            (HIT, FOR_EVER, 0),
            (HIT, "quick_cache get", 0),
        ),
        (
            "hit over the quick_cache store, over moka try_get_with",
            Ratio(0.3),
            (HIT, QUICK, 0),
            (HIT, MOKA, 0),
        ),
        (
            "ready miss of SingleFlight, over the sharded map (ahash)",
            Ratio(2.0),
            (READY, FLIGHT, 0),
            (READY, "sharded map insert, remove (ahash)", 0),
        ),
        ("ready miss of SingleFlight, allocations", Value(2.0), (READY, FLIGHT, 2), NONE),
        ("ready miss of the cache, over moka try_get_with", Ratio(0.5), (READY, CACHE, 0), (READY, MOKA, 0)),
        (
            "pending load of SingleFlight, over tokio spawn",
            Ratio(1.4),
            (PENDING, FLIGHT, 0),
            (PENDING, "tokio spawn", 0),
        ),
    ];
    for herd in ["herd: 1000 callers", "herd: 10000 callers", "herd: 100000 callers"] {
        lines.extend([
            (
                "fan-out a caller, over slots woken in place",
                Ratio(1.1),
                (herd, FLIGHT, 0),
                (herd, IN_PLACE, 0),
            ),
            ("fan-out a caller, over slots woken 32 a turn", Ratio(1.1), (herd, FLIGHT, 0), (herd, SLOTS, 0)),
            ("fan-out a caller of the cache, over moka", Ratio(0.35), (herd, CACHE, 0), (herd, MOKA, 0)),
            ("CPU a caller, over slots woken in place", Ratio(1.25), (herd, FLIGHT, 1), (herd, IN_PLACE, 1)),
            ("CPU a caller, over slots woken 32 a turn", Ratio(1.25), (herd, FLIGHT, 1), (herd, SLOTS, 1)),
            ("cores while waiting, over slots", Difference(0.01), (herd, FLIGHT, 4), (herd, SLOTS, 4)),
            ("leader's own caller after, us", Value(50.0), (herd, FLIGHT, 2), NONE),
        ]);
    }
    lines.extend([
        ("heap bytes a waiter", Value(32.0), ("waiters", FLIGHT, 0), NONE),
        ("allocations a waiter (the slab grows by doubling)", Value(0.005), ("waiters", FLIGHT, 1), NONE),
        ("bytes of its future that are not the loader's", Value(64.0), ("waiters", FLIGHT, 3), NONE),
        ("the same, of the cache", Value(64.0), ("waiters", CACHE, 3), NONE),
        ("CPU ns to drop a parked waiter", Value(20.0), ("waiters", FLIGHT, 4), NONE),
        ("leader cancelled, loads", Value(1.0), ("faults: the leader", FLIGHT, 0), NONE),
        ("leader cancelled, load times", Value(1.05), ("faults: the leader", FLIGHT, 2), NONE),
        (
            "tower hit with the safe key, over tower-http-cache",
            Ratio(0.6),
            ("tower hit", "StampedeGuard, safe key", 0),
            ("tower hit", "tower-http-cache (key of path and query)", 0),
        ),
        ("tower hit, allocations", Value(4.0), ("tower hit", "StampedeGuard, safe key", 1), NONE),
    ]);
    lines
}

/// Which budgets hold. Those whose scenarios did not run are left out.
pub fn budgets(tables: &[Table]) -> String {
    let mut out = String::from("## Budgets\n\n| | budget | measured | |\n|---|---|---|---|\n");
    for (what, budget, ours, floor) in lines() {
        let figure = |(title, row, column)| median(tables, title, row, column);
        let Some(mine) = figure(ours) else { continue };
        let measured = match (&budget, figure(floor)) {
            (Budget::Value(_), _) => mine,
            (Budget::Ratio(_), Some(floor)) => mine / floor,
            (Budget::Difference(_), Some(floor)) => mine - floor,
            (_, None) => continue,
        };
        let (limit, at_most) = match budget {
            Budget::Ratio(limit) => (limit, format!("<= {limit}x")),
            Budget::Difference(limit) => (limit, format!("<= +{limit}")),
            Budget::Value(limit) => (limit, format!("<= {limit}")),
        };
        let of = ours.0.strip_suffix(" callers").map_or(String::new(), |herd| format!("{herd}: "));
        let verdict = if measured <= limit { "met" } else { "**missed**" };
        let _ = writeln!(out, "| {of}{what} | {at_most} | {measured:.2} | {verdict} |");
    }
    out
}

pub fn whole(tables: &[Table], budgets: &str) -> String {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments = if arguments.is_empty() { String::new() } else { format!(" -- {}", arguments.join(" ")) };
    let mut out = format!(
        "# Side by side\n\nWritten by `cargo run --release{arguments}` in `benches/peers`.\n\n- date: {}\n- machine: \
         {}\n- compiler: {}\n- versions: {}\n\nMedians over the rounds, with the quartiles in brackets. In each round \
         every contender of a table runs once, in one process, on a Tokio runtime with two workers. Ours are in bold, \
         floors in italics: what nobody can be faster than.\n\n{budgets}\n",
        says("date", &["-u", "+%F"]),
        machine(),
        says("rustc", &["--version"]),
        versions(),
    );
    for table in tables {
        let _ = writeln!(out, "{}", table.markdown());
    }
    out
}
