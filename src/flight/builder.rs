//! Settings of a [`SingleFlight`].

use std::hash::Hash;
use std::marker::PhantomData;
use std::time::Duration;

use super::SingleFlight;
use super::core::{FlightConfig, Flights, OnAbandon};
use crate::error::{ConfigError, bounded, check_count, check_positive};

/// Settings of a [`SingleFlight`], from [`SingleFlight::builder`].
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::{OnAbandon, SingleFlight};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let flights: SingleFlight<u64, String> = SingleFlight::builder()
///     .load_timeout(Duration::from_secs(5))
///     .on_abandon(OnAbandon::Cancel)
///     .max_waiters_per_key(10_000)
///     .build()?;
/// # drop(flights); Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build()`"]
pub struct SingleFlightBuilder<K, V, E> {
    config: FlightConfig,
    of: PhantomData<fn(K) -> (V, E)>,
}

impl<K, V, E> SingleFlightBuilder<K, V, E> {
    pub(super) fn new() -> Self {
        Self { config: FlightConfig::default(), of: PhantomData }
    }

    /// How long a load may take before it is dropped and everyone who waits gets
    /// [`LoadError::TimedOut`](crate::LoadError::TimedOut). Default: `None`, no limit.
    ///
    /// It runs from the moment the load first has to wait, on the timers of the caller's Tokio runtime. A loader
    /// that blocks its thread cannot be stopped.
    pub fn load_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.load_timeout = limit.into().map(bounded);
        self
    }

    /// What happens to a load that nobody waits for any more. Default: [`OnAbandon::Detach`].
    pub fn on_abandon(mut self, what: OnAbandon) -> Self {
        self.config.on_abandon = what;
        self
    }

    /// How many loads may run with nobody waiting for them. Default: 64; 0 lets none go on.
    ///
    /// Clients that connect and vanish cannot lift the concurrency of the origin by more than this.
    pub fn max_abandoned(mut self, loads: usize) -> Self {
        self.config.max_abandoned = loads;
        self
    }

    /// How many keys may be in flight; a call for one more gets
    /// [`LoadError::Overloaded`](crate::LoadError::Overloaded) at once. Default: no limit.
    pub fn max_in_flight(mut self, keys: usize) -> Self {
        self.config.max_in_flight = keys;
        self
    }

    /// How many callers may wait for one key; one more gets
    /// [`LoadError::Overloaded`](crate::LoadError::Overloaded) at once. Default: no limit.
    ///
    /// The leader is not counted at first, and takes a place like any other once its load has to wait.
    pub fn max_waiters_per_key(mut self, callers: usize) -> Self {
        self.config.max_waiters_per_key = callers;
        self
    }

    /// The single-flight group.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that is out of its range: `load_timeout` must be more than 0 (more than
    /// 100 years count as 100 years), `max_in_flight` and `max_waiters_per_key` at least 1.
    pub fn build(self) -> Result<SingleFlight<K, V, E>, ConfigError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
        E: Send + Sync + 'static,
    {
        self.config.check()?;
        Ok(SingleFlight { flights: Flights::new(self.config, ()) })
    }
}

impl FlightConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if let Some(limit) = self.load_timeout {
            check_positive("load_timeout", limit)?;
        }
        check_count("max_in_flight", self.max_in_flight)?;
        check_count("max_waiters_per_key", self.max_waiters_per_key)?;
        Ok(())
    }
}
