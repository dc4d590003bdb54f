//! The methods that opted in, by name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::cache::check_jitter;
use crate::error::{ConfigError, bounded, check_positive};
use crate::http::grpc::method::{is_name, service_of};
use crate::layer::guard::{Guarded, Settings};

/// How one gRPC method, or all of one service, differ from the rest of a guard. What is not set is as the guard's.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::{GrpcMethod, StampedeGuard};
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let prices = GrpcMethod::new().ttl(Duration::from_secs(60)).stale_if_error(Duration::from_secs(600));
/// let guard = StampedeGuard::builder()
///     .grpc_method("/inventory.Inventory/GetStock")
///     .grpc_method_with("/inventory.Inventory/GetPrice", prices)
///     .build()?;
/// # drop(guard); Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct GrpcMethod {
    ttl: Option<Duration>,
    stale_while_revalidate: Option<Duration>,
    stale_if_error: Option<Duration>,
    jitter: Option<f64>,
    load_timeout: Option<Duration>,
    coalesce_only: bool,
}

impl GrpcMethod {
    /// Like the rest of the guard.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a reply is fresh whose metadata do not say so in `cache-control`. Default: the guard's
    /// [`ttl`](crate::StampedeGuardBuilder::ttl), 1 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(bounded(ttl));
        self.coalesce_only = false;
        self
    }

    /// How long after its freshness a reply is still served, at once, while one background call replaces it. Default:
    /// the guard's, 1 s.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.stale_while_revalidate = Some(bounded(window));
        self
    }

    /// How long after its freshness a reply is served in place of the status `UNKNOWN`, `DEADLINE_EXCEEDED`,
    /// `RESOURCE_EXHAUSTED`, `INTERNAL` or `UNAVAILABLE`. Default: the guard's, not at all.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = Some(bounded(window));
        self
    }

    /// The share of its lifetime by which a reply's freshness is shortened at most, 0 to 1. Default: the guard's, 0.1.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = Some(share);
        self
    }

    /// How long a call may take that is made for several callers, up to the head of its reply. Default: the guard's,
    /// 30 s.
    pub fn load_timeout(mut self, limit: Duration) -> Self {
        self.load_timeout = Some(bounded(limit));
        self
    }

    /// Shares replies with those who wait for them, and stores only those that say how long they are fresh.
    pub fn coalesce_only(mut self) -> Self {
        self.coalesce_only = true;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.ttl.map(|ttl| check_positive("ttl", ttl)).transpose()?;
        self.load_timeout.map(|limit| check_positive("load_timeout", limit)).transpose()?;
        self.jitter.map(check_jitter).transpose()?;
        Ok(())
    }

    /// The guard's settings, for calls of this method.
    fn settings(&self, of_guard: &Settings) -> Settings {
        let mut settings = of_guard.clone();
        settings.rule = settings.rule.for_calls();
        // Nothing is added to a reply.
        settings.cache_name = None;
        settings.honors_clients = false;
        settings.jitter = self.jitter.or(settings.jitter);
        settings.load_timeout = self.load_timeout.or(settings.load_timeout);
        let policy = &mut settings.policy;
        policy.default_ttl = self.ttl.or(policy.default_ttl);
        if self.coalesce_only {
            policy.default_ttl = None;
        }
        if let Some(window) = self.stale_while_revalidate {
            (policy.default_swr, policy.granted_swr) = (window, window);
        }
        policy.stale_if_error = self.stale_if_error.unwrap_or(policy.stale_if_error);
        settings
    }
}

/// Whether names and settings are in range.
pub(in crate::layer) fn check_methods(methods: &[(String, GrpcMethod)]) -> Result<(), ConfigError> {
    for (name, method) in methods {
        if !is_name(name) {
            const ALLOWED: &str =
                "a full path: /package.Service/Method, or /package.Service/* for all of a service";
            return Err(ConfigError::new("grpc_method", name, ALLOWED));
        }
        method.check()?;
    }
    Ok(())
}

/// After this many calls of any method, a name that none of them had is spoken of.
const ENOUGH: usize = 100;

/// The methods of a guard.
#[derive(Debug)]
pub(super) struct Methods {
    /// By path; those that stand for a service, by its part of the path.
    by_path: HashMap<String, Method>,
    calls: AtomicUsize,
}

#[derive(Debug)]
struct Method {
    guard: Arc<Guarded>,
    has_matched: AtomicBool,
}

impl Methods {
    /// A name that comes twice means what it meant last.
    pub(super) fn new(guard: &Guarded, methods: Vec<(String, GrpcMethod)>) -> Self {
        let by_path = methods
            .into_iter()
            .map(|(mut name, method)| {
                if name.ends_with('*') {
                    name.pop();
                }
                let settings = method.settings(&guard.settings);
                let guard = Arc::new(Guarded { settings, shared: guard.shared.clone() });
                (name, Method { guard, has_matched: AtomicBool::new(false) })
            })
            .collect();
        Self { by_path, calls: AtomicUsize::new(0) }
    }

    /// The guard of a call's method, if that opted in. Its own name counts for more than its service's.
    pub(super) fn find(&self, path: &str) -> Option<&Arc<Guarded>> {
        let of_service = || self.by_path.get(service_of(path)?);
        let method = self.by_path.get(path).or_else(of_service);
        // Read first: on a hot path, nobody else's copy of it is made void.
        if let Some(method) = method
            && !method.has_matched.load(Ordering::Relaxed)
        {
            method.has_matched.store(true, Ordering::Relaxed);
        }
        method.map(|method| &method.guard)
    }

    /// Counts a call, of whatever method.
    pub(super) fn count(&self) {
        if self.calls.load(Ordering::Relaxed) < ENOUGH
            && self.calls.fetch_add(1, Ordering::Relaxed) + 1 == ENOUGH
        {
            for method in self.unmatched() {
                tracing::warn!(
                    method,
                    "no call so far had this name, so nothing of it is shared: \
                     compare what grpc_method() was given with the package, service and method in the .proto file"
                );
            }
        }
    }

    /// The names that no call had yet, sorted.
    pub(super) fn unmatched(&self) -> Vec<String> {
        let unmatched = self.by_path.iter().filter(|(_, method)| !method.has_matched.load(Ordering::Relaxed));
        let star = |path: &str| if path.ends_with('/') { "*" } else { "" };
        let mut names: Vec<_> = unmatched.map(|(path, _)| format!("{path}{}", star(path))).collect();
        names.sort_unstable();
        names
    }
}
