//! `StampedeGuard`, the layer value.

use std::sync::Arc;

use http::Uri;
use http::uri::PathAndQuery;
use tower::Layer;

use super::builder::StampedeGuardBuilder;
use super::guard::Guarded;
use super::service::GuardService;
use super::stats::GuardStats;
use crate::http::origin::Target;
use crate::invalidation::Invalidation;

/// A Tower layer that lets identical requests share one handler run.
///
/// Concurrent GETs (and HEADs) of one URL run the handler once. The response's `Cache-Control` is obeyed (RFC 9111);
/// a 200 that says nothing about freshness is kept for one second, less up to 10 %, and served for one second more
/// while one background run replaces it. So content is at most two seconds old, and a hot path costs its handler one
/// run a second.
///
/// It is safe where GET is safe (RFC 9110, section 9.2.1) and the answer depends on nothing but the URI, the request
/// headers in the key, which are all but a closed list, and those named in `Vary`. Requests with `Authorization`,
/// `Cookie` or a body go straight through, and so does everything but GET and HEAD. A response with `Set-Cookie`,
/// `private`, `no-store` or `no-cache` goes to nobody but the client whose request it answers.
///
/// A stale response with a validator is asked about, and a 304 makes it fresh again; conditional requests and single
/// ranges are answered from the store. The guard's own conditions are the only ones that a handler sees.
///
/// What it cannot see is an identity that is not in the request's headers: in its extensions, set by an outer layer;
/// in the connection, as with client certificates or peer addresses; in `x-forwarded-for` and other headers for the
/// client's address. Nor does it know that a URL answers differently each time, or that a client has to read its own
/// write within two seconds. For those: [`bypass_if`](StampedeGuardBuilder::bypass_if),
/// [`key_with`](StampedeGuardBuilder::key_with), [`coalesce_only`](Self::coalesce_only), or the layer on the routes
/// that suit.
///
/// The state lives in this value: a clone is a handle to the same store and flights, and however often `layer` is
/// called, its services share them. All of them must serve one URL space.
///
/// ```
/// use axum::{Router, extract::Path, routing::get};
/// use stampede_guard::StampedeGuard;
///
/// async fn product(Path(id): Path<u64>) -> String {
///     format!("product {id}")
/// }
///
/// let app: Router = Router::new().route("/products/{id}", get(product)).layer(StampedeGuard::new());
/// ```
///
/// # What each failure becomes
///
/// | the handler run | its own client | those who waited with it |
/// |---|---|---|
/// | inner service returns an error | that error, unchanged | stale if allowed, else 502 |
/// | panics | the panic | stale if allowed, else 500 |
/// | outlasts `load_timeout` | stale if allowed, else 504 | the same |
/// | answers 5xx | stale if allowed, else that answer | the same |
/// | body breaks off | a body error | a body error; 502 if they had no head yet |
/// | is dropped with its runtime | 503 | 503 |
///
/// A handler that runs for several clients runs in a task of its own, in a tracing span within that of the request
/// that started it; the spans of the requests that wait for it follow from it. Task-locals set by outer layers do not reach it.
#[derive(Clone, Debug)]
pub struct StampedeGuard {
    guard: Arc<Guarded>,
}

