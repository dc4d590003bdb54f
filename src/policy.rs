//! Freshness: what an entry's times say at a moment. Pure; no clock and no randomness of its own.
//!
//! An entry is fresh until `fresh_until`. From there two windows run side by side, as in RFC 5861: within the
//! first it is served while a background load replaces it, within the second it is served if a load fails. It
//! is dead after the later of the two.

use std::time::Duration;

use crate::clock::{Tick, nanos};

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

impl Lifetime {
    /// Without stale windows.
    pub(crate) const fn fresh_for(ttl: Duration) -> Self {
        Self { ttl, stale_while_revalidate: Duration::ZERO, stale_if_error: Duration::ZERO }
    }

    /// True if a value has a use after its freshness.
    pub(crate) fn has_windows(&self) -> bool {
        !(self.stale_while_revalidate.is_zero() && self.stale_if_error.is_zero())
    }
}

/// A time to live with its jitter, which only ever shortens: uniform in `[ttl * (1 - jitter), ttl]`, with `random` uniform
/// in `[0, 1)`.
#[inline]
pub(crate) fn shortened(ttl: Duration, jitter: f64, random: f64) -> Duration {
    let ttl = nanos(ttl);
    // In nanoseconds, which are cheaper to scale than a `Duration`. What jitter takes away is rounded down.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
    let cut = (ttl as f64 * (jitter * random)) as u64;
    Duration::from_nanos(ttl.saturating_sub(cut))
}

