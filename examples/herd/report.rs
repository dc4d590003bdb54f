//! Progress while the herd runs, the promises of the guard, and the results as a table and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::phases::{Measured, Phase, Settings};
use crate::server::micros;

/// The bar moves by this much for one run of a phase.
const STEPS: u64 = 100;

/// A progress bar on a terminal; a line for each run of a phase where there is none.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(runs: u64) -> Self {
        let bar = ProgressBar::new(runs * STEPS);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Announces a run of a phase.
    pub(crate) fn begin(&self, n: u64, what: &str) {
        self.bar.set_position(n * STEPS);
        if self.bar.is_hidden() {
            eprintln!("{what} ...");
        } else {
            self.bar.set_message(what.to_owned());
        }
    }

    /// Waits for `work` and moves the bar as `position` (so much of so much) tells.
    pub(crate) async fn follow<T>(
        &self,
        work: impl Future<Output = T>,
        position: impl Fn() -> (u64, u64),
    ) -> T {
        let start = self.bar.position();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = tick.tick() => {
                    let (done, of) = position();
                    self.bar.set_position(start + done.min(of) * STEPS / of.max(1));
                }
            }
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Something the guard promises, held against what was measured.
struct Promise {
    /// The row of the table it is about.
    row: &'static str,
    kept: bool,
    detail: String,
}

/// A phase without and with the guard.
pub(crate) struct Comparison {
    phase: Phase,
    without: Measured,
    with: Measured,
    promises: Vec<Promise>,
}

const RUNS: &str = "handler runs";
const RUNS_PER_KEY: &str = "runs per key, at most";
const FAILED_PER_KEY: &str = "failed runs per key, at most";
const P99: &str = "p99 latency";
const ERRORS: &str = "errors";

impl Comparison {
    pub(crate) fn new(phase: Phase, settings: &Settings, without: Measured, with: Measured) -> Self {
        let mut promises = Vec::new();
        let mut promise = |row, kept, detail| promises.push(Promise { row, kept, detail });

        // A run that succeeds fills the cache for `fresh` at least, so the next one for its key starts no
        // sooner than that: in `elapsed` there is room for the first and for one each whole `fresh`.
        let fresh = phase.times(settings).shortest_fresh();
        let expiries = whole_times(with.elapsed, fresh);
        promise(
            RUNS_PER_KEY,
            with.answered_per_key() <= 1 + expiries,
            match expiries {
                0 => "1: nothing can expire".to_owned(),
                n => format!("{}: {n} expiries fit into {}", 1 + n, seconds(with.elapsed)),
            },
        );
        if phase == Phase::FailingOrigin {
            let allowed = failures_allowed(with.outage);
            let detail = format!("{allowed}: retries back off");
            promise(FAILED_PER_KEY, with.failed_per_key() <= allowed, detail);
        }
        promise(ERRORS, with.seen.errors == 0, "none".to_owned());
        // Only where there was a stampede is there something to gain: a handful of clients do not make one.
        if without.handler_runs() >= 2 * with.handler_runs() {
            let (mine, theirs) = (percentile(&with, 99), percentile(&without, 99));
            promise(P99, mine < theirs, "below that without the guard".to_owned());
        }
        Self { phase, without, with, promises }
    }

    /// The promises that the guard broke, in words.
    pub(crate) fn broken(&self) -> impl Iterator<Item = String> {
        self.promises.iter().filter(|promise| !promise.kept).map(|promise| {
            let error = match &self.with.seen.first_error {
                Some(error) if promise.row == ERRORS => format!(" (the first: {error})"),
                _ => String::new(),
            };
            format!("{}: {}: promised {}{error}", self.phase.name(), promise.row, promise.detail)
        })
    }

