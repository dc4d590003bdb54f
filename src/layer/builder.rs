//! Settings of a [`StampedeGuard`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::request::Parts;

use super::guard::{Guarded, KeyExtra, Settings};
use super::page::{PageKey, Reply};
use super::stampede::StampedeGuard;
use super::stats::Counters;
use super::uniques::Uniques;
use crate::cache::{Shelf, ShelfConfig, StoreKind, check_jitter, check_life, check_window};
use crate::clock::{Clock, Timeline};
use crate::error::{ConfigError, check_count, check_positive};
use crate::flight::{FlightConfig, Flights};
use crate::http::rule::KeyRule;
use crate::http::verdict::HttpPolicy;
use crate::policy::Lifetime;
use crate::rng::Random;
use crate::sync::RandomState;

/// Settings of a [`StampedeGuard`], from [`StampedeGuard::builder`].
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::StampedeGuard;
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let guard = StampedeGuard::builder()
///     .ttl(Duration::from_secs(5))
///     .stale_while_revalidate(Duration::from_secs(10))
///     .stale_if_error(Duration::from_secs(300))
///     .build()?;
/// # drop(guard); Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until `build()`"]
pub struct StampedeGuardBuilder {
    settings: Settings,
    jitter: f64,
    max_stored_bytes: u64,
    flights: FlightConfig,
    clock: Option<Arc<dyn Clock>>,
    seed: Option<u64>,
    /// The first header name that is none.
    wrong_header: Option<(&'static str, String)>,
}

impl fmt::Debug for StampedeGuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StampedeGuardBuilder")
            .field("policy", &self.settings.policy)
            .field("jitter", &self.jitter)
            .finish_non_exhaustive()
    }
}

