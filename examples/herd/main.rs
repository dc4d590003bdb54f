//! A herd of real HTTP clients against a real axum server, without and then with the guard.
//!
//! ```text
//! cargo run --release --example herd
//! ```
//!
//! The server's handler asks a small connection pool in front of a database that gets slower the more queries
//! wait for it. Without the guard the service has what most services have: a plain cache with a ttl. With the
//! guard it has `StampedeGuard` with the same ttl instead. Four phases run both ways; the handler counts its
//! runs for each key. The command ends with a table, and with exit code 1 if the guard broke a promise.

mod client;
mod database;
mod phases;
mod report;
mod server;

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::phases::{Phase, Runtimes, Settings};
use crate::report::{Comparison, Progress};

/// Drives a herd of HTTP clients against an axum server, without and with stampede-guard, and compares.
///
/// Ends with exit code 1 if the guard broke a promise, and 2 if the herd could not run.
#[derive(Parser)]
#[command(name = "herd")]
struct Arguments {
    /// Clients, each with one connection; needs about two file descriptors a client
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(2..=20_000))]
    clients: u32,

    /// Different URLs in the phase of many cold keys
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,

    /// Seconds of each timed phase; there are four
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    duration: u64,

    /// Seed for the clients' choices and the database's times
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Writes the results to this file, too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match herd(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("herd: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs everything; false if the guard broke a promise.
fn herd(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    check_descriptors(arguments.clients)?;
    let settings = Settings {
        clients: arguments.clients as usize,
        keys: arguments.keys as usize,
        duration: Duration::from_secs(arguments.duration),
        seed: arguments.seed,
    };
    // Opened before the run: a path that cannot be written should not cost anyone the results.
    let json_file = match &arguments.json {
        Some(path) => {
            Some(File::create(path).map_err(|error| format!("--json {}: {error}", path.display()))?)
        }
        None => None,
    };

    let runtimes = Runtimes::new()?;
    let progress = Progress::new(2 * Phase::ALL.len() as u64);
    let mut comparisons = Vec::new();
    for (n, phase) in (0_u64..).zip(Phase::ALL) {
        progress.begin(2 * n, &format!("{}, without the guard", phase.name()));
        let without = phases::run(phase, false, &settings, &runtimes, &progress)?;
        progress.begin(2 * n + 1, &format!("{}, with the guard", phase.name()));
        let with = phases::run(phase, true, &settings, &runtimes, &progress)?;
        comparisons.push(Comparison::new(phase, &settings, without, with));
    }
    progress.end();

    println!("{}", report::table(&settings, &comparisons));
    if let Some(mut file) = json_file {
        writeln!(file, "{:#}", report::json(&settings, &comparisons))?;
    }
    let broken: Vec<_> = comparisons.iter().flat_map(Comparison::broken).collect();
    for promise in &broken {
        println!("BROKEN PROMISE: {promise}");
    }
    if broken.is_empty() {
        println!("The guard kept every promise.");
    }
    Ok(broken.is_empty())
}

/// Both ends of each connection are in this process. Where the limit cannot be read, opening the connections
/// will tell.
fn check_descriptors(clients: u32) -> Result<(), String> {
    let needed = u64::from(clients) * 2 + 64;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = limit.and_then(|limits| limits.split_whitespace().next()?.parse::<u64>().ok());
    match limit {
        Some(limit) if limit < needed => Err(format!(
            "{clients} clients need about {needed} file descriptors and the limit is {limit}: \
             lower --clients or raise the limit with `ulimit -n {needed}`"
        )),
        _ => Ok(()),
    }
}
