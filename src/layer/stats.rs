//! Counts of what a guard did.

use crate::event::Striped;
use crate::flight::FlightStats;
use crate::sync::{AtomicU64, Ordering};

/// What a [`StampedeGuard`](crate::StampedeGuard) did since it was made: a snapshot.
///
/// ```
/// use stampede_guard::StampedeGuard;
///
/// let guard = StampedeGuard::new();
/// assert_eq!(guard.stats().hits, 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuardStats {
    /// Requests answered from the store, fresh.
    pub hits: u64,
    /// Requests answered from the store, stale.
    pub stale: u64,
    /// Requests answered with the response to another request that was under way.
    pub coalesced: u64,
    /// Requests whose own handler run was shared or could have been.
    pub led: u64,
    /// Requests that went straight through: another method, credentials, a body, and what else is never shared.
    pub passed: u64,
    /// Requests answered with what the handler of another instance brought, read from the tier they share. The next
    /// ones find it in this instance's own store.
    pub shared: u64,
    /// Requests that ran for themselves because responses under their key are each client's own.
    pub unshared: u64,
    /// Background refreshes started.
    pub refreshes: u64,
    /// Requests answered by the guard's own 5xx: nothing to serve, and the handler failed, was too slow, or too many
    /// waited.
    pub refused: u64,
    /// Request headers that make nearly every key unique.
    pub unique_headers: Vec<String>,
    /// Keys for which a handler run is under way that others may share.
    pub in_flight: usize,
    /// Responses stored, markers included.
    pub entries: u64,
    /// Bytes stored: bodies, headers and keys.
    pub bytes: u64,
    /// The gRPC methods that opted in and whose name no call had so far: misspelt, perhaps.
    #[cfg(feature = "grpc")]
    pub unmatched_methods: Vec<String>,
    /// Handler runs that were shared, and how they ended.
    pub flights: FlightStats,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: Striped,
    pub(super) stale: Count,
    pub(super) coalesced: Count,
    pub(super) led: Count,
    pub(super) passed: Count,
    pub(super) shared: Count,
    /// Flights that needed no handler run of this instance.
    #[cfg(feature = "redis")]
    pub(super) spared: Count,
    pub(super) unshared: Count,
    pub(super) refreshes: Count,
    pub(super) refused: Count,
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
