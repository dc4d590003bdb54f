//! Counts of what a tier did.

use crate::event;
use crate::sync::{AtomicU64, Ordering};

/// What a [`RedisTier`](crate::RedisTier) did since it was made: a snapshot, of this instance alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisStats {
    /// True while callers go on without Redis.
    pub circuit_open: bool,
    /// True while events arrive.
    pub subscribed: bool,
    /// Operations sent on behalf of callers; the connections' own upkeep is not counted.
    pub operations: u64,
    /// Operations that got no answer in time.
    pub timeouts: u64,
    /// Operations that Redis answered with an error.
    pub errors: u64,
    /// Connections made for commands, the first ones included; those for events are not counted.
    pub connections: u64,
    /// Leases taken.
    pub leases: u64,
    /// Values published.
    pub published: u64,
    /// Values not published since something newer was known of their keys.
    pub superseded: u64,
    /// Values not published since they are too large or of the kind that is kept local.
    pub kept_local: u64,
    /// Values in Redis that were not what they should be, and were loaded anew.
    pub malformed: u64,
    /// Invalidations that Redis has not confirmed yet.
    pub pending_invalidations: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) operations: Count,
    pub(super) timeouts: Count,
    pub(super) errors: Count,
    pub(super) connections: Count,
    pub(super) leases: Count,
    pub(super) published: Count,
    pub(super) superseded: Count,
    pub(super) kept_local: Count,
    pub(super) malformed: Count,
}

impl Counters {
    pub(super) fn timed_out(&self) {
        self.timeouts.add();
        event::count_redis_error("timeout");
    }

    /// The connection broke under an operation.
    pub(super) fn broken(&self) {
        self.errors.add();
        event::count_redis_error("connection");
    }

    /// Redis answered with an error.
    pub(super) fn refused(&self) {
        self.errors.add();
        event::count_redis_error("refused");
    }

    pub(super) fn malformed(&self) {
        self.malformed.add();
        event::count_redis_error("malformed");
    }

    pub(super) fn published(&self) {
        self.published.add();
        event::count_publication("ok");
    }

    pub(super) fn superseded(&self) {
        self.superseded.add();
        event::count_publication("superseded");
    }

    pub(super) fn kept_local(&self) {
        self.kept_local.add();
        event::count_publication("local");
    }
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
