//! One slow call for many callers who want the same thing at the same time.
//!
//! ```text
//! cargo run --example single_flight
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stampede_guard::{LoadError, Role, SingleFlight};
use tokio::task::JoinSet;

const CALLERS: u32 = 1_000;

/// Stands for any slow source. It counts what it is asked.
#[derive(Default)]
struct Users {
    queries: AtomicU32,
}

impl Users {
    async fn name(&self, id: u32) -> Result<String, io::Error> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if id == 404 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no such user"));
        }
        Ok(format!("user {id}"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let users = Arc::new(Users::default());
    let flights: SingleFlight<u32, String, io::Error> = SingleFlight::new();

    println!("{CALLERS} callers ask for user 7 at once; the source takes 100 ms.");
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (flights, users) = (flights.clone(), users.clone());
        callers.spawn(async move { flights.run_detailed(7, || async move { users.name(7).await }).await });
    }
    let (mut leaders, mut followers) = (0, 0);
    while let Some(answer) = callers.join_next().await {
        if answer??.role == Role::Leader {
            leaders += 1;
        } else {
            followers += 1;
        }
    }
    println!(
        "  queries: {}, own run: {leaders}, joined: {followers}, all served after {:?}",
        users.queries.load(Ordering::Relaxed),
        started.elapsed()
    );

    println!("The first caller gives up after 20 ms. Its load goes on for the caller who joined it.");
    let load = |id: u32| {
        let users = users.clone();
        move || async move { users.name(id).await }
    };
    let impatient = tokio::time::timeout(Duration::from_millis(20), flights.run(8, load(8)));
    let (gave_up, patient) = tokio::join!(impatient, flights.run(8, load(8)));
    println!("  first caller: {:?}, second caller: {:?}", gave_up.is_err().then_some("gave up"), patient?);

    println!("An error is one run, too, and every caller has the same one.");
    let (one, other) = tokio::join!(flights.run(404, load(404)), flights.run(404, load(404)));
    match (one, other) {
        (Err(LoadError::Failed(one)), Err(LoadError::Failed(other))) => {
            println!("  {one:?}, the same error for both: {}", Arc::ptr_eq(&one, &other));
        }
        other => return Err(format!("expected two errors, got {other:?}").into()),
    }

    println!(
        "In all: {} queries, {} saved, {} flights left.",
        users.queries.load(Ordering::Relaxed),
        flights.stats().coalesced,
        flights.in_flight()
    );
    Ok(())
}
