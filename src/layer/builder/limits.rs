//! How long and how much, at most.

use std::time::Duration;

use super::super::guard::OnWaitTimeout;
use super::StampedeGuardBuilder;
use crate::error::bounded;

impl<G> StampedeGuardBuilder<G> {
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
    /// Bodies under way, and those that clients still read though they are not stored, hold as much again; beyond it a
    /// response goes to its own client alone, as fast as that reads. Like [`jitter`](Self::jitter), it is the store's.
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
}
