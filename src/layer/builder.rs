//! Settings of a [`StampedeGuard`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::request::Parts;

use super::budget::Budget;
#[cfg(feature = "grpc")]
use super::grpc::{GrpcMethod, GrpcStampedeGuard, check_methods};
use super::guard::{Guarded, KeyExtra, OnWaitTimeout, Settings, Shared};
use super::page::{PageKey, Reply};
use super::stampede::StampedeGuard;
use super::stats::Counters;
#[cfg(feature = "redis")]
use super::tier::Tiered;
use super::uniques::Uniques;
use super::writes::Writes;
use crate::cache::{Shelf, ShelfConfig, StoreKind, check_jitter};
use crate::clock::{Clock, Timeline};
#[cfg(feature = "redis")]
use crate::coordinate::SharedTier;
#[cfg(feature = "redis")]
use crate::error::check_name;
use crate::error::{ConfigError, bounded, check_count, check_positive};
use crate::flight::{FlightConfig, Flights};
use crate::http::cache_status::CacheName;
use crate::http::rule::KeyRule;
use crate::http::verdict::HttpPolicy;
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
///
/// `G` is what [`build`](Self::build) gives.
#[must_use = "a builder does nothing until `build()`"]
pub struct StampedeGuardBuilder<G = StampedeGuard> {
    settings: Settings,
    jitter: f64,
    max_stored_bytes: u64,
    flights: FlightConfig,
    clock: Option<Arc<dyn Clock>>,
    seed: Option<u64>,
    /// The first setting that says something impossible.
    wrong: Option<ConfigError>,
    /// The store of the guard that this one is derived from.
    shared: Option<Shared>,
    #[cfg(feature = "grpc")]
    methods: Vec<(String, GrpcMethod)>,
    #[cfg(feature = "redis")]
    name: Option<Arc<str>>,
    #[cfg(feature = "redis")]
    tier: Option<SharedTier>,
    builds: PhantomData<fn() -> G>,
}

impl<G> fmt::Debug for StampedeGuardBuilder<G> {
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
                on_wait_timeout: OnWaitTimeout::default(),
                jitter: None,
                honors_clients: false,
                cache_name: None,
                tag_header: None,
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
            wrong: None,
            shared: None,
            #[cfg(feature = "grpc")]
            methods: Vec::new(),
            #[cfg(feature = "redis")]
            name: None,
            #[cfg(feature = "redis")]
            tier: None,
            builds: PhantomData,
        }
    }

    /// The settings of a guard, whose store the new one shares.
    pub(super) fn derived(guard: &Guarded) -> Self {
        let settings = guard.settings.clone();
        Self { settings, shared: Some(guard.shared.clone()), ..Self::new() }
    }

    /// The guard.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that is out of its range: `ttl`, `load_timeout` and `wait_timeout` must be
    /// more than 0, `jitter` from 0 to 1, `heuristic_freshness` more than 0 and at most 1, `max_body_bytes`,
    /// `max_stored_bytes`, `max_in_flight`, `max_waiters_per_key` and `max_variants` at least 1, header names as in
    /// RFC 9110, section 5.1, the name for `cache_status` printable ASCII. `share_authorized` and `key_authorization`
    /// exclude each other. What is the store's is not set on a derived guard. A time of more than 100 years counts as
    /// 100 years.
    pub fn build(self) -> Result<StampedeGuard, ConfigError> {
        Ok(StampedeGuard::from_guarded(self.checked()?.defaults()))
    }
}

#[cfg(feature = "grpc")]
impl StampedeGuardBuilder<GrpcStampedeGuard> {
    /// The guard, for HTTP and for the gRPC methods that were named.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], as for a [`StampedeGuard`]; also where a method's name is no full path, or its settings are out
    /// of the same ranges.
    pub fn build(self) -> Result<GrpcStampedeGuard, ConfigError> {
        check_methods(&self.methods)?;
        let mut checked = self.checked()?;
        let methods = std::mem::take(&mut checked.methods);
        Ok(GrpcStampedeGuard::from_guarded(checked.defaults(), methods))
    }
}