/// The moments of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) stored: Tick,
    /// How old it was then, in another instance.
    before: Duration,
    pub(crate) fresh_until: Tick,
    /// The same for all instances, where this one asks the others sooner. Early refreshes go by it: a load before it, and
    /// not a question.
    ends: Tick,
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
    /// The times of an entry stored now, its time to live [`shortened`].
    pub(crate) fn new(now: Tick, life: &Lifetime, jitter: f64, random: f64, cost: Duration) -> Self {
        let fresh_until = now.after(shortened(life.ttl, jitter, random));
        Self {
            stored: now,
            before: Duration::ZERO,
            fresh_until,
            ends: fresh_until,
            revalidate_until: fresh_until.after(life.stale_while_revalidate),
            error_until: fresh_until.after(life.stale_if_error),
            cost,
            retry_at: Tick(0),
            failures: 0,
        }
    }

    /// The times of one that is `age` old already, and fresh for so long from when it was stored here.
    #[cfg(feature = "redis")]
    #[must_use]
    pub(crate) fn shared(self, age: Duration, fresh_for: Duration) -> Self {
        Self { before: age, ends: self.stored.after(fresh_for), ..self }
    }

    /// The time since it was stored, in whichever instance.
    pub(crate) fn age(&self, now: Tick) -> Duration {
        self.before + now.since(self.stored)
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
        let left = self.ends.since(now).as_secs_f64();
        match early {
            EarlyRefresh::XFetch { beta } => {
                // 1 - [0, 1) is (0, 1], whose logarithm is finite.
                self.cost.as_secs_f64() * beta * -(1.0 - random()).ln() >= left
            }
            EarlyRefresh::Fraction(share) => left <= self.age(self.ends).as_secs_f64() * (1.0 - share),
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

    /// True while it may stand in for a load that failed or is slow.
    pub(crate) fn covers_failure(&self, now: Tick) -> bool {
        now < self.error_until
    }

    /// True after its last use.
    pub(crate) fn is_dead(&self, now: Tick) -> bool {
        now >= self.fresh_until && now >= self.revalidate_until && now >= self.error_until
    }
}

#[cfg(test)]
#[allow(clippy::unchecked_time_subtraction)] // a test that fails panics all the same
mod tests {
    use super::*;

    const NANO: Duration = Duration::from_nanos(1);
    const TTL: Duration = Duration::from_secs(10);
    const START: Tick = Tick(1_000);

    /// A small generator (splitmix64): millions of draws, the same each time.
    struct Draws(u64);

    impl Draws {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^ (bits >> 31)
        }

        /// Uniform in `[0, 1)`.
        #[allow(clippy::cast_precision_loss)]
        fn unit(&mut self) -> f64 {
            (self.next() >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    /// The greatest number below 1 that a generator draws.
    const ALMOST_ONE: f64 = 1.0 - f64::EPSILON / 2.0;

    fn entry(revalidate: u64, if_error: u64, cost: Duration) -> Times {
        let life = Lifetime {
            ttl: TTL,
            stale_while_revalidate: Duration::from_secs(revalidate),
            stale_if_error: Duration::from_secs(if_error),
        };
        Times::new(START, &life, 0.0, 0.5, cost)
    }

    /// The verdict `after` the entry was stored, where chance must not decide.
    fn judged(times: &Times, after: Duration) -> Freshness {
        times.judge(START.after(after), None, || unreachable!("chance was asked"))
    }

    #[test]
    fn each_verdict_holds_from_its_edge_to_the_next() {
        let fresh = Freshness::Fresh;
        let (stale, if_error) = (Freshness::Stale { refresh: true }, Freshness::IfError { load: true });
        let secs = Duration::from_secs;
        for (revalidate, error, edges) in [
            (0, 0, vec![(secs(0), fresh), (TTL, Freshness::Dead)]),
            (3, 0, vec![(secs(0), fresh), (TTL, stale), (secs(13), Freshness::Dead)]),
            (0, 7, vec![(secs(0), fresh), (TTL, if_error), (secs(17), Freshness::Dead)]),
            (3, 7, vec![(secs(0), fresh), (TTL, stale), (secs(13), if_error), (secs(17), Freshness::Dead)]),
            (7, 3, vec![(secs(0), fresh), (TTL, stale), (secs(17), Freshness::Dead)]),
            (5, 5, vec![(secs(0), fresh), (TTL, stale), (secs(15), Freshness::Dead)]),
        ] {
            let times = entry(revalidate, error, Duration::ZERO);
            for (at, &(from, verdict)) in edges.iter().enumerate() {
                assert_eq!(judged(&times, from), verdict);
                let last = edges.get(at + 1).map_or(Duration::MAX, |&(next, _)| next - NANO);
                assert_eq!(judged(&times, last), verdict, "{last:?}");
                for moment in [from, last] {
                    let now = START.after(moment);
                    assert_eq!(times.is_dead(now), verdict == Freshness::Dead);
                    assert_eq!(times.covers_failure(now), moment < TTL + secs(error));
                }
            }
            assert_eq!(times.judge(Tick(0), None, || unreachable!()), fresh, "a clock that went backwards");
        }
    }

    #[test]
    fn while_it_backs_off_nothing_is_loaded_but_for_a_dead_entry() {
        let times = entry(3, 7, TTL).failed(START.after(TTL), 0.0);
        let pause = BACKOFF_START;
        assert_eq!(judged(&times, TTL), Freshness::Stale { refresh: false });
        assert_eq!(judged(&times, TTL + pause - NANO), Freshness::Stale { refresh: false });
        assert_eq!(judged(&times, TTL + pause), Freshness::Stale { refresh: true });
        let later = Duration::from_secs(15);
        let times = times.failed(START.after(later), 0.0);
        assert_eq!(judged(&times, later + 2 * pause - NANO), Freshness::IfError { load: false });
        assert_eq!(judged(&times, later + 2 * pause), Freshness::IfError { load: true });
        let end = TTL + Duration::from_secs(7);
        let times = times.failed(START.after(end - NANO), 0.0);
        assert_eq!(judged(&times, end), Freshness::Dead);
        // And no early refresh of a fresh entry either.
        let times = entry(0, 0, TTL).failed(START, 0.0);
        let early = Some(EarlyRefresh::Fraction(0.001));
        let at = |after| times.judge(START.after(after), early, || unreachable!());
        assert_eq!(at(pause - NANO), Freshness::Fresh);
        assert_eq!(at(pause), Freshness::RefreshEarly);
    }

    #[test]
    fn pauses_double_from_a_tenth_of_a_second_to_half_a_minute_and_chance_only_shortens_them() {
        let millis = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
        for (random, least) in [(0.0, 1.0), (0.5, 0.875), (ALMOST_ONE, 0.75)] {
            let mut times = entry(3, 7, Duration::ZERO);
            for pause in millis.map(Duration::from_millis) {
                times = times.failed(START, random);
                assert_eq!(times.retry_at.since(START), pause.mul_f64(least));
            }
        }
        let mut times = entry(3, 7, Duration::ZERO);
        times.failures = u32::MAX - 1;
        for _ in 0..3 {
            times = times.failed(Tick(u64::MAX), 0.0);
            assert_eq!(times.retry_at, Tick(u64::MAX));
        }
    }

    #[test]
    fn jitter_is_uniform_between_the_shortest_and_the_whole_ttl() {
        const BINS: usize = 50;
        const DRAWS: u32 = 50_000;
        let life = Lifetime { ttl: TTL, stale_while_revalidate: TTL, stale_if_error: 2 * TTL };
        for jitter in [0.1, 0.5, 1.0] {
            let lifetime = |random| {
                let times = Times::new(START, &life, jitter, random, Duration::ZERO);
                assert_eq!(times.revalidate_until.since(times.fresh_until), TTL, "windows are not jittered");
                assert_eq!(times.error_until.since(times.fresh_until), 2 * TTL);
                times.fresh_until.since(START)
            };
            let shortest = TTL.mul_f64(1.0 - jitter);
            assert_eq!(lifetime(0.0), TTL);
            assert!(lifetime(ALMOST_ONE) >= shortest && lifetime(ALMOST_ONE) <= shortest + NANO);
            let (mut draws, mut bins) = (Draws(7), [0_u32; BINS]);
            for _ in 0..DRAWS {
                let fresh = lifetime(draws.unit());
                assert!((shortest..=TTL).contains(&fresh));
                let share = (fresh - shortest).as_secs_f64() / (TTL - shortest).as_secs_f64();
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss
                )]
                let bin = ((share * BINS as f64) as usize).min(BINS - 1);
                bins[bin] += 1;
            }
            let expected = f64::from(DRAWS / 50);
            let chi_square: f64 = bins.map(|n| (f64::from(n) - expected).powi(2) / expected).iter().sum();
            // 49 degrees of freedom: one in a thousand uniform samples lies above 85.4, one below 23.98.
            assert!((23.98..85.4).contains(&chi_square), "{jitter}: {chi_square}");
        }
        assert_eq!(Times::new(START, &life, 0.0, ALMOST_ONE, NANO).fresh_until.since(START), TTL);
    }

    #[test]
    fn times_at_the_end_of_the_scale_do_not_wrap() {
        let most = crate::error::MAX_DURATION;
        let life = Lifetime { ttl: most, stale_while_revalidate: most, stale_if_error: most };
        let times = Times::new(Tick(u64::MAX - 1), &life, 0.0, 0.0, most);
        assert_eq!(times.judge(Tick(u64::MAX - 1), None, || 0.0), Freshness::Fresh);
        assert_eq!(times.judge(Tick(u64::MAX), None, || 0.0), Freshness::Dead);
        let early = Some(EarlyRefresh::XFetch { beta: 1_000.0 });
        assert_eq!(times.judge(Tick(0), early, || ALMOST_ONE), Freshness::RefreshEarly);
    }

    #[test]
    fn a_fraction_refreshes_from_that_share_of_the_freshness_on() {
        let times = entry(0, 0, Duration::ZERO);
        let early = Some(EarlyRefresh::Fraction(0.75));
        let at = |after| times.judge(START.after(after), early, || unreachable!());
        assert_eq!(at(Duration::ZERO), Freshness::Fresh);
        assert_eq!(at(TTL * 3 / 4 - NANO), Freshness::Fresh);
        assert_eq!(at(TTL * 3 / 4), Freshness::RefreshEarly);
        assert_eq!(at(TTL - NANO), Freshness::RefreshEarly);
        assert_eq!(at(TTL), Freshness::Dead);
    }

    #[test]
    fn xfetch_follows_its_formula() {
        let cost = Duration::from_secs(1);
        let early = |beta| Some(EarlyRefresh::XFetch { beta });
        let at = |times: Times, left: f64, beta, random| {
            times.judge(START.after(TTL - Duration::from_secs_f64(left)), early(beta), || random)
        };
        let times = entry(0, 0, cost);
        for beta in [0.5, 1.0, 2.0] {
            for random in [0.1, 0.5, 0.9] {
                let lead = -beta * f64::ln(1.0 - random);
                assert_eq!(at(times, lead + 1e-6, beta, random), Freshness::Fresh);
                assert_eq!(at(times, lead - 1e-6, beta, random), Freshness::RefreshEarly);
            }
        }
        assert_eq!(at(times, 1e-9, 1_000.0, 0.0), Freshness::Fresh, "the least draw never refreshes early");
        let unmeasured = entry(0, 0, Duration::ZERO);
        assert_eq!(at(unmeasured, 1e-9, 1_000.0, ALMOST_ONE), Freshness::Fresh);
    }

    /// Calls come at random, `rate` a second on average, and whoever is told to refreshes, until the first refresh
    /// is done. Gives the number of refreshes and how long before the expiry the first began, in seconds.
    fn expiry(draws: &mut Draws, beta: f64, cost: Duration, rate: f64) -> (u32, f64) {
        let times = entry(0, 0, cost);
        let scale = beta * cost.as_secs_f64();
        // Before this, one expiry in three thousand sees a refresh.
        let mut left = scale * ((rate * scale).ln() + 8.0);
        assert!(left < TTL.as_secs_f64());
        let (mut refreshes, mut first) = (0, f64::NEG_INFINITY);
        loop {
            left += (1.0 - draws.unit()).ln() / rate;
            if left < first - cost.as_secs_f64() {
                return (refreshes, first);
            }
            let early = Some(EarlyRefresh::XFetch { beta });
            let after = TTL.as_secs_f64() - left;
            match times.judge(START.after(Duration::from_secs_f64(after)), early, || draws.unit()) {
                Freshness::Fresh => {}
                _ if refreshes == 0 => (refreshes, first) = (1, left),
                _ => refreshes += 1,
            }
        }
    }

    /// While many calls come during one load (`rate * beta * cost` well above `e^(1/beta)`, so that the herd of
    /// early refreshes is over before the expiry), the published means hold.
    #[test]
    fn xfetch_refreshes_as_often_and_as_early_as_published() {
        const EULER: f64 = 0.577_215_664_9;
        const EXPIRIES: u32 = 1_500;
        let mut draws = Draws(42);
        for beta in [0.5, 1.0, 2.0] {
            let cost = Duration::from_millis(100);
            let rate = 200.0 / (beta * cost.as_secs_f64());
            let (mut refreshes, mut earliness) = (0, 0.0);
            for _ in 0..EXPIRIES {
                let (count, first) = expiry(&mut draws, beta, cost, rate);
                refreshes += count;
                earliness += first;
            }
            let scale = beta * cost.as_secs_f64();
            let mean = f64::from(refreshes) / f64::from(EXPIRIES);
            let published = (1.0 / beta).exp();
            assert!((mean / published - 1.0).abs() < 0.1, "{mean} refreshes, not {published}");
            let mean = earliness / f64::from(EXPIRIES);
            let published = scale * ((rate * scale).ln() + EULER);
            assert!((mean / published - 1.0).abs() < 0.1, "{mean} s early, not {published}");
        }
    }
}
