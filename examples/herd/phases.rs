//! What the herd does in each phase, and one run of a phase without or with the guard.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::runtime::{Builder, Runtime};

use crate::client::{Client, Herd, Plan, Seen};
use crate::database::Database;
use crate::report::Progress;
use crate::server::{self, App, Ledger, Runs, Server, Times};

/// Keys that are asked for in the timed phases.
const HOT_KEYS: usize = 8;
/// Clients that ask for the same key at the same time in the last phase.
const ASKERS: usize = 8;

/// What the command line sets.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    pub(crate) duration: Duration,
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    ColdStart,
    Expiry,
    FailingOrigin,
    ManyColdKeys,
}

impl Phase {
    pub(crate) const ALL: [Self; 4] =
        [Self::ColdStart, Self::Expiry, Self::FailingOrigin, Self::ManyColdKeys];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ColdStart => "cold start",
            Self::Expiry => "expiry under load",
            Self::FailingOrigin => "failing origin",
            Self::ManyColdKeys => "many cold keys",
        }
    }

    pub(crate) fn description(self, settings: &Settings) -> String {
        let Settings { clients, keys, duration, .. } = settings;
        let ttl = self.times(settings).ttl;
        match self {
            Self::ColdStart => format!("{clients} clients ask for one URL at once, nothing is cached"),
            Self::Expiry => {
                format!("{clients} clients keep asking for {HOT_KEYS} URLs for {duration:?}, ttl {ttl:?}")
            }
            Self::FailingOrigin => {
                format!("the same, and the database fails for {:?} of {duration:?}", *duration / 2)
            }
            Self::ManyColdKeys => {
                format!(
                    "{clients} clients ask for {keys} URLs, each wanted by {} at once",
                    ASKERS.min(*clients)
                )
            }
        }
    }

    pub(crate) fn times(self, settings: &Settings) -> Times {
        let none = Duration::ZERO;
        let short = Duration::from_millis(500);
        match self {
            Self::ColdStart | Self::ManyColdKeys => {
                Times { ttl: Duration::from_secs(60), stale_while_revalidate: none, stale_if_error: none }
            }
            Self::Expiry => Times { ttl: short, stale_while_revalidate: short, stale_if_error: none },
            // Stale answers are allowed for longer than the phase can last.
            Self::FailingOrigin => Times {
                ttl: short,
                stale_while_revalidate: short,
                stale_if_error: settings.duration * 2 + Duration::from_secs(300),
            },
        }
    }

    fn timed(self) -> bool {
        matches!(self, Self::Expiry | Self::FailingOrigin)
    }
}

/// What one run of a phase came to.
pub(crate) struct Measured {
    pub(crate) seen: Seen,
    pub(crate) runs: Vec<Runs>,
    pub(crate) peak: u32,
    /// From before the first request until after the last.
    pub(crate) elapsed: Duration,
    /// How long the database failed.
    pub(crate) outage: Duration,
}

impl Measured {
    pub(crate) fn handler_runs(&self) -> u32 {
        self.runs.iter().map(|runs| runs.started).sum()
    }

    /// The most runs for one key that did not fail.
    pub(crate) fn answered_per_key(&self) -> u32 {
        self.runs.iter().map(|runs| runs.started - runs.failed).max().unwrap_or(0)
    }

    /// The most runs for one key that failed.
    pub(crate) fn failed_per_key(&self) -> u32 {
        self.runs.iter().map(|runs| runs.failed).max().unwrap_or(0)
    }
}

/// Server and clients have threads of their own, so that neither waits for the other's turn.
pub(crate) struct Runtimes {
    server: Runtime,
    clients: Runtime,
}

impl Runtimes {
    pub(crate) fn new() -> std::io::Result<Self> {
        let runtime = |name, threads| {
            Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build()
        };
        Ok(Self { server: runtime("server", 2)?, clients: runtime("clients", 1)? })
    }
}

/// Runs a phase on a fresh server with a cold cache and fresh connections.
pub(crate) fn run(
    phase: Phase,
    with_guard: bool,
    settings: &Settings,
    runtimes: &Runtimes,
    progress: &Progress,
) -> Result<Measured, Box<dyn Error>> {
    let times = phase.times(settings);
    let app = Arc::new(App {
        database: Database::new(settings.seed),
        ledger: Ledger::default(),
        epoch: Instant::now(),
    });
    let router = server::application(app.clone());
    let router =
        if with_guard { server::guarded(router, times)? } else { server::plainly_cached(router, times) };
    let server = Server::start(runtimes.server.handle(), router)?;

    let started = Instant::now();
    let driven = runtimes.clients.block_on(async {
        let herd = Herd::connect(server.address, settings.clients, settings.seed, app.epoch).await?;
        if !phase.timed() {
            let lists = cold_lists(phase, settings);
            let requests = lists.iter().map(|list| list.len() as u64).sum();
            let done = Arc::new(AtomicU64::new(0));
            let counter = done.clone();
            let run = herd.run(Plan::Lists(Arc::new(lists)), done);
            let seen = progress.follow(run, || (counter.load(Ordering::Relaxed), requests)).await;
            return Ok((seen, Duration::ZERO));
        }
        let hot = Arc::new((0..HOT_KEYS).map(name).collect::<Vec<_>>());
        let mut client = Client::connect(server.address, app.epoch).await?;
        for id in hot.iter() {
            client.get(id).await.map_err(|error| format!("warming the cache: {error}"))?;
        }
        let begin = Instant::now();
        let run = herd.run(Plan::Until(hot, begin + settings.duration), Arc::default());
        let run = async { tokio::join!(run, outage(phase, settings, &app.database)) };
        let position = || (server::micros(begin.elapsed()), server::micros(settings.duration));
        Ok::<_, Box<dyn Error>>(progress.follow(run, position).await)
    });
    let elapsed = started.elapsed();
    let (seen, outage) = driven?;
    server.stop(runtimes.server.handle())?;
    let runs = app.ledger.runs().into_values().collect();
    Ok(Measured { seen, runs, peak: app.ledger.peak(), elapsed, outage })
}

/// Lets the database fail for the middle half of the phase; returns for how long it did.
async fn outage(phase: Phase, settings: &Settings, database: &Database) -> Duration {
    if phase != Phase::FailingOrigin {
        return Duration::ZERO;
    }
    tokio::time::sleep(settings.duration / 4).await;
    let failing = Instant::now();
    database.set_failing(true);
    tokio::time::sleep(settings.duration / 2).await;
    database.set_failing(false);
    failing.elapsed()
}

/// Which client asks for what when nothing is cached yet.
fn cold_lists(phase: Phase, settings: &Settings) -> Vec<Vec<Arc<str>>> {
    if phase == Phase::ColdStart {
        return vec![vec![name(0)]; settings.clients];
    }
    let mut ids: Vec<_> = (0..settings.keys).map(name).collect();
    ids.shuffle(&mut StdRng::seed_from_u64(settings.seed));
    let groups = (settings.clients / ASKERS).max(1);
    let list = |group| ids.iter().skip(group).step_by(groups).cloned().collect();
    (0..settings.clients).map(|client| list(client / ASKERS % groups)).collect()
}

fn name(n: usize) -> Arc<str> {
    format!("product-{n}").into()
}