impl<G> StampedeGuardBuilder<G> {
    /// Shares the calls of a unary gRPC method as well: named by its full path, `/package.Service/Method`, or with all
    /// others of its service, `/package.Service/*`. Its times are those of this guard. Called again, it adds another.
    ///
    /// Name methods that only read: one call runs for several callers, and its reply is given again. What is shared and
    /// what is not, see [`GrpcStampedeGuard`].
    ///
    /// ```
    /// use stampede_guard::StampedeGuard;
    ///
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let guard = StampedeGuard::builder().grpc_method("/inventory.Inventory/GetStock").build()?;
    /// # drop(guard); Ok(())
    /// # }
    /// ```
    #[cfg(feature = "grpc")]
    pub fn grpc_method(self, path: impl Into<String>) -> StampedeGuardBuilder<GrpcStampedeGuard> {
        self.grpc_method_with(path, GrpcMethod::new())
    }

    /// Like [`grpc_method`](Self::grpc_method), with times of its own.
    #[cfg(feature = "grpc")]
    pub fn grpc_method_with(
        mut self,
        path: impl Into<String>,
        method: GrpcMethod,
    ) -> StampedeGuardBuilder<GrpcStampedeGuard> {
        self.methods.push((path.into(), method));
        StampedeGuardBuilder {
            settings: self.settings,
            jitter: self.jitter,
            max_stored_bytes: self.max_stored_bytes,
            flights: self.flights,
            clock: self.clock,
            seed: self.seed,
            wrong: self.wrong,
            shared: self.shared,
            methods: self.methods,
            #[cfg(feature = "redis")]
            name: self.name,
            #[cfg(feature = "redis")]
            tier: self.tier,
            builds: PhantomData,
        }
    }

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
    /// It is the store's: a guard that is [derived](StampedeGuard::derive) from another cannot set it.
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
    /// stored. Default: off.
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
    /// with commas or spaces between them, for [`invalidate_tag`](StampedeGuard::invalidate_tag). It is taken out of
    /// every response. Default: none.
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

