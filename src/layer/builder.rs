//! Settings of a [`StampedeGuard`].

mod freshness;
mod keys;
mod limits;

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Once};
use std::time::Duration;

use http::HeaderName;

use super::budget::Budget;
#[cfg(feature = "grpc")]
use super::grpc::{GrpcMethod, GrpcStampedeGuard, check_methods};
use super::guard::{Guarded, OnWaitTimeout, Settings, Shared};
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
use crate::error::{ConfigError, check_count, check_positive};
use crate::flight::{FlightConfig, Flights};
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
    /// what is not, see [`GrpcStampedeGuard`]. A `POST` to the method in other words than gRPC, such as gRPC-Web, passes
    /// through and outdates nothing.
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
            unknown_bodies: Arc::new(Once::new()),
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
        Reply::Private(_) => 0,
    };
    u32::try_from(value.saturating_add(OVERHEAD + key.len() as u64)).unwrap_or(u32::MAX)
}