    fn rows(&self) -> Vec<(&'static str, String, String)> {
        let row = |name, value: &dyn Fn(&Measured) -> String| (name, value(&self.without), value(&self.with));
        let mut rows = vec![
            row("requests", &|run| run.seen.latencies.len().to_string()),
            row(RUNS, &|run| run.handler_runs().to_string()),
            row(RUNS_PER_KEY, &|run| run.answered_per_key().to_string()),
            row("handlers at once, at most", &|run| run.peak.to_string()),
            row("p50 latency", &|run| millis(percentile(run, 50))),
            row(P99, &|run| millis(percentile(run, 99))),
            row("max latency", &|run| millis(percentile(run, 100))),
            row(ERRORS, &|run| run.seen.errors.to_string()),
            row("oldest answer", &|run| millis(run.seen.oldest)),
        ];
        if self.phase == Phase::FailingOrigin {
            rows.insert(3, row(FAILED_PER_KEY, &|run| run.failed_per_key().to_string()));
        }
        rows
    }
}

/// The results side by side.
pub(crate) fn table(settings: &Settings, comparisons: &[Comparison]) -> String {
    let mut table =
        format!("{:<30} {:>14} {:>14}   promised with the guard\n", "", "without guard", "with guard");
    for comparison in comparisons {
        let phase = comparison.phase;
        let _ = writeln!(table, "\n{}: {}", phase.name(), phase.description(settings));
        for (row, without, with) in comparison.rows() {
            let promise = comparison.promises.iter().find(|promise| promise.row == row);
            let promise = promise.map_or_else(String::new, |promise| {
                format!("   {}, {}", promise.detail, if promise.kept { "kept" } else { "BROKEN" })
            });
            let _ = writeln!(table, "  {row:<28} {without:>14} {with:>14}{promise}");
        }
        if !comparison.promises.iter().any(|promise| promise.row == P99) {
            let _ = writeln!(table, "  No stampede without the guard, so the latencies are not compared.");
        }
    }
    let _ = writeln!(
        table,
        "\nA client waits for each answer before it asks again: a slow service gets fewer requests."
    );
    table
}

/// The results for machines. Times are in microseconds.
pub(crate) fn json(settings: &Settings, comparisons: &[Comparison]) -> Value {
    let measured = |run: &Measured| {
        json!({
            "requests": run.seen.latencies.len(),
            "handler_runs": run.handler_runs(),
            "keys": run.runs.len(),
            "max_answered_runs_per_key": run.answered_per_key(),
            "max_failed_runs_per_key": run.failed_per_key(),
            "peak_concurrent_handlers": run.peak,
            "errors": run.seen.errors,
            "first_error": run.seen.first_error,
            "p50_us": micros(percentile(run, 50)),
            "p99_us": micros(percentile(run, 99)),
            "max_us": micros(percentile(run, 100)),
            "oldest_answer_us": micros(run.seen.oldest),
            "elapsed_us": micros(run.elapsed),
        })
    };
    let phases = comparisons.iter().map(|comparison| {
        let promises = comparison
            .promises
            .iter()
            .map(|promise| json!({ "about": promise.row, "promised": promise.detail, "kept": promise.kept }));
        json!({
            "phase": comparison.phase.name(),
            "without_guard": measured(&comparison.without),
            "with_guard": measured(&comparison.with),
            "promises": promises.collect::<Vec<_>>(),
        })
    });
    json!({
        "clients": settings.clients,
        "keys": settings.keys,
        "duration_us": micros(settings.duration),
        "seed": settings.seed,
        "phases": phases.collect::<Vec<_>>(),
        "promises_kept": comparisons.iter().all(|comparison| comparison.broken().next().is_none()),
    })
}

/// Runs for one key that can fail in an outage: the first, and one after each pause that fits. Pauses start at
/// 100 ms and double up to 30 s; jitter takes up to a quarter off.
fn failures_allowed(outage: Duration) -> u32 {
    let mut runs = 1;
    let mut pause = Duration::from_millis(75);
    let mut at = pause;
    while at <= outage {
        runs += 1;
        pause = (pause * 2).min(Duration::from_millis(22_500));
        at += pause;
    }
    runs
}

