//! What is kept, for how long, and what is told of it.

use std::time::Duration;

use super::StampedeGuardBuilder;
use crate::error::{ConfigError, bounded};
use crate::http::cache_status::CacheName;

impl<G> StampedeGuardBuilder<G> {
    /// How long a 200 is fresh that says nothing about freshness. Default: 1 s.
    ///
    /// What a response says itself counts for more: `s-maxage`, then `max-age`, then `Expires`.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.policy.default_ttl = Some(bounded(ttl));
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
    ///
    /// It is the store's: a guard that is [derived](crate::StampedeGuard::derive) from another cannot set it.
    pub fn jitter(mut self, share: f64) -> Self {
        self.of_the_store("jitter", &share);
        self.jitter = share;
        self
    }

    /// How long after its freshness a response is still served, at once, while one background run replaces it
    /// (RFC 5861, section 3). Default: 1 s for a response that says nothing about freshness, zero for others.
    ///
    /// A response's own `stale-while-revalidate` counts for more; `must-revalidate`, `proxy-revalidate` and
    /// `s-maxage` forbid it. [`max_stale_while_revalidate`](Self::max_stale_while_revalidate) caps both.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.settings.policy.default_swr = bounded(window);
        self.settings.policy.granted_swr = bounded(window);
        self
    }

    /// How long after its freshness a response is served if a handler run fails, answers 5xx, or is too slow
    /// (RFC 5861, section 4). Default: zero, not at all.
    ///
    /// A response's own `stale-if-error` counts for more; `must-revalidate`, `proxy-revalidate` and `s-maxage` forbid
    /// it. After a failure the next run waits, from 100 ms doubling to 30 s, while stale is served.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.settings.policy.stale_if_error = bounded(window);
        self
    }

    /// The longest that a response may be served stale while it is refreshed, whoever says so, itself included.
    /// Default: `None`, as long as it says.
    pub fn max_stale_while_revalidate(mut self, most: impl Into<Option<Duration>>) -> Self {
        self.settings.policy.max_swr = most.into().map(bounded);
        self
    }

    /// The longest that a response may be served stale because of a failure, whoever says so, itself included.
    /// Default: `None`, as long as it says.
    pub fn max_stale_if_error(mut self, most: impl Into<Option<Duration>>) -> Self {
        self.settings.policy.max_sie = most.into().map(bounded);
        self
    }

    /// Guesses how long a response is fresh that says nothing about it: for this share of the time since its
    /// `Last-Modified`, more than 0 to 1, and at most a day (RFC 9111, section 4.2.2, which suggests 0.1). Default:
    /// `None`, no guess.
    ///
    /// It applies to the statuses that allow it (200, 203, 204, 300, 301, 308, 404, 405, 410, 414 and 501) and, where
    /// the response says `public`, to all. A 200 without `Last-Modified` is kept for [`ttl`](Self::ttl).
    pub fn heuristic_freshness(mut self, share: impl Into<Option<f64>>) -> Self {
        self.settings.policy.heuristic = share.into();
        self
    }

    /// Reads the cache directives for this guard from a response field of their own, such as `CDN-Cache-Control`
    /// (RFC 9213). Where a response has a valid one, `Cache-Control`, `Expires` and `Pragma` have no say. Called again,
    /// it adds a field that is looked at if none of those before it is there. Default: none.
    ///
    /// ```
    /// use stampede_guard::StampedeGuard;
    ///
    /// let guard = StampedeGuard::builder().targeted_cache_control("CDN-Cache-Control").build();
    /// # assert!(guard.is_ok());
    /// ```
    pub fn targeted_cache_control(mut self, field: impl AsRef<str>) -> Self {
        if let Some(name) = self.header("targeted_cache_control", field.as_ref()) {
            self.settings.policy.targeted.push(name);
        }
        self
    }

    /// Whether the `Cache-Control` of requests counts: `no-cache`, `max-age` and `min-fresh` ask for a newer response
    /// than others get, `max-stale` allows an older one (RFC 9111, section 5.2.1). Default: false, since a client can
    /// then make the handler run whenever it likes. One run a key is under way at most, whoever asks.
    ///
    /// `no-store` and `only-if-cached` are heeded in any case. A response that forbids stale service is never served
    /// stale.
    pub fn honor_client_directives(mut self, honor: bool) -> Self {
        self.settings.honors_clients = honor;
        self
    }

    /// Adds `Cache-Status` to responses, with this name for the guard (RFC 9211): whether it was a hit and for how
    /// much longer, why a request went on to the handler otherwise, whether it shared a run, whether the response is
    /// stored. An answer of the guard's own says why in `detail`: `too-slow`, `failed`, `panicked`, `too-many-waiters`,
    /// `cancelled`, `not-stored` or `no-key`. Default: off.
    ///
    /// ```
    /// use stampede_guard::StampedeGuard;
    ///
    /// let guard = StampedeGuard::builder().cache_status("shop").build();
    /// # assert!(guard.is_ok());
    /// ```
    pub fn cache_status(mut self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        self.settings.cache_name = CacheName::new(name);
        if self.settings.cache_name.is_none() {
            self.is_wrong(ConfigError::new("cache_status", name, "a name of printable ASCII"));
        }
        self
    }

    /// The response field in which handlers name the tags of what they return, such as `Cache-Tag` or `Surrogate-Key`,
    /// with commas or spaces between them, for [`invalidate_tag`](crate::StampedeGuard::invalidate_tag). It is taken out
    /// of every response. Default: none.
    ///
    /// ```
    /// use stampede_guard::StampedeGuard;
    ///
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let guard = StampedeGuard::builder().tag_header("Cache-Tag").build()?;
    /// guard.invalidate_tag("shoes");
    /// # Ok(())
    /// # }
    /// ```
    pub fn tag_header(mut self, name: impl AsRef<str>) -> Self {
        self.settings.tag_header = self.header("tag_header", name.as_ref());
        self
    }
}