    /// How long a handler that runs for several clients may take up to its response's head. Default: 30 s. `None` is
    /// no limit.
    ///
    /// The store waits as long for a body: with somebody reading, for each frame, and with nobody, for the end. A body
    /// that is slower is left to those who read it, and dropped if nobody does.
    pub fn load_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.settings.load_timeout = limit.into().map(bounded);
        self
    }

    /// How long a request waits for another's handler run before it gets a stale response, if allowed, or what
    /// [`on_wait_timeout`](Self::on_wait_timeout) says. Default: `None`, as long as the run takes.
    pub fn wait_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.settings.wait_timeout = limit.into().map(bounded);
        self
    }

    /// What a request gets after [`wait_timeout`](Self::wait_timeout) where nothing stale may be served. Default:
    /// [`OnWaitTimeout::Refuse`], a 504.
    pub fn on_wait_timeout(mut self, what: OnWaitTimeout) -> Self {
        self.settings.on_wait_timeout = what;
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

    /// Lets requests with `Authorization` share responses whose `Cache-Control` says `public`, `s-maxage` or
    /// `must-revalidate`, with each other and with requests without it (RFC 9111, section 3.5). The key does not hold the
    /// credentials. All other responses to such requests go to their own client alone. Default: false, they go straight
    /// through; [`key_authorization`](Self::key_authorization) is the way to share a principal's responses with that
    /// principal, and the two exclude each other.
    ///
    /// # Danger
    ///
    /// This believes those directives. A handler or framework that puts `public` or `s-maxage` on every response, as
    /// many do by default, hands what it made for one user to all others, and to those it has not admitted: who sends no
    /// credentials, or wrong ones, gets what is stored without the handler being asked. Turn it on only where every
    /// response that says so is the same for everybody. A background refresh carries the `Authorization` of the request
    /// that triggered it, after that request has its answer.
    pub fn share_authorized(mut self, share: bool) -> Self {
        self.settings.rule = self.settings.rule.share_authorized(share);
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
        self.settings.max_body_wait = bounded(limit);
        self
    }

    /// What is stored at most, in bytes: bodies, headers and keys. Default: 64 MiB.
    ///
    /// Bodies under way, which others may be reading, hold as much again at most; beyond it a response goes to its
    /// own client alone. Like [`jitter`](Self::jitter), it is the store's.
    pub fn max_stored_bytes(mut self, bytes: u64) -> Self {
        self.of_the_store("max_stored_bytes", &bytes);
        self.max_stored_bytes = bytes;
        self
    }

    /// How many keys may be in flight; a request for one more goes straight through. Default: 10,000. Like
    /// [`jitter`](Self::jitter), it is the store's.
    pub fn max_in_flight(mut self, keys: usize) -> Self {
        self.of_the_store("max_in_flight", &keys);
        self.flights.max_in_flight = keys;
        self
    }

    /// How many requests may wait for one key; one more gets a stale response if there is one, else a 503.
    /// Default: 65,536. Like [`jitter`](Self::jitter), it is the store's.
    pub fn max_waiters_per_key(mut self, requests: usize) -> Self {
        self.of_the_store("max_waiters_per_key", &requests);
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
    /// refresh is left to a later request. Like [`jitter`](Self::jitter), it is the store's.
    pub fn max_abandoned(mut self, runs: usize) -> Self {
        self.of_the_store("max_abandoned", &runs);
        self.flights.max_abandoned = runs;
        self
    }

    /// Where the store's time comes from. Default: Tokio's clock. Like [`jitter`](Self::jitter), it is the store's.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.of_the_store("clock", &"another");
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Makes jitter repeatable. Default: random. Like [`jitter`](Self::jitter), it is the store's.
    pub fn seed(mut self, seed: u64) -> Self {
        self.of_the_store("seed", &seed);
        self.seed = Some(seed);
        self
    }

    /// What the guard is called on a [tier](Self::redis), where it is part of every key. 1 to 64 of `A-Z`, `a-z`,
    /// `0-9`, `_`, `-` and `.`. Default: `http`, where the tier's namespace is your own; on one of the default
    /// namespace a name is needed.
    ///
    /// Guards share pages if they have the same name and the same rule for keys. Give those that have not the same
    /// handlers behind them names of their own, and change the name when
    /// [`key_with`](Self::key_with) or [`bypass_if`](Self::bypass_if) tell apart what they did not before.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        self.of_the_store("name", &name);
        self.name = Some(name);
        self
    }

    /// Shares handler runs, pages and invalidations with the instances of the service whose guards have the same
    /// [`name`](Self::name) on the same tier: of all requests in all instances that want one page, one runs its handler.
    /// Default: none. Like [`jitter`](Self::jitter), it is the store's.
    ///
    /// The other instances get a page once its body is complete, read it from the tier, with its age, and keep it
    /// for as long as it says, asking again after
    /// [`local_ttl_cap`](crate::RedisConfig::local_ttl_cap). Without the tier each instance goes on alone.
    ///
    /// A response that goes to its own client alone, or is not stored, never enters the tier, and nor does one whose
    /// key holds credentials, or whose body is larger than
    /// [`max_value_bytes`](crate::RedisConfig::max_value_bytes): other instances that wait for it run their own
    /// handlers as soon as its head tells. A page's whole key lies beside it, with the values of all request headers in
    /// it, so keep the tier as private as the service's own memory. See `docs/redis.md`.
    ///
    /// ```no_run
    /// use stampede_guard::{RedisConfig, RedisTier, StampedeGuard};
    ///
    /// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = RedisConfig { namespace: "shop".into(), ..RedisConfig::default() };
    /// let tier = RedisTier::connect("redis://localhost", config).await?;
    /// let guard = StampedeGuard::builder().name("pages").redis(tier).build()?;
    /// # drop(guard); Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn redis(mut self, tier: impl Into<SharedTier>) -> Self {
        let tier = tier.into();
        self.of_the_store("redis", &tier);
        self.tier = Some(tier);
        self
    }

    #[cfg(feature = "redis")]
    fn check_tier(&self) -> Result<(), ConfigError> {
        if let Some(name) = &self.name {
            return check_name("name", name);
        }
        if self.tier.as_ref().is_some_and(|tier| !tier.0.has_own_namespace()) {
            // Something has to tell its pages from those of other services on the same server.
            const NEEDED: &str = "set for a guard on a tier of the default namespace";
            return Err(ConfigError::new("name", &self.name, NEEDED));
        }
        Ok(())
    }

    fn header(&mut self, field: &'static str, name: &str) -> Option<HeaderName> {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
        if parsed.is_none() {
            const ALLOWED: &str = "header names: letters, digits and !#$%&'*+-.^_`|~";
            self.is_wrong(ConfigError::new(field, name, ALLOWED));
        }
        parsed
    }

    fn is_wrong(&mut self, error: ConfigError) {
        self.wrong.get_or_insert(error);
    }

    /// A setting that all who share a store have in common.
    fn of_the_store(&mut self, field: &'static str, given: &dyn fmt::Debug) {
        if self.shared.is_some() {
            self.is_wrong(ConfigError::new(field, given, "set on the guard that this one is derived from"));
        }
    }

    /// The same, if all of it is in range.
    fn checked(self) -> Result<Self, ConfigError> {
        if let Some(error) = self.wrong {
            return Err(error);
        }
        let policy = &self.settings.policy;
        for (field, time) in [
            ("ttl", policy.default_ttl),
            ("load_timeout", self.settings.load_timeout),
            ("wait_timeout", self.settings.wait_timeout),
        ] {
            time.map(|time| check_positive(field, time)).transpose()?;
        }
        check_jitter(self.jitter)?;
        if let Some(share) = policy.heuristic
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(ConfigError::new("heuristic_freshness", share, "more than 0 and at most 1"));
        }
        for (field, bytes) in
            [("max_body_bytes", self.settings.max_body_bytes), ("max_stored_bytes", self.max_stored_bytes)]
        {
            if bytes == 0 {
                return Err(ConfigError::new(field, bytes, "at least 1"));
            }
        }
        if self.settings.rule.contradicts_itself() {
            const APART: &str = "false where `authorization` is in the key";
            return Err(ConfigError::new("share_authorized", true, APART));
        }
        check_count("max_variants", self.settings.max_variants)?;
        self.flights.check()?;
        #[cfg(feature = "redis")]
        self.check_tier()?;
        Ok(self)
    }

    /// The guard with settings that are known to be in range.
    pub(super) fn defaults(self) -> Guarded {
        if let Some(shared) = self.shared {
            return Guarded { settings: self.settings, shared };
        }
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
        // The time-out of a handler run ends at its response's head, which the flight does not see.
        let flights = Flights::new(self.flights, shelf);
        #[cfg(feature = "redis")]
        let tier =
            self.tier.map(|tier| Tiered::join(tier, self.name.unwrap_or_else(|| "http".into()), &flights));
        let shared = Shared {
            flights,
            counters: Arc::new(Counters::default()),
            uniques: Arc::new(Uniques::default()),
            budget: Budget::new(self.max_stored_bytes),
            writes: Arc::new(Writes::default()),
            hasher: RandomState::new(),
            #[cfg(feature = "redis")]
            tier,
        };
        Guarded { settings: self.settings, shared }
    }
}

/// The bytes of an entry, with what the maps need for it.
#[allow(clippy::ptr_arg)]
fn weigh(key: &PageKey, reply: &Reply) -> u32 {
    const OVERHEAD: u64 = 256;
    let value = match reply {
        Reply::Page(page, _) | Reply::Checked(page) => page.weight(),
        Reply::Varies(signpost) => signpost.weight(),
        Reply::Private => 0,
    };
    u32::try_from(value.saturating_add(OVERHEAD + key.len() as u64)).unwrap_or(u32::MAX)
}
