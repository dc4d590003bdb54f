//! `GrpcStampedeGuard`, the layer value.

use std::sync::Arc;

use http::Uri;
use tower::Layer;

use super::methods::{GrpcMethod, Methods};
use super::service::GrpcGuardService;
use crate::invalidation::Invalidation;
use crate::layer::guard::Guarded;
use crate::layer::stampede::StampedeGuard;
use crate::layer::stats::GuardStats;

/// A [`StampedeGuard`] that also shares unary gRPC calls, of the methods that opted in, from
/// [`grpc_method`](crate::StampedeGuardBuilder::grpc_method).
///
/// Concurrent calls that say the same run the handler once, and its reply is kept for the method's `ttl`. Other methods
/// pass through untouched, streaming ones and unknown ones included, and HTTP requests fare as with a [`StampedeGuard`]
/// of the same settings; both share one store, one set of limits and one set of counts.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::StampedeGuard;
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let guard = StampedeGuard::builder()
///     .ttl(Duration::from_secs(5))
///     .grpc_method("/inventory.Inventory/GetStock")
///     .build()?;
/// // tonic::transport::Server::builder().layer(guard).add_service(..)
/// let app: axum::Router = axum::Router::new().layer(guard);
/// # drop(app); Ok(())
/// # }
/// ```
///
/// # Which calls say the same
///
/// Those with the same path, authority and message bytes, and the same metadata but for a closed list: `grpc-timeout`,
/// `grpc-previous-rpc-attempts`, tracing and request ids, `user-agent` and the like. An unknown entry such as
/// `x-tenant` splits them. Messages are compared as they were sent: compressed ones are others than plain ones, and so
/// are two encodings of one protobuf message that differ in the order of fields. A caller gets a reply in the encoding
/// that was chosen for another who can read the same ones.
///
/// Calls with `authorization` metadata pass through, unless
/// [`key_authorization`](crate::StampedeGuardBuilder::key_authorization) puts it into the key. So do calls whose key,
/// message included, is longer than 8 KiB, and those that are not one message. Nothing in a call's head says that it is
/// unary: a method that streams should not be named, and does work if it is, the later by up to ten seconds where its
/// caller waits to hear something before it says more.
///
/// # What is shared, what is stored
///
/// Metadata, message and trailers, to the byte. Only a reply with one message and `grpc-status: 0` in its trailers is
/// stored; `cache-control` in its metadata counts as in HTTP. An error goes to those who wait for it and to nobody
/// after them; with [`stale_if_error`](GrpcMethod::stale_if_error), an old reply stands in for `UNKNOWN`,
/// `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `INTERNAL` and `UNAVAILABLE`. A reply without a status broke off: nobody
/// but its own caller gets it. A reply that is not complete within
/// [`max_body_wait`](crate::StampedeGuardBuilder::max_body_wait) of its head streams to its own caller.
///
/// # What a caller is told
///
/// The guard's own refusals are gRPC statuses. `grpc-timeout` bounds the wait of its own caller, from the head
/// of its call on, who gets `DEADLINE_EXCEEDED` a little earlier, by a tenth and at most 20 ms, so that it arrives, or an
/// old reply if one may stand in; the call goes on for the others and never learns of it. Too many waiters:
/// `RESOURCE_EXHAUSTED`, with `grpc-retry-pushback-ms` and a `google.rpc.RetryInfo` of one second. A call that took longer than `load_timeout`: `DEADLINE_EXCEEDED`. A handler
/// that failed without a status, whose reply broke off, or that was dropped with its runtime: `UNAVAILABLE` to those who
/// waited. A panic: `INTERNAL`.
#[derive(Clone, Debug)]
pub struct GrpcStampedeGuard {
    http: StampedeGuard,
    methods: Arc<Methods>,
}

impl GrpcStampedeGuard {
    pub(in crate::layer) fn from_guarded(guard: Guarded, methods: Vec<(String, GrpcMethod)>) -> Self {
        let methods = Arc::new(Methods::new(&guard, methods));
        Self { http: StampedeGuard::from_guarded(guard), methods }
    }

    /// Drops everything that is stored, see [`StampedeGuard::invalidate_all`].
    #[allow(clippy::must_use_candidate)] // the handle may be dropped
    pub fn invalidate_all(&self) -> Invalidation {
        self.http.invalidate_all()
    }

    /// Drops what is stored of one URL, or of one method, `/package.Service/Method`: the replies to all its calls. See
    /// [`StampedeGuard::invalidate`].
    ///
    /// # Errors
    ///
    /// What is no URI.
    ///
    /// ```
    /// # use stampede_guard::StampedeGuard;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guard = StampedeGuard::builder().grpc_method("/inventory.Inventory/GetStock").build()?;
    /// guard.invalidate("/inventory.Inventory/GetStock")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn invalidate<U>(&self, uri: U) -> Result<Invalidation, http::Error>
    where
        U: TryInto<Uri>,
        U::Error: Into<http::Error>,
    {
        self.http.invalidate(uri)
    }

    /// Drops what was stored with `tag`, see [`StampedeGuard::invalidate_tag`]. Handlers name tags in the metadata of a
    /// reply, under the name of the [`tag_header`](crate::StampedeGuardBuilder::tag_header).
    pub fn invalidate_tag(&self, tag: impl AsRef<str>) -> Invalidation {
        self.http.invalidate_tag(tag)
    }

    /// What happened so far, calls and HTTP requests together: a snapshot. Does the store's pending upkeep first.
    #[must_use]
    pub fn stats(&self) -> GuardStats {
        GuardStats { unmatched_methods: self.methods.unmatched(), ..self.http.stats() }
    }
}

impl<S> Layer<S> for GrpcStampedeGuard {
    type Service = GrpcGuardService<S>;

    fn layer(&self, inner: S) -> GrpcGuardService<S> {
        GrpcGuardService::new(self.http.layer(inner), Arc::clone(&self.methods))
    }
}