impl StampedeGuardBuilder {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings {
                rule: KeyRule::default(),
                policy: HttpPolicy {
                    default_ttl: Some(Duration::from_secs(1)),
                    default_swr: Duration::from_secs(1),
                    ..HttpPolicy::default()
                },
                load_timeout: Some(Duration::from_secs(30)),
                wait_timeout: None,
                max_body_bytes: 1024 * 1024,
                max_body_wait: Duration::from_millis(200),
                max_variants: 32,
                bypass: None,
                key_with: None,
            },
            jitter: 0.1,
            max_stored_bytes: 64 * 1024 * 1024,
            flights: FlightConfig {
                max_in_flight: 10_000,
                max_waiters_per_key: 65_536,
                ..FlightConfig::default()
            },
            clock: None,
            seed: None,
            wrong_header: None,
        }
    }

    /// How long a 200 is fresh that says nothing about freshness. Default: 1 s.
    ///
    /// What a response says itself counts for more: `s-maxage`, then `max-age`, then `Expires`.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.policy.default_ttl = Some(ttl);
        self
    }

    /// Stores nothing beyond the response's own word.
    pub fn coalesce_only(mut self) -> Self {
        self.settings.policy.default_ttl = None;
        self.settings.policy.default_swr = Duration::ZERO;
        self
    }

    /// The share of its lifetime by which a response's freshness is shortened at most, 0 to 1, so that responses
    /// stored together do not expire together. Default: 0.1.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// How long after its freshness a response is still served, at once, while one background run replaces it
    /// (RFC 5861, section 3). Default: 1 s for a response that says nothing about freshness, zero for others.
    ///
    /// A response's own `stale-while-revalidate` counts for more; `must-revalidate`, `proxy-revalidate` and
    /// `s-maxage` forbid it.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.settings.policy.default_swr = window;
        self.settings.policy.granted_swr = window;
        self
    }

    /// How long after its freshness a response is served if a handler run fails, answers 5xx, or is too slow
    /// (RFC 5861, section 4). Default: zero, not at all.
    ///
    /// A response's own `stale-if-error` counts for more; `must-revalidate`, `proxy-revalidate` and `s-maxage` forbid
    /// it. After a failure the next run waits, from 100 ms doubling to 30 s, while stale is served.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.settings.policy.stale_if_error = window;
        self
    }

    /// How long a handler that runs for several clients may take up to its response's head. Default: 30 s. `None` is
    /// no limit.
    ///
    /// The store waits as long for a body: with somebody reading, for each frame, and with nobody, for the end. A body
    /// that is slower is left to those who read it, and dropped if nobody does.
    pub fn load_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.settings.load_timeout = limit.into();
        self
    }

    /// How long a request waits for another's handler run before it gets a stale response, if allowed, or a 504.
    /// Default: `None`, as long as the run takes.
    pub fn wait_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.settings.wait_timeout = limit.into();
        self
    }

    /// Leaves a request header out of the key, beside the closed list that is left out anyway. `Vary` still counts it
    /// where a response names it.
    pub fn ignore_header(mut self, name: impl AsRef<str>) -> Self {
        if let Some(name) = self.header("ignore_header", name.as_ref()) {
            self.settings.rule = self.settings.rule.ignore_header(name);
        }
        self
    }

    /// Keys these request headers and no others, beside method, URI and `Host`. None at all, `key_headers([])`, is the
    /// classic key of a shared cache (RFC 9111, section 2): what else matters, the responses must say in `Vary`.
    ///
    /// Naming `authorization` or `cookie` makes requests that carry it take part, one key for each value.
    pub fn key_headers<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Vec<_> = names.into_iter().map(|name| self.header("key_headers", name)).collect();
        self.settings.rule = self.settings.rule.key_headers(names.into_iter().flatten());
        self
    }

    /// Puts `Authorization` and `Proxy-Authorization` into the key, which makes requests that carry them take part:
    /// each principal shares with itself alone. Responses marked `private` are still not shared.
    pub fn key_authorization(mut self) -> Self {
        self.settings.rule = self.settings.rule.key_authorization();
        self
    }

    /// Cookies that do not matter to any answer, say those of analytics. A request takes part if each of its cookies
    /// is named here or in [`key_cookies`](Self::key_cookies). The handler may see the cookies of one client while it
    /// answers several.
    pub fn ignore_cookies<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.settings.rule = self.settings.rule.ignore_cookies(names);
        self
    }

    /// Cookies that are part of the key, say a session's or a language's.
    pub fn key_cookies<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.settings.rule = self.settings.rule.key_cookies(names);
        self
    }

    /// Adds to the key what the request's headers do not show: an identity in its extensions, a tenant by peer
    /// address. Background refreshes carry the same extensions.
    pub fn key_with(mut self, key_with: impl Fn(&Parts, &mut KeyExtra) + Send + Sync + 'static) -> Self {
        self.settings.key_with = Some(Arc::new(key_with));
        self
    }

    /// Requests for which this is true go straight through.
    ///
    /// ```
    /// use stampede_guard::StampedeGuard;
    ///
    /// let guard = StampedeGuard::builder().bypass_if(|parts| parts.uri.path().starts_with("/me")).build();
    /// # assert!(guard.is_ok());
    /// ```
    pub fn bypass_if(mut self, bypass: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.settings.bypass = Some(Arc::new(bypass));
        self
    }

    /// The largest body that is shared or stored, in bytes. Default: 1 MiB. A larger one streams through.
    pub fn max_body_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_body_bytes = bytes;
        self
    }

    /// How long those who wait for a body of unknown length wait for its end before they run for themselves.
    /// Default: 200 ms; none for `text/event-stream`.
    pub fn max_body_wait(mut self, limit: Duration) -> Self {
        self.settings.max_body_wait = limit;
        self
    }

    /// What is stored at most, in bytes: bodies, headers and keys. Default: 64 MiB.
    pub fn max_stored_bytes(mut self, bytes: u64) -> Self {
        self.max_stored_bytes = bytes;
        self
    }

    /// How many keys may be in flight; a request for one more goes straight through. Default: 10,000.
    pub fn max_in_flight(mut self, keys: usize) -> Self {
        self.flights.max_in_flight = keys;
        self
    }

    /// How many requests may wait for one key; one more gets a stale response if there is one, else a 503.
    /// Default: 65,536.
    pub fn max_waiters_per_key(mut self, requests: usize) -> Self {
        self.flights.max_waiters_per_key = requests;
        self
    }

    /// How many variants of one key are stored, by what `Vary` names; one more takes the place of the one stored
    /// longest ago. Default: 32.
    pub fn max_variants(mut self, variants: usize) -> Self {
        self.settings.max_variants = variants;
        self
    }

    /// How many handlers may run with nobody waiting for them, and bodies come with nobody reading: for clients that
    /// went away, and background refreshes. Default: 64. Beyond it, a run that lost its clients is dropped and a
    /// refresh is left to a later request.
    pub fn max_abandoned(mut self, runs: usize) -> Self {
        self.flights.max_abandoned = runs;
        self
    }

    /// Where the store's time comes from. Default: Tokio's clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Makes jitter repeatable. Default: random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    fn header(&mut self, field: &'static str, name: &str) -> Option<HeaderName> {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        if parsed.is_none() && self.wrong_header.is_none() {
            self.wrong_header = Some((field, name.to_owned()));
        }
        parsed
    }

    /// The guard.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that is out of its range: `ttl`, `load_timeout` and `wait_timeout` must be
    /// more than 0 and at most 100 years, the stale windows and `max_body_wait` at most 100 years, `jitter` from 0 to
    /// 1, `max_body_bytes`, `max_stored_bytes`, `max_in_flight`, `max_waiters_per_key` and `max_variants` at least 1,
    /// header names as in RFC 9110, section 5.1.
    pub fn build(self) -> Result<StampedeGuard, ConfigError> {
        if let Some((field, name)) = self.wrong_header {
            return Err(ConfigError::new(field, name, "header names: letters, digits and !#$%&'*+-.^_`|~"));
        }
        let policy = &self.settings.policy;
        check_life(&Lifetime {
            ttl: policy.default_ttl.unwrap_or(Duration::from_secs(1)),
            stale_while_revalidate: policy.default_swr.max(policy.granted_swr),
            stale_if_error: policy.stale_if_error,
        })?;
        check_jitter(self.jitter)?;
        for (field, limit) in
            [("load_timeout", self.settings.load_timeout), ("wait_timeout", self.settings.wait_timeout)]
        {
            limit.map(|limit| check_positive(field, limit)).transpose()?;
        }
        check_window("max_body_wait", self.settings.max_body_wait)?;
        for (field, bytes) in
            [("max_body_bytes", self.settings.max_body_bytes), ("max_stored_bytes", self.max_stored_bytes)]
        {
            if bytes == 0 {
                return Err(ConfigError::new(field, bytes, "at least 1"));
            }
        }
        check_count("max_variants", self.settings.max_variants)?;
        self.flights.check()?;
        Ok(StampedeGuard::from_guarded(self.defaults()))
    }

    /// The guard with settings that are known to be in range.
    pub(super) fn defaults(self) -> Guarded {
        let shelf = Shelf::new(ShelfConfig {
            store: StoreKind::Moka,
            capacity: self.max_stored_bytes,
            weigher: Some(Box::new(weigh)),
            listener: None,
            timeline: Timeline::new(self.clock),
            random: Random::new(self.seed),
            jitter: self.jitter,
            early: None,
        });
        Guarded {
            settings: self.settings,
            // The time-out of a handler run ends at its response's head, which the flight does not see.
            flights: Flights::new(self.flights, shelf),
            counters: Counters::default(),
            uniques: Uniques::default(),
            hasher: RandomState::new(),
        }
    }
}

/// The bytes of an entry, with what the maps need for it.
#[allow(clippy::ptr_arg)]
fn weigh(key: &PageKey, reply: &Reply) -> u32 {
    const OVERHEAD: u64 = 256;
    let value = match reply {
        Reply::Page(page, _) => page.weight(),
        Reply::Varies(signpost) => signpost.weight(),
        Reply::Private => 0,
    };
    u32::try_from(value.saturating_add(OVERHEAD + key.len() as u64)).unwrap_or(u32::MAX)
}