/// How often `part` fits into `whole`.
fn whole_times(whole: Duration, part: Duration) -> u32 {
    u32::try_from(whole.as_micros() / part.as_micros()).unwrap_or(u32::MAX)
}

/// The latency that `percent` of the requests did not exceed.
fn percentile(run: &Measured, percent: usize) -> Duration {
    let latencies = &run.seen.latencies;
    let rank = (latencies.len() * percent).div_ceil(100);
    latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Seen;
    use crate::server::Runs;

    #[test]
    fn failures_are_bounded_by_the_pauses_that_fit() {
        let allowed = |millis| failures_allowed(Duration::from_millis(millis));
        // Pauses end after 75, 225, 525 ms.
        assert_eq!([allowed(0), allowed(74), allowed(75), allowed(224), allowed(525)], [1, 1, 2, 2, 4]);
        // 75 * 511 = 38,325 ms for the first nine; from there on one every 22.5 s.
        assert_eq!([allowed(38_324), allowed(38_325), allowed(60_825)], [9, 10, 11]);
    }

    #[test]
    fn a_percentile_is_a_latency_that_was_measured() {
        let run = |latencies: std::ops::RangeInclusive<u64>| Measured {
            seen: Seen { latencies: latencies.map(Duration::from_millis).collect(), ..Seen::default() },
            runs: Vec::new(),
            peak: 0,
            elapsed: Duration::ZERO,
            outage: Duration::ZERO,
        };
        let of = |run: &Measured| [50, 99, 100].map(|percent| percentile(run, percent).as_millis());
        assert_eq!(of(&run(1..=1_000)), [500, 990, 1_000]);
        assert_eq!(of(&run(1..=3)), [2, 3, 3]);
        #[allow(clippy::reversed_empty_ranges)]
        let none = run(1..=0);
        assert_eq!(of(&none), [0, 0, 0]);
    }

    fn measured(runs: &[(u32, u32)], latency: u64, errors: usize) -> Measured {
        Measured {
            seen: Seen { latencies: vec![Duration::from_millis(latency); 100], errors, ..Seen::default() },
            runs: runs.iter().map(|&(started, failed)| Runs { started, failed }).collect(),
            peak: 1,
            elapsed: Duration::from_secs(1),
            outage: Duration::from_millis(500),
        }
    }

    fn broken(phase: Phase, without: Measured, with: Measured) -> Vec<&'static str> {
        let settings = Settings { clients: 2, keys: 1, duration: Duration::from_secs(1), seed: 1 };
        let comparison = Comparison::new(phase, &settings, without, with);
        comparison.promises.iter().filter(|promise| !promise.kept).map(|promise| promise.row).collect()
    }

    #[test]
    fn each_promise_can_be_broken() {
        let herd = || measured(&[(100, 0)], 50, 0);
        assert_eq!(broken(Phase::ColdStart, herd(), measured(&[(1, 0), (1, 0)], 10, 0)), [""; 0]);
        assert_eq!(broken(Phase::ColdStart, herd(), measured(&[(1, 0), (2, 0)], 10, 0)), [RUNS_PER_KEY]);
        assert_eq!(broken(Phase::ColdStart, herd(), measured(&[(1, 0)], 50, 0)), [P99]);
        assert_eq!(broken(Phase::ColdStart, herd(), measured(&[(1, 0)], 10, 1)), [ERRORS]);
        // A second has room for two whole times 450 ms, and half a second for three pauses at most.
        assert_eq!(broken(Phase::Expiry, herd(), measured(&[(3, 0)], 10, 0)), [""; 0]);
        assert_eq!(broken(Phase::Expiry, herd(), measured(&[(4, 0)], 10, 0)), [RUNS_PER_KEY]);
        assert_eq!(broken(Phase::FailingOrigin, herd(), measured(&[(6, 3)], 10, 0)), [""; 0]);
        assert_eq!(broken(Phase::FailingOrigin, herd(), measured(&[(7, 4)], 10, 0)), [FAILED_PER_KEY]);
    }
}
