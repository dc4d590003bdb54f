//! Freshness: what an entry's times say at a moment. Pure; no clock and no randomness of its own.
//!
//! An entry is fresh until `fresh_until`. From there two windows run side by side, as in RFC 5861: within the
//! first it is served while a background load replaces it, within the second it is served if a load fails. It
//! is dead after the later of the two.

use std::time::Duration;

use crate::clock::Tick;

/// When a fresh entry is already refreshed in the background, so that it never expires under load.
///
/// ```
/// use stampede_guard::{EarlyRefresh, StampedeCache};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let cache: StampedeCache<u64, u64> =
///     StampedeCache::builder().early_refresh(EarlyRefresh::XFetch { beta: 1.0 }).build()?;
/// # drop(cache); Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum EarlyRefresh {
    /// With a probability that rises towards expiry, the earlier the longer a load takes: the first call for
    /// which `now - cost * beta * ln(random) >= fresh_until` refreshes.
    ///
    /// Source: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
    XFetch {
        /// More than 1 refreshes earlier, less than 1 later. More than 0, at most 1,000.
        beta: f64,
    },
    /// By the first call after this share of the entry's freshness lifetime, more than 0 and less than 1.
    Fraction(f64),
}

/// What a load's result is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) ttl: Duration,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
}

/// The moments of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) stored: Tick,
    pub(crate) fresh_until: Tick,
    revalidate_until: Tick,
    error_until: Tick,
    /// What the load took; zero if nobody measured it.
    cost: Duration,
    /// No load before this one, after failures.
    retry_at: Tick,
    failures: u32,
}

/// What may be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// Serve, and refresh in the background.
    RefreshEarly,
    /// Serve; refresh in the background if `refresh`.
    Stale {
        refresh: bool,
    },
    /// Serve if a load fails; without a load if not even one is due.
    IfError {
        load: bool,
    },
    Dead,
}

/// The first pause after a failed refresh.
const BACKOFF_START: Duration = Duration::from_millis(100);
/// The longest pause.
const BACKOFF_CAP: Duration = Duration::from_secs(30);

impl Times {
    /// The times of an entry stored now. Jitter only ever shortens: the freshness lifetime is uniform in
    /// `[ttl * (1 - jitter), ttl]`, with `random` uniform in `[0, 1)`.
    pub(crate) fn new(now: Tick, life: &Lifetime, jitter: f64, random: f64, cost: Duration) -> Self {
        let fresh_until = now.after(life.ttl.mul_f64(1.0 - jitter * random).min(life.ttl));
        Self {
            stored: now,
            fresh_until,
            revalidate_until: fresh_until.after(life.stale_while_revalidate),
            error_until: fresh_until.after(life.stale_if_error),
            cost,
            retry_at: Tick(0),
            failures: 0,
        }
    }

    /// `random` is uniform in `[0, 1)`, and asked only where chance decides.
    pub(crate) fn judge(
        &self,
        now: Tick,
        early: Option<EarlyRefresh>,
        random: impl FnOnce() -> f64,
    ) -> Freshness {
        if now < self.fresh_until {
            return match early {
                Some(early) if now >= self.retry_at && self.is_early(now, early, random) => {
                    Freshness::RefreshEarly
                }
                _ => Freshness::Fresh,
            };
        }
        let due = now >= self.retry_at;
        if now < self.revalidate_until {
            Freshness::Stale { refresh: due }
        } else if now < self.error_until {
            Freshness::IfError { load: due }
        } else {
            Freshness::Dead
        }
    }

    fn is_early(&self, now: Tick, early: EarlyRefresh, random: impl FnOnce() -> f64) -> bool {
        let left = self.fresh_until.since(now).as_secs_f64();
        match early {
            EarlyRefresh::XFetch { beta } => {
                // 1 - [0, 1) is (0, 1], whose logarithm is finite.
                self.cost.as_secs_f64() * beta * -(1.0 - random()).ln() >= left
            }
            EarlyRefresh::Fraction(share) => {
                left <= self.fresh_until.since(self.stored).as_secs_f64() * (1.0 - share)
            }
        }
    }

    /// The same entry after a failed load: the next is due after a pause that doubles with each failure from
    /// 100 ms to 30 s, shortened by up to a quarter at random so that keys that failed together do not all come
    /// back together.
    #[must_use]
    pub(crate) fn failed(mut self, now: Tick, random: f64) -> Self {
        let pause = BACKOFF_START.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_CAP);
        self.retry_at = now.after(pause.mul_f64(1.0 - random / 4.0));
        self.failures = self.failures.saturating_add(1);
        self
    }

    /// True after its last use.
    pub(crate) fn is_dead(&self, now: Tick) -> bool {
        now >= self.fresh_until && now >= self.revalidate_until && now >= self.error_until
    }
}
