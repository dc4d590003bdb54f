//! A model of a database that gets slower the more callers wait for it.
//!
//! A fixed number of connections serve all queries. A query on an idle database takes 5 to 10 ms; every other
//! query that runs or waits for a connection adds to that, as locks, buffers and schedulers do in a real one.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;

/// Connections in the pool.
pub(crate) const CONNECTIONS: usize = 16;
const BASE_MICROS: std::ops::RangeInclusive<u64> = 5_000..=10_000;
/// What one more query in the system costs every query.
const CONTENTION: Duration = Duration::from_micros(40);
/// Contention grows no further than this.
const CONTENTION_MAX: Duration = Duration::from_millis(40);

/// A product as the service shows it.
pub(crate) struct Product {
    pub(crate) id: String,
    pub(crate) price_cents: u32,
    pub(crate) in_stock: u32,
    /// When the database had read all of it.
    pub(crate) read_at: Instant,
}

/// The database did not answer a query.
#[derive(Debug)]
pub(crate) struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database is unavailable")
    }
}

impl std::error::Error for Unavailable {}

pub(crate) struct Database {
    connections: Semaphore,
    /// Queries that run or wait for a connection.
    queries: AtomicU32,
    failing: AtomicBool,
    rng: Mutex<StdRng>,
}

impl Database {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            connections: Semaphore::new(CONNECTIONS),
            queries: AtomicU32::new(0),
            failing: AtomicBool::new(false),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    /// From now on queries fail, or work again.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    /// Reads a product: its row, then its stock. Both queries queue for a connection.
    pub(crate) async fn product(&self, id: &str) -> Result<Product, Unavailable> {
        let price_cents = self.query().await?;
        let in_stock = self.query().await?;
        Ok(Product { id: id.to_owned(), price_cents, in_stock, read_at: Instant::now() })
    }

    /// One query, answered with some number. A query that fails has cost as much as one that works.
    async fn query(&self) -> Result<u32, Unavailable> {
        let _query = Counted::new(&self.queries);
        let _connection = self.connections.acquire().await.map_err(|_| Unavailable)?;
        let (takes, answer) = self.draw();
        tokio::time::sleep(takes).await;
        if self.failing.load(Ordering::SeqCst) { Err(Unavailable) } else { Ok(answer) }
    }

    fn draw(&self) -> (Duration, u32) {
        let mut rng = self.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let base = Duration::from_micros(rng.random_range(BASE_MICROS));
        let contention = CONTENTION.saturating_mul(self.queries.load(Ordering::SeqCst));
        (base + contention.min(CONTENTION_MAX), rng.random_range(0..10_000))
    }
}

/// Adds one to a gauge for as long as it lives.
pub(crate) struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    pub(crate) fn new(gauge: &'a AtomicU32) -> Self {
        gauge.fetch_add(1, Ordering::SeqCst);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