impl Default for StampedeGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl StampedeGuard {
    /// The guard with all its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::from_guarded(StampedeGuardBuilder::new().defaults())
    }

    /// A guard that stores nothing beyond the response's own word: a 200 that says nothing about freshness goes to
    /// those who wait for it and to nobody after them.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use stampede_guard::StampedeGuard;
    ///
    /// let app: Router = Router::new().route("/", get(|| async { "" })).layer(StampedeGuard::coalesce_only());
    /// ```
    #[must_use]
    pub fn coalesce_only() -> Self {
        Self::from_guarded(StampedeGuardBuilder::new().coalesce_only().defaults())
    }

    /// Settings, each with its default.
    pub fn builder() -> StampedeGuardBuilder {
        StampedeGuardBuilder::new()
    }

    pub(super) fn from_guarded(guard: Guarded) -> Self {
        Self { guard: Arc::new(guard) }
    }

    /// Drops everything that is stored. Handler runs under way serve those who wait for them and are not stored.
    ///
    /// On a tier (`StampedeGuardBuilder::redis`) the other instances do the same. Their part is under way when this
    /// returns; the handle tells when the tier has confirmed it, and may be dropped.
    ///
    /// ```
    /// # use stampede_guard::StampedeGuard;
    /// let guard = StampedeGuard::new();
    /// guard.invalidate_all();
    /// assert_eq!(guard.stats().entries, 0);
    /// ```
    #[allow(clippy::must_use_candidate)] // the handle may be dropped
    pub fn invalidate_all(&self) -> Invalidation {
        self.guard.invalidate_all()
    }

    /// Drops what is stored of one URL, all its variants. A URI without a host, such as `/products/7`, means that path
    /// and query on every host. Handler runs under way serve those who wait for them and are not stored.
    ///
    /// It is the URI as clients send it, byte for byte, before any router takes a prefix off. The other instances of a
    /// tier drop it on every host, and perhaps another URL that falls into the same of 16,384 groups; the handle is as
    /// that of [`invalidate_all`](Self::invalidate_all).
    ///
    /// # Errors
    ///
    /// What is no URI.
    ///
    /// ```
    /// # use stampede_guard::StampedeGuard;
    /// # fn main() -> Result<(), http::Error> {
    /// let guard = StampedeGuard::new();
    /// guard.invalidate("/products/7?size=l")?;
    /// guard.invalidate("https://shop.example/products/7")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn invalidate<U>(&self, uri: U) -> Result<Invalidation, http::Error>
    where
        U: TryInto<Uri>,
        U::Error: Into<http::Error>,
    {
        let uri = uri.try_into().map_err(Into::into)?;
        Ok(self.guard.invalidate(&Target {
            scheme: uri.scheme_str(),
            host: uri.authority().map_or(&[], |authority| authority.as_str().as_bytes()),
            path_and_query: uri.path_and_query().map_or("/", PathAndQuery::as_str),
        }))
    }

    /// Drops what was stored with `tag`, which handlers name in the
    /// [`tag_header`](StampedeGuardBuilder::tag_header). Handler runs under way that turn out to carry it serve those
    /// who wait for them and are not stored.
    ///
    /// Takes the same time however much carries the tag. Tags share 4,096 marks, so what carries another may be dropped
    /// along with it, at the price of a handler run. The handle is as that of [`invalidate_all`](Self::invalidate_all).
    pub fn invalidate_tag(&self, tag: impl AsRef<str>) -> Invalidation {
        self.guard.invalidate_tag(tag.as_ref().as_bytes())
    }

    /// The settings of this guard, to be changed for another that shares its store, flights and counts: other times or
    /// limits for some routes. What is the store's own, such as its size or clock, cannot be changed.
    ///
    /// A response is stored once, as the guard says whose handler run brought it. A request must mean the same to
    /// each guard that sees it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, routing::get};
    /// use stampede_guard::StampedeGuard;
    ///
    /// # fn main() -> Result<(), stampede_guard::ConfigError> {
    /// let guard = StampedeGuard::new();
    /// let patient = guard.derive().ttl(Duration::from_secs(60)).build()?;
    /// let app: Router = Router::new()
    ///     .route("/stock", get(|| async { "7" }).layer(guard.clone()))
    ///     .route("/catalogue", get(|| async { "..." }).layer(patient));
    /// guard.invalidate_all(); // both
    /// # drop(app); Ok(())
    /// # }
    /// ```
    pub fn derive(&self) -> StampedeGuardBuilder {
        StampedeGuardBuilder::derived(&self.guard)
    }

    /// What happened so far: a snapshot. Does the store's pending upkeep first.
    #[must_use]
    pub fn stats(&self) -> GuardStats {
        let counters = self.guard.counters();
        let (entries, bytes) = self.guard.shelf().size();
        GuardStats {
            hits: counters.hits.get(),
            stale: counters.stale.get(),
            coalesced: counters.coalesced.get(),
            led: counters.led.get(),
            passed: counters.passed.get(),
            shared: counters.shared.get(),
            unshared: counters.unshared.get(),
            refreshes: counters.refreshes.get(),
            refused: counters.refused.get(),
            unique_headers: self.guard.shared.uniques.names(),
            in_flight: self.guard.flights().in_flight(),
            entries,
            bytes,
            #[cfg(feature = "grpc")]
            unmatched_methods: Vec::new(),
            flights: self.guard.flight_stats(),
        }
    }
}

impl<S> Layer<S> for StampedeGuard {
    type Service = GuardService<S>;

    fn layer(&self, inner: S) -> GuardService<S> {
        GuardService::new(inner, Arc::clone(&self.guard))
    }
}
